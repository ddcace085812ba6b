/* SPDX-License-Identifier: BSD-2-Clause */
/* The runtime directory as its owner sees it. */
#include "rundir.h"

#include "activation.h"
#include "log.h"
#include "options.h"

#include <libvale.h>
#include <vale_proto.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define LOCK_NAME   "valed.lock"
#define SHARED_MODE (S_ISGID | 0750)

static char path[PATH_MAX];
static const char *bound[2]; /* sockets that we made, and remove */
static unsigned int bound_count;

const char *rundir_path(void)
{
    return path;
}

static void take_lock(void)
{
    int fd = open(LOCK_NAME, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0)
        fatal(1, "%s/" LOCK_NAME ": %s", path, strerror(errno));
    /* Held until the process ends, whatever ends it. */
    if (flock(fd, LOCK_EX | LOCK_NB) < 0)
        fatal(4, "%s: another valed runs here; use it, or another --rundir", path);
}

static bool is_shared(void)
{
    struct stat st;

    return stat(".", &st) == 0 && st.st_gid == options.group && (st.st_mode & 07777) == SHARED_MODE;
}

/*
 * Set-group-ID, so that the sockets of ports, which are made later, are the group's: by then we have neither the rights nor the
 * system calls to give them away. One that is shared is left alone: systemd may have made it so, and refuse us that mode.
 */
static void share(void)
{
    if (is_shared())
        return;
    errno = EPERM; /* without a word chmod() leaves out set-group-ID for a group that we are not in */
    if (chown(".", (uid_t)-1, options.group) < 0 || chmod(".", SHARED_MODE) < 0 || !is_shared())
        fatal(1, "%s: cannot give it to the group of --group, with mode %04o: %s; run valed as a member of it, or let root do it",
              path, SHARED_MODE, strerror(errno));
}

void rundir_enter(void)
{
    struct vale_error err;

    if (options.rundir && setenv("VALE_RUNDIR", options.rundir, 1) < 0)
        fatal(1, "out of memory");
    if (vale_rundir(path, sizeof(path), true, &err) < 0)
        fatal(1, "%s", err.text);
    if (chdir(path) < 0)
        fatal(1, "%s: %s", path, strerror(errno));
    take_lock();
    if (options.group != NO_GROUP)
        share();
    umask(options.group != NO_GROUP ? 0117 : 0177);
}

int rundir_bind(const char *name, int type, unsigned int mode)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = activation_socket(type);

    if (fd >= 0)
        return fd;
    fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    strncpy(addr.sun_path, name, sizeof(addr.sun_path) - 1);
    /* We hold the lock, so a socket of that name is a dead one's. */
    if (fd < 0 || (unlink(name) < 0 && errno != ENOENT))
        fatal(1, "%s/%s: %s", path, name, strerror(errno));
    /* Nobody can connect before it listens, so the mode is there in time. */
    if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 || chmod(name, mode) < 0)
        fatal(1, "%s/%s: %s", path, name, strerror(errno));
    bound[bound_count++] = name;
    return fd;
}

void rundir_leave(void)
{
    while (bound_count)
        unlink(bound[--bound_count]);
}
