/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Native ports: netmap's rings in a region shared with the client
 *
 * INGRESS  The worker reads head of a TX ring once, checks that it lies within what it gave out, and turns the slots from
 * hwcur to head into views. Each slot is read once, as two words, and the copies are checked. The buffers stay the
 * worker's until consumed() moves hwtail.
 *
 * EGRESS  Several workers may fill one RX ring. Each reserves a run of slots under the ring's lock, copies without it, and
 * completes under the lock again. Runs are published in the order of reservation: hwtail moves over the oldest runs that
 * are complete, whoever completed them. No worker waits for another. Whoever moved hwtail calls the client, if it wants.
 *
 * THE CLIENT IS HOSTILE  Everything in the region may change at any time. Private here: hwcur and hwtail of each ring, the
 * reservations, buffer count and size. A head out of range counts as "nothing new". Buffer indexes of RX slots are the
 * client's and checked at each use. A client that lies gets its own frames spoiled.
 */
#include "port_ring.h"

#include "copy.h"
#include "log.h"
#include "offload.h"
#include "quota.h"
#include "watch.h"
#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#define load_acquire(p)     __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define store_release(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
#define read_once(p)        __atomic_load_n(p, __ATOMIC_RELAXED)
#define write_once(p, v)    __atomic_store_n(p, v, __ATOMIC_RELAXED)

/* A TX ring of the client: where frames come from. */
struct tx_ring {
    struct ring ring;
    struct vale_ring_ctl *ctl;
    struct netmap_slot *slot;
    uint32_t slots;
    uint32_t hwcur;  /* first slot not taken */
    uint32_t taken;  /* first slot not in the batch at hand */
    uint32_t begin;  /* of its first frame: bad ones may lie before it */
    uint32_t called; /* need_call that was answered */
};

/* A run of slots that a worker is filling, or has filled while an older run was not complete. */
struct lease {
    uint32_t end;
    bool complete;
};

/* An RX ring of the client: where frames go. */
struct rx_ring {
    pthread_mutex_t lock;
    struct vale_ring_ctl *ctl;
    struct netmap_slot *slot;
    uint32_t slots;
    uint32_t head;     /* the client's, as last seen and found legal */
    uint32_t looked_at; /* the same, as last seen */
    uint32_t reserved; /* first slot not reserved */
    uint32_t hwtail;   /* first slot not published */
    uint32_t called;
    struct lease *lease; /* by the first slot of its run; runs lie end to end from hwtail to reserved */
};

struct ring_port {
    struct port port;
    struct region region;
    uint64_t charged; /* bytes that the peer's quota holds for it */
    _Atomic uint8_t header; /* bytes of virtio-net header before each frame, both ways: 0, 10 or 12 */
    int kick_fd;
    int call_fd[2];  /* the ends that we write, by VALE_FD_CALL_RX / TX */
    int peer_fd[2];  /* the ends that the client reads */
    struct tx_ring *tx;
    struct rx_ring *rx;
};

static inline struct ring_port *to_ring_port(const struct port *port)
{
    return (struct ring_port *)(uintptr_t)port;
}

static inline struct tx_ring *to_tx_ring(struct ring *ring)
{
    return (struct tx_ring *)ring;
}

/* Slots from a up to b on a ring of n. */
static inline uint32_t distance(uint32_t a, uint32_t b, uint32_t n)
{
    return b >= a ? b - a : b + n - a;
}

static inline uint32_t advance(uint32_t i, uint32_t by, uint32_t n)
{
    i += by;
    return i >= n ? i - n : i;
}

/* The buffers of a region, as a value: what a client may write to cannot be it. */
struct buffers {
    uint8_t *base;
    uint32_t size;
    uint32_t count;
};

static inline struct buffers buffers_of(const struct port *port)
{
    const struct region *region = &to_ring_port(port)->region;

    return (struct buffers){.base = region->bufs, .size = region->buf_size, .count = region->buf_count};
}

/* A buffer, or NULL when the client put nonsense into its slot. */
static inline uint8_t *buffer_at(struct buffers buffers, uint32_t index)
{
    if (index < 2 || index >= buffers.count)
        return NULL;
    return buffers.base + (size_t)index * buffers.size;
}

/* Wakes the client once per arming. The pipe is ours: full means that a call is on its way already. */
static void call_client(struct ring_port *rp, enum vale_fd which, const struct vale_ring_ctl *ctl, uint32_t *called)
{
    uint32_t wish;

    atomic_thread_fence(memory_order_seq_cst);
    wish = read_once(&ctl->client.need_call);
    if (wish == 0 || wish == *called)
        return;
    *called = wish;
    count(&rp->port.counters.calls, 1);
    if (write(rp->call_fd[which - VALE_FD_CALL_RX], "", 1) < 0 && errno != EAGAIN)
        log_debug("%s: call: %s", rp->port.name.full, strerror(errno));
}

/* ----------------------------------------------------------------------------------------------------------- ingress --- */

/* What the client published, in slots; 0 when its head is impossible. */
static uint32_t tx_published(struct tx_ring *tx)
{
    uint32_t head = load_acquire(&tx->ctl->client.head);

    if (head < tx->slots)
        return distance(tx->hwcur, head, tx->slots);
    count(&tx->ring.port->counters.bad_head, 1);
    return 0;
}

/*
 * Views one slot as the next segment of the batch. Returns the slot's flags, or -1 when the slot is not acceptable.
 */
static inline int view_slot(struct buffers buffers, struct netmap_slot *slot, struct segment *seg)
{
    uint64_t word = read_once((uint64_t *)slot); /* buf_idx, len and flags, read together */
    uint16_t len = (uint16_t)(word >> 32), flags = (uint16_t)(word >> 48);
    const uint8_t *data = buffer_at(buffers, (uint32_t)word);

    if (!data || len > buffers.size || (flags & NS_INDIRECT))
        return -1;
    *seg = (struct segment){.data = data, .len = len};
    __builtin_prefetch(seg->data);
    return flags;
}

/*
 * Takes the virtio-net header off the next frame of the batch. It must lie in the first slot, whole. The reason why the
 * frame cannot be forwarded, or DROP_REASONS.
 */
static unsigned int take_header(struct batch *b, uint32_t len)
{
    struct frame *frame = &b->frame[b->frames];
    struct segment *first = &b->seg[frame->first];
    uint8_t header[NET_HEADER_MAX];

    if (first->len < len)
        return DROP_BAD_HEADER;
    memcpy(header, first->data, len);
    first->data += len;
    first->len -= len;
    if (first->len == 0) {
        frame->first++;
        frame->segs--;
    }
    return offload_wanted(header) && !offload_read(b, b->frames, header) ? DROP_BAD_HEADER : DROP_REASONS;
}

/*
 * Views the frame that begins at slot i, at most `slots` slots, behind its header. Returns the slots it takes; *drop is the
 * reason why it cannot be forwarded, or DROP_REASONS.
 */
static uint32_t view_frame(struct tx_ring *tx, struct batch *b, uint32_t i, uint32_t slots, uint32_t header,
                           unsigned int *drop)
{
    struct buffers buffers = buffers_of(tx->ring.port);
    struct frame *frame = &b->frame[b->frames];
    uint32_t used = 0, len = 0, first = b->segs;
    int flags;

    *drop = DROP_REASONS;
    do {
        struct segment seg = {0};

        flags = view_slot(buffers, &tx->slot[i], &seg);
        if (flags < 0) {
            *drop = DROP_BAD_SLOT;
            flags = read_once(&tx->slot[i].flags);
        }
        /* Empty slots inside a frame are legal, and of no use to anybody. */
        if (seg.len && used < INGRESS_SEGS_MAX)
            b->seg[b->segs++] = seg;
        len += seg.len;
        used++;
        i = advance(i, 1, tx->slots);
    } while ((flags & NS_MOREFRAG) && used < slots);

    if (*drop == DROP_REASONS) {
        if (flags & NS_MOREFRAG)
            *drop = DROP_TRUNCATED;
        else if (used > INGRESS_SEGS_MAX || len > FRAME_LEN_MAX + header)
            *drop = DROP_TOO_LONG;
        else if (len < FRAME_LEN_MIN + header)
            *drop = DROP_SHORT;
    }
    *frame = (struct frame){.first = first, .segs = (uint8_t)(b->segs - first), .len = (uint16_t)(len - header)};
    if (*drop == DROP_REASONS && header)
        *drop = take_header(b, header);
    if (*drop != DROP_REASONS)
        b->segs = first;
    return used;
}

/* The same for what nearly all frames are: good, in one slot, without header. False, and nothing done, when it is not. */
static inline bool view_simple(struct buffers buffers, struct netmap_slot *slot, struct batch *b)
{
    struct segment *seg = &b->seg[b->segs];
    int flags = view_slot(buffers, slot, seg);

    if (flags < 0 || (flags & NS_MOREFRAG) || seg->len < FRAME_LEN_MIN)
        return false;
    b->frame[b->frames] = (struct frame){.first = b->segs++, .segs = 1, .len = (uint16_t)seg->len};
    return true;
}

/* Views frames in up to `left` slots. */
static void view_frames(struct tx_ring *tx, struct batch *b, unsigned int budget, uint32_t left, uint32_t header)
{
    struct port_counters *c = &tx->ring.port->counters;
    struct buffers buffers = buffers_of(tx->ring.port);
    uint32_t i = tx->begin = tx->hwcur;

    for (unsigned int n = 0; left && n < budget && b->segs < BATCH_MAX; n++) {
        unsigned int drop = DROP_REASONS;
        uint32_t used = 1;

        if (header || !view_simple(buffers, &tx->slot[i], b))
            used = view_frame(tx, b, i, left, header, &drop);

        if (drop != DROP_REASONS && b->frames)
            break;
        left -= used;
        i = advance(i, used, tx->slots);
        if (drop == DROP_REASONS) {
            n += header ? offload_weight(b, b->frames) - 1 : 0;
            b->end[b->frames++] = i;
        } else {
            count(&c->rx_frames, 1);
            count(&c->rx_dropped[drop], 1);
            tx->begin = i;
        }
    }
    tx->taken = i;
}

static unsigned int ring_ingress(struct ring *ring, struct batch *b, unsigned int budget, bool *seen)
{
    struct tx_ring *tx = to_tx_ring(ring);
    uint32_t left = tx_published(tx);
    uint32_t header = atomic_load_explicit(&to_ring_port(ring->port)->header, memory_order_relaxed);

    *seen = left != 0;
    view_frames(tx, b, budget, left, header);
    return b->frames;
}

static void ring_consumed(struct ring *ring, const struct batch *b, unsigned int n)
{
    struct tx_ring *tx = to_tx_ring(ring);

    if (n == b->frames)
        tx->hwcur = tx->taken;
    else
        tx->hwcur = n ? b->end[n - 1] : tx->begin;
    write_once(&tx->ctl->valed.hwcur, tx->hwcur);
    store_release(&tx->ctl->valed.hwtail, advance(tx->hwcur, tx->slots - 1, tx->slots));
    /* A client that waits for room is woken to half a ring of it, not to every batch: the rest is on its way. */
    if (tx_published(tx) <= tx->slots / 2)
        call_client(to_ring_port(ring->port), VALE_FD_CALL_TX, tx->ctl, &tx->called);
}

static bool ring_want_kick(struct ring *ring, bool on)
{
    struct tx_ring *tx = to_tx_ring(ring);

    write_once(&tx->ctl->valed.need_kick, on);
    if (!on)
        return false;
    atomic_thread_fence(memory_order_seq_cst);
    if (tx_published(tx) == 0)
        return false;
    write_once(&tx->ctl->valed.need_kick, 0);
    return true;
}

/* ------------------------------------------------------------------------------------------------------------ egress --- */

/* Free slots of an RX ring, with the client's head taken in. One slot always stays empty. */
static uint32_t rx_room(struct ring_port *rp, struct rx_ring *rx)
{
    uint32_t head = load_acquire(&rx->ctl->client.head);

    rx->looked_at = head;
    if (head < rx->slots && distance(rx->head, head, rx->slots) <= distance(rx->head, rx->hwtail, rx->slots)) {
        rx->head = head;
        write_once(&rx->ctl->valed.hwcur, head);
    } else {
        count(&rp->port.counters.bad_head, 1);
    }
    return rx->slots - 1 - distance(rx->head, rx->reserved, rx->slots);
}

/* Slots that a frame needs. Almost all need one: do not divide for them. */
static inline uint32_t slots_for(uint32_t len, uint32_t buf_size)
{
    return len <= buf_size ? 1 : (len + buf_size - 1) / buf_size;
}

struct run {
    uint32_t first; /* slot */
    unsigned int frames;
    struct lease *lease;
};

/* Reserves slots for as many of the n frames, in order and each behind a header, as there is room for. */
static struct run rx_reserve(struct ring_port *rp, struct rx_ring *rx, const struct batch *b, const uint16_t *order,
                             unsigned int n, uint32_t header)
{
    struct run run = {0};
    uint32_t room, need = 0;

    pthread_mutex_lock(&rx->lock);
    room = rx_room(rp, rx);
    for (; run.frames < n; run.frames++) {
        uint32_t slots = slots_for(header + b->frame[order[run.frames]].len, rp->region.buf_size);

        if (need + slots > room)
            break;
        need += slots;
    }
    run.first = rx->reserved;
    if (need) {
        rx->reserved = advance(rx->reserved, need, rx->slots);
        run.lease = &rx->lease[run.first];
        *run.lease = (struct lease){.end = rx->reserved};
    }
    pthread_mutex_unlock(&rx->lock);
    return run;
}

/* Completes a run and publishes the oldest complete ones. */
static void rx_publish(struct ring_port *rp, struct rx_ring *rx, struct lease *lease)
{
    uint32_t before;

    pthread_mutex_lock(&rx->lock);
    before = rx->hwtail;
    lease->complete = true;
    while (rx->hwtail != rx->reserved && rx->lease[rx->hwtail].complete)
        rx->hwtail = rx->lease[rx->hwtail].end;
    if (rx->hwtail != before) {
        store_release(&rx->ctl->valed.hwtail, rx->hwtail);
        call_client(rp, VALE_FD_CALL_RX, rx->ctl, &rx->called);
    }
    pthread_mutex_unlock(&rx->lock);
}

static inline void fill_slot(struct netmap_slot *slot, uint32_t len, uint32_t flags)
{
    write_once((uint32_t *)&slot->len, len | flags << 16);
}

/*
 * The rare frame: several segments, several slots, or a header of that length before it. All its slots get these flags.
 * Returns the slots filled; *good is false if one had no buffer.
 */
static uint32_t copy_long(struct buffers buffers, struct rx_ring *rx, uint32_t at, const struct batch *b,
                          unsigned int index, uint32_t header_len, uint32_t flags, bool *good)
{
    const struct frame *f = &b->frame[index];
    const struct segment *next = &b->seg[f->first];
    uint8_t header[NET_HEADER_MAX];
    struct segment now = {.data = header, .len = header_len};
    uint32_t left = header_len + f->len, slots = slots_for(left, buffers.size);

    offload_write(b, index, header);
    for (uint32_t k = 0; k < slots; k++, at = advance(at, 1, rx->slots)) {
        uint8_t *to = buffer_at(buffers, read_once(&rx->slot[at].buf_idx));
        uint32_t len = left < buffers.size ? left : buffers.size;

        left -= len;
        *good = *good && to;
        fill_slot(&rx->slot[at], to ? len : 0, flags | (left ? NS_MOREFRAG : 0) | slots << NS_PORT_SHIFT);
        while (len) {
            uint32_t part;

            if (now.len == 0)
                now = *next++;
            part = now.len < len ? now.len : len;
            if (to) {
                memcpy(to, now.data, part);
                to += part;
            }
            now.data += part;
            now.len -= part;
            len -= part;
        }
    }
    return slots;
}

/* A run whose copies are not what was sent: empty slots, which are no frames. */
static void empty_run(struct rx_ring *rx, const struct run *run)
{
    for (uint32_t at = run->first; at != run->lease->end; at = advance(at, 1, rx->slots))
        fill_slot(&rx->slot[at], 0, 1 << NS_PORT_SHIFT);
}

struct copied {
    uint64_t bytes;
    unsigned int bad; /* frames that a slot without buffer has spoiled */
};

/* Fills the run with its frames. */
static struct copied copy_frames(struct ring_port *rp, struct rx_ring *rx, const struct run *run, const struct batch *b,
                                 const uint16_t *order, uint32_t header, uint32_t flags)
{
    struct buffers buffers = buffers_of(&rp->port);
    struct netmap_slot *slot = rx->slot;
    uint32_t at = run->first, slots = rx->slots;
    uint32_t short_max = header ? 0 : buffers.size; /* what one plain copy does */
    struct copied copied = {0};

    for (unsigned int k = 0; k < run->frames; k++) {
        const struct frame *f = &b->frame[order[k]];
        uint32_t len = f->len;
        bool good = true;

        if (f->segs == 1 && len <= short_max) {
            uint8_t *to = buffer_at(buffers, read_once(&slot[at].buf_idx));

            good = to != NULL;
            if (to)
                copy_bytes(to, b->seg[f->first].data, len);
            fill_slot(&slot[at], to ? len : 0, flags | 1 << NS_PORT_SHIFT);
            at = advance(at, 1, slots);
        } else {
            at = advance(at, copy_long(buffers, rx, at, b, order[k], header, flags, &good), slots);
        }
        if (!good)
            batch_undelivered(b, order[k]);
        copied.bad += !good;
        copied.bytes += good ? len : 0;
    }
    return copied;
}

unsigned int ring_port_egress(struct port *port, unsigned int queue, const struct batch *b, const uint16_t *order,
                              unsigned int n, uint32_t flags)
{
    struct ring_port *rp = to_ring_port(port);
    struct rx_ring *rx = &rp->rx[queue % rp->region.config.rx_rings];
    struct port_counters *c = &port->counters;
    uint32_t header = atomic_load_explicit(&rp->header, memory_order_relaxed);
    struct run run = rx_reserve(rp, rx, b, order, n, header);
    struct copied copied = copy_frames(rp, rx, &run, b, order, header, flags);
    uint64_t lost = 0;

    if (run.lease && batch_is_dead(b)) {
        empty_run(rx, &run);
        batch_undelivered_all(b, order, run.frames);
        lost = run.frames - copied.bad;
        copied.bytes = 0;
    }
    if (run.lease)
        rx_publish(rp, rx, run.lease);
    count(&c->tx_frames, run.frames - copied.bad - lost);
    count(&c->tx_dropped[DROP_PEER_MEMORY], lost);
    count(&c->tx_bytes, copied.bytes);
    count(&c->tx_dropped[DROP_BAD_SLOT], copied.bad);
    return run.frames;
}

static unsigned int ring_egress(struct port *port, unsigned int queue, const struct batch *b, const uint16_t *order,
                                unsigned int n)
{
    return ring_port_egress(port, queue, b, order, n, 0);
}

static bool ring_want_room(struct port *port, unsigned int queue, bool on)
{
    struct ring_port *rp = to_ring_port(port);
    struct rx_ring *rx = &rp->rx[queue % rp->region.config.rx_rings];
    bool moved;

    if (!on) {
        for (unsigned int i = 0; i < rp->region.config.rx_rings; i++)
            write_once(&rp->rx[i].ctl->valed.need_kick, 0);
        return false;
    }
    write_once(&rx->ctl->valed.need_kick, 1);
    atomic_thread_fence(memory_order_seq_cst);
    pthread_mutex_lock(&rx->lock);
    moved = load_acquire(&rx->ctl->client.head) != rx->looked_at;
    pthread_mutex_unlock(&rx->lock);
    return moved;
}

/* ------------------------------------------------------------------------------------------------ making and ending --- */

static int make_channels(struct ring_port *rp)
{
    rp->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (rp->kick_fd < 0)
        return -errno;
    for (int i = 0; i < 2; i++) {
        int ends[2];

        if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
            return -errno;
        rp->peer_fd[i] = ends[0];
        rp->call_fd[i] = ends[1];
    }
    return 0;
}

static int make_rings(struct ring_port *rp)
{
    const struct region_config *c = &rp->region.config;

    rp->tx = calloc(c->tx_rings, sizeof(*rp->tx));
    rp->rx = calloc(c->rx_rings, sizeof(*rp->rx));
    if (!rp->tx || !rp->rx)
        return -ENOMEM;
    for (unsigned int i = 0; i < c->tx_rings; i++) {
        struct tx_ring *tx = &rp->tx[i];

        tx->ctl = region_ctl(&rp->region, i);
        tx->slot = region_ring(&rp->region, i)->slot;
        tx->slots = c->tx_slots;
        tx->ring.port = &rp->port;
        tx->ring.index = i;
        /* One kick wakes the rings of all workers; epoll wants a descriptor of its own for each. */
        tx->ring.kick_fd = fcntl(rp->kick_fd, F_DUPFD_CLOEXEC, 0);
        rp->port.ring[rp->port.ring_count++] = &tx->ring;
        if (tx->ring.kick_fd < 0)
            return -errno;
    }
    for (unsigned int i = 0; i < c->rx_rings; i++) {
        struct rx_ring *rx = &rp->rx[i];

        pthread_mutex_init(&rx->lock, NULL);
        rx->ctl = region_ctl(&rp->region, c->tx_rings + i);
        rx->slot = region_ring(&rp->region, c->tx_rings + i)->slot;
        rx->slots = c->rx_slots;
        rx->lease = calloc(c->rx_slots, sizeof(*rx->lease));
        if (!rx->lease)
            return -ENOMEM;
    }
    return 0;
}

static void ring_destroy(struct port *port)
{
    struct ring_port *rp = to_ring_port(port);

    if (rp->charged) {
        quota_give(port->uid, QUOTA_PORTS, 1);
        quota_give(port->uid, QUOTA_BYTES, rp->charged);
    }
    region_destroy(&rp->region);
    for (unsigned int i = 0; i < port->ring_count; i++)
        if (port->ring[i]->kick_fd >= 0)
            close(port->ring[i]->kick_fd);
    if (rp->kick_fd >= 0)
        close(rp->kick_fd);
    for (int i = 0; i < 2; i++) {
        if (rp->call_fd[i] >= 0)
            close(rp->call_fd[i]);
        if (rp->peer_fd[i] >= 0)
            close(rp->peer_fd[i]);
    }
    for (unsigned int i = 0; rp->rx && i < rp->region.config.rx_rings; i++)
        free(rp->rx[i].lease);
    free(rp->tx);
    free(rp->rx);
    free(rp);
}

/* Counts the port against its user's quota. */
static int charge(struct ring_port *rp)
{
    uid_t uid = rp->port.uid;

    if (!quota_take(uid, QUOTA_PORTS, 1))
        return -EDQUOT;
    if (!quota_take(uid, QUOTA_BYTES, rp->region.size)) {
        quota_give(uid, QUOTA_PORTS, 1);
        return -EDQUOT;
    }
    rp->charged = rp->region.size;
    return 0;
}

/* Takes the indexes of a ring over that an earlier valed left, where they are indexes; a ring of which they are not is empty. */
static void resume_tx(struct tx_ring *tx)
{
    uint32_t head = read_once(&tx->ctl->client.head), hwcur = read_once(&tx->ctl->valed.hwcur);

    if (head >= tx->slots)
        head = 0;
    tx->hwcur = hwcur < tx->slots ? hwcur : head;
    write_once(&tx->ctl->valed.hwcur, tx->hwcur);
    write_once(&tx->ctl->valed.hwtail, advance(tx->hwcur, tx->slots - 1, tx->slots));
    write_once(&tx->ctl->valed.need_kick, 1);
}

static void resume_rx(struct rx_ring *rx)
{
    uint32_t head = read_once(&rx->ctl->client.head), hwtail = read_once(&rx->ctl->valed.hwtail);

    rx->head = head < rx->slots ? head : 0;
    rx->hwtail = rx->reserved = hwtail < rx->slots ? hwtail : rx->head;
    write_once(&rx->ctl->valed.hwcur, rx->head);
    write_once(&rx->ctl->valed.hwtail, rx->hwtail);
    write_once(&rx->ctl->valed.need_kick, 0);
}

static void resume_rings(struct ring_port *rp)
{
    for (unsigned int i = 0; i < rp->region.config.tx_rings; i++)
        resume_tx(&rp->tx[i]);
    for (unsigned int i = 0; i < rp->region.config.rx_rings; i++)
        resume_rx(&rp->rx[i]);
}

static struct ring_port *allocate(const struct vale_name *name, uid_t uid)
{
    struct ring_port *rp = calloc(1, sizeof(*rp));

    if (rp) {
        rp->port.ops = &ring_port_ops;
        rp->port.name = *name;
        rp->port.uid = uid;
        rp->kick_fd = rp->call_fd[0] = rp->call_fd[1] = rp->peer_fd[0] = rp->peer_fd[1] = -1;
    }
    return rp;
}

/* All but the region, of which err says whether it is there. */
static int finish(struct ring_port *rp, int err, struct port **port)
{
    if (err == 0)
        err = charge(rp);
    if (err == 0)
        err = make_channels(rp);
    if (err == 0)
        err = make_rings(rp);
    if (err == 0 && watch_fds_scarce())
        err = -EMFILE;
    if (err) {
        ring_destroy(&rp->port);
        return err;
    }
    *port = &rp->port;
    return 0;
}

int ring_port_create(struct port **port, const struct vale_name *name, const struct region_config *config, uid_t uid)
{
    struct ring_port *rp = allocate(name, uid);

    return rp ? finish(rp, region_create(&rp->region, config, name->full), port) : -ENOMEM;
}

int ring_port_resume(struct port **port, const struct vale_name *name, const struct region_config *config, int mem_fd,
                     const struct vale_opt_resume *resume, uid_t uid)
{
    struct ring_port *rp = allocate(name, uid);
    int err;

    if (!rp) {
        close(mem_fd);
        return -ENOMEM;
    }
    err = finish(rp, region_adopt(&rp->region, config, mem_fd), port);
    if (err)
        return err;
    resume_rings(rp);
    ring_port_set_header(*port, resume->hdr_len, resume->accepts);
    return 0;
}

void ring_port_wake(struct port *port)
{
    for (unsigned int i = 0; i < port->ring_count; i++)
        worker_poke_ring(port->ring[i]);
}

bool ring_port_is_memory(const struct port *port, int fd)
{
    struct stat ours, theirs;

    return fstat(to_ring_port(port)->region.fd, &ours) == 0 && fstat(fd, &theirs) == 0 && ours.st_dev == theirs.st_dev &&
           ours.st_ino == theirs.st_ino;
}

void ring_port_close_tx(struct port *port)
{
    struct ring_port *rp = to_ring_port(port);

    for (unsigned int i = 0; i < rp->region.config.tx_rings; i++) {
        region_ring(&rp->region, i)->tail = rp->tx[i].ctl->valed.hwtail = 0;
        rp->tx[i].ctl->valed.need_kick = 0;
    }
}

unsigned int ring_port_header(const struct port *port)
{
    return to_ring_port(port)->header;
}

/* The wire's bits are the batch's. */
_Static_assert((int)VALE_ACCEPT_CSUM == OFFLOAD_CSUM && (int)VALE_ACCEPT_TSO4 == OFFLOAD_TSO4 &&
               (int)VALE_ACCEPT_TSO6 == OFFLOAD_TSO6 && (int)VALE_ACCEPT_ECN == OFFLOAD_ECN &&
               (int)VALE_ACCEPT_USO == OFFLOAD_USO, "vale_accept");

void ring_port_set_header(struct port *port, unsigned int len, uint32_t accepts)
{
    if (!(accepts & VALE_ACCEPT_GIVEN))
        accepts = VALE_ACCEPT_ALL & ~VALE_ACCEPT_USO;
    if (len == 0 || !(accepts & VALE_ACCEPT_CSUM))
        accepts = 0;
    /* Frames on their way see the old or the new length: the client that changes it knows. */
    atomic_store(&to_ring_port(port)->header, (uint8_t)len);
    atomic_store(&port->accepts, accepts & VALE_ACCEPT_ALL);
}

const struct region *ring_port_region(const struct port *port)
{
    return &to_ring_port(port)->region;
}

void ring_port_fds(const struct port *port, int fds[VALE_FD_COUNT])
{
    const struct ring_port *rp = to_ring_port(port);

    fds[VALE_FD_MEM] = rp->region.fd;
    fds[VALE_FD_KICK] = rp->kick_fd;
    fds[VALE_FD_CALL_RX] = rp->peer_fd[0];
    fds[VALE_FD_CALL_TX] = rp->peer_fd[1];
}

const struct port_ops ring_port_ops = {
    .kind = "native",
    .ring = {.ingress = ring_ingress, .consumed = ring_consumed, .want_kick = ring_want_kick},
    .egress = ring_egress,
    .want_room = ring_want_room,
    .destroy = ring_destroy,
};
