/* SPDX-License-Identifier: BSD-2-Clause */
/* Waking a peer through an eventfd that the peer has, too. */
#include "call.h"

#include "log.h"
#include "worker.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define CHECK_MS 250

struct caller {
    pthread_t thread;
    _Atomic uint64_t calls; /* begun and ended: odd during a call. Written by its thread alone */
    uint64_t noted;         /* by the control thread */
} __attribute__((aligned(64)));

static struct caller callers[WORKERS_MAX];
static _Thread_local struct caller *self;
static int timer_fd = -1;
static _Atomic bool watched; /* the timer runs, and will run once more after it has been cleared */

static void start_timer(void)
{
    const struct itimerspec once = {.it_value.tv_nsec = CHECK_MS * 1000000};

    timerfd_settime(timer_fd, 0, &once, NULL);
}

static void on_signal(int sig)
{
    (void)sig; /* that it comes is all: write() fails */
}

int call_start(void)
{
    struct sigaction action = {.sa_handler = on_signal}; /* no SA_RESTART */

    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    return timer_fd < 0 || sigaction(SIGUSR1, &action, NULL) < 0 ? -errno : timer_fd;
}

void call_enter_thread(unsigned int index)
{
    self = &callers[index];
    self->thread = pthread_self();
}

int call_peer(int fd)
{
    uint64_t one = 1, calls = atomic_load_explicit(&self->calls, memory_order_relaxed);
    int err;

    if (!atomic_load_explicit(&watched, memory_order_relaxed) && !atomic_exchange(&watched, true))
        start_timer();
    atomic_store_explicit(&self->calls, calls + 1, memory_order_relaxed);
    /* Full is as good as woken. */
    err = write(fd, &one, sizeof(one)) < 0 && errno == EINTR ? -EINTR : 0;
    atomic_store_explicit(&self->calls, calls + 2, memory_order_relaxed);
    return err;
}

/* True when there was a call since the last look. */
static bool check(struct caller *c)
{
    uint64_t calls = atomic_load_explicit(&c->calls, memory_order_relaxed), before = c->noted;

    c->noted = calls;
    if (calls == before && (calls & 1)) {
        log_debug("a worker is stuck in a call");
        pthread_kill(c->thread, SIGUSR1);
    }
    return calls != before || (calls & 1);
}

void call_check(void)
{
    bool last = !atomic_load(&watched), busy = false;
    uint64_t expired;

    if (read(timer_fd, &expired, sizeof(expired)) < 0)
        return;
    for (unsigned int i = 0; i < WORKERS_MAX; i++)
        busy = check(&callers[i]) || busy;
    /* A thread may have seen `watched` just before it is cleared: so the timer runs once more. */
    if (!busy)
        atomic_store(&watched, false);
    if (busy || !last)
        start_timer();
}
