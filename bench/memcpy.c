/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * memcpy - how fast one core copies frames from buffers to buffers, with nothing else to do
 *
 * The yardstick of bench/host.py: two rings of 1024 buffers, as two ports have them, and the work that a switch cannot avoid.
 *
 *   memcpy LENGTH SECONDS SIZE       buffers of SIZE bytes, which nobody else touches: they stay in this core's caches
 *   memcpy LENGTH SECONDS SIZE CPU   a thread on CPU writes each frame before it is copied, and reads it afterwards, as sender
 *                                    and receiver do; what counts is the time of copying alone
 *
 * In the second form the rings fall into halves: while one is copied, the other thread has the other, and then they change.
 * Prints one JSON object.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define SLOTS 1024
#define HALF  (SLOTS / 2)

static char *from, *to;
static size_t length, buf_size;
static _Atomic uint64_t turn; /* times that the halves have changed hands: half turn % 2 is being copied, the other thread has the other */
static _Atomic uint64_t done;
static _Atomic uint64_t sink;

static double now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

/* Shared memory, as ports have it, with every page there. */
static char *make_buffers(void)
{
    size_t size = (size_t)SLOTS * buf_size;
    char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED) {
        perror("memcpy: mmap");
        exit(1);
    }
    memset(p, 1, size);
    return p;
}

static void copy_half(size_t half)
{
    for (size_t i = half * HALF; i < (half + 1) * HALF; i++)
        memcpy(to + i * buf_size, from + i * buf_size, length);
    __asm__ volatile("" ::: "memory"); /* every lap counts */
}

/* Sender and receiver: reads what was copied, and writes what comes next. */
static void *ends(void *arg)
{
    uint64_t seen = 0, sum = 0;

    (void)arg;
    for (;;) {
        size_t half = (seen + 1) % 2;

        for (size_t i = half * HALF; i < (half + 1) * HALF; i++) {
            for (size_t at = 0; at < length; at += 64)
                sum += (unsigned char)to[i * buf_size + at];
            memset(from + i * buf_size, (int)seen, length);
        }
        atomic_store(&sink, sum);
        atomic_store(&done, seen + 1);
        while (atomic_load(&turn) == seen)
            sched_yield();
        seen++;
    }
    return NULL;
}

static void start_ends(int cpu)
{
    pthread_attr_t attr;
    pthread_t thread;
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    pthread_attr_init(&attr);
    if (pthread_attr_setaffinity_np(&attr, sizeof(set), &set) || pthread_create(&thread, &attr, ends, NULL)) {
        fprintf(stderr, "memcpy: no thread on CPU %d\n", cpu);
        exit(1);
    }
}

/* Copies one half. Returns the seconds that count. */
static double step(int shared, uint64_t lap)
{
    double begin = now(), end;

    copy_half(lap % 2);
    end = now();
    while (shared && atomic_load(&done) <= lap)
        sched_yield();
    atomic_store(&turn, lap + 1);
    return end - begin;
}

int main(int argc, char **argv)
{
    double limit = argc >= 4 ? strtod(argv[2], NULL) : 0, begin, seconds = 0;
    uint64_t laps = 0;

    length = argc >= 4 ? strtoul(argv[1], NULL, 10) : 0;
    buf_size = argc >= 4 ? strtoul(argv[3], NULL, 10) : 0;
    if (length == 0 || length > buf_size || limit <= 0 || argc > 5) {
        fprintf(stderr, "usage: memcpy LENGTH SECONDS SIZE [CPU]\n");
        return 2;
    }
    from = make_buffers();
    to = make_buffers();
    if (argc == 5)
        start_ends(atoi(argv[4]));
    begin = now();
    while (now() - begin < limit)
        seconds += step(argc == 5, laps++);
    printf("{\"packets\": %llu, \"pps\": %.1f}\n", (unsigned long long)laps * HALF, (double)laps * HALF / seconds);
    return 0;
}
