/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What fuzz targets put before the system: mappings between pages that nobody may touch, and nothing that would touch
 * files or interfaces of this host. Linked in by -Wl,--wrap.
 */
#include "fuzz.h"
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <sanitizer/asan_interface.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PAGE         4096u
#define MAPPINGS_MAX 1024

void *__real_mmap(void *address, size_t length, int prot, int flags, int fd, off_t offset);
int __real_munmap(void *address, size_t length);
int __real_bind(int fd, const struct sockaddr *a, socklen_t len);
int __real_connect(int fd, const struct sockaddr *a, socklen_t len);
int __real_open(const char *path, int flags, ...);
void *__wrap_mmap(void *address, size_t length, int prot, int flags, int fd, off_t offset);
int __wrap_munmap(void *address, size_t length);
int __wrap_bind(int fd, const struct sockaddr *a, socklen_t len);
int __wrap_connect(int fd, const struct sockaddr *a, socklen_t len);
int __wrap_open(const char *path, int flags, ...);
int __wrap_unlink(const char *path);
ssize_t __wrap_getrandom(void *to, size_t len, unsigned int flags);
void __wrap_log_set_level(enum log_level level);

unsigned int fuzz_mappings;
static uint8_t *mapping[MAPPINGS_MAX];

void *__wrap_mmap(void *address, size_t length, int prot, int flags, int fd, off_t offset)
{
    size_t inner = (length + PAGE - 1) / PAGE * PAGE;
    unsigned int i = 0;
    uint8_t *outer, *p;

    if (address || !(flags & MAP_SHARED))
        return __real_mmap(address, length, prot, flags, fd, offset);
    while (i < MAPPINGS_MAX && mapping[i])
        i++;
    MUST(i < MAPPINGS_MAX);
    if (length == 0 || inner < length) {
        errno = EINVAL;
        return MAP_FAILED;
    }
    outer = __real_mmap(NULL, inner + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (outer == MAP_FAILED)
        return MAP_FAILED;
    p = __real_mmap(outer + PAGE, length, prot, flags | MAP_FIXED, fd, offset);
    if (p == MAP_FAILED) {
        int err = errno;

        __real_munmap(outer, inner + 2 * PAGE);
        errno = err;
        return MAP_FAILED;
    }
    mapping[i] = p;
    fuzz_mappings++;
    return p;
}

int __wrap_munmap(void *address, size_t length)
{
    unsigned int i = 0;

    while (i < MAPPINGS_MAX && mapping[i] != address)
        i++;
    if (!address || i == MAPPINGS_MAX)
        return __real_munmap(address, length);
    mapping[i] = NULL;
    fuzz_mappings--;
    length = (length + PAGE - 1) / PAGE * PAGE;
    __asan_unpoison_memory_region(address, length);
    return __real_munmap((uint8_t *)address - PAGE, length + 2 * PAGE);
}

/* Sockets have names that only this process uses, and no files. */
static socklen_t rename_socket(struct sockaddr_un *mine, const struct sockaddr *a, socklen_t len)
{
    const struct sockaddr_un *theirs = (const struct sockaddr_un *)a;

    MUST(a->sa_family == AF_UNIX && len == sizeof(*theirs));
    *mine = (struct sockaddr_un){.sun_family = AF_UNIX};
    snprintf(mine->sun_path + 1, sizeof(mine->sun_path) - 1, "vale-fuzz-%d-%s", (int)getpid(), theirs->sun_path);
    return sizeof(*mine);
}

int __wrap_bind(int fd, const struct sockaddr *a, socklen_t len)
{
    struct sockaddr_un mine;

    len = rename_socket(&mine, a, len);
    return __real_bind(fd, (struct sockaddr *)&mine, len);
}

int __wrap_connect(int fd, const struct sockaddr *a, socklen_t len)
{
    struct sockaddr_un mine;

    len = rename_socket(&mine, a, len);
    return __real_connect(fd, (struct sockaddr *)&mine, len);
}

/* No tap of this host. */
int __wrap_open(const char *path, int flags, ...)
{
    if (strcmp(path, "/dev/net/tun") != 0)
        return __real_open(path, flags & ~O_CREAT);
    errno = EPERM;
    return -1;
}

int __wrap_unlink(const char *path)
{
    (void)path;
    return 0;
}

/* The same fdb for the same input. */
ssize_t __wrap_getrandom(void *to, size_t len, unsigned int flags)
{
    (void)flags;
    memset(to, 0x5a, len);
    return (ssize_t)len;
}

/* What goes wrong is wanted, and not worth a line. */
void __wrap_log_set_level(enum log_level level)
{
    (void)level;
}
