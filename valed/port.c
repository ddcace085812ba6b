/* SPDX-License-Identifier: BSD-2-Clause */
/* What every kind of port has in common: joining a switch, and leaving it in steps. */
#include "port.h"

#include "attach.h"
#include "forward.h"
#include "impair.h"
#include "line.h"
#include "log.h"
#include "monitor.h"
#include "qmp.h"
#include "state.h"
#include "vswitch.h"
#include "worker.h"

#include <errno.h>
#include <string.h>

const char *const drop_names[DROP_REASONS] = {
    [DROP_SHORT] = "short",       [DROP_TOO_LONG] = "too_long", [DROP_TRUNCATED] = "truncated",
    [DROP_BAD_SLOT] = "bad_slot", [DROP_BAD_HEADER] = "bad_header", [DROP_SELF] = "self",         [DROP_GONE] = "gone",
    [DROP_MAC_LOCKED] = "mac_locked",
    [DROP_PEER_MEMORY] = "peer_memory",
    [DROP_RING_FULL] = "ring_full", [DROP_STALLED] = "stalled", [DROP_TOO_LARGE] = "too_large", [DROP_DOWN] = "down",
    [DROP_LOSS] = "loss", [DROP_DELAY_FULL] = "delay_full",
};

static struct port *draining;
static bool closing_all;

struct port *port_find(const struct vale_name *name)
{
    struct vswitch *sw = vswitch_find(name->sw);

    for (unsigned int i = 0; sw && i < sw->port_limit; i++)
        if (sw->ports[i] && strcmp(sw->ports[i]->name.port, name->port) == 0)
            return sw->ports[i];
    return NULL;
}

int port_add(struct port *port)
{
    int err = vswitch_add_port(port);

    if (err) {
        port->ops->destroy(port);
        return err;
    }
    port->state = PORT_LIVE;
    log_info("%s: %s port opened by pid %d", port->name.full, port->ops->kind, (int)port->pid);
    qmp_event_port("PORT_ADDED", port, NULL);
    for (unsigned int i = 0; i < port->ring_count && err == 0; i++)
        err = worker_add_ring(port->ring[i], &port->ops->ring);
    if (err) {
        /* Leaves like any other port, with the rings that it has. */
        log_warn("%s: cannot watch for kicks: %s", port->name.full, strerror(-err));
        port_close(port, "no resources");
        return err;
    }
    state_apply(port);
    return 0;
}

void port_close(struct port *port, const char *reason)
{
    if (port->state != PORT_LIVE)
        return;
    port->state = PORT_DRAINING;
    port->reason = reason;
    port->next_draining = draining;
    draining = port;
    state_port_closed(port->name.full);
    attach_port_closed(port);
    if (port->ops->close)
        port->ops->close(port);
    for (unsigned int i = 0; i < port->ring_count; i++)
        if (port->ring[i]->worker)
            worker_drain_ring(port->ring[i]);
}

void port_close_all(const char *reason)
{
    closing_all = true;
    for (const struct vswitch *sw = switches; sw; sw = sw->next)
        for (unsigned int i = 0; i < sw->port_limit; i++)
            if (sw->ports[i])
                port_close(sw->ports[i], reason);
}

static bool is_drained(const struct port *port)
{
    for (unsigned int i = 0; i < port->ring_count; i++)
        if (port->ring[i]->worker && atomic_load(&port->ring[i]->state) != RING_GONE)
            return false;
    return true;
}

/* Whether all that came from a port is forwarded, what its delay lines held included. */
static bool is_done(struct port *port)
{
    return is_drained(port) && impair_end(port);
}

/* Whether a port may leave. Where all close, none does before all are done: they may still send to each other. */
static bool may_leave(struct port *port)
{
    bool done = true;

    for (struct port *other = closing_all ? draining : NULL; other; other = other->next_draining)
        done &= is_done(other); /* the lines of all begin to end */
    return done && is_done(port);
}

static void port_free(void *arg)
{
    struct port *port = arg;

    port->ops->destroy(port);
}

/* Out of the switch: the name is free from here on, and who waited for it is served. */
static void unlink_port(struct port *port)
{
    for (unsigned int i = 0; i < port->ring_count; i++)
        worker_forget_ring(port->ring[i]);
    log_info("%s: closed: %s", port->name.full, port->reason);
    qmp_event_port("PORT_REMOVED", port, port->reason);
    monitor_close_all(port->sw, port, "its port has gone");
    vswitch_remove_port(port);
    forward_room(port); /* who waited for it need not any more */
    port->state = PORT_UNLINKED;
    reclaim(port_free, port);
    attach_name_freed();
}

bool port_reap(void)
{
    struct port **link = &draining;

    line_reap();
    while (*link) {
        struct port *port = *link;

        if (may_leave(port)) {
            *link = port->next_draining;
            unlink_port(port);
        } else {
            link = &port->next_draining;
        }
    }
    return draining != NULL;
}
