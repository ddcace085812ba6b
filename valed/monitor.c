/* SPDX-License-Identifier: BSD-2-Clause */
/* Copies of other ports' frames for who watches. */
#include "monitor.h"

#include "attach.h"
#include "log.h"
#include "options.h"
#include "port_ring.h"
#include "qmp.h"
#include "query.h"
#include "worker.h"

#include <errno.h>
#include <net/netmap.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PEER_GROUPS_MAX 1024

struct monitor {
    struct port *port;     /* its own rings */
    struct vswitch *sw;    /* where it watches */
    const struct port *of; /* the port that it watches; NULL: all of the switch */
    uint32_t flags;        /* NR_MONITOR_TX, NR_MONITOR_RX */
    _Atomic(struct monitor *) next;
};

static uint16_t all_in_order[BATCH_MAX]; /* 0, 1, 2, ... from the first monitor on */
static _Thread_local uint64_t undelivered[BATCH_MAX / 64];
static _Thread_local uint16_t order_scratch[BATCH_MAX];

/* ------------------------------------------------------------------------------------------------------ permission --- */

bool monitor_permitted(int fd, const struct ucred *peer)
{
    gid_t groups[PEER_GROUPS_MAX];
    socklen_t size = sizeof(groups);

    if (peer->uid == 0 || peer->uid == geteuid())
        return true;
    if (options.monitor_group == NO_GROUP)
        return false;
    if (peer->gid == options.monitor_group)
        return true;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &size) < 0)
        return false;
    for (size_t i = 0; i < size / sizeof(groups[0]); i++)
        if (groups[i] == options.monitor_group)
            return true;
    return false;
}

/* -------------------------------------------------------------------------------------------------- coming and going --- */

/* Where the next monitor is to be linked; NULL: there are too many. */
static _Atomic(struct monitor *) *end_of_list(struct vswitch *sw)
{
    _Atomic(struct monitor *) *link = &sw->monitors;

    for (unsigned int n = 0; n < MONITORS_MAX; n++) {
        struct monitor *m = atomic_load(link);

        if (!m)
            return link;
        link = &m->next;
    }
    return NULL;
}

/* Before the first monitor can be seen by a worker. */
static void fill_order(void)
{
    if (all_in_order[1])
        return; /* and never written again: workers read it */
    for (unsigned int i = 0; i < BATCH_MAX; i++)
        all_in_order[i] = (uint16_t)i;
}

/* As many rings as what it watches has, up to a limit; none for sending. */
static int create_rings(const struct vale_name *name, const struct port *of, const struct nmreq_register *reg,
                        uid_t uid, struct port **port)
{
    struct region_config config = {.rx_rings = of ? of->ring_count : 1,
                                   .tx_slots = VALE_MIN_SLOTS,
                                   .rx_slots = reg->nr_rx_slots,
                                   .extra_bufs = reg->nr_extra_bufs};
    int err;

    if (of && of->ops == &ring_port_ops && ring_port_region(of)->config.rx_rings > config.rx_rings)
        config.rx_rings = ring_port_region(of)->config.rx_rings;
    region_clamp(&config);
    err = ring_port_create(port, name, &config, uid);
    if (err == 0)
        ring_port_close_tx(*port);
    return -err;
}

int monitor_open(const struct vale_name *name, const struct nmreq_register *reg, const struct ucred *peer,
                 struct port **port)
{
    struct vswitch *sw = vswitch_find(name->sw);
    struct port *of = sw && name->port[0] ? port_find(name) : NULL;
    _Atomic(struct monitor *) *link;
    struct monitor *m;
    int err;

    if (!(reg->nr_flags & (NR_MONITOR_TX | NR_MONITOR_RX)) || !sw || (name->port[0] && !of))
        return EINVAL;
    link = end_of_list(sw);
    m = link ? calloc(1, sizeof(*m)) : NULL;
    if (!m)
        return ENOMEM;
    err = create_rings(name, of, reg, peer->uid, &m->port);
    if (err) {
        free(m);
        return err;
    }
    fill_order();
    m->sw = sw;
    m->of = of;
    m->flags = reg->nr_flags & (NR_MONITOR_TX | NR_MONITOR_RX);
    m->port->monitor = m;
    m->port->pid = peer->pid;
    m->port->users = 1;
    *port = m->port;
    log_info("%s: monitor opened by pid %d", name->full, (int)peer->pid);
    qmp_event_monitor("MONITOR_ADDED", m, NULL);
    atomic_store_explicit(link, m, memory_order_release);
    return 0;
}

static void free_monitor(void *arg)
{
    struct monitor *m = arg;

    m->port->ops->destroy(m->port);
    free(m);
}

void monitor_close(struct monitor *m, const char *reason)
{
    _Atomic(struct monitor *) *link = &m->sw->monitors;

    while (atomic_load(link) != m)
        link = &atomic_load(link)->next;
    /* Its own next stays: a worker may be on its way through. */
    atomic_store(link, atomic_load(&m->next));
    log_info("%s: monitor closed: %s", m->port->name.full, reason);
    qmp_event_monitor("MONITOR_REMOVED", m, reason);
    attach_port_closed(m->port);
    reclaim(free_monitor, m);
}

void monitor_close_all(struct vswitch *sw, const struct port *port, const char *reason)
{
    struct monitor *next;

    for (struct monitor *m = atomic_load(&sw->monitors); m; m = next) {
        next = atomic_load(&m->next);
        if (!port || m->of == port)
            monitor_close(m, reason);
    }
}

struct monitor *monitor_next(const struct monitor *m)
{
    return atomic_load(&m->next);
}

json_t *monitor_describe(const struct monitor *m)
{
    const struct port *port = m->port;

    return json_pack("{s:s, s:b, s:b, s:{s:I, s:i}, s:o, s:I}", "name", port->name.full, "tx",
                     (m->flags & NR_MONITOR_TX) != 0, "rx", (m->flags & NR_MONITOR_RX) != 0, "peer", "uid",
                     (json_int_t)port->uid, "pid", (int)port->pid, "copies", query_egress(&port->counters), "calls",
                     (json_int_t)port->counters.calls);
}

/* --------------------------------------------------------------------------------------------------------- showing --- */

/* Copies frames to the monitors of the port that watch this direction. */
static void show(const struct port *of, uint32_t direction, unsigned int queue, const struct batch *b, const uint16_t *order,
                 unsigned int n)
{
    struct monitor *m = atomic_load_explicit(&of->sw->monitors, memory_order_acquire);

    for (; m; m = atomic_load_explicit(&m->next, memory_order_acquire)) {
        struct port_counters *c = &m->port->counters;
        unsigned int done;

        if (!(m->flags & direction) || (m->of && m->of != of))
            continue;
        done = ring_port_egress(m->port, queue, b, order, n, direction == NR_MONITOR_TX ? NS_TXMON : 0);
        count(&c->tx_offered, n);
        count(&c->tx_dropped[DROP_RING_FULL], n - done);
    }
}

void monitor_sent(const struct ring *ring, const struct batch *b, unsigned int n)
{
    show(ring->port, NR_MONITOR_TX, ring->index, b, all_in_order, n);
}

/* Writes those of the first n frames of b->order that were delivered into order_scratch. Returns how many. */
static unsigned int keep_delivered(const struct batch *b, unsigned int n)
{
    unsigned int kept = 0;

    for (unsigned int k = 0; k < n; k++) {
        uint16_t i = b->order[k];

        order_scratch[kept] = i;
        kept += !(undelivered[i / 64] >> i % 64 & 1);
    }
    return kept;
}

void monitor_begin(struct batch *b)
{
    memset(undelivered, 0, sizeof(undelivered));
    b->undelivered = undelivered;
}

void monitor_delivered(const struct port *port, unsigned int queue, struct batch *b, unsigned int n)
{
    uint64_t any = 0;

    b->undelivered = NULL;
    for (unsigned int i = 0; i < BATCH_MAX / 64; i++)
        any |= undelivered[i];
    if (any)
        n = keep_delivered(b, n);
    show(port, NR_MONITOR_RX, queue, b, any ? order_scratch : b->order, n);
}
