/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Null ports: a sink for every frame, and a source on demand
 *
 * A source has one ring, whose frames are all views of one constant buffer: nothing is read but its first cache line,
 * nothing is written but the batch. The ring has frames until its count is done, so its worker polls it as fast as it can
 * and never asks it for kicks; the first kick lies in its eventfd from the beginning. A sink has no ring, and burdens no
 * worker.
 */
#include "port_null.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define ETHERTYPE_LOCAL 0x88b5 /* of IEEE 802, for local experiments */

struct null_port {
    struct port port;
    struct ring ring;
    uint8_t *frame; /* what a source sends */
    uint16_t length;
    bool endless;
    uint64_t left; /* frames still to come, unless endless; the ring's worker */
};

static inline struct null_port *to_null_port(const struct port *port)
{
    return (struct null_port *)(uintptr_t)port;
}

static unsigned int null_ingress(struct ring *ring, struct batch *b, unsigned int budget, bool *seen)
{
    struct null_port *np = to_null_port(ring->port);

    if (!np->endless && np->left < budget)
        budget = (unsigned int)np->left;
    for (unsigned int i = 0; i < budget; i++) {
        b->frame[i] = (struct frame){.first = i, .segs = 1, .len = np->length};
        b->seg[i] = (struct segment){.data = np->frame, .len = np->length};
    }
    b->frames = b->segs = budget;
    *seen = budget != 0;
    return budget;
}

static void null_consumed(struct ring *ring, const struct batch *b, unsigned int n)
{
    struct null_port *np = to_null_port(ring->port);

    (void)b;
    np->left -= np->endless ? 0 : n;
}

static bool null_want_kick(struct ring *ring, bool on)
{
    const struct null_port *np = to_null_port(ring->port);

    return on && (np->endless || np->left);
}

static unsigned int null_egress(struct port *port, unsigned int queue, const struct batch *b, const uint16_t *order,
                                unsigned int n)
{
    uint64_t bytes = 0;

    (void)queue;
    for (unsigned int k = 0; k < n; k++)
        bytes += b->frame[order[k]].len;
    count(&port->counters.tx_frames, n);
    count(&port->counters.tx_bytes, bytes);
    return n;
}

static void null_destroy(struct port *port)
{
    struct null_port *np = to_null_port(port);

    if (np->ring.kick_fd >= 0)
        close(np->ring.kick_fd);
    free(np->frame);
    free(np);
}

static const struct port_ops null_port_ops = {
    .kind = "null",
    .ring = {.ingress = null_ingress, .consumed = null_consumed, .want_kick = null_want_kick},
    .egress = null_egress,
    .destroy = null_destroy,
};

static int become_source(struct null_port *np, const struct null_source *source)
{
    struct ether_header header = {.ether_type = htobe16(ETHERTYPE_LOCAL)};

    np->frame = calloc(1, source->length);
    if (!np->frame)
        return -ENOMEM;
    memcpy(header.ether_dhost, &source->destination, ETHER_ADDR_LEN);
    memcpy(header.ether_shost, &source->source, ETHER_ADDR_LEN);
    memcpy(np->frame, &header, sizeof(header));
    np->endless = source->frames == 0;
    np->left = source->frames;
    np->length = source->length;
    np->port.ring_count = 1;
    np->port.ring[0] = &np->ring;
    np->ring.port = &np->port;
    np->ring.kick_fd = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
    return np->ring.kick_fd < 0 ? -errno : 0;
}

int null_port_create(struct port **port, const struct vale_name *name, const struct null_source *source)
{
    struct null_port *np = calloc(1, sizeof(*np));
    int err;

    if (!np)
        return -ENOMEM;
    np->port.ops = &null_port_ops;
    np->port.name = *name;
    np->ring.kick_fd = -1;
    err = source ? become_source(np, source) : 0;
    if (err) {
        null_destroy(&np->port);
        return err;
    }
    *port = &np->port;
    return 0;
}
