/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * batch - frames on their way from one ring, as views of the memory they lie in
 *
 * A frame is a run of segments. Views point into a client's memory: the bytes may change at any time, so nothing read there
 * is trusted twice; lengths and pointers in the batch are checked copies.
 */
#ifndef VALED_BATCH_H
#define VALED_BATCH_H

#include <stdint.h>

#define BATCH_MAX       1024 /* frames */
#define FRAME_SEGS_MAX  64
#define FRAME_LEN_MAX   65535
#define FRAME_LEN_MIN   14
#define BATCH_SEGS_MAX  (BATCH_MAX + FRAME_SEGS_MAX)
#define VALE_RINGS_MAX 16

struct segment {
    const uint8_t *data;
    uint32_t len;
};

struct frame {
    uint32_t first; /* segment */
    uint16_t segs;
    uint16_t len; /* bytes in all */
};

struct batch {
    unsigned int frames;
    unsigned int segs;
    struct frame frame[BATCH_MAX];
    struct segment seg[BATCH_SEGS_MAX];

    /* Forwarding's scratch: the frames of each destination as lists through next[], 0xffff ends. */
    uint16_t next[BATCH_MAX];
    uint16_t order[BATCH_MAX];
};

#endif
