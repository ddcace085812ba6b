/* SPDX-License-Identifier: BSD-2-Clause */
/* copy - frames between buffers: short ones inline, by overlapping words, never a byte beyond the frame. */
#ifndef VALED_COPY_H
#define VALED_COPY_H

#include <stdint.h>
#include <string.h>

struct word16 {
    uint64_t w[2];
};

static inline void copy16(uint8_t *to, const uint8_t *from)
{
    struct word16 w;

    memcpy(&w, from, 16);
    memcpy(to, &w, 16);
}

static inline void copy32(uint8_t *to, const uint8_t *from)
{
    copy16(to, from);
    copy16(to + 16, from + 16);
}

/* Has the cache line of p fetched, to be written to. Where the compiler may not assume the instruction, it would only read. */
static inline void prefetch_for_write(const void *p)
{
#ifdef __x86_64__
    __asm__ volatile("prefetchw %0" : : "m"(*(const char *)p));
#else
    __builtin_prefetch(p, 1);
#endif
}

/* len bytes; the areas do not overlap. Frames of 64 bytes and less without a loop: their ends overlap in the middle. */
static inline void copy_bytes(uint8_t *to, const uint8_t *from, uint32_t len)
{
    if (len > 128 || len < 32) {
        memcpy(to, from, len);
        return;
    }
    if (len > 64) {
        copy32(to + 32, from + 32);
        copy32(to + len - 64, from + len - 64);
    }
    copy32(to, from);
    copy32(to + len - 32, from + len - 32);
}

#endif
