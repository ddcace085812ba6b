/* SPDX-License-Identifier: BSD-2-Clause */
/* Two-pass forwarding of a batch. */
#include "forward.h"

#include "fdb.h"
#include "offload.h"
#include "vswitch.h"

#include <string.h>

#define OUT_FLOOD 254
#define OUT_NONE  255
#define END       0xffff

/* The lists of one batch, by destination. On the worker's stack: 1 KiB, of which only what is used is touched. */
struct lists {
    uint16_t head[256];
    uint16_t tail[256];
    uint8_t touched[256]; /* destinations with unicast frames, in order of appearance */
    unsigned int touched_count;
    uint64_t used[4]; /* bitmap over head[] */
    unsigned int flooded;
    unsigned int self; /* frames whose destination is on the sender's own port */
    unsigned int gone; /* frames whose destination has just been closed */
    unsigned int locked; /* frames whose source address is locked to another port */
};

struct addresses {
    uint64_t dst, src;
};

/* Both addresses, read once. A first segment shorter than them is gathered: legal, and rare. */
static inline struct addresses read_addresses(const struct batch *b, const struct frame *f)
{
    const struct segment *seg = &b->seg[f->first];
    uint8_t gathered[16] = {0};
    const uint8_t *p = seg->data;
    uint64_t lo, hi;
    uint32_t mid;

    if (seg->len < 12) {
        for (unsigned int got = 0; got < 12; seg++) {
            unsigned int part = seg->len < 12 - got ? seg->len : 12 - got;

            memcpy(gathered + got, seg->data, part);
            got += part;
        }
        p = gathered;
    }
    memcpy(&lo, p, 8);
    memcpy(&mid, p + 8, 4);
    hi = lo >> 48 | (uint64_t)mid << 16;
    return (struct addresses){.dst = lo & FDB_MAC_MASK, .src = hi};
}

static inline void append(struct lists *l, struct batch *b, unsigned int out, unsigned int i)
{
    b->next[i] = END;
    if (l->used[out >> 6] & 1ull << (out & 63)) {
        b->next[l->tail[out]] = i;
    } else {
        l->used[out >> 6] |= 1ull << (out & 63);
        l->head[out] = i;
        if (out != OUT_FLOOD)
            l->touched[l->touched_count++] = out;
    }
    l->tail[out] = i;
}

/* The destination of one frame, by the ring's cache where nothing has changed. OUT_NONE: it may not be sent. */
static inline unsigned int classify(struct ring *ring, struct fdb *fdb, struct addresses a)
{
    if (a.src != ring->last_src) {
        ring->src_refused = !fdb_learn(fdb, a.src, ring->port->index, ring->cache_time);
        ring->last_src = a.src;
    }
    if (ring->src_refused)
        return OUT_NONE;
    if (a.dst == ring->last_dst)
        return ring->last_out;
    ring->last_dst = a.dst;
    if (a.dst & 1)
        ring->last_out = OUT_FLOOD;
    else if ((ring->last_out = fdb_lookup(fdb, a.dst, ring->cache_time)) == FDB_NONE)
        ring->last_out = OUT_FLOOD;
    return ring->last_out;
}

static void refresh_cache(struct ring *ring, struct fdb *fdb, uint32_t now)
{
    uint32_t generation = atomic_load(&fdb->generation);

    if (generation != ring->cache_generation || now != ring->cache_time) {
        ring->last_src = ring->last_dst = UINT64_MAX;
        ring->cache_generation = generation;
        ring->cache_time = now;
    }
}

static void first_pass(struct ring *ring, struct batch *b, struct lists *l)
{
    struct vswitch *sw = ring->port->sw;
    bool p2p = atomic_load_explicit(&sw->p2p, memory_order_relaxed);
    unsigned int self = ring->port->index;

    for (unsigned int i = 0; i < b->frames; i++) {
        /* A link knows no addresses: what enters leaves at the other end. */
        unsigned int out = p2p ? OUT_FLOOD : classify(ring, &sw->fdb, read_addresses(b, &b->frame[i]));

        if (out == self || out == OUT_NONE) {
            l->self += out == self;
            l->locked += out == OUT_NONE;
            continue;
        }
        l->flooded += out == OUT_FLOOD;
        append(l, b, out, i);
    }
}

/* Writes the frames for one destination into b->order: two sorted lists become one. Returns how many. */
static unsigned int merge(struct batch *b, uint16_t unicast, uint16_t flood)
{
    unsigned int n = 0;

    while (unicast != END || flood != END) {
        if (unicast < flood) {
            b->order[n++] = unicast;
            unicast = b->next[unicast];
        } else {
            b->order[n++] = flood;
            flood = b->next[flood];
        }
    }
    return n;
}

/* False when the port has gone since it was looked up. */
static bool deliver(struct ring *ring, struct batch *b, unsigned int out, uint16_t unicast, uint16_t flood)
{
    struct port *port = atomic_load_explicit(&ring->port->sw->ports[out], memory_order_acquire);
    unsigned int n;

    if (!port)
        return false;
    n = merge(b, unicast, flood);
    count(&port->counters.tx_offered, n);
    if (b->needs & ~atomic_load_explicit(&port->accepts, memory_order_relaxed))
        offload_egress(port, ring->index, b, b->order, n);
    else
        port->ops->egress(port, ring->index, b, b->order, n);
    return true;
}

static void second_pass(struct ring *ring, struct batch *b, struct lists *l)
{
    uint16_t flood = l->flooded ? l->head[OUT_FLOOD] : END;

    for (unsigned int i = 0; i < l->touched_count; i++) {
        uint16_t first = l->head[l->touched[i]];

        if (!deliver(ring, b, l->touched[i], first, flood))
            l->gone += merge(b, first, END);
    }
    if (flood == END)
        return;
    for (unsigned int out = 0; out < atomic_load(&ring->port->sw->port_limit); out++)
        if (out != ring->port->index && !(l->used[out >> 6] & 1ull << (out & 63)))
            deliver(ring, b, out, END, flood);
}

void forward_batch(struct ring *ring, struct batch *b, uint32_t now)
{
    struct port_counters *c = &ring->port->counters;
    struct lists l;
    uint64_t bytes = 0;

    l.touched_count = l.flooded = l.self = l.gone = l.locked = 0;
    memset(l.used, 0, sizeof(l.used));
    refresh_cache(ring, &ring->port->sw->fdb, now);
    first_pass(ring, b, &l);
    second_pass(ring, b, &l);

    for (unsigned int i = 0; i < b->frames; i++)
        bytes += b->frame[i].len;
    count(&c->rx_frames, b->frames);
    count(&c->rx_bytes, bytes);
    count(&c->flooded, l.flooded);
    count(&c->rx_dropped[DROP_SELF], l.self);
    count(&c->rx_dropped[DROP_GONE], l.gone);
    count(&c->rx_dropped[DROP_MAC_LOCKED], l.locked);
    count(&c->unicast, b->frames - l.flooded - l.self - l.gone - l.locked);
}
