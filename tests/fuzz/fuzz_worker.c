/* SPDX-License-Identifier: BSD-2-Clause */
/* The workers of fuzz targets: worker.c as it is, but no threads; a round is done when a target says so. */
#include <pthread.h>

#define pthread_create(thread, attr, run, arg)     ((void)(run), 0)
#define pthread_barrier_wait(barrier)              ((void)(barrier), 0)
#define pthread_setaffinity_np(thread, size, cpus) ((void)(cpus), 0)
#include "../../valed/worker.c"

#include "fuzz.h"

static uint64_t now;

void fuzz_reset_time(void)
{
    now = 1000000000;
}

void fuzz_pass_time(uint64_t us)
{
    now += us;
}

/* The body of worker_main(). Time goes on by more than any ring's patience. */
void fuzz_work(void)
{
    call_enter_thread(0);
    fuzz_pass_time(PATIENCE_BULK);
    for (struct worker *w = workers; w < workers + worker_count; w++) {
        read_events(w, 0);
        end_waits(w, now);
        if (atomic_load(&w->mailbox))
            read_mailbox(w);
        serve_all(w, now);
        atomic_fetch_add(&w->phase, 2);
    }
}
