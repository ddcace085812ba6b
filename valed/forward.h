/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * forward - VALE's two passes over a batch
 *
 *   pass 1  each frame: learn its source, look up its destination, append it to the list of that destination
 *   pass 2  each destination once: hand it its frames in the order in which they came, unicast and flooded merged
 *
 * Lookup is paid per frame, the receiver's lock and wake-up per destination and batch. Runs in the worker that owns the
 * ring; ports it finds stay valid until the worker's next batch boundary.
 *
 * A SWITCH THAT WAITS  forwards runs of frames with the same destination, in the order in which they came, and stops at the
 * first frame of known unicast that finds no room: nothing behind it leaves the ring. The ring then waits, for the
 * destination to make room, or for the wait-limit to be over. A destination without progress for that long is stalled: what
 * it has no room for is dropped, and nobody waits for it, until it takes a frame again. What is flooded never waits.
 * Where the destination has a delay line, it is the line that waits, with whatever it holds, and no sender does.
 *
 *   source's worker                              who finds the destination's kick
 *   its bit into port->waiting                   kicks for room off
 *   kicks for room on, full fence                port->waiting emptied
 *   once more a look at the room: none: park     these workers try their parked rings again
 */
#ifndef VALED_FORWARD_H
#define VALED_FORWARD_H

#include "batch.h"
#include "port.h"

/*
 * Forwards the batch, which came from ring: a client's, or that of a delay line (line.h), which every frame passes where its
 * direction is impaired. Returns the frames that are done with, from the first on: all, unless the switch waits and one has
 * no room. now: microseconds of the monotonic clock.
 */
unsigned int forward_batch(struct ring *ring, struct batch *batch, uint64_t now);

/* Whether the last batch stopped for want of room. */
static inline bool forward_is_blocked(const struct ring *ring)
{
    return ring->blocked_on != BLOCKED_NONE;
}

/* Asks for a wake-up of the blocked ring when there is room. True: there is some already. */
bool forward_want_room(struct ring *ring);

/* When the blocked ring gives up waiting. */
uint64_t forward_deadline(const struct ring *ring);

/* The port's client has kicked, or gone: if rings wait for it, they need to try again. Any thread. */
void forward_room(struct port *port);

#endif
