/* SPDX-License-Identifier: BSD-2-Clause */
/* Descriptors that a QMP client hands over. */
#include "handed_fds.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

static void keep_unnamed(struct handed_fds *h, int fd)
{
    if (h->unnamed >= 0)
        close(h->unnamed);
    h->unnamed = fd;
}

void handed_fds_init(struct handed_fds *h)
{
    h->unnamed = -1;
    h->count = 0;
}

void handed_fds_close_all(struct handed_fds *h)
{
    keep_unnamed(h, -1);
    while (h->count)
        close(h->named[--h->count].fd);
}

/* Of several, the last is kept; the kernel closes those that had no room in the control buffer. */
void handed_fds_receive(struct handed_fds *h, struct msghdr *msg)
{
    struct cmsghdr *c = CMSG_FIRSTHDR(msg);

    if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
        return;
    for (size_t at = 0; CMSG_LEN(at + sizeof(int)) <= c->cmsg_len; at += sizeof(int)) {
        int fd;

        memcpy(&fd, CMSG_DATA(c) + at, sizeof(fd));
        keep_unnamed(h, fd);
    }
}

static struct handed_fd *find(struct handed_fds *h, const char *name)
{
    for (unsigned int i = 0; i < h->count; i++)
        if (strcmp(h->named[i].name, name) == 0)
            return &h->named[i];
    return NULL;
}

int handed_fds_name(struct handed_fds *h, const char *name)
{
    struct handed_fd *old;

    if (h->unnamed < 0)
        return -ENOENT;
    if (strlen(name) >= HANDED_NAME_MAX)
        return -ENAMETOOLONG;
    old = find(h, name);
    if (!old && h->count == HANDED_FDS_MAX)
        return -ENOSPC;
    if (old) {
        close(old->fd);
    } else {
        old = &h->named[h->count++];
        strcpy(old->name, name);
    }
    old->fd = h->unnamed;
    h->unnamed = -1;
    return 0;
}

int handed_fds_take(struct handed_fds *h, const char *name)
{
    struct handed_fd *entry = find(h, name);
    int fd;

    if (!entry)
        return -ENOENT;
    fd = entry->fd;
    *entry = h->named[--h->count];
    return fd;
}
