/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * forward - VALE's two passes over a batch
 *
 *   pass 1  each frame: learn its source, look up its destination, append it to the list of that destination
 *   pass 2  each destination once: hand it its frames in the order in which they came, unicast and flooded merged
 *
 * Lookup is paid per frame, the receiver's lock and wake-up per destination and batch. Runs in the worker that owns the
 * ring; ports it finds stay valid until the worker's next batch boundary.
 */
#ifndef VALED_FORWARD_H
#define VALED_FORWARD_H

#include "batch.h"
#include "port.h"

/* Forwards every frame of the batch, which came from ring. now: seconds of the monotonic clock. */
void forward_batch(struct ring *ring, struct batch *batch, uint32_t now);

#endif
