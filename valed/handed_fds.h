/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * handed_fds - descriptors that a QMP client hands over with SCM_RIGHTS, under the names that its `getfd` gives them
 *
 * As in QEMU: the descriptor comes with the bytes of the command, waits until a getfd names it, and belongs to the command
 * that uses it by this name. What is left is closed with the connection.
 */
#ifndef VALED_HANDED_FDS_H
#define VALED_HANDED_FDS_H

#include <sys/socket.h>

#define HANDED_FDS_MAX   16
#define HANDED_NAME_MAX  64
#define HANDED_CMSG_SIZE CMSG_SPACE(sizeof(int))

struct handed_fd {
    char name[HANDED_NAME_MAX];
    int fd;
};

struct handed_fds {
    int unnamed; /* came last, not named yet; -1: none */
    unsigned int count;
    struct handed_fd named[HANDED_FDS_MAX];
};

void handed_fds_init(struct handed_fds *h);
void handed_fds_close_all(struct handed_fds *h);

/* Keeps the descriptor that came with a message; one that nobody named is closed. */
void handed_fds_receive(struct handed_fds *h, struct msghdr *msg);

/* Gives it a name, replacing the descriptor that has it. 0, -ENOENT (none came), -ENOSPC, -ENAMETOOLONG. */
int handed_fds_name(struct handed_fds *h, const char *name);

/* The descriptor of that name, which is the caller's from here on. -ENOENT. */
int handed_fds_take(struct handed_fds *h, const char *name);

#endif
