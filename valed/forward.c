/* SPDX-License-Identifier: BSD-2-Clause */
/* Two-pass forwarding of a batch. */
#include "forward.h"

#include "fdb.h"
#include "line.h"
#include "monitor.h"
#include "offload.h"
#include "vswitch.h"
#include "worker.h"

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

/* Frame i begins or goes on with the list of its destination. */
static void append(struct lists *l, struct batch *b, unsigned int out, unsigned int i)
{
    if (l->used[out >> 6] & 1ull << (out & 63)) {
        b->next[l->tail[out]] = i;
    } else {
        l->used[out >> 6] |= 1ull << (out & 63);
        l->head[out] = i;
        if (out != OUT_FLOOD)
            l->touched[l->touched_count++] = out;
    }
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
    unsigned int self = ring->port->index, before = OUT_NONE;

    for (unsigned int i = 0; i < b->frames; i++) {
        /* A link knows no addresses: what enters leaves at the other end. */
        unsigned int out = p2p ? OUT_FLOOD : classify(ring, &sw->fdb, read_addresses(b, &b->frame[i]));

        b->next[i] = END;
        if (out == self || out == OUT_NONE) {
            l->self += out == self;
            l->locked += out == OUT_NONE;
            before = OUT_NONE;
            continue;
        }
        l->flooded += out == OUT_FLOOD;
        /* Mostly frames come in runs with one destination. */
        if (out == before)
            b->next[i - 1] = (uint16_t)i;
        else
            append(l, b, out, i);
        l->tail[out] = (uint16_t)i;
        before = out;
    }
}

/* Writes the frames for one destination into b->order: two sorted lists become one. Returns how many. */
static unsigned int merge(struct batch *b, uint16_t unicast, uint16_t flood)
{
    unsigned int n = 0;

    for (; flood == END && unicast != END; unicast = b->next[unicast])
        b->order[n++] = unicast;
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

/* Frames of a ring come to a port; they are not new there when it is the port's own line that held them. */
static void count_offered(const struct ring *ring, struct port *port, unsigned int n)
{
    if (ring->role != RING_OF_LINE_OUT)
        count(&port->counters.tx_offered, n);
}

/* Hands the first n frames of b->order to the port's line. False when it has none, or when they come from there. */
static bool into_line(const struct ring *ring, struct port *port, const struct batch *b, unsigned int n)
{
    struct line *line = atomic_load_explicit(&port->line[DIRECTION_OUT], memory_order_acquire);

    if (!line || ring->role == RING_OF_LINE_OUT)
        return false;
    count_offered(ring, port, n);
    line_take(line, ring->index, b, b->order, n);
    return true;
}

/*
 * Hands a port the first n frames of b->order. Returns how many it is done with; where *passed is given (see offload.h) it
 * waits for room, else everything is done with.
 */
static unsigned int transmit(const struct ring *ring, struct port *port, struct batch *b, unsigned int n, uint16_t *passed)
{
    bool watched = is_monitored(port->sw);
    unsigned int queue = ring->index, done;

    if (batch_is_dead(b)) {
        if (passed)
            *passed = 0;
        count_offered(ring, port, n);
        count(&port->counters.tx_dropped[DROP_PEER_MEMORY], n);
        return n;
    }
    if (watched)
        monitor_begin(b);
    if (b->needs & ~atomic_load_explicit(&port->accepts, memory_order_relaxed))
        done = offload_egress(port, queue, b, b->order, n, passed);
    else
        done = port->ops->egress(port, queue, b, b->order, n);
    if (watched)
        monitor_delivered(port, queue, b, done);
    if (!passed) {
        count(&port->counters.tx_dropped[DROP_RING_FULL], n - done);
        done = n;
    }
    count_offered(ring, port, done);
    return done;
}

/* The same for frames that do not wait, impaired where the port is. */
static void send_off(const struct ring *ring, struct port *port, struct batch *b, unsigned int n)
{
    if (!into_line(ring, port, b, n))
        transmit(ring, port, b, n, NULL);
}

static struct port *port_at(const struct ring *ring, unsigned int out)
{
    return atomic_load_explicit(&ring->port->sw->ports[out], memory_order_acquire);
}

/* False when the port has gone since it was looked up. */
static bool deliver(struct ring *ring, struct batch *b, unsigned int out, uint16_t unicast, uint16_t flood)
{
    struct port *port = port_at(ring, out);

    if (!port)
        return false;
    send_off(ring, port, b, merge(b, unicast, flood));
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

/* Two passes. Everything is done with. */
static void forward_dropping(struct ring *ring, struct batch *b, struct lists *l)
{
    l->touched_count = 0;
    memset(l->used, 0, sizeof(l->used));
    first_pass(ring, b, l);
    second_pass(ring, b, l);
}

/* --------------------------------------------------------------------------------------------------------- waiting --- */

/* Where everything on a link goes: to its other end, or to nobody. Of other switches OUT_NONE. */
static unsigned int other_end(const struct ring *ring)
{
    if (!atomic_load_explicit(&ring->port->sw->p2p, memory_order_relaxed))
        return OUT_NONE;
    for (unsigned int out = 0; out < atomic_load(&ring->port->sw->port_limit); out++)
        if (out != ring->port->index && port_at(ring, out))
            return out;
    return OUT_FLOOD;
}

/* Frames from `first` on with the same destination: writes them into b->order, returns how many. */
static unsigned int next_run(struct ring *ring, struct batch *b, unsigned int first, unsigned int end, unsigned int *out)
{
    struct fdb *fdb = &ring->port->sw->fdb;
    unsigned int n = 0;

    for (unsigned int i = first; i < b->frames; i++) {
        unsigned int to = end == OUT_NONE ? classify(ring, fdb, read_addresses(b, &b->frame[i])) : end;

        if (n && to != *out)
            break;
        *out = to;
        b->order[n++] = (uint16_t)i;
    }
    return n;
}

/* Whether a port without room has had its time. now: microseconds. */
static bool is_stalled(const struct ring *ring, struct port *port, uint64_t now)
{
    if (!atomic_load_explicit(&port->stalled, memory_order_relaxed) && now >= forward_deadline(ring))
        atomic_store_explicit(&port->stalled, true, memory_order_relaxed);
    return atomic_load_explicit(&port->stalled, memory_order_relaxed);
}

/* The ring waits for that port from now on, unless it does already. */
static void block(struct ring *ring, unsigned int out, uint64_t now)
{
    if (ring->blocked_on != out)
        ring->blocked_since = now;
    ring->blocked_on = out;
}

/* Hands a run of n frames to one port. Returns how many of them are done with. */
static unsigned int deliver_waiting(struct ring *ring, struct batch *b, struct port *port, unsigned int n,
                                    uint64_t now)
{
    unsigned int done;

    if (into_line(ring, port, b, n)) {
        ring->blocked_on = BLOCKED_NONE;
        ring->segments_passed = 0;
        return n;
    }
    done = transmit(ring, port, b, n, &ring->segments_passed);
    if (done) {
        atomic_store_explicit(&port->moved, now, memory_order_relaxed);
        atomic_store_explicit(&port->stalled, false, memory_order_relaxed);
        ring->blocked_on = BLOCKED_NONE;
    }
    if (done == n)
        return n;
    block(ring, port->index, now);
    if (!is_stalled(ring, port, now))
        return done;
    ring->blocked_on = BLOCKED_NONE;
    ring->segments_passed = 0;
    count_offered(ring, port, n - done);
    count(&port->counters.tx_dropped[DROP_STALLED], n - done);
    return n;
}

/* Floods a run of n frames. */
static void flood(struct ring *ring, struct batch *b, unsigned int n)
{
    for (unsigned int out = 0; out < atomic_load(&ring->port->sw->port_limit); out++) {
        struct port *port = port_at(ring, out);

        if (port && out != ring->port->index)
            send_off(ring, port, b, n);
    }
}

/* Forwards run by run up to the first frame without room; how many are done with. */
static unsigned int forward_waiting(struct ring *ring, struct batch *b, struct lists *l, uint64_t now)
{
    unsigned int at = 0, end = other_end(ring), out = OUT_NONE;

    while (at < b->frames) {
        unsigned int n = next_run(ring, b, at, end, &out), done = n;
        struct port *port;

        if (at || out != ring->blocked_on)
            ring->segments_passed = 0; /* that frame has gone another way */
        if (out == OUT_FLOOD) {
            flood(ring, b, n);
            l->flooded += n;
        } else if (out == OUT_NONE) {
            l->locked += n;
        } else if (out == ring->port->index) {
            l->self += n;
        } else if (!(port = port_at(ring, out))) {
            l->gone += n;
        } else {
            done = deliver_waiting(ring, b, port, n, now);
        }
        at += done;
        if (done < n)
            return at;
    }
    ring->blocked_on = BLOCKED_NONE;
    return at;
}

bool forward_want_room(struct ring *ring)
{
    struct port *port = port_at(ring, ring->blocked_on);

    if (!port || !port->ops->want_room)
        return true;
    atomic_fetch_or(&port->waiting, worker_bit(ring));
    /* It may have left since, and have woken those that waited then. */
    if (atomic_load(&ring->port->sw->ports[ring->blocked_on]) != port)
        return true;
    return port->ops->want_room(port, ring->index, true);
}

uint64_t forward_deadline(const struct ring *ring)
{
    const struct port *port = port_at(ring, ring->blocked_on);
    uint64_t since = port ? atomic_load_explicit(&port->moved, memory_order_relaxed) : 0;

    if (since < ring->blocked_since)
        since = ring->blocked_since;
    return since + atomic_load_explicit(&ring->port->sw->wait_limit, memory_order_relaxed);
}

void forward_room(struct port *port)
{
    if (atomic_load(&port->waiting) == 0)
        return;
    port->ops->want_room(port, 0, false);
    workers_retry(atomic_exchange(&port->waiting, 0));
}

/* ----------------------------------------------------------------------------------------------------------- a batch --- */

/* A ring on its way out waits for nobody. */
static bool may_wait(const struct ring *ring)
{
    return atomic_load_explicit(&ring->port->sw->wait_limit, memory_order_relaxed) && !ring->draining;
}

static void count_entered(const struct ring *ring, const struct batch *b, unsigned int n)
{
    uint64_t bytes = 0;

    if (ring->role != RING_OF_CLIENT)
        return;
    for (unsigned int i = 0; i < n; i++)
        bytes += b->frame[i].len;
    count(&ring->port->counters.rx_frames, n);
    count(&ring->port->counters.rx_bytes, bytes);
}

/* The batch comes out of the line of its destination. */
static unsigned int finish_out(struct ring *ring, struct batch *b, uint64_t now)
{
    for (unsigned int i = 0; i < b->frames; i++)
        b->order[i] = (uint16_t)i;
    if (may_wait(ring))
        return deliver_waiting(ring, b, ring->port, b->frames, now);
    ring->blocked_on = BLOCKED_NONE;
    ring->segments_passed = 0;
    return transmit(ring, ring->port, b, b->frames, NULL);
}

/* Looks destinations up and forwards. Returns the frames done with. */
static unsigned int forward(struct ring *ring, struct batch *b, uint64_t now)
{
    struct port_counters *c = &ring->port->counters;
    struct vswitch *sw = ring->port->sw;
    unsigned int done = b->frames;
    struct lists l;

    l.flooded = l.self = l.gone = l.locked = 0;
    refresh_cache(ring, &sw->fdb, (uint32_t)(now / 1000000));
    if (may_wait(ring)) {
        done = forward_waiting(ring, b, &l, now);
        if (is_monitored(sw))
            monitor_sent(ring, b, done);
    } else {
        ring->blocked_on = BLOCKED_NONE;
        ring->segments_passed = 0;
        if (is_monitored(sw))
            monitor_sent(ring, b, done);
        forward_dropping(ring, b, &l);
    }
    count(&c->flooded, l.flooded);
    /* Zeros in the place of addresses: learned from the first frame, they are the sender's own. */
    count(&c->rx_dropped[batch_is_dead(b) ? DROP_PEER_MEMORY : DROP_SELF], l.self);
    count(&c->rx_dropped[DROP_GONE], l.gone);
    count(&c->rx_dropped[DROP_MAC_LOCKED], l.locked);
    count(&c->unicast, done - l.flooded - l.self - l.gone - l.locked);
    return done;
}

unsigned int forward_batch(struct ring *ring, struct batch *b, uint64_t now)
{
    struct line *line = atomic_load_explicit(&ring->port->line[DIRECTION_IN], memory_order_acquire);
    unsigned int done = b->frames;

    if (ring->role == RING_OF_LINE_OUT)
        return finish_out(ring, b, now);
    if (line && ring->role == RING_OF_CLIENT) {
        ring->blocked_on = BLOCKED_NONE;
        ring->segments_passed = 0;
        line_take(line, ring->index, b, NULL, b->frames);
    } else {
        done = forward(ring, b, now);
    }
    count_entered(ring, b, done);
    return done;
}
