/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * region - the memory of one native port: a sealed memfd with netmap's structures
 *
 *   0             control block (vale_proto.h)
 *   if_offset     netmap_if and its ring offsets
 *   page bound    rings, each aligned to 128 bytes, TX first
 *   page bound    buffers: 0 and 1 reserved, then one for each slot, then the extra ones
 *
 * Only the pages of the control block and of the rings are touched at creation; buffers cost memory when frames use them.
 */
#ifndef VALED_REGION_H
#define VALED_REGION_H

#include <vale_proto.h>

/* A request, and what came of it. */
struct region_config {
    unsigned int tx_rings, rx_rings; /* 1..16 */
    unsigned int tx_slots, rx_slots; /* 64..4096 */
    unsigned int extra_bufs;
};

struct region {
    struct region_config config;
    int fd;
    uint8_t *base;
    size_t size;
    size_t if_offset;
    uint32_t buf_size;
    uint32_t buf_count;
    uint8_t *bufs; /* of buffer 0 */
};

/* Clamps what a client asked for to what is possible, as netmap does: 0 stands for the default. */
void region_clamp(struct region_config *config);

/* Creates, sizes, seals, maps and fills. name is only for display. 0 or -errno. */
int region_create(struct region *r, const struct region_config *config, const char *name);

/*
 * The same with the memory of a port of an earlier valed, which the client has and writes to meanwhile: nothing in it is
 * believed. fd becomes the region's. -EINVAL: not such memory, or not of that configuration.
 */
int region_adopt(struct region *r, const struct region_config *config, int fd);

void region_destroy(struct region *r);

/* A random number, the same for as long as this process lives. */
uint64_t region_incarnation(void);

/* Ring i, TX first, then RX. */
struct vale_ring_ctl *region_ctl(const struct region *r, unsigned int i);
struct netmap_ring *region_ring(const struct region *r, unsigned int i);

#endif
