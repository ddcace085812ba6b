/* SPDX-License-Identifier: BSD-2-Clause */
/* The worker of fuzz targets: worker.c as it is, but no thread; a round is done when a target says so. */
#include <pthread.h>

#define pthread_create(thread, attr, run, arg) ((void)(run), 0)
#include "../../valed/worker.c"
#undef pthread_create

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
    struct worker *w = &workers[0];

    fuzz_pass_time(PATIENCE_BULK);
    read_events(w, 0);
    end_waits(w, now);
    if (atomic_load(&w->mailbox))
        read_mailbox(w);
    serve_all(w, now);
    atomic_fetch_add(&w->phase, 2);
}
