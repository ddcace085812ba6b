/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * valed - VALE in user space
 *
 * THEORY OF OPERATION
 *
 * One control thread (this file's loop) and a few workers. The control thread listens, opens and closes ports, answers QMP;
 * it never touches a frame. The workers forward and never wait for it.
 *
 *   program, QEMU          netmap.sock       attach.c --> port_ring.c (makes region, kick, call)    control thread
 *   valemgr, valectl       qmp.sock          qmp.c    --> query.c, control.c, switch_commands.c
 *   unmodified QEMU        a socket a port   endpoint.c -> vhost_user.c, vhost_dev.c; port_stream.c
 *                                                 |
 *                                            port.c, vswitch.c: ports join and leave switches
 *   - - - - - - - - - - - - - - - - - - - - - - - | - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - -
 *   TX ring of vale1:a --> port_ring.c ingress -> forward.c: learn, look up, -> port_ring.c egress --> RX ring of vale1:b
 *                            worker.c             per destination (fdb.c)                                    workers
 *                                                 offload.c: what the receiver lacks
 *                            line.c: frames of a port that is impaired stay here for a while, on both sides of forward.c
 *
 * Monitors (monitor.c) get copies of frames beside this path, by the same worker.
 *
 * The other kinds of port (port_vhost.c, port_stream.c, port_tap.c, port_null.c) take the place of port_ring.c.
 *
 * Where to read on: port.h (what a port is, and its life), worker.h (who polls what, and when memory may be freed),
 * forward.h (two passes over a batch), ../include/vale_proto.h (what is shared with clients).
 */
#include "main.h"

#include "activation.h"
#include "attach.h"
#include "call.h"
#include "endpoint.h"
#include "guard.h"
#include "log.h"
#include "options.h"
#include "port.h"
#include "port_stream.h"
#include "port_tap.h"
#include "qmp.h"
#include "quota.h"
#include "rundir.h"
#include "sandbox.h"
#include "state.h"
#include "tuning.h"
#include "vhost.h"
#include "vswitch.h"
#include "watch.h"
#include "worker.h"

#include <vale_proto.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define EVENTS_MAX 64
#define FDS_RESERVE 64 /* descriptors, or a 16th of them where they are few: for management and what runs already */
#define RECLAIM_MS 1 /* how often a grace period is looked at while one runs */

static int epoll_fd = -1;
static int spare_fd = -1; /* given up for a moment to refuse a client when there is no other: it would wake us for ever */
static int fd_limit, fd_reserve;
static struct watch signal_watch, notice_watch, calls_watch;
static struct watch *doomed; /* freed after the events at hand */
static bool quitting;
static int64_t idle_since = -1; /* milliseconds; -1: somebody is here */

/* ------------------------------------------------------------------------------------------------------ watches --- */

int watch_add(struct watch *w, enum watch_type type, int fd)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = w};

    w->type = type;
    w->fd = fd;
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &ev) < 0 ? -errno : 0;
}

void watch_events(struct watch *w, uint32_t events)
{
    struct epoll_event ev = {.events = events, .data.ptr = w};

    if (w->fd >= 0)
        epoll_ctl(epoll_fd, EPOLL_CTL_MOD, w->fd, &ev);
}

void watch_free(struct watch *w)
{
    if (w->fd >= 0) {
        /* Closing is not enough where the descriptor is a copy: epoll would go on reporting the file. */
        epoll_ctl(epoll_fd, EPOLL_CTL_DEL, w->fd, NULL);
        close(w->fd);
    }
    w->fd = -1;
    w->next_free = doomed;
    doomed = w;
}

int watch_accept(const struct watch *listener, bool management)
{
    int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd < 0 && (errno == EMFILE || errno == ENFILE)) {
        close(spare_fd);
        fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0)
            close(fd);
        fd = fd_limit;
        spare_fd = fcntl(epoll_fd, F_DUPFD_CLOEXEC, 0);
    } else if (fd >= fd_limit - fd_reserve && !management) {
        close(fd);
        fd = fd_limit;
    }
    if (fd < fd_limit)
        return fd;
    log_limited("out of descriptors: a client is refused");
    return -1;
}

/* The lowest number that is free says how many are taken. */
bool watch_fds_scarce(void)
{
    int fd = fcntl(epoll_fd, F_DUPFD_CLOEXEC, 0);

    if (fd >= 0)
        close(fd);
    return fd < 0 || fd >= fd_limit - fd_reserve;
}

static void free_doomed(void)
{
    while (doomed) {
        struct watch *w = doomed;

        doomed = w->next_free;
        free(w);
    }
}

/* --------------------------------------------------------------------------------------------------------- loop --- */

void main_quit(const char *why)
{
    log_info("ending: %s", why);
    quitting = true;
}

static void take_notice(void)
{
    uint64_t n;

    /* Only the wake-up counts: what has happened is looked up. port_reap() does its part in the loop. */
    if (read(notice_watch.fd, &n, sizeof(n)) < 0)
        return;
    stream_check_drained();
    workers_finish_moves();
    vhost_check_ports();
}

static void handle_event(struct watch *w, uint32_t events)
{
    switch (w->type) {
    case WATCH_SIGNAL: main_quit("signal"); break;
    case WATCH_NOTICE: take_notice(); break;
    case WATCH_CALLS: call_check(); break;
    case WATCH_ATTACH_LISTEN: attach_accept(w); break;
    case WATCH_ATTACH: attach_ready(w, events); break;
    case WATCH_ANSWER: attach_answer_ready(w); break;
    case WATCH_QMP_LISTEN: qmp_accept(w); break;
    case WATCH_QMP: qmp_ready(w, events); break;
    case WATCH_ENDPOINT: endpoint_accept(w); break;
    case WATCH_VHOST: vhost_ready(w, events); break;
    case WATCH_STREAM: stream_hangup(w); break;
    case WATCH_TAP: tap_gone(w); break;
    }
}

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* How long the loop may sleep: for ever, until the linger time is over, or until a grace period is looked at again. */
static int sleep_time(bool reclaiming, bool connecting)
{
    int64_t left;

    if (reclaiming)
        return RECLAIM_MS;
    if (connecting)
        return ENDPOINT_RETRY_MS;
    if (!options.linger || vswitch_ports() || attach_clients() || qmp_clients()) {
        idle_since = -1;
        return -1;
    }
    if (idle_since < 0)
        idle_since = now_ms();
    left = idle_since + (int64_t)options.linger * 1000 - now_ms();
    if (left <= 0)
        main_quit("nobody was here for the linger time");
    return left > 0 ? (int)left : 0;
}

static void loop(void)
{
    while (!quitting) {
        struct epoll_event events[EVENTS_MAX];
        bool reclaiming, connecting;
        int n;

        port_reap();
        reclaiming = reclaim_run(); /* may let an endpoint look for its next peer: before the retry */
        connecting = endpoint_retry();
        n = epoll_wait(epoll_fd, events, EVENTS_MAX, sleep_time(reclaiming, connecting));

        for (int i = 0; i < n; i++) {
            struct watch *w = events[i].data.ptr;

            if (w->fd >= 0)
                handle_event(w, events[i].events);
        }
        free_doomed();
    }
}

/* --------------------------------------------------------------------------------------------- starting and ending --- */

static void block_signals(void)
{
    sigset_t set;
    int fd;

    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (fd < 0 || watch_add(&signal_watch, WATCH_SIGNAL, fd) < 0)
        fatal(1, "signals: %s", strerror(errno));
}

/* A port takes about seven descriptors. */
static void raise_fd_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
        fd_limit = limit.rlim_cur < INT_MAX ? (int)limit.rlim_cur : INT_MAX;
        fd_reserve = fd_limit / 16 < FDS_RESERVE ? fd_limit / 16 : FDS_RESERVE;
    }
}

static void say_ready(void)
{
    activation_notify("READY=1");
    if (options.ready_fd < 0)
        return;
    if (write(options.ready_fd, "ready\n", 6) != 6)
        fatal(2, "--ready-fd %d: %s", options.ready_fd, strerror(errno));
    close(options.ready_fd);
}

/* Before the sandbox, which has no rights to. */
static void open_taps(int fds[OPTION_LIST_MAX])
{
    for (unsigned int i = 0; i < options.taps; i++) {
        fds[i] = tap_open(options.tap[i].ifname);
        if (fds[i] < 0)
            fatal(1, "--tap %s=%s: %s%s", options.tap[i].port, options.tap[i].ifname, strerror(-fds[i]),
                  fds[i] == -EPERM ? "; ask root for 'ip tuntap add mode tap user YOU name NAME'" : "");
    }
}

static void add_taps(const int fds[OPTION_LIST_MAX])
{
    for (unsigned int i = 0; i < options.taps; i++) {
        struct vale_error why;
        struct vale_name name;
        struct port *port;
        int err;

        if (vale_name_parse(options.tap[i].port, &name, &why) < 0)
            fatal(2, "--tap %s", why.text);
        err = tap_port_create(&port, &name, fds[i]);
        if (err == 0)
            err = port_add(port);
        if (err)
            fatal(1, "--tap %s=%s: %s", name.full, options.tap[i].ifname, strerror(-err));
    }
}

static void start(void)
{
    int attach_fd, qmp_fd, tap_fds[OPTION_LIST_MAX], err;

    rundir_enter();
    raise_fd_limit();
    tuning_start();
    quota_set(options.uid_ports, (uint64_t)options.uid_memory << 20);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    spare_fd = fcntl(epoll_fd, F_DUPFD_CLOEXEC, 0);
    if (spare_fd < 0)
        fatal(1, "epoll: %s", strerror(errno));
    block_signals();
    attach_fd = rundir_bind(VALE_SOCKET_NAME, SOCK_SEQPACKET, options.group != NO_GROUP ? 0660 : 0600);
    qmp_fd = rundir_bind(VALE_QMP_NAME, SOCK_STREAM, 0600);
    open_taps(tap_fds);
    json_object_seed(0); /* reads a file, which the sandbox would refuse */
    state_read();
    if (!options.no_sandbox)
        sandbox_enter(options.socket_dir, options.socket_dirs);
    if (watch_add(&calls_watch, WATCH_CALLS, call_start()) < 0)
        fatal(1, "timer: %s", strerror(errno));
    err = workers_start(options.workers, options.cpus);
    if (err)
        rundir_leave();
    if (err)
        fatal(err == -EINVAL ? 2 : 1, "cannot start %u workers%s%s: %s", options.workers, options.cpus ? " on CPUs " : "",
              options.cpus ? options.cpus : "", strerror(-err));
    if (watch_add(&notice_watch, WATCH_NOTICE, workers_notice_fd()) < 0 || guard_start(workers_notice_fd()) < 0)
        fatal(1, "epoll: %s", strerror(errno));
    state_restore();
    if (attach_start(attach_fd) < 0 || qmp_start(qmp_fd) < 0)
        fatal(1, "%s: cannot listen: %s", rundir_path(), strerror(errno));
    add_taps(tap_fds);
    if (!options.no_sandbox)
        sandbox_control();
    else
        log_info("sandbox: off");
    say_ready();
    log_info("listening in %s", rundir_path());
}

/* What was closed leaves and is freed. True while something is left. */
static bool settle(void)
{
    bool draining;

    call_check(); /* also in the end a worker may be stuck, and nobody handles events */
    draining = port_reap();
    return reclaim_run() || draining;
}

/* In the reverse order of start(). Ports end in their usual way, so frames that were published still leave. */
static void stop(void)
{
    activation_notify("STOPPING=1");
    state_freeze(false);
    rundir_leave();
    attach_stop();
    port_close_all("valed ends");
    while (settle()) {
        struct epoll_event event;

        epoll_wait(epoll_fd, &event, 1, RECLAIM_MS);
    }
    qmp_stop();
    free_doomed();
    workers_stop();
    close(calls_watch.fd);
    close(spare_fd);
    close(epoll_fd);
}

int main(int argc, char **argv)
{
    options_parse(argc, argv);
    start();
    loop();
    stop();
    return 0;
}
