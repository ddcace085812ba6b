/* SPDX-License-Identifier: BSD-2-Clause */
/* Where a port's peer is found. */
#include "endpoint.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static struct endpoint *connecting; /* all that connect, with or without a peer */

static int open_socket(void)
{
    return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

/* Only a socket: what else lies there was not ours. */
static void remove_socket(const char *path)
{
    struct stat st;

    if (lstat(path, &st) == 0 && S_ISSOCK(st.st_mode))
        unlink(path);
}

static int start_listening(struct endpoint *e)
{
    int fd = open_socket(), err = 0;

    if (fd < 0)
        return -errno;
    remove_socket(e->addr.sun_path);
    if (bind(fd, (struct sockaddr *)&e->addr, sizeof(e->addr)) < 0 || listen(fd, 4) < 0)
        err = -errno;
    if (err == 0)
        err = watch_add(&e->watch, WATCH_ENDPOINT, fd);
    if (err)
        close(fd);
    return err;
}

/* Hands a new peer over, and rests if it is taken. */
static void offer(struct endpoint *e, int fd)
{
    if (!e->up(e->arg, fd)) {
        close(fd);
        return;
    }
    e->resting = true;
    if (!e->connects)
        watch_events(&e->watch, 0);
}

static void try_connect(struct endpoint *e)
{
    int fd = open_socket();

    if (fd >= 0 && connect(fd, (struct sockaddr *)&e->addr, sizeof(e->addr)) == 0)
        offer(e, fd);
    else if (fd >= 0)
        close(fd);
}

int endpoint_open(struct endpoint **endpoint, const char *path, bool connects, bool (*up)(void *arg, int fd), void *arg)
{
    struct endpoint *e;
    int err;

    if (strlen(path) >= sizeof(e->addr.sun_path))
        return -ENAMETOOLONG;
    e = calloc(1, sizeof(*e));
    if (!e)
        return -ENOMEM;
    *e = (struct endpoint){.watch = {.fd = -1}, .addr = {.sun_family = AF_UNIX}, .connects = connects, .up = up, .arg = arg};
    strcpy(e->addr.sun_path, path);
    if (connects) {
        e->next = connecting;
        connecting = e;
    } else if ((err = start_listening(e)) < 0) {
        free(e);
        return err;
    }
    *endpoint = e;
    return 0;
}

void endpoint_resume(struct endpoint *e)
{
    e->resting = false;
    if (!e->connects)
        watch_events(&e->watch, EPOLLIN);
}

void endpoint_close(struct endpoint *e)
{
    struct endpoint **link = &connecting;

    if (!e)
        return;
    while (*link && *link != e)
        link = &(*link)->next;
    if (*link)
        *link = e->next;
    if (!e->connects)
        remove_socket(e->addr.sun_path);
    watch_free(&e->watch);
}

void endpoint_accept(struct watch *w)
{
    int fd = watch_accept(w, false);

    if (fd >= 0)
        offer((struct endpoint *)w, fd);
}

bool endpoint_retry(void)
{
    bool trying = false;

    for (struct endpoint *e = connecting; e; e = e->next) {
        if (!e->resting)
            try_connect(e);
        trying = trying || !e->resting;
    }
    return trying;
}
