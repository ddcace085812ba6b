/* SPDX-License-Identifier: BSD-2-Clause */
/* Percentiles in fixed memory. */
#include "histogram.h"

/* Values below 64 have buckets of their own; above, the six highest bits tell which it is. */
static unsigned int bucket_of(uint64_t value)
{
    unsigned int shift = value < 64 ? 0 : 58u - (unsigned int)__builtin_clzll(value);

    return 32 * shift + (unsigned int)(value >> shift);
}

static uint64_t highest_of(unsigned int bucket)
{
    unsigned int shift = bucket < 64 ? 0 : bucket / 32 - 1;

    return (((uint64_t)(bucket - 32 * shift) + 1) << shift) - 1;
}

void histogram_add(struct histogram *h, uint64_t value)
{
    h->count++;
    h->max = value > h->max ? value : h->max;
    h->bucket[bucket_of(value)]++;
}

uint64_t histogram_percentile(const struct histogram *h, double fraction)
{
    uint64_t wanted = (uint64_t)((double)h->count * fraction), below = 0, value;
    unsigned int i = 0;

    if (h->count == 0) {
        return 0;
    }
    for (; i < HISTOGRAM_BUCKETS - 1; i++) {
        below += h->bucket[i];
        if (below > wanted || below == h->count) {
            break;
        }
    }
    value = highest_of(i);
    return value < h->max ? value : h->max;
}
