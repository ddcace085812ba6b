/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * frame - the test frames of vale-pktgen: Ethernet, IPv4, UDP, and a payload that may carry a sequence number
 *
 *   0          14       34     42       46         54     62
 *   +----------+--------+------+--------+----------+------+-----------
 *   | Ethernet | IPv4   | UDP  | "VPKG" | sequence | time | 20 21 ...
 *   +----------+--------+------+--------+----------+------+-----------
 *
 * Checksums are right, also after number and time were changed. The time is when the frame was sent, in nanoseconds of the
 * monotonic clock; payload goes on in its place where nobody asked for it.
 */
#ifndef VALE_FRAME_H
#define VALE_FRAME_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#define FRAME_MIN 42  /* the headers */
#define FRAME_MAX 65535
#define FRAME_SEQ_MIN 54 /* the least that holds a sequence number */
#define FRAME_TIME_MIN 62 /* and the time of sending */

struct frame_spec {
    uint8_t src_mac[6], dst_mac[6];
    struct in_addr src_ip, dst_ip;
    uint32_t len; /* bytes without FCS, FRAME_MIN .. FRAME_MAX */
};

struct frame {
    uint32_t len;
    uint32_t udp_sum; /* of everything but the sequence number, not folded */
    uint8_t bytes[FRAME_MAX];
};

/* Builds the frame; its sequence number, if it fits, is 0. */
void frame_build(struct frame *frame, const struct frame_spec *spec);

/* Numbers a copy of the frame: at least its first FRAME_SEQ_MIN bytes. */
void frame_set_sequence(const struct frame *frame, uint8_t *copy, uint64_t sequence);

/* Numbers a copy of the frame and says when it was sent: at least its first FRAME_TIME_MIN bytes. */
void frame_set_time(const struct frame *frame, uint8_t *copy, uint64_t sequence, uint64_t ns);

/* When a numbered frame was sent. False if it is too short for that. */
bool frame_get_time(const uint8_t *bytes, uint32_t len, uint64_t *ns);

/* The number of a frame, of which the first len bytes are here. False if it has none. */
bool frame_get_sequence(const uint8_t *bytes, uint32_t len, uint64_t *sequence);

/* "02:00:00:00:00:01". */
bool frame_parse_mac(const char *text, uint8_t mac[6]);

#endif
