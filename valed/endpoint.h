/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * endpoint - where a port's peer is found: a socket that listens, or one that connects and tries again
 *
 * One peer at a time. With a peer there the endpoint rests; endpoint_resume() lets the next one in: from the backlog of a
 * listening socket, or by connecting anew, at once and then every ENDPOINT_RETRY_MS.
 */
#ifndef VALED_ENDPOINT_H
#define VALED_ENDPOINT_H

#include "watch.h"

#include <stdbool.h>
#include <sys/un.h>

#define ENDPOINT_RETRY_MS 200

struct endpoint {
    struct watch watch; /* of the listening socket; fd -1 when it connects */
    struct sockaddr_un addr;
    bool connects;
    bool resting;
    /* A peer is there; the descriptor is the callee's. False: it is not wanted, and was not taken. */
    bool (*up)(void *arg, int fd);
    void *arg;
    struct endpoint *next; /* those that connect */
};

/* Begins to listen, replacing a stale socket, or to connect. 0 or -errno. */
int endpoint_open(struct endpoint **endpoint, const char *path, bool connects, bool (*up)(void *arg, int fd), void *arg);

/* The peer has gone. */
void endpoint_resume(struct endpoint *e);

/* Stops, and removes the socket that listens. NULL is allowed. */
void endpoint_close(struct endpoint *e);

/* The loop's part: a listening socket is readable; and tries of those that connect. True while some must go on trying. */
void endpoint_accept(struct watch *w);
bool endpoint_retry(void);

#endif
