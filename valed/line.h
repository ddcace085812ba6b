/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * line - a delay line: what befalls frames on one way of a port, in or out
 *
 *   in    ring of the client -> LINE -> learn, look up, transmit
 *   out   learn, look up -> LINE -> transmit
 *
 * Each frame's fate and time are settled as it enters: lost, doubled, corrupted, and when it may leave. What is not lost is
 * copied into the line's pool, also where its time is now. The line is itself a ring of some worker (port.h): its ingress()
 * yields the frames whose time has come, earliest first, those of one time in the order in which they came; its kick is a
 * timer, set for the next of them when the worker goes to sleep. A line that holds nothing sets no timer.
 *
 * THE POOL  is a ring of `limit` bytes. A frame takes its length and LINE_ENTRY bytes, rounded up to a multiple of
 * LINE_ENTRY. The space of a frame that leaves early is free again when those that came before it have left. What finds no
 * room is dropped (delay_full). The heap of those that wait takes up to a quarter as much again.
 *
 * FATE  depends on nothing but the seed, the frame's number since the seed was set, and the impairment. So the same frames
 * get the same fate again, and an impairment hits the same frames whatever the others are set to. The draw numbered
 *
 *     k = (number * 2 + copy) * 8 + kind        number: from 0; copy: 1 for the duplicate of a frame, else 0
 *
 * is output k of splitmix64(seed). A frame is hit where (output >> 11) / 2^53 * 100 < percent.
 *
 * WHO  line_take(): any worker, under the lock but for the copying: first space is reserved, in the end the frames are put
 * on the heap. The ring's operations: its worker. Settings are replaced as a whole, and freed by reclaim().
 */
#ifndef VALED_LINE_H
#define VALED_LINE_H

#include "port.h"

#define LINE_ENTRY 32 /* bytes */

/* What befalls frames; as in port-set (docs/qmp.md). All 0: nothing. */
struct impairment {
    uint32_t delay, jitter; /* microseconds */
    double loss, duplicate, corrupt, reorder; /* percent */
    uint64_t rate;  /* bits per second; 0: as they come */
    uint32_t limit; /* bytes */
    uint64_t seed;
    unsigned int sown; /* times that a seed was given: frames are numbered anew */
};

/* Makes a line for this way of the port and deals its ring to a worker. 0 or -errno. */
int line_create(struct line **line, struct port *port, enum direction direction, const struct impairment *settings);

/* Changes the settings, but not the limit. The old ones are freed when no worker uses them any more. */
void line_set(struct line *line, const struct impairment *settings);

/*
 * Takes in n frames of the batch, those that `order` lists (NULL: the first n), which came from the ring of that number. It
 * is done with all of them: held, or dropped and counted.
 */
void line_take(struct line *line, unsigned int queue, const struct batch *b, const uint16_t *order, unsigned int n);

/*
 * Begins the end of a line that its port has no pointer to any more: when no worker can be putting frames into it, all that
 * it holds leaves at once, and then it lets go of its port (port->lines).
 */
void line_end(struct line *line);

/* Takes away the lines that have come to their end. */
void line_reap(void);

#endif
