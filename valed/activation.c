/* SPDX-License-Identifier: BSD-2-Clause */
/* What a service manager hands over, and what it wants to hear. */
#include "activation.h"

#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define FIRST_FD 3

/* How many descriptors are meant for us: the variables are inherited, and may have been meant for a parent. */
static int handed_over(void)
{
    const char *pid = getenv("LISTEN_PID"), *fds = getenv("LISTEN_FDS");

    if (!pid || !fds || strtol(pid, NULL, 10) != getpid())
        return 0;
    return (int)strtol(fds, NULL, 10);
}

static int socket_option(int fd, int option)
{
    socklen_t len = sizeof(int);
    int value;

    return getsockopt(fd, SOL_SOCKET, option, &value, &len) < 0 ? -1 : value;
}

int activation_socket(int type)
{
    int end = FIRST_FD + handed_over(), found = -1;

    for (int fd = FIRST_FD; fd < end; fd++) {
        if (socket_option(fd, SO_DOMAIN) != AF_UNIX || socket_option(fd, SO_ACCEPTCONN) != 1)
            fatal(4, "descriptor %d of LISTEN_FDS is not a Unix socket that listens", fd);
        if (socket_option(fd, SO_TYPE) != type)
            continue;
        if (found >= 0)
            fatal(4, "LISTEN_FDS has two sockets of one type: ListenSequentialPacket= is netmap.sock, "
                     "ListenStream= qmp.sock");
        found = fd;
    }
    if (found >= 0 && (fcntl(found, F_SETFD, FD_CLOEXEC) < 0 || fcntl(found, F_SETFL, O_RDWR | O_NONBLOCK) < 0))
        fatal(1, "descriptor %d of LISTEN_FDS: %s", found, strerror(errno));
    return found;
}

void activation_notify(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    size_t len = path ? strlen(path) : 0;
    int fd;

    if (len == 0 || len >= sizeof(addr.sun_path))
        return;
    memcpy(addr.sun_path, path, len);
    if (path[0] == '@')
        addr.sun_path[0] = '\0'; /* abstract */
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&addr,
                         (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len)) < 0)
        log_warn("NOTIFY_SOCKET %s: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
}
