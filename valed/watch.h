/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * watch - descriptors that the control thread waits on
 *
 * epoll carries a pointer to a struct watch; its type says whose it is, and main.c's one switch hands it there. A watch that
 * is removed while its event has been fetched already is skipped: removal marks it, the owner frees it by watch_free().
 */
#ifndef VALED_WATCH_H
#define VALED_WATCH_H

#include <stdbool.h>
#include <stdint.h>

struct port;

enum watch_type { WATCH_SIGNAL, WATCH_NOTICE, WATCH_CALLS, WATCH_ATTACH_LISTEN, WATCH_ATTACH, WATCH_ANSWER, WATCH_QMP_LISTEN, WATCH_QMP,
                  WATCH_ENDPOINT, WATCH_VHOST, WATCH_STREAM, WATCH_TAP };

struct watch {
    enum watch_type type;
    int fd;
    struct watch *next_free; /* set by watch_free() */
};

/* A watch that belongs to a port. */
struct port_watch {
    struct watch watch;
    struct port *port;
};

/* Waits for EPOLLIN on w->fd. 0 or -errno. */
int watch_add(struct watch *w, enum watch_type type, int fd);

/*
 * The next client of a socket that listens, or -1. Where descriptors run out it is hung up; management may use the last
 * ones (FDS_RESERVE).
 */
int watch_accept(const struct watch *listener, bool management);

/* Only the reserve of descriptors is left: refuse what would take more. */
bool watch_fds_scarce(void);

/* Waits for the events given instead. */
void watch_events(struct watch *w, uint32_t events);

/* Stops waiting, closes the descriptor, and frees the object that begins with w after the events at hand. */
void watch_free(struct watch *w);

#endif
