/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * offload - checksums and segmentation that a sender left undone
 *
 * A guest may hand over a frame whose checksum is to be filled in, or one of up to 64 KiB that is to be cut into segments; a
 * virtio-net header before the frame says so. Between ports that both know this the frame passes as it is, header rewritten.
 * Toward a port that does not, the worker does the work on the way out.
 *
 * THE HEADER IS HOSTILE  Ingress reads it once, offload_read() checks it against the frame's length and the frame's own
 * headers, and everything behind works on the checked copy. What the frame's bytes say is checked again, on a copy, where
 * they are used: the guest may have changed them since.
 *
 * COMPLETING  The frames for one destination go, in their order, through a batch of the worker's own: views of the source's
 * memory throughout, but for what is new. Of a checksum that is two bytes; of a segment its headers. So payload is still
 * copied once, by the receiver's egress.
 *
 * COUNTING  A frame is offered to a port once, however many segments it becomes. The port delivers or drops segments:
 *
 *     offered - segmented frames + their segments = delivered + dropped
 */
#ifndef VALED_OFFLOAD_H
#define VALED_OFFLOAD_H

#include "batch.h"
#include "port.h"

#define OFFLOAD_ALL (OFFLOAD_CSUM | OFFLOAD_TSO4 | OFFLOAD_TSO6 | OFFLOAD_ECN | OFFLOAD_USO)

#define NET_HEADER_MAX 12 /* bytes of a virtio-net header; 10 without num_buffers */

/* Whether the header asks for something at all. */
static inline bool offload_wanted(const uint8_t *header)
{
    return (header[0] & 1) | header[1];
}

/*
 * Takes in the virtio-net header (10 bytes, a private copy) of frame i of the batch, which is otherwise complete. False: no
 * frame can have this header.
 */
bool offload_read(struct batch *b, unsigned int i, const uint8_t *header);

/* Frames that frame i may become: what it weighs against a budget. */
static inline unsigned int offload_weight(const struct batch *b, unsigned int i)
{
    return b->frame[i].needs & ~OFFLOAD_CSUM ? b->frame[i].len / b->offload[i].gso_size + 1u : 1u;
}

/* Writes the header that goes before frame i, all NET_HEADER_MAX bytes of it. */
void offload_write(const struct batch *b, unsigned int i, uint8_t *header);

/* Fills in the checksum of a frame of len bytes that needs no more than that. */
void offload_fill_checksum(uint8_t *frame, uint16_t len, const struct offload *o);

/*
 * port_ops.egress for a batch with needs that the port does not accept: completes those frames on the way. Where room lacks
 * it drops (passed NULL), or stops: *passed says how many segments of the first frame that was not done with were delivered,
 * and is given back when that frame is tried again, as the first.
 */
unsigned int offload_egress(struct port *port, unsigned int queue, const struct batch *b, const uint16_t *order,
                            unsigned int n, uint16_t *passed);

#endif
