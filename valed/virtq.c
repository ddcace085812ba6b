/* SPDX-License-Identifier: BSD-2-Clause */
/* The device side of a virtio split ring. */
#include "virtq.h"

#include "copy.h"

#include <string.h>

#define NO_NOTIFY    1 /* used flags: no kicks please */
#define NO_INTERRUPT 1 /* avail flags: no calls please */
#define LOG_PAGE     4096

#define load_acquire(p)     __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define store_release(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
#define read_once(p)        __atomic_load_n(p, __ATOMIC_RELAXED)
#define write_once(p, v)    __atomic_store_n(p, v, __ATOMIC_RELAXED)

static inline uint16_t *avail_ring(const struct virtq_map *m)
{
    return m->avail + 2;
}

static inline uint16_t *used_event(const struct virtq_map *m)
{
    return avail_ring(m) + m->size;
}

static inline struct virtq_used_elem *used_ring(const struct virtq_map *m)
{
    return (struct virtq_used_elem *)(m->used + 2);
}

static inline uint16_t *avail_event(const struct virtq_map *m)
{
    return (uint16_t *)(used_ring(m) + m->size);
}

uint16_t virtq_available(const struct virtq_map *m, uint16_t next, bool *broken)
{
    uint16_t n = (uint16_t)(load_acquire(&m->avail[1]) - next);

    *broken = n > m->size;
    return *broken ? 0 : n;
}

int virtq_head(const struct virtq_map *m, uint16_t at)
{
    uint16_t head = read_once(&avail_ring(m)[at & (m->size - 1)]);

    return head < m->size ? head : -1;
}

/* A descriptor, read once, as two words. */
static inline struct virtq_desc read_desc(const struct virtq_desc *desc)
{
    uint64_t word = read_once((const uint64_t *)&desc->len);

    return (struct virtq_desc){.addr = read_once(&desc->addr),
                               .len = (uint32_t)word,
                               .flags = (uint16_t)(word >> 32),
                               .next = (uint16_t)(word >> 48)};
}

/* Where descriptors come from: the ring's own table, or an indirect one somewhere in guest memory. */
struct table {
    const struct virtq_desc *desc; /* NULL: indirect */
    uint64_t gpa;
    uint32_t count;
};

static bool table_get(const struct virtq_map *m, const struct table *t, uint32_t i, struct virtq_desc *d)
{
    uint32_t len = sizeof(*d);
    const uint8_t *p;

    if (t->desc) {
        *d = read_desc(&t->desc[i]);
        return true;
    }
    /* The guest need not align an indirect table, and a region may end inside it. */
    p = guest_mem_at(m->mem, t->gpa + (uint64_t)i * sizeof(*d), &len);
    if (!p || len < sizeof(*d))
        return false;
    memcpy(d, p, sizeof(*d));
    __asm__ volatile("" ::: "memory"); /* this copy is the one that is checked and used */
    return true;
}

/* The pieces of one descriptor's buffer: more than one where it crosses regions. Returns the new count, or -1. */
static int add_pieces(const struct virtq_map *m, const struct virtq_desc *d, struct virtq_piece *piece, int n,
                      unsigned int max)
{
    uint64_t gpa = d->addr;
    uint32_t left = d->len;

    while (left) {
        uint32_t len = left;
        uint8_t *data = guest_mem_at(m->mem, gpa, &len);

        if (!data || n == (int)max)
            return -1;
        piece[n++] = (struct virtq_piece){.data = data, .len = len, .gpa = gpa};
        gpa += len;
        left -= len;
    }
    return n;
}

int virtq_walk(const struct virtq_map *m, uint16_t head, bool write, struct virtq_piece *piece, unsigned int max)
{
    struct table t = {.desc = m->desc, .count = m->size};
    unsigned int steps = 0;
    uint32_t i = head;
    int n = 0;

    for (;;) {
        struct virtq_desc d;

        /* Also pieces without a byte are work for us: a chain has no more descriptors than its frame may have pieces. */
        if (i >= t.count || ++steps > max || !table_get(m, &t, i, &d))
            return -1;
        if (d.flags & VIRTQ_DESC_INDIRECT) {
            /* Not inside another, and nothing may follow it. */
            if (!t.desc || (d.flags & VIRTQ_DESC_NEXT) || d.len == 0 || d.len % sizeof(d) ||
                d.len / sizeof(d) > VIRTQ_SIZE_MAX)
                return -1;
            t = (struct table){.gpa = d.addr, .count = d.len / sizeof(d)};
            i = steps = 0;
            continue;
        }
        if (!!(d.flags & VIRTQ_DESC_WRITE) != write)
            return -1;
        n = add_pieces(m, &d, piece, n, max);
        if (n < 0 || !(d.flags & VIRTQ_DESC_NEXT))
            return n;
        i = d.next;
    }
}

/* Whether the chain is one direct descriptor, whose buffer lies in one region: what nearly all of them are. */
static inline bool is_one_piece(const struct virtq_map *m, uint16_t head, bool write, struct virtq_piece *piece)
{
    struct virtq_desc d = read_desc(&m->desc[head]);
    uint16_t flags = d.flags & (VIRTQ_DESC_NEXT | VIRTQ_DESC_WRITE | VIRTQ_DESC_INDIRECT);
    uint32_t len = d.len;

    *piece = (struct virtq_piece){.data = guest_mem_at(m->mem, d.addr, &len), .len = d.len, .gpa = d.addr};
    return piece->data && len && len == d.len && flags == (write ? VIRTQ_DESC_WRITE : 0);
}

/* A short frame and its header lie in two cache lines at most. */
static inline void prefetch_piece(const struct virtq_piece *piece, uint8_t header, bool write)
{
    const uint8_t *second = piece->data + (piece->len > header ? header : 0);

    if (write) {
        prefetch_for_write(piece->data);
        prefetch_for_write(second);
    } else {
        __builtin_prefetch(piece->data);
        __builtin_prefetch(second);
    }
}

void virtq_look_ahead(const struct virtq_map *m, struct virtq_ahead *ahead, uint16_t at, bool write, uint16_t n)
{
    ahead->at = at;
    ahead->n = n;
    for (uint16_t i = 0; i < n; i++) {
        ahead->look[i].head = virtq_head(m, (uint16_t)(at + i));
        __builtin_prefetch(&m->desc[ahead->look[i].head & (m->size - 1)]);
    }
    for (uint16_t i = 0; i < n; i++) {
        struct virtq_look *look = &ahead->look[i];

        if (look->head >= 0 && is_one_piece(m, (uint16_t)look->head, write, &look->piece))
            prefetch_piece(&look->piece, m->header, write);
        else
            look->piece.data = NULL;
    }
}

void virtq_use(const struct virtq_map *m, uint16_t at, const struct virtq_used_elem *elem, uint16_t n)
{
    while (n) {
        uint16_t first = at & (m->size - 1), part = m->size - first < n ? (uint16_t)(m->size - first) : n;
        struct virtq_used_elem *to = &used_ring(m)[first];

        memcpy(to, elem, part * sizeof(*to));
        if (m->log)
            virtq_log(m, m->used_gpa + (uint64_t)((uint8_t *)to - (uint8_t *)m->used), part * sizeof(*to));
        elem += part;
        at = (uint16_t)(at + part);
        n = (uint16_t)(n - part);
    }
}

bool virtq_publish(const struct virtq_map *m, uint16_t from, uint16_t to)
{
    store_release(&m->used[1], to);
    if (m->log)
        virtq_log(m, m->used_gpa + 2, 2);
    /* The guest writes its wish, then looks at used; we write used, then look at its wish. */
    atomic_thread_fence(memory_order_seq_cst);
    if (m->event_idx)
        return (uint16_t)(to - read_once(used_event(m)) - 1) < (uint16_t)(to - from);
    return !(read_once(&m->avail[0]) & NO_INTERRUPT);
}

void virtq_want_kick(const struct virtq_map *m, uint16_t next, bool on)
{
    if (!m->event_idx)
        write_once(&m->used[0], on ? 0 : NO_NOTIFY);
    else if (on)
        write_once(avail_event(m), next);
    if (m->log)
        virtq_log(m, m->used_gpa, 4 + (uint64_t)m->size * sizeof(struct virtq_used_elem) + 2);
    atomic_thread_fence(memory_order_seq_cst);
}

uint16_t virtq_used_index(const struct virtq_map *m)
{
    return read_once(&m->used[1]);
}

void virtq_log(const struct virtq_map *m, uint64_t gpa, uint64_t len)
{
    if (!m->log || !len)
        return;
    /* After the write itself: whoever finds the bit and clears it reads what was written. */
    for (uint64_t page = gpa / LOG_PAGE; page <= (gpa + len - 1) / LOG_PAGE && page / 8 < m->log_size; page++)
        __atomic_fetch_or(&m->log[page / 8], (uint8_t)(1u << (page % 8)), __ATOMIC_RELEASE);
}
