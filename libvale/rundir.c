/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * rundir.c - where valed's sockets are
 *
 * $VALE_RUNDIR, where set, is the only candidate. Else: $XDG_RUNTIME_DIR/vale, where that variable names a directory of
 * ours; /run/vale; /tmp/vale-UID. Clients search all of them; who creates one takes the first (/run/vale: root only).
 *
 * Who can write to the directory can stand in for valed, so it must be a real directory of ours or of root's that nobody
 * else can write to. In /tmp anybody could have made a link or a directory of that name before us.
 */
#include "internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SYSTEM_RUNDIR "/run/vale"

/* $XDG_RUNTIME_DIR survives su and sudo, and then belongs to somebody else. */
static const char *xdg_runtime_dir(void)
{
    const char *dir = getenv("XDG_RUNTIME_DIR");
    struct stat st;

    if (dir == NULL || dir[0] != '/' || lstat(dir, &st) < 0 || !S_ISDIR(st.st_mode) || st.st_uid != geteuid()) {
        return NULL;
    }
    return dir;
}

int vale_rundir_candidate(unsigned int *next, char *path, size_t size)
{
    const char *explicit_dir = getenv("VALE_RUNDIR");
    const char *xdg;

    if (explicit_dir != NULL && explicit_dir[0] != '\0') {
        snprintf(path, size, "%s", explicit_dir);
        return (*next)++ == 0;
    }
    switch ((*next)++) {
    case 0:
        xdg = xdg_runtime_dir();
        if (xdg != NULL) {
            snprintf(path, size, "%s/vale", xdg);
            return 1;
        }
        (*next)++;
        /* fall through */
    case 1:
        snprintf(path, size, "%s", SYSTEM_RUNDIR);
        return 1;
    case 2:
        snprintf(path, size, "/tmp/vale-%u", (unsigned int)geteuid());
        return 1;
    default:
        return 0;
    }
}

int vale_rundir_check(const char *path, struct vale_error *err)
{
    struct stat st;

    if (lstat(path, &st) < 0) {
        return vale_fail(err, errno, "%s: %s", path, strerror(errno));
    }
    if (!S_ISDIR(st.st_mode)) {
        return vale_fail(err, ENOTDIR, "%s: %s, not a directory: remove it or set VALE_RUNDIR to another place", path,
                         S_ISLNK(st.st_mode) ? "a link" : "a file");
    }
    if (st.st_uid != geteuid() && st.st_uid != 0) {
        return vale_fail(err, EACCES, "%s: belongs to user %u: set VALE_RUNDIR to a directory of your own", path,
                         (unsigned int)st.st_uid);
    }
    if (st.st_mode & (S_IWGRP | S_IWOTH)) {
        return vale_fail(err, EACCES, "%s: others can write to it (mode %03o): chmod go-w it", path,
                         (unsigned int)(st.st_mode & 0777));
    }
    return 0;
}

/* A candidate that holds a valed's socket, whether it answers or not. */
static bool find_used(char *path, size_t size)
{
    char sock[VALE_PATH_MAX];
    unsigned int next = 0;
    struct stat st;

    while (vale_rundir_candidate(&next, path, size)) {
        if (vale_rundir_check(path, NULL) == 0 &&
            (size_t)snprintf(sock, sizeof(sock), "%s/%s", path, VALE_SOCKET_NAME) < sizeof(sock) &&
            lstat(sock, &st) == 0 && S_ISSOCK(st.st_mode)) {
            return true;
        }
    }
    return false;
}

/* The candidate to create. */
static void choose_new(char *path, size_t size)
{
    unsigned int next = 0;

    while (vale_rundir_candidate(&next, path, size)) {
        if (strcmp(path, SYSTEM_RUNDIR) != 0 || geteuid() == 0) {
            return;
        }
    }
}

int vale_rundir(char *path, size_t size, bool create, struct vale_error *err)
{
    char chosen[VALE_PATH_MAX];

    if (create || !find_used(chosen, sizeof(chosen))) {
        choose_new(chosen, sizeof(chosen));
    }
    if (strlen(chosen) + sizeof("/" VALE_SOCKET_NAME) > VALE_SUN_PATH || strlen(chosen) >= size) {
        return vale_fail(err, ENAMETOOLONG, "%s: too long for a socket's path (%d bytes): set VALE_RUNDIR to a shorter one",
                         chosen, VALE_SUN_PATH);
    }
    snprintf(path, size, "%s", chosen);
    if (!create) {
        return 0;
    }
    if (mkdir(path, 0700) < 0 && errno != EEXIST) {
        return vale_fail(err, errno, "%s: cannot be created: %s: set VALE_RUNDIR to a directory of your own", path,
                         strerror(errno));
    }
    return vale_rundir_check(path, err);
}
