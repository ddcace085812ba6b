/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * vhost-user ports: frames between a guest's buffers and batches
 *
 * INGRESS  Each chain of the guest's TX queue becomes one frame: a view of its pieces behind the virtio-net header. The
 * buffers stay ours until consumed() puts the chains on the used ring.
 *
 * EGRESS  As in port_ring.c: under the queue's lock a worker takes as many chains as its frames need and reserves as many
 * used elements, copies without the lock, and completes under it; the used index moves over the oldest complete runs.
 */
#include "vhost.h"

#include "call.h"
#include "copy.h"
#include "offload.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define PIECES_MAX   INGRESS_SEGS_MAX
#define SCRATCH_MAX  4096 /* pieces of one run */
#define FRAME_CHAINS 64   /* most buffers that make one frame */

/* -------------------------------------------------------------------------------------------------------- calls --- */

static void call_guest(struct vhost_port *vp, const struct virtq_map *m)
{
    if (m->call_fd < 0 || atomic_load_explicit(&vp->call_stuck, memory_order_relaxed))
        return;
    count(&vp->port.counters.calls, 1);
    if (call_peer(m->call_fd) < 0) {
        atomic_store(&vp->call_stuck, true); /* the control thread closes the port */
        worker_notice();
    }
}

/* ----------------------------------------------------------------------------------------------------------- ingress --- */

static inline struct vhost_tx *to_vhost_tx(struct ring *ring)
{
    return (struct vhost_tx *)ring;
}

/* Copies the virtio-net header from the front of a chain, as far as it is there: once, as all that we read of it. */
static inline void read_header(const struct virtq_piece *piece, int n, uint8_t header[NET_HEADER_MAX], uint32_t want)
{
    for (uint32_t got = 0; n-- > 0 && got < want; piece++) {
        uint32_t part = piece->len < want - got ? piece->len : want - got;

        memcpy(header + got, piece->data, part);
        got += part;
    }
}

/* Takes in the header, a private copy, of the next frame of the batch. The reason why it is none, or DROP_REASONS. */
static inline unsigned int check_header(struct batch *b, const uint8_t *header)
{
    if (!offload_wanted(header) || offload_read(b, b->frames, header))
        return DROP_REASONS;
    b->segs = b->frame[b->frames].first;
    return DROP_BAD_HEADER;
}

/* Views a chain of one piece, which is longer than the header, as the next frame of the batch. Same return. */
static inline unsigned int view_piece(const struct virtq_map *m, const struct virtq_piece *piece, struct batch *b)
{
    uint32_t len = piece->len - m->header;
    uint8_t header[NET_HEADER_MAX];

    if (len > FRAME_LEN_MAX)
        return DROP_TOO_LONG;
    if (len < FRAME_LEN_MIN)
        return DROP_SHORT;
    memcpy(header, piece->data, sizeof(header)); /* with m->header of 10 the rest is the frame's, and not looked at */
    __asm__ volatile("" ::: "memory");           /* this copy is the one that is checked and used */
    b->frame[b->frames] = (struct frame){.first = b->segs, .segs = 1, .len = (uint16_t)len};
    b->seg[b->segs++] = (struct segment){.data = piece->data + m->header, .len = len};
    return check_header(b, header);
}

/* Views any chain. Same return. */
static unsigned int view_chain(const struct virtq_map *m, uint16_t head, struct batch *b)
{
    uint8_t header[NET_HEADER_MAX] = {0};
    struct frame *f = &b->frame[b->frames];
    struct virtq_piece piece[PIECES_MAX];
    int n = virtq_walk(m, head, false, piece, PIECES_MAX);
    uint32_t skip = m->header, len = 0;

    if (n < 0)
        return DROP_BAD_SLOT;
    f->first = b->segs;
    for (int i = 0; i < n; i++) {
        uint32_t cut = piece[i].len < skip ? piece[i].len : skip;

        skip -= cut;
        if (piece[i].len == cut)
            continue;
        b->seg[b->segs++] = (struct segment){.data = piece[i].data + cut, .len = piece[i].len - cut};
        if (piece[i].len - cut > FRAME_LEN_MAX - len) {
            b->segs = f->first;
            return DROP_TOO_LONG;
        }
        len += piece[i].len - cut;
    }
    if (len < FRAME_LEN_MIN) {
        b->segs = f->first;
        return DROP_SHORT;
    }
    __builtin_prefetch(b->seg[f->first].data);
    f->segs = (uint8_t)(b->segs - f->first);
    f->needs = 0;
    f->len = (uint16_t)len;
    read_header(piece, n, header, m->header);
    return check_header(b, header);
}

static inline unsigned int view(const struct virtq_map *m, const struct virtq_look *look, struct batch *b)
{
    if (look->piece.data && look->piece.len > m->header)
        return view_piece(m, &look->piece, b);
    return look->head < 0 ? DROP_BAD_SLOT : view_chain(m, (uint16_t)look->head, b);
}

/* Calls the guest once for each queue of the ring's pair. */
static void greet(struct vhost_port *vp, struct vhost_tx *tx)
{
    const struct virtq_map *rx_map = atomic_load(&vp->rx[tx->ring.index].q.map), *tx_map = atomic_load(&tx->q.map);

    atomic_store(&tx->greet, false);
    if (rx_map)
        call_guest(vp, rx_map);
    if (tx_map)
        call_guest(vp, tx_map);
}

/* A migrated guest that cannot announce itself: the front end asks us to do it. */
static void add_announcement(struct vhost_tx *tx, struct batch *b)
{
    b->seg[b->segs] = (struct segment){.data = tx->rarp, .len = RARP_LEN};
    b->frame[b->frames] = (struct frame){.first = b->segs++, .segs = 1, .len = RARP_LEN};
    b->end[b->frames++] = 0; /* no chain */
}

static unsigned int vhost_ingress(struct ring *ring, struct batch *b, unsigned int budget, bool *seen)
{
    struct vhost_tx *tx = to_vhost_tx(ring);
    struct virtq_map *m = atomic_load_explicit(&tx->q.map, memory_order_acquire);
    struct port_counters *c = &ring->port->counters;
    bool broken = false;
    uint16_t left = m ? virtq_available(m, tx->q.next_avail, &broken) : 0;
    unsigned int weight = 0; /* a frame to be segmented is as much work as its segments */
    struct virtq_ahead ahead;

    ahead.at = ahead.n = 0;
    if (atomic_load_explicit(&tx->greet, memory_order_relaxed))
        greet(to_vhost_port(ring->port), tx);
    count(&c->bad_head, broken);
    *seen = left != 0;
    tx->taken = tx->begin = 0;
    tx->batch_map = m;
    b->dead = &to_vhost_port(ring->port)->memory_died;
    tx->announcing = atomic_load_explicit(&tx->announce, memory_order_acquire);
    if (tx->announcing) {
        add_announcement(tx, b);
        *seen = true;
    }
    for (; left && tx->taken < budget && weight < budget && b->segs < BATCH_MAX; left--) {
        const struct virtq_look *look = virtq_look_at(m, &ahead, tx->q.next_avail, false, left);
        unsigned int drop = view(m, look, b);

        if (drop != DROP_REASONS && b->frames)
            break;
        tx->q.next_avail++;
        tx->chain[tx->taken++] = (struct virtq_used_elem){.id = look->head < 0 ? 0 : (uint32_t)look->head};
        if (drop == DROP_REASONS) {
            weight += offload_weight(b, b->frames);
            b->end[b->frames++] = tx->taken;
        } else {
            count(&c->rx_frames, 1);
            count(&c->rx_dropped[drop], 1);
            tx->begin = tx->taken;
        }
    }
    return b->frames;
}

static void vhost_consumed(struct ring *ring, const struct batch *b, unsigned int n)
{
    struct vhost_tx *tx = to_vhost_tx(ring);
    const struct virtq_map *m = tx->batch_map; /* of ingress: it may have been replaced, but is not gone before the batch */
    uint16_t from = tx->q.used, done = tx->taken;

    if (n < b->frames)
        done = n ? (uint16_t)b->end[n - 1] : tx->begin;
    if (tx->announcing && n)
        atomic_store_explicit(&tx->announce, false, memory_order_release);
    tx->q.next_avail = (uint16_t)(tx->q.next_avail - (tx->taken - done));
    tx->taken = done;
    if (!done)
        return;
    tx->q.used = (uint16_t)(from + done);
    virtq_use(m, from, tx->chain, done);
    if (virtq_publish(m, from, tx->q.used))
        call_guest(to_vhost_port(ring->port), m);
}

static bool vhost_want_kick(struct ring *ring, bool on)
{
    struct vhost_tx *tx = to_vhost_tx(ring);
    struct virtq_map *m = atomic_load_explicit(&tx->q.map, memory_order_acquire);
    bool broken;

    if (!m)
        return false;
    virtq_want_kick(m, tx->q.next_avail, on);
    if (!on || virtq_available(m, tx->q.next_avail, &broken) == 0)
        return false;
    virtq_want_kick(m, tx->q.next_avail, false);
    return true;
}

/* ------------------------------------------------------------------------------------------------------------ egress --- */

/* Where the frames of one run go: worker-private, filled under the queue's lock. */
struct place {
    uint16_t first_piece;
    uint16_t pieces;
    uint16_t first_used; /* position in the used ring */
    uint16_t chains;
};

struct run {
    bool had_buffers; /* the guest had made some available */
    unsigned int frames;
    unsigned int pieces;
    struct vhost_lease *lease;
    struct place place[BATCH_MAX];
    struct virtq_piece piece[SCRATCH_MAX];
    struct virtq_used_elem used[BATCH_MAX * 2]; /* as many chains as a run takes */
    unsigned int chains;
};

static _Thread_local struct run run_scratch;

/* The pieces of a chain, as virtq_walk() gives them. */
static inline int writable_pieces(const struct virtq_map *m, const struct virtq_look *look, struct virtq_piece *piece)
{
    if (!look->piece.data)
        return look->head < 0 ? -1 : virtq_walk(m, (uint16_t)look->head, true, piece, PIECES_MAX);
    *piece = look->piece;
    return 1;
}

/* Takes chains until they hold len bytes. False when there are not enough; what was looked at is then not taken. */
static bool take_chains(struct vhost_rx *rx, const struct virtq_map *m, struct virtq_ahead *ahead, struct run *run,
                        uint32_t len, uint16_t left)
{
    struct place *p = &run->place[run->frames];
    uint32_t room = 0, want;
    unsigned int pieces = run->pieces;

    *p = (struct place){.first_piece = (uint16_t)run->pieces, .first_used = rx->reserved};
    while (room < len && p->chains < left && p->chains < FRAME_CHAINS && pieces + PIECES_MAX <= SCRATCH_MAX &&
           run->chains + p->chains < BATCH_MAX * 2) {
        uint16_t at = (uint16_t)(rx->q.next_avail + p->chains);
        const struct virtq_look *look = virtq_look_at(m, ahead, at, true, (uint16_t)(left - p->chains));
        int n = writable_pieces(m, look, &run->piece[pieces]);
        uint32_t chain_room = 0;

        for (int i = 0; i < n; i++)
            chain_room += run->piece[pieces + i].len;
        want = len - room < chain_room ? len - room : chain_room;
        run->used[run->chains + p->chains++] = (struct virtq_used_elem){look->head < 0 ? 0 : (uint32_t)look->head, want};
        pieces += n > 0 ? (unsigned int)n : 0;
        room += chain_room;
        if (!m->mergeable)
            break;
    }
    if (room < len)
        return false;
    p->pieces = (uint16_t)(pieces - run->pieces);
    run->pieces = pieces;
    run->chains += p->chains;
    rx->q.next_avail = (uint16_t)(rx->q.next_avail + p->chains);
    rx->reserved = (uint16_t)(rx->reserved + p->chains);
    run->frames++;
    return true;
}

/* Reserves room for frames from order[0] on, as many as fit now and into the scratch. */
static void reserve(struct vhost_port *vp, struct vhost_rx *rx, const struct virtq_map *m, struct run *run,
                    const struct batch *b, const uint16_t *order, unsigned int n)
{
    struct virtq_ahead ahead;
    bool broken;
    uint16_t left;

    ahead.at = ahead.n = 0;
    run->frames = run->pieces = run->chains = 0;
    run->lease = NULL;
    pthread_mutex_lock(&rx->lock);
    left = virtq_available(m, rx->q.next_avail, &broken);
    run->had_buffers = left != 0;
    rx->looked_at = (uint16_t)(rx->q.next_avail + left);
    count(&vp->port.counters.bad_head, broken);
    for (unsigned int k = 0; k < n; k++) {
        if (!take_chains(rx, m, &ahead, run, m->header + (uint32_t)b->frame[order[k]].len, (uint16_t)(left - run->chains)))
            break;
    }
    if (run->frames) {
        run->lease = &rx->lease[run->place[0].first_used % VIRTQ_SIZE_MAX];
        *run->lease = (struct vhost_lease){.end = rx->reserved};
    }
    pthread_mutex_unlock(&rx->lock);
}

static void complete(struct vhost_port *vp, struct vhost_rx *rx, const struct virtq_map *m, struct vhost_lease *lease)
{
    uint16_t from;
    bool call = false;

    pthread_mutex_lock(&rx->lock);
    from = rx->q.used;
    lease->complete = true;
    while (rx->q.used != rx->reserved && rx->lease[rx->q.used % VIRTQ_SIZE_MAX].complete)
        rx->q.used = rx->lease[rx->q.used % VIRTQ_SIZE_MAX].end;
    if (rx->q.used != from)
        call = virtq_publish(m, from, rx->q.used);
    pthread_mutex_unlock(&rx->lock);
    if (call)
        call_guest(vp, m);
}

/* A position in the pieces of a place. */
struct cursor {
    struct virtq_piece *piece;
    uint32_t offset;
};

static void put(const struct virtq_map *m, struct cursor *c, const uint8_t *from, uint32_t len)
{
    while (len) {
        uint32_t room = c->piece->len - c->offset, part = len < room ? len : room;

        memcpy(c->piece->data + c->offset, from, part);
        if (m->log)
            virtq_log(m, c->piece->gpa + c->offset, part);
        from += part;
        len -= part;
        c->offset += part;
        if (c->offset == c->piece->len) {
            c->piece++;
            c->offset = 0;
        }
    }
}

/* A frame of one segment without needs into one piece, all of a chain: what nearly all are. */
static inline void copy_simple(const struct virtq_map *m, const struct virtq_piece *piece, const struct segment *seg)
{
    uint8_t header[NET_HEADER_MAX] = {[10] = 1};

    if (m->header == NET_HEADER_MAX)
        memcpy(piece->data, header, NET_HEADER_MAX);
    else
        memcpy(piece->data, header, NET_HEADER_MAX - 2);
    copy_bytes(piece->data + m->header, seg->data, seg->len);
    if (m->log)
        virtq_log(m, piece->gpa, m->header + (uint64_t)seg->len);
}

static void copy_frame(const struct virtq_map *m, struct run *run, const struct place *p, const struct batch *b,
                       unsigned int index)
{
    struct cursor c = {.piece = &run->piece[p->first_piece]};
    const struct frame *f = &b->frame[index];
    uint8_t header[NET_HEADER_MAX];

    if (p->pieces == 1 && p->chains == 1 && f->segs == 1 && !f->needs) {
        copy_simple(m, c.piece, &b->seg[f->first]);
        return;
    }
    offload_write(b, index, header);
    header[10] = (uint8_t)p->chains; /* num_buffers; at most FRAME_CHAINS */
    put(m, &c, header, m->header);
    for (unsigned int i = 0; i < f->segs; i++)
        put(m, &c, b->seg[f->first + i].data, b->seg[f->first + i].len);
}

/* A run whose copies are not what was sent: buffers without a byte, which are no frames. */
static void empty_run(struct run *run)
{
    for (unsigned int i = 0; i < run->chains; i++)
        run->used[i].len = 0;
}

/* Delivers what fits into one run; the number of frames. *lost: of these, whose memory has gone. */
static unsigned int deliver_run(struct vhost_port *vp, struct vhost_rx *rx, const struct virtq_map *m, const struct batch *b,
                                const uint16_t *order, unsigned int n, uint64_t *bytes, uint64_t *lost)
{
    struct run *run = &run_scratch;
    uint64_t copied = 0;

    reserve(vp, rx, m, run, b, order, n);
    for (unsigned int k = 0; k < run->frames; k++) {
        copy_frame(m, run, &run->place[k], b, order[k]);
        copied += b->frame[order[k]].len;
    }
    if (run->lease && batch_is_dead(b)) {
        empty_run(run);
        batch_undelivered_all(b, order, run->frames);
        *lost += run->frames;
    } else {
        *bytes += copied;
    }
    if (run->lease) {
        virtq_use(m, run->place[0].first_used, run->used, (uint16_t)run->chains);
        complete(vp, rx, m, run->lease);
    }
    return run->frames;
}

/* The queue for frames of a sender's ring. The guest may use fewer than there are. */
static struct vhost_rx *rx_of(struct vhost_port *vp, unsigned int queue)
{
    struct vhost_rx *rx = &vp->rx[queue % vp->pairs];

    return atomic_load_explicit(&rx->q.map, memory_order_acquire) ? rx : &vp->rx[0];
}

static unsigned int vhost_egress(struct port *port, unsigned int queue, const struct batch *b, const uint16_t *order,
                                 unsigned int n)
{
    struct vhost_port *vp = to_vhost_port(port);
    struct port_counters *c = &port->counters;
    struct vhost_rx *rx = rx_of(vp, queue);
    struct virtq_map *m = atomic_load_explicit(&rx->q.map, memory_order_acquire);
    unsigned int done = 0, step = 1, too_large = 0;
    uint64_t bytes = 0, lost = 0;

    if (!m) {
        count(&c->tx_dropped[DROP_DOWN], n);
        batch_undelivered_all(b, order, n);
        return n;
    }
    while (done < n && step) {
        step = deliver_run(vp, rx, m, b, order + done, n - done, &bytes, &lost);
        done += step;
        if (step == 0 && !m->mergeable && run_scratch.had_buffers) {
            too_large++;
            batch_undelivered(b, order[done]);
            done += step = 1;
        }
    }
    count(&c->tx_frames, done - too_large - lost);
    count(&c->tx_dropped[DROP_PEER_MEMORY], lost);
    count(&c->tx_bytes, bytes);
    count(&c->tx_dropped[DROP_TOO_LARGE], too_large);
    return done;
}

static bool vhost_want_room(struct port *port, unsigned int queue, bool on)
{
    struct vhost_port *vp = to_vhost_port(port);
    unsigned int first = on ? queue : 0, last = on ? queue : vp->pairs - 1;
    bool moved = false, broken;

    for (unsigned int i = first; i <= last; i++) {
        struct vhost_rx *rx = rx_of(vp, i);
        struct virtq_map *m = atomic_load_explicit(&rx->q.map, memory_order_acquire);

        if (!m) {
            moved = true; /* it is down, and takes everything to drop it */
            continue;
        }
        pthread_mutex_lock(&rx->lock);
        virtq_want_kick(m, rx->looked_at, on);
        moved |= virtq_available(m, rx->looked_at, &broken) != 0;
        pthread_mutex_unlock(&rx->lock);
    }
    return on && moved;
}

const struct port_ops vhost_port_ops = {
    .kind = "vhost-user",
    .ring = {.ingress = vhost_ingress, .consumed = vhost_consumed, .want_kick = vhost_want_kick},
    .egress = vhost_egress,
    .want_room = vhost_want_room,
    .close = vhost_port_close,
    .destroy = vhost_port_destroy,
};
