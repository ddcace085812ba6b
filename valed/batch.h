/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * batch - frames on their way from one ring, as views of the memory they lie in
 *
 * A frame is a run of segments. Views point into a client's memory: the bytes may change at any time, so nothing read there
 * is trusted twice; lengths and pointers in the batch are checked copies.
 */
#ifndef VALED_BATCH_H
#define VALED_BATCH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define BATCH_MAX        1024 /* frames */
#define INGRESS_SEGS_MAX 64   /* of a frame as it comes in */
#define FRAME_SEGS_MAX   66   /* of any frame: where its checksum is put in, a segment falls into three */
#define FRAME_LEN_MAX    65535
#define FRAME_LEN_MIN    14
#define BATCH_SEGS_MAX   (BATCH_MAX + FRAME_SEGS_MAX)
#define VALE_RINGS_MAX 16

struct segment {
    const uint8_t *data;
    uint32_t len;
};

struct frame {
    uint32_t first; /* segment */
    uint8_t segs;
    uint8_t needs; /* OFFLOAD_*: what its sender left to be done, as its offload says; mostly 0 */
    uint16_t len;  /* bytes in all */
};

/* What a sender may leave to be done, and a port may accept undone. */
enum {
    OFFLOAD_CSUM = 1, /* the TCP or UDP checksum */
    OFFLOAD_TSO4 = 2, /* cutting into TCP segments over IPv4 */
    OFFLOAD_TSO6 = 4,
    OFFLOAD_ECN = 8,  /* the same, of a frame with CWR set */
    OFFLOAD_USO = 16, /* cutting into UDP datagrams */
};

/* As in the virtio-net header (virtio 1.2, 5.1.6), whose first 10 bytes these are. In a batch all of it has been checked. */
struct offload {
    uint8_t flags; /* 1: bytes from csum_start on are to be summed */
    uint8_t gso_type;
    uint16_t hdr_len;  /* of the headers that each segment gets */
    uint16_t gso_size; /* payload of each segment but the last */
    uint16_t csum_start;
    uint16_t csum_offset; /* of the checksum, from csum_start; it holds the sum of the pseudo-header */
};

struct batch {
    unsigned int frames;
    unsigned int segs;
    uint8_t needs; /* of all frames together */
    const atomic_bool *dead; /* set when memory that frames lie in has been taken away; NULL: nobody can */
    struct frame frame[BATCH_MAX];
    struct segment seg[BATCH_SEGS_MAX];
    struct offload offload[BATCH_MAX]; /* of frames with needs */
    uint64_t *undelivered; /* where a kind notes, a bit each, frames that it drops on egress; NULL: nobody wants to know */
    uint32_t end[BATCH_MAX]; /* where the frame ends in its ring: the kind's own units, for its consumed() */

    /* Forwarding's scratch: the frames of each destination as lists through next[], 0xffff ends. */
    uint16_t next[BATCH_MAX];
    uint16_t order[BATCH_MAX];
};

/* Egress has dropped frame i. */
static inline void batch_undelivered(const struct batch *b, unsigned int i)
{
    if (b->undelivered)
        b->undelivered[i / 64] |= 1ull << i % 64;
}

/* The same of all n frames that `order` lists. */
static inline void batch_undelivered_all(const struct batch *b, const uint16_t *order, unsigned int n)
{
    for (unsigned int k = 0; b->undelivered && k < n; k++)
        batch_undelivered(b, order[k]);
}

/*
 * Whether what was read from the batch until now may be zeros that the SIGBUS handler put there (guard.h). To be asked behind
 * a copy and before it is published; where memory dies later, what was copied is good.
 */
static inline bool batch_is_dead(const struct batch *b)
{
    if (!b->dead)
        return false;
    atomic_thread_fence(memory_order_acquire);
    return atomic_load_explicit(b->dead, memory_order_relaxed);
}

#endif
