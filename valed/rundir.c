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
#include <grp.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define LOCK_NAME "valed.lock"

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
}

static void give_to_group(const char *name, const char *group)
{
    struct group *gr = getgrnam(group);

    if (!gr)
        fatal(2, "--group %s: no such group", group);
    if (chown(name, (uid_t)-1, gr->gr_gid) < 0)
        fatal(1, "%s/%s: cannot give it to group %s: %s", path, name, group, strerror(errno));
}

int rundir_bind(const char *name, int type, unsigned int mode, const char *group)
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
    umask(0777);
    if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
        fatal(1, "%s/%s: %s", path, name, strerror(errno));
    umask(0022);
    if (group)
        give_to_group(name, group);
    if (chmod(name, mode) < 0)
        fatal(1, "%s/%s: %s", path, name, strerror(errno));
    bound[bound_count++] = name;
    return fd;
}

void rundir_leave(void)
{
    while (bound_count)
        unlink(bound[--bound_count]);
}
