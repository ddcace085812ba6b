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

/* Has the cache line of p fetched, to be written to. Where the compiler may not assume the instruction, it would only read. */
static inline void prefetch_for_write(const void *p)
{
#ifdef __x86_64__
    __asm__ volatile("prefetchw %0" : : "m"(*(const char *)p));
#else
    __builtin_prefetch(p, 1);
#endif
}

/* len bytes; the areas do not overlap. */
static inline void copy_bytes(uint8_t *to, const uint8_t *from, uint32_t len)
{
    if (len > 128 || len < 16) {
        memcpy(to, from, len);
        return;
    }
    for (uint32_t at = 0; at + 16 < len; at += 16)
        copy16(to + at, from + at);
    copy16(to + len - 16, from + len - 16);
}

#endif
