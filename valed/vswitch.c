/* SPDX-License-Identifier: BSD-2-Clause */
/* Named switches and their ports. */
#include "vswitch.h"

#include "monitor.h"
#include "options.h"
#include "qmp.h"
#include "state.h"
#include "worker.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct vswitch *switches;

struct vswitch *vswitch_find(const char *name)
{
    struct vswitch *sw = switches;

    while (sw && strcmp(sw->name, name) != 0)
        sw = sw->next;
    return sw;
}

unsigned int vswitch_ports(void)
{
    unsigned int n = 0;

    for (const struct vswitch *sw = switches; sw; sw = sw->next)
        n += sw->port_count;
    return n;
}

static struct vswitch *vswitch_create(const char *name)
{
    struct vswitch *sw, **end = &switches;
    unsigned int n = 0;

    for (; *end; end = &(*end)->next)
        n++;
    if (n >= options.max_bridges)
        return NULL;
    sw = calloc(1, sizeof(*sw));
    if (!sw)
        return NULL;
    if (fdb_init(&sw->fdb) != 0) {
        free(sw);
        return NULL;
    }
    strcpy(sw->name, name);
    sw->wait_ms = WAIT_MS;
    *end = sw;
    qmp_event_switch("SWITCH_ADDED", sw);
    return sw;
}

static void vswitch_free(void *arg)
{
    struct vswitch *sw = arg;

    fdb_destroy(&sw->fdb);
    free(sw);
}

static void vswitch_remove(struct vswitch *sw)
{
    struct vswitch **link = &switches;

    while (*link != sw)
        link = &(*link)->next;
    *link = sw->next;
    monitor_close_all(sw, NULL, "its switch has gone");
    qmp_event_switch("SWITCH_REMOVED", sw);
    state_switch_removed(sw->name);
    reclaim(vswitch_free, sw);
}

void vswitch_release(struct vswitch *sw)
{
    if (sw->port_count == 0 && !sw->kept)
        vswitch_remove(sw);
}

struct vswitch *vswitch_get(const char *name)
{
    struct vswitch *sw = vswitch_find(name);

    return sw ? sw : vswitch_create(name);
}

static unsigned int free_index(const struct vswitch *sw)
{
    unsigned int i = 0;

    while (i < SWITCH_PORTS && sw->ports[i])
        i++;
    return i;
}

static void set_port_limit(struct vswitch *sw)
{
    unsigned int limit = SWITCH_PORTS;

    while (limit && !sw->ports[limit - 1])
        limit--;
    sw->port_limit = limit;
}

int vswitch_add_port(struct port *port)
{
    struct vswitch *sw = vswitch_find(port->name.sw);

    for (unsigned int i = 0; sw && i < sw->port_limit; i++)
        if (sw->ports[i] && strcmp(sw->ports[i]->name.port, port->name.port) == 0)
            return -EBUSY;
    if (sw && sw->port_count == (sw->p2p ? 2 : SWITCH_PORTS))
        return -ENOMEM;
    if (!sw && !(sw = vswitch_create(port->name.sw)))
        return -ENOMEM;
    port->sw = sw;
    port->index = free_index(sw);
    sw->port_count++;
    atomic_store_explicit(&sw->ports[port->index], port, memory_order_release);
    set_port_limit(sw);
    return 0;
}

void vswitch_remove_port(struct port *port)
{
    struct vswitch *sw = port->sw;

    atomic_store(&sw->ports[port->index], NULL);
    set_port_limit(sw);
    fdb_flush_port(&sw->fdb, port->index, true);
    sw->port_count--;
    vswitch_release(sw);
}
