/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * port.c - open a port by name, wherever its switch is
 *
 * A place to look at either is not there (go on to the next, remember why) or it is, and then its answer is final: a port
 * that is taken on valed is not opened on the kernel instead.
 */
#include "internal.h"

#include <errno.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* An open in progress, with what was tried so far. */
struct search {
    const struct vale_open_args *args;
    struct vale_name name;
    struct vale_port *port;
    struct vale_error *err;
    char tried[320];
};

void vale_fill_register(struct nmreq_register *reg, const struct vale_open_args *args)
{
    memset(reg, 0, sizeof(*reg));
    reg->nr_mode = NR_REG_ALL_NIC;
    reg->nr_flags = args->flags & (VALE_OPEN_SHARED | VALE_OPEN_MONITOR) ? 0 : NR_EXCLUSIVE;
    reg->nr_flags |= args->flags & VALE_OPEN_MONITOR_RX ? NR_MONITOR_RX : 0;
    reg->nr_flags |= args->flags & VALE_OPEN_MONITOR_TX ? NR_MONITOR_TX : 0;
    reg->nr_flags |= args->vnet_hdr_len ? NR_ACCEPT_VNET_HDR : 0;
    reg->nr_tx_rings = args->tx_rings;
    reg->nr_rx_rings = args->rx_rings;
    reg->nr_tx_slots = args->tx_slots;
    reg->nr_rx_slots = args->rx_slots;
}

static void remember(struct search *s, const char *device, const char *why)
{
    size_t used = strlen(s->tried);

    snprintf(s->tried + used, sizeof(s->tried) - used, "%s%s (%s)", used ? ", " : "", device, why);
}

/* Opens the port on a device that was found. 0 and s->port, or -errno. */
static int bind_port(struct search *s, const struct vale_ops *ops, const char *device, int fd)
{
    struct vale_port *port = calloc(1, sizeof(*port));
    struct vale_port_priv *priv = calloc(1, ops->priv_size);
    int rc;

    if (port == NULL || priv == NULL) {
        free(port);
        free(priv);
        close(fd);
        return vale_fail(s->err, ENOMEM, "%s: out of memory", s->name.full);
    }
    priv->ops = ops;
    port->priv = priv;
    port->provider = ops->provider;
    port->fd = fd;
    snprintf(port->name, sizeof(port->name), "%s", s->name.full);
    snprintf(port->device, sizeof(port->device), "%s", device);
    port->vnet_hdr_len = s->args->vnet_hdr_len;
    port->monitor = s->args->flags & VALE_OPEN_MONITOR;
    rc = ops->bind(port, s->args, s->err);
    if (rc == 0 && port->vnet_hdr_len != 0) {
        rc = ops->set_vnet_hdr(port, &(struct nmreq_port_hdr){.nr_hdr_len = port->vnet_hdr_len}, s->err);
    }
    if (rc < 0) {
        vale_close(port);
        return rc;
    }
    s->port = port;
    return 0;
}

/* Tries one device. True when the search is over, with *rc; false after remembering why it is not there. */
static bool try_device(struct search *s, const struct vale_ops *ops, const char *device, int *rc)
{
    int fd = ops->find(device);

    if (fd < 0) {
        remember(s, device, strerror(-fd));
        return false;
    }
    *rc = bind_port(s, ops, device, fd);
    return true;
}

/* The device that the user named, and nothing else. */
static int open_named(struct search *s, const char *device, const char *origin)
{
    const struct vale_ops *ops = &vale_user_ops;
    struct stat st;
    int rc;

    if (strlen(device) >= sizeof(s->port->device)) {
        return vale_fail(s->err, ENAMETOOLONG, "%s: %.60s... is too long a path (at most %zu bytes)", s->name.full,
                         device, sizeof(s->port->device) - 1);
    }
    if (stat(device, &st) < 0) {
        return vale_fail(s->err, errno, "%s: no switch at %s%s (%s): start valed, load the netmap module, or correct the path",
                         s->name.full, device, origin, strerror(errno));
    }
    if (S_ISCHR(st.st_mode)) {
        ops = &vale_kernel_ops;
    } else if (!S_ISSOCK(st.st_mode)) {
        return vale_fail(s->err, EPROTO, "%s%s: neither a netmap device nor a valed's %s: correct the path", device, origin,
                         VALE_SOCKET_NAME);
    }
    if (try_device(s, ops, device, &rc)) {
        return rc;
    }
    if (strstr(s->tried, strerror(ETIMEDOUT)) || strstr(s->tried, strerror(EAGAIN))) {
        return vale_fail(s->err, ETIMEDOUT, "%s: no answer from %s%s: its valed hangs, end it and start it again",
                         s->name.full, device, origin);
    }
    /* A socket of another type, or one that nobody listens on any more. */
    rc = strstr(s->tried, strerror(EPROTOTYPE)) ? EPROTO : ENOENT;
    return vale_fail(s->err, rc, "%s: no switch at %s%s: start valed, or correct the path", s->name.full, s->tried, origin);
}

/* The socket's path in a runtime directory that may be trusted; false after remembering why not. */
static bool socket_in(struct search *s, const char *rundir, char *path, size_t size)
{
    struct vale_error err;
    int rc = vale_rundir_check(rundir, &err);

    if ((size_t)snprintf(path, size, "%s/%s", rundir, VALE_SOCKET_NAME) >= size) {
        remember(s, rundir, "too long a path");
        return false;
    }
    if (rc == -ENOENT) {
        remember(s, path, strerror(ENOENT));
    } else if (rc < 0) {
        remember(s, rundir, strchr(err.text, ' ') + 1);
    }
    return rc == 0;
}

/* The last resort: a valed of our own. */
static int open_started(struct search *s)
{
    char rundir[sizeof(s->port->device)], path[sizeof(s->port->device)];
    int rc = vale_rundir(rundir, sizeof(rundir), true, s->err);

    if (rc == 0) {
        rc = vale_start_valed(rundir, s->err);
    }
    if (rc < 0) {
        /* Whatever kept it from starting, what it comes to is that there is no switch. */
        if (s->err != NULL) {
            s->err->code = ENOENT;
        }
        return -ENOENT;
    }
    if (!socket_in(s, rundir, path, sizeof(path)) || !try_device(s, &vale_user_ops, path, &rc)) {
        return vale_fail(s->err, ENOENT, "%s: valed was started but cannot be reached: tried %s", s->name.full, s->tried);
    }
    return rc;
}

static int search(struct search *s)
{
    char rundir[VALE_PATH_MAX], path[sizeof(s->port->device)];
    unsigned int next = 0;
    int rc;

    while (vale_rundir_candidate(&next, rundir, sizeof(rundir))) {
        if (socket_in(s, rundir, path, sizeof(path)) && try_device(s, &vale_user_ops, path, &rc)) {
            return rc;
        }
    }
    if (try_device(s, &vale_kernel_ops, NETMAP_DEVICE_NAME, &rc)) {
        return rc;
    }
    if (s->args->flags & VALE_OPEN_START) {
        return open_started(s);
    }
    return vale_fail(s->err, ENOENT, "%s: no switch found: start valed or load the netmap module; tried %s", s->name.full,
                     s->tried);
}

/* The name, and from its suffix the flags, of what is to be opened. */
static int parse_name(struct vale_open_args *args, struct vale_name *name, struct vale_error *err)
{
    int rc;

    if (args->flags & VALE_OPEN_MONITOR) {
        rc = vale_name_parse_monitored(args->name, name, err);
    } else {
        rc = vale_name_parse_monitor(args->name, name, err);
        args->flags |= rc < 0 ? 0 : (unsigned int)rc;
    }
    if (args->flags & VALE_OPEN_MONITOR) {
        args->flags &= ~(unsigned int)VALE_OPEN_START; /* a switch that was just started has nothing to watch */
    } else if (rc == 0 && if_nametoindex(name->port) != 0) {
        rc = vale_fail(err, EINVAL, "%s: %s is a network interface of this machine: choose another port name", name->full,
                       name->port);
    }
    return rc;
}

struct vale_port *vale_open(const struct vale_open_args *args, struct vale_error *err)
{
    struct vale_open_args mine = *args;
    struct search s = {.args = &mine, .err = err};
    const char *env = getenv("VALE_DEV");

    if (parse_name(&mine, &s.name, err) < 0) {
        return NULL;
    }
    if (mine.device != NULL) {
        open_named(&s, mine.device, "");
    } else if (env != NULL && env[0] != '\0') {
        open_named(&s, env, " (from VALE_DEV)");
    } else {
        search(&s);
    }
    return s.port;
}

void vale_close(struct vale_port *port)
{
    if (port != NULL) {
        port->priv->ops->close(port);
        free(port->priv);
        free(port);
    }
}

int vale_set_vnet_hdr(struct vale_port *port, unsigned int len, unsigned int accepts, struct vale_error *err)
{
    struct nmreq_port_hdr body = {.nr_hdr_len = len, .pad1 = VALE_ACCEPT_GIVEN | accepts};
    int rc = port->priv->ops->set_vnet_hdr(port, &body, err);

    if (rc == 0) {
        port->vnet_hdr_len = len;
    }
    return rc;
}

const char *vale_provider_name(enum vale_provider provider)
{
    return provider == VALE_PROVIDER_KERNEL ? "kernel" : "user";
}

/* ---------------------------------------------------------------------------------------------- the ops, by name --- */

int vale_txsync(struct vale_port *port)
{
    return port->priv->ops->txsync(port);
}

int vale_rxsync(struct vale_port *port)
{
    return port->priv->ops->rxsync(port);
}

bool vale_tx_publish(struct vale_port *port, unsigned int i)
{
    return port->priv->ops->tx_publish(port, i);
}

void vale_tx_kick(struct vale_port *port)
{
    port->priv->ops->tx_kick(port);
}

int vale_poll_fd(const struct vale_port *port, int direction)
{
    return port->priv->ops->poll_fd(port, direction);
}

short vale_poll_events(const struct vale_port *port, int direction)
{
    return port->priv->ops->poll_events(direction);
}

bool vale_wait_begin(struct vale_port *port, int direction)
{
    return port->priv->ops->wait_begin(port, direction);
}

bool vale_wait_end(struct vale_port *port, int direction)
{
    return port->priv->ops->wait_end(port, direction);
}

bool vale_gone(const struct vale_port *port)
{
    return port->priv->ops->gone(port);
}

int vale_reconnect(struct vale_port *port)
{
    return port->priv->ops->reconnect(port);
}

/* ------------------------------------------------------------------------------------------------------ waiting --- */

int64_t vale_now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* Begins or ends the wait of every direction asked for. Those that are ready. */
static int each_direction(struct vale_port *port, int directions, bool (*step)(struct vale_port *port, int direction))
{
    int ready = 0;

    if (directions & VALE_RX && step(port, VALE_RX)) {
        ready |= VALE_RX;
    }
    if (directions & VALE_TX && step(port, VALE_TX)) {
        ready |= VALE_TX;
    }
    return ready;
}

/* Sleeps on the descriptors of the directions. What poll() returns, with -errno for an error. */
static int sleep_on(struct vale_port *port, int directions, int timeout_ms)
{
    struct pollfd fds[2];
    nfds_t count = 0;
    int direction, rc;

    for (direction = VALE_RX; direction <= VALE_TX; direction++) {
        if (directions & direction) {
            fds[count].fd = vale_poll_fd(port, direction);
            fds[count].events = vale_poll_events(port, direction);
            count++;
        }
    }
    rc = poll(fds, count, timeout_ms);
    return rc < 0 ? -errno : rc;
}

int vale_wait(struct vale_port *port, int directions, int timeout_ms)
{
    int64_t deadline = timeout_ms < 0 ? INT64_MAX : vale_now_ms() + timeout_ms;
    int ready, slept = 0;

    for (;;) {
        int left = -1;

        ready = each_direction(port, directions, vale_wait_begin);
        if (ready != 0) {
            /* The other direction, if any, was armed. */
            return ready | each_direction(port, directions & ~ready, vale_wait_end);
        }
        if (timeout_ms >= 0) {
            int64_t rest = deadline - vale_now_ms();

            left = rest < 0 ? 0 : (int)rest;
        }
        slept = sleep_on(port, directions, left);
        ready = each_direction(port, directions, vale_wait_end);
        if (ready != 0) {
            return ready;
        }
        if (slept < 0) {
            return slept;
        }
        if (slept > 0 && vale_gone(port)) {
            int rc = port->priv->ops->retry(port);

            if (rc < 0) {
                return rc;
            }
            /* The channels are hung up for the while: they would end every sleep at once. */
            poll(NULL, 0, left < 0 || left > VALE_RETRY_MS ? VALE_RETRY_MS : left);
        }
        if (timeout_ms >= 0 && vale_now_ms() >= deadline) {
            return 0;
        }
    }
}
