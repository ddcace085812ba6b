/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * call - waking a peer through an eventfd that the peer has, too
 *
 * O_NONBLOCK belongs to the open file, which is shared: a peer that fills the eventfd and clears the flag makes the next
 * write() sleep for as long as it likes, and the worker with it. No call of the kernel writes to an eventfd without that risk
 * (pwritev2 with RWF_NOWAIT is refused), and to ask poll() first would cost a system call each time and be too early. So
 * calls are watched: each thread counts them, and its count is odd during a call. The first call after a quiet time starts
 * a timer, which the control thread looks after as long as there are calls: a thread that it finds in the same call twice
 * gets a signal. Only a write that sleeps fails with EINTR, so an honest peer is never suspected. Without calls there is no
 * timer; a call costs two stores more.
 */
#ifndef VALED_CALL_H
#define VALED_CALL_H

/* Before threads are started. The descriptor that becomes readable when call_check() is due, or -errno. */
int call_start(void);

/* First of all in a thread that calls. */
void call_enter_thread(unsigned int index);

/* Wakes a peer. 0, or -EINTR: it kept us waiting, and must not be called again. */
int call_peer(int fd);

/* Frees the threads that are stuck, when the timer says that it is time. Control thread. */
void call_check(void);

#endif
