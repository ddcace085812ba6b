/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * memcpy - how fast one core copies frames from buffers to buffers, with nothing else to do
 *
 * The yardstick of bench/host.py: the geometry is that of two ports (1024 slots, buffers of 2112 bytes), the work what a
 * switch cannot avoid. Usage: memcpy LENGTH SECONDS. Prints one JSON object.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define SLOTS    1024
#define BUF_SIZE 2112

static double now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

/* Shared memory, as ports have it, with every page there. */
static char *make_buffers(void)
{
    size_t size = (size_t)SLOTS * BUF_SIZE;
    char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED) {
        perror("memcpy: mmap");
        exit(1);
    }
    memset(p, 1, size);
    return p;
}

int main(int argc, char **argv)
{
    size_t length = argc == 3 ? strtoul(argv[1], NULL, 10) : 0;
    double begin, end, limit = argc == 3 ? strtod(argv[2], NULL) : 0;
    uint64_t frames = 0;
    char *from, *to;

    if (length == 0 || length > BUF_SIZE || limit <= 0) {
        fprintf(stderr, "usage: memcpy LENGTH SECONDS\n");
        return 2;
    }
    from = make_buffers();
    to = make_buffers();
    begin = now();
    do {
        for (size_t i = 0; i < SLOTS; i++) {
            memcpy(to + i * BUF_SIZE, from + i * BUF_SIZE, length);
        }
        __asm__ volatile("" ::: "memory"); /* every lap counts */
        frames += SLOTS;
        end = now();
    } while (end - begin < limit);
    printf("{\"packets\": %llu, \"pps\": %.1f, \"bps\": %.1f}\n", (unsigned long long)frames,
           (double)frames / (end - begin), (double)frames * (double)length * 8 / (end - begin));
    return 0;
}
