/* SPDX-License-Identifier: BSD-2-Clause */
/* Surviving a peer that takes its memory away. */
#include "guard.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

struct entry {
    _Atomic uintptr_t start; /* 0: free */
    uintptr_t end;
    atomic_bool *mark;
};

static struct entry table[GUARD_MAX];
static _Atomic unsigned int used; /* entries at and beyond this were never used */
static int wake_fd = -1;

static struct entry *find(uintptr_t address)
{
    for (unsigned int i = 0; i < atomic_load(&used); i++) {
        uintptr_t start = atomic_load(&table[i].start);

        if (start && address >= start && address < table[i].end)
            return &table[i];
    }
    return NULL;
}

/* Only async-signal-safe calls: mmap is a bare system call on Linux. */
static void on_sigbus(int sig, siginfo_t *info, void *context)
{
    struct entry *e = find((uintptr_t)info->si_addr);
    uint64_t one = 1;
    int saved = errno;

    (void)context;
    /* First the mark: who reads the zeros, in whatever thread, finds it. */
    if (e)
        atomic_store(e->mark, true);
    if (!e || mmap((void *)e->start, e->end - e->start, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED) {
        signal(sig, SIG_DFL); /* the access is repeated, and ends us with a core */
        return;
    }
    while (write(wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
        ; /* full: the control thread has been woken already */
    errno = saved;
}

int guard_start(int fd)
{
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER};

    wake_fd = fd;
    return sigaction(SIGBUS, &action, NULL) < 0 ? -errno : 0;
}

int guard_add(void *address, size_t length, atomic_bool *mark)
{
    unsigned int i = 0;

    while (i < GUARD_MAX && atomic_load(&table[i].start))
        i++;
    if (i == GUARD_MAX)
        return -ENOSPC;
    table[i].end = (uintptr_t)address + length;
    table[i].mark = mark;
    atomic_store(&table[i].start, (uintptr_t)address);
    if (i >= atomic_load(&used))
        atomic_store(&used, i + 1);
    return 0;
}

void guard_remove(const void *address)
{
    struct entry *e = find((uintptr_t)address);

    if (e)
        atomic_store(&e->start, 0);
}
