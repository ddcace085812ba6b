/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * attach - netmap.sock: netmap's control requests as messages (vale_proto.h)
 *
 * A connection stands for an open descriptor of /dev/netmap. It binds at most one port; when its last copy is closed, the
 * port loses a user, and ends with the last. A REGISTER for a name whose port is just going away waits until it is gone:
 * close and open in a row must not fail.
 *
 * What a peer can make valed hold is limited by its uid (quota.h). An answer counts from the request on, and until it has been
 * read: with REGISTER's, four descriptors lie in a socket whose other end is the client's. valed keeps its end so long, and
 * epoll says when the answer has left it.
 */
#ifndef VALED_ATTACH_H
#define VALED_ATTACH_H

#include "watch.h"

/* Listens on a socket that is already bound. 0 or -errno. */
int attach_start(int fd);
void attach_stop(void);

void attach_accept(struct watch *w);
void attach_ready(struct watch *w, uint32_t events);
void attach_answer_ready(struct watch *w);

/* A port begins to end: the connections that hold it are hung up. */
void attach_port_closed(const struct port *port);

/* A port's name has become free: requests that wait for one are tried again. */
void attach_name_freed(void);

/* Connections open now. */
unsigned int attach_clients(void);

#endif
