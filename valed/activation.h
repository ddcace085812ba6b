/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * activation - what a service manager hands over, and what it wants to hear; without a library of its own
 *
 * LISTEN_FDS: sockets that listen already, from descriptor 3 on (sd_listen_fds(3)). Ours are told apart by their type:
 * SOCK_SEQPACKET is netmap.sock, SOCK_STREAM is qmp.sock. NOTIFY_SOCKET: where to say that we are ready (sd_notify(3)).
 */
#ifndef VALED_ACTIVATION_H
#define VALED_ACTIVATION_H

/* The socket of that type that was handed over; -1: none. Ends the program with one line when what came is unusable. */
int activation_socket(int type);

/* Says for instance "READY=1" to who waits for it, if anybody does. */
void activation_notify(const char *state);

#endif
