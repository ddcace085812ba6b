/* SPDX-License-Identifier: BSD-2-Clause */
/* histogram - percentiles of any number of values in fixed memory: buckets of 1/32 of a power of two, so within 3 % */
#ifndef VALE_HISTOGRAM_H
#define VALE_HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_BUCKETS 1920

struct histogram {
    uint64_t count, max;
    uint64_t bucket[HISTOGRAM_BUCKETS];
};

void histogram_add(struct histogram *h, uint64_t value);

/* The value that a fraction of all do not exceed, never too low; 0 when there are none. */
uint64_t histogram_percentile(const struct histogram *h, double fraction);

#endif
