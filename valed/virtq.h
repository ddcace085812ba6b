/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * virtq - the device side of a virtio split ring in guest memory (virtio 1.2, 2.7)
 *
 *   desc[size]    16 bytes each: address, length, flags, next
 *   avail         flags, idx, ring[size], used_event     written by the guest
 *   used          flags, idx, ring[size], avail_event    written by us
 *
 * Everything in guest memory may change at any time: an index, a descriptor or a flag is read once, checked, and the copy
 * is used. A map is immutable: where the rings are, how large, with which features, whom to call. Any change makes a new
 * map, and the old one is reclaimed when no worker uses it; a queue without a map is stopped.
 */
#ifndef VALED_VIRTQ_H
#define VALED_VIRTQ_H

#include "batch.h"
#include "guest_mem.h"

#include <stdatomic.h>
#include <stdbool.h>

#define VIRTQ_SIZE_MAX 32768

struct virtq_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};

#define VIRTQ_DESC_NEXT     1
#define VIRTQ_DESC_WRITE    2
#define VIRTQ_DESC_INDIRECT 4

struct virtq_used_elem {
    uint32_t id;
    uint32_t len;
};

struct virtq_map {
    const struct guest_mem *mem;
    struct virtq_desc *desc;
    uint16_t *avail;        /* [0] flags, [1] idx, [2..] ring, then used_event */
    uint16_t *used;         /* [0] flags, [1] idx, then elements, then avail_event */
    uint16_t size;          /* power of two */
    bool event_idx;
    bool mergeable;         /* several buffers may make one frame */
    uint8_t header;         /* bytes of virtio-net header: 10 or 12 */
    int call_fd;            /* -1: the guest polls */
    uint8_t *log;           /* dirty bitmap, or NULL */
    uint64_t log_size;      /* bytes */
    uint64_t used_gpa;      /* for the log */
};

/* A piece of a buffer that we may write. */
struct virtq_piece {
    uint8_t *data;
    uint32_t len;
    uint64_t gpa;
};

/* Chains that the guest has made available beyond `next`; 0 also when its index is impossible (*broken set). */
uint16_t virtq_available(const struct virtq_map *m, uint16_t next, bool *broken);

/* The head of the chain at position `at` of the avail ring, or -1 when it is out of range. */
int virtq_head(const struct virtq_map *m, uint16_t at);

/*
 * Walks a chain, direct or indirect: all its pieces, readable (write false) or writable (write true), up to max of them in
 * as many descriptors. The number of pieces, or -1: the chain is malformed, too long, of the wrong direction, or points
 * outside of memory.
 */
int virtq_walk(const struct virtq_map *m, uint16_t head, bool write, struct virtq_piece *piece, unsigned int max);

#define VIRTQ_AHEAD 32

/* A chain as it was looked at. */
struct virtq_look {
    int head;                 /* as virtq_head() says */
    struct virtq_piece piece; /* all of the chain; without data where it is not that simple, or wrong: to be walked */
};

/* What was looked at of the avail ring, from position `at` on. Begin with n = 0. */
struct virtq_ahead {
    uint16_t at, n;
    struct virtq_look look[VIRTQ_AHEAD];
};

/* Looks at the next n chains, and has the beginnings of their buffers fetched into the cache. */
void virtq_look_ahead(const struct virtq_map *m, struct virtq_ahead *ahead, uint16_t at, bool write, uint16_t n);

/* The chain at position `at`, of which `left` (at least 1) are available. Looks ahead where it was not looked at yet. */
static inline const struct virtq_look *virtq_look_at(const struct virtq_map *m, struct virtq_ahead *ahead, uint16_t at,
                                                     bool write, uint16_t left)
{
    if ((uint16_t)(at - ahead->at) >= ahead->n)
        virtq_look_ahead(m, ahead, at, write, left < VIRTQ_AHEAD ? left : VIRTQ_AHEAD);
    return &ahead->look[(uint16_t)(at - ahead->at)];
}

/* Puts n used elements from position `at` of the used ring on. */
void virtq_use(const struct virtq_map *m, uint16_t at, const struct virtq_used_elem *elem, uint16_t n);

/* Publishes the used ring up to `to`, where it was at `from`. True when the guest wants to be called for it. */
bool virtq_publish(const struct virtq_map *m, uint16_t from, uint16_t to);

/* Asks for kicks beyond `next`, or for none. */
void virtq_want_kick(const struct virtq_map *m, uint16_t next, bool on);

/* The used index as the ring has it: where a device that lost its memory goes on. */
uint16_t virtq_used_index(const struct virtq_map *m);

/* Marks bytes as written in the dirty log, where there is one. */
void virtq_log(const struct virtq_map *m, uint64_t gpa, uint64_t len);

#endif
