/* SPDX-License-Identifier: BSD-2-Clause */
/* The control thread of fuzz targets: main.c as it is, its loop in single turns. */
#define main valed_main
int valed_main(int argc, char **argv);
#include "../../valed/main.c"
#undef main

#include "fuzz.h"

#include "port_ring.h"

#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/un.h>

#define TURNS_MAX (2 * VALE_MAX_SLOTS) /* a source without end is drained of that many frames, in batches of one at the least */

static const struct options defaults = {.workers = 2, .bridge_batch = 64, .max_bridges = 16, .ready_fd = -1};
static int first_free_fd;
static unsigned int first_mappings;

static int lowest_free_fd(void)
{
    int fd = fcntl(epoll_fd, F_DUPFD_CLOEXEC, 0);

    close(fd);
    return fd;
}

void fuzz_begin(void)
{
    options = defaults;
    tuning_start();
    first_free_fd = lowest_free_fd();
    first_mappings = fuzz_mappings;
    fuzz_reset_time();
}

void fuzz_start(void)
{
    options = defaults;
    signal(SIGPIPE, SIG_IGN);
    raise_fd_limit();
    quota_set(1000, 0);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    spare_fd = fcntl(epoll_fd, F_DUPFD_CLOEXEC, 0);
    MUST(watch_add(&calls_watch, WATCH_CALLS, call_start()) == 0);
    MUST(workers_start(options.workers, NULL) == 0);
    MUST(watch_add(&notice_watch, WATCH_NOTICE, workers_notice_fd()) == 0);
    MUST(guard_start(workers_notice_fd()) == 0);
}

/* One turn of loop(). True when something is still to be done. */
static bool control(void)
{
    struct epoll_event events[EVENTS_MAX];
    bool busy = port_reap();
    int n;

    busy = reclaim_run() || busy;
    endpoint_retry();
    n = epoll_wait(epoll_fd, events, EVENTS_MAX, 0);
    for (int i = 0; i < n; i++) {
        struct watch *w = events[i].data.ptr;

        if (w->fd >= 0)
            handle_event(w, events[i].events);
    }
    free_doomed();
    return busy || n > 0;
}

void fuzz_turn(void)
{
    fuzz_work();
    control();
}

void fuzz_settle(void)
{
    unsigned int quiet = 0;

    for (unsigned int i = 0; quiet < 3; i++) {
        MUST(i < TURNS_MAX);
        fuzz_work();
        quiet = control() ? 0 : quiet + 1;
    }
}

static uint64_t dropped(const _Atomic uint64_t *reasons)
{
    uint64_t n = 0;

    for (int i = 0; i < DROP_REASONS; i++)
        n += reasons[i];
    return n;
}

void fuzz_check_books(void)
{
    for (const struct vswitch *sw = switches; sw; sw = sw->next) {
        for (unsigned int i = 0; i < sw->port_limit; i++) {
            const struct port *port = sw->ports[i];
            const struct port_counters *c = port ? &port->counters : NULL;

            if (!port)
                continue;
            MUST(c->rx_frames + c->line[DIRECTION_IN].duplicated ==
                 dropped(c->rx_dropped) + c->line[DIRECTION_IN].held + c->unicast + c->flooded);
            MUST(c->tx_offered + c->line[DIRECTION_OUT].duplicated - c->tx_segmented + c->tx_segments ==
                 c->tx_frames + c->line[DIRECTION_OUT].held + dropped(c->tx_dropped));
        }
    }
}

void fuzz_end(void)
{
    struct vswitch *next;

    fuzz_settle();
    fuzz_check_books();
    port_close_all("end");
    fuzz_settle();
    for (struct vswitch *sw = switches; sw; sw = next) {
        next = sw->next;
        sw->kept = false;
        vswitch_release(sw);
    }
    fuzz_settle();
    quitting = false;
    MUST(!switches && attach_clients() == 0 && qmp_clients() == 0 && fuzz_mappings == first_mappings);
    MUST(lowest_free_fd() == first_free_fd);
}

/* ---------------------------------------------------------------------------------------------------- descriptors --- */

int fuzz_listen(const char *name, int type)
{
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct sockaddr_un a = {.sun_family = AF_UNIX};

    snprintf(a.sun_path, sizeof(a.sun_path), "%s", name);
    MUST(fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0);
    return fd;
}

int fuzz_connect(const char *name, int type)
{
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct sockaddr_un a = {.sun_family = AF_UNIX};

    snprintf(a.sun_path, sizeof(a.sun_path), "%s", name);
    MUST(fd >= 0);
    for (int i = 0; connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0; i++) {
        MUST(errno == EAGAIN && i < 1000); /* the backlog is full */
        fuzz_turn();
    }
    return fd;
}

int fuzz_some_fd(unsigned int kind)
{
    int fd = -1, pair[2] = {-1, -1};

    switch (kind % 10) {
    case 0: return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    case 1: return eventfd(0, EFD_CLOEXEC);
    case 2:
    case 3:
    case 4:
        fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (fd >= 0 && ftruncate(fd, kind % 10 == 2 ? 0 : kind % 10 == 3 ? 6000 : 65536) < 0)
            __builtin_trap();
        return fd;
    case 5: return open("/dev/null", O_RDWR | O_CLOEXEC);
    case 6: return open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    case 7: return epoll_create1(EPOLL_CLOEXEC);
    case 8:
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
            return -1;
        break;
    default:
        if (pipe2(pair, O_CLOEXEC | O_NONBLOCK) < 0)
            return -1;
    }
    close(pair[1]);
    return pair[0];
}

void fuzz_send(int sock, const void *data, size_t len, const int *fds, unsigned int n)
{
    struct iovec iov = {(void *)(uintptr_t)data, len};
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(16 * sizeof(int))];
    } control = {0};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    if (n) {
        msg.msg_control = &control;
        msg.msg_controllen = CMSG_SPACE(n * sizeof(int));
        *CMSG_FIRSTHDR(&msg) =
            (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(n * sizeof(int))};
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), fds, n * sizeof(int));
    }
    if (sendmsg(sock, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        return; /* full, or hung up on: also what a client meets */
}

/* --------------------------------------------------------------------------------------------------- native ports --- */

struct port *fuzz_native(const char *text, unsigned int header)
{
    struct region_config config = {.tx_rings = 1, .rx_rings = 1, .tx_slots = 64, .rx_slots = 64};
    struct vale_name name;
    struct vale_error err;
    struct port *port;

    MUST(vale_name_parse(text, &name, &err) == 0);
    region_clamp(&config);
    MUST(ring_port_create(&port, &name, &config, 0) == 0);
    ring_port_set_header(port, header, 0);
    MUST(port_add(port) == 0);
    return port;
}

void fuzz_native_send(struct port *port, unsigned int frames, uint32_t len, uint8_t fill)
{
    const struct region *r = ring_port_region(port);
    struct vale_ring_ctl *ctl = region_ctl(r, 0);
    struct netmap_ring *ring = region_ring(r, 0);
    uint32_t head = ctl->client.head, room = (ctl->valed.hwtail + 64 - head) % 64;
    uint32_t header = ring_port_header(port);

    for (; frames && room; frames--) {
        uint32_t left = len + header, need = (left + r->buf_size - 1) / r->buf_size;

        if (need > room)
            break;
        room -= need;
        for (bool first = true; left; first = false, head = (head + 1) % 64) {
            struct netmap_slot *slot = &ring->slot[head];
            uint8_t *buf = r->bufs + (size_t)slot->buf_idx * r->buf_size;
            uint32_t part = left < r->buf_size ? left : r->buf_size;

            memset(buf, fill, part);
            if (first) {
                memset(buf, 0, header);
                memset(buf + header, 0xff, 6);
            }
            slot->len = (uint16_t)part;
            left -= part;
            slot->flags = left ? NS_MOREFRAG : 0;
        }
    }
    ctl->client.head = head;
    worker_poke_ring(port->ring[0]);
}

void fuzz_native_drain(struct port *port)
{
    const struct region *r = ring_port_region(port);
    struct vale_ring_ctl *ctl = region_ctl(r, 1);
    struct netmap_ring *ring = region_ring(r, 1);

    for (uint32_t i = ctl->client.head; i != ctl->valed.hwtail; i = (i + 1) % 64)
        MUST(ring->slot[i].len <= r->buf_size && ring->slot[i].buf_idx == 2 + 64 + i);
    ctl->client.head = ctl->valed.hwtail;
}
