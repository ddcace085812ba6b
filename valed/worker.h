/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * worker - the threads that forward
 *
 * Each ring belongs to one worker. A worker keeps an active list: a ring joins it on a kick, is then polled with kicks off,
 * every active ring getting the same budget of frames in each round, and leaves it after some microseconds without a
 * frame: kicks on, full fence, one more look. A worker whose list is empty sleeps in epoll; a busy one looks at epoll every
 * EPOLL_INTERVAL microseconds, so that a ring that wakes up does not wait for the others. No ticks, and no timers but those of
 * delay lines that hold something (line.h).
 *
 * NAPS  A ring from which frames come one by one, while none go to its port, is not waiting for answers. It stays on the list
 * with kicks off, and when nothing but such rings is there the worker sleeps for NAP microseconds, or until another ring's kick.
 * A nap in vain ends it: kicks on.
 *
 * WAITING FOR ROOM  On a switch that waits, a ring whose first frame finds no room is parked: off the active list, woken by
 * who makes room (forward.h), or when the wait-limit is over, to drop.
 *
 * A worker never waits for the control thread. What the control thread wants from it comes as rings in a lock-free mailbox.
 *
 * RECLAIMING MEMORY (quiescent-state-based reclamation)
 *
 * Between batches a worker holds no pointer to a port or a switch but those of the rings on its list. It counts these
 * moments, and says when it is asleep. The control thread unlinks an object and hands it to reclaim(), which frees it once
 * each worker has passed such a moment, or was asleep. epoll carries ring ids, not pointers, so an event that was fetched
 * for a ring that is gone finds nothing.
 */
#ifndef VALED_WORKER_H
#define VALED_WORKER_H

#include "port.h"

#include <jansson.h>

#define WORKERS_MAX 64

/* Starts n threads. cpus: a list as of taskset(1), dealt round; NULL: not pinned. 0 or -errno. */
int workers_start(unsigned int n, const char *cpus);

/* Most frames of one batch, from the next round on. */
void workers_set_batch(unsigned int frames);

/* How long a ring is polled at least when it has no more frames, in microseconds. */
void workers_set_busy_poll(unsigned int us);

/* Pins a worker to a CPU; -1: to none. 0, -ENOENT (no such worker), -EINVAL (no such CPU). */
int worker_pin(unsigned int worker, int cpu);

/*
 * Gives a ring to another worker; it moves when its present one has let go. One that is not in use is dealt later. 0,
 * -ENOENT, -EBUSY (it is ending).
 */
int worker_move_ring(struct ring *ring, unsigned int worker);

/* Completes what moves. After a notice. */
void workers_finish_moves(void);

/* The number of the worker that serves a ring. */
unsigned int worker_of(const struct ring *ring);

/* Ends them and waits. */
void workers_stop(void);

/* Becomes readable when a worker has let go of a ring, or has something else for the control thread to look at. */
int workers_notice_fd(void);

/* Makes it readable. Any thread. */
void worker_notice(void);

/*
 * Lets the kicks of a ring wake a worker: the one with the fewest rings, once there is a descriptor. ops: where its frames
 * come from. 0 or -errno.
 */
int worker_add_ring(struct ring *ring, const struct ring_ops *ops);

/* Changes the descriptor that wakes the worker for a ring; -1: none. 0 or -errno. */
int worker_set_kick(struct ring *ring, int fd);

/* Also wakes the worker for a ring by fd, which says that its port has room; -1: by none. */
void worker_set_room_kick(struct ring *ring, int fd);

/* Also wakes the worker for a ring when its descriptor can be written, or does not any more. Any thread. */
void worker_want_room(struct ring *ring, bool on);

/* Has the worker look at a ring, as a kick would. */
void worker_poke_ring(struct ring *ring);

/* The bit of the ring's worker in a set of workers. */
uint64_t worker_bit(const struct ring *ring);

/* Has these workers try their parked rings again. Any thread. */
void workers_retry(uint64_t set);

/* Asks the ring's worker to forward what is published and let go: RING_GONE follows, and a notice. */
void worker_drain_ring(struct ring *ring);

/* After RING_GONE. */
void worker_forget_ring(struct ring *ring);

/* Calls fn(arg) when no worker can hold what was unlinked before; see above. Control thread only. */
void reclaim(void (*fn)(void *arg), void *arg);

/* Runs what is due. True while something is left: call again soon. */
bool reclaim_run(void);

/* For query-workers: a list of {worker, cpu, rings, rounds, sleeps}. */
json_t *workers_describe(void);

#endif
