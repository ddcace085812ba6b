/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * front - a vhost-user front end for fuzz targets: what QEMU does to start a network device, and what it would not
 *
 * Its memory is a memfd of 64 KiB, of which two regions are handed over that are adjacent for the guest but not in the file:
 *
 *     guest 0x10000  file 0       rings of both queues, FRONT_RING apart: desc, avail at FRONT_AVAIL, used at FRONT_USED
 *           0x18000  file 0xa000  buffers
 *           0x1e000
 */
#ifndef FRONT_H
#define FRONT_H

#include "fuzz.h"
#include "vhost.h"

#define FRONT_GPA    0x10000ull
#define FRONT_UVA    0x7f0000000000ull
#define FRONT_SIZE   0x8000u /* of the first region; the second: 0x6000 */
#define FRONT_SECOND 0xa000u /* in the file */
#define FRONT_MEMORY 0x10000u
#define FRONT_RING   0x2000u
#define FRONT_AVAIL  0x1000u
#define FRONT_USED   0x1800u
#define FRONT_QUEUE  128u /* entries at most */

/* Messages that targets send by name. */
enum { GET_FEATURES = 1, SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 5, SET_LOG_BASE = 6, SET_VRING_NUM = 8, SET_VRING_ADDR,
       SET_VRING_BASE, GET_VRING_BASE, SET_VRING_KICK, SET_VRING_CALL, SET_PROTOCOL_FEATURES = 16, SET_VRING_ENABLE = 18 };

struct front {
    int sock;
    int memory;
    int kick[2], call[2];
    uint16_t avail[2]; /* next index to be published */
    uint32_t size;     /* of both queues */
};

/* Makes a vhost-user port and connects to it. */
struct port *front_port(const char *name);
void front_connect(struct front *f);
void front_close(struct front *f);

/* One message, and the turns that it takes until it is in force. Answers are thrown away. */
void front_message(struct front *f, uint32_t request, uint32_t flags, const void *payload, uint32_t len, const int *fds,
                   unsigned int n);

/* All that it takes until both queues run, each of 2 to the power of `order` entries. */
void front_start(struct front *f, uint64_t features, unsigned int order);

/* Stores into the memory. */
void front_store(struct front *f, uint32_t at, const void *bytes, size_t n);

void front_descriptor(struct front *f, unsigned int queue, unsigned int index, const struct virtq_desc *d);
void front_available(struct front *f, unsigned int queue, uint16_t head);
void front_kick(struct front *f, unsigned int queue);

#endif
