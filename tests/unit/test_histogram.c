/* SPDX-License-Identifier: BSD-2-Clause */
/* test_histogram - percentiles are never too low, and at most 1/32 too high, over the whole range */
#include "histogram.h"

#include "check.h"

#include <string.h>

static struct histogram h;

static void check_single(uint64_t value)
{
    memset(&h, 0, sizeof(h));
    histogram_add(&h, value);
    histogram_add(&h, UINT64_MAX);
    CHECK(histogram_percentile(&h, 0.25) >= value);
    CHECK(histogram_percentile(&h, 0.25) - value <= value / 32);
    CHECK(histogram_percentile(&h, 0.75) == UINT64_MAX && h.max == UINT64_MAX);
}

int main(void)
{
    CHECK(histogram_percentile(&h, 0.5) == 0);
    for (uint64_t value = 0; value < 5000; value++)
        check_single(value);
    for (int bit = 6; bit < 64; bit++) {
        check_single(1ull << bit);
        check_single((1ull << bit) - 1);
    }
    memset(&h, 0, sizeof(h));
    for (uint64_t value = 1; value <= 1000; value++)
        histogram_add(&h, value);
    CHECK(histogram_percentile(&h, 0.5) >= 500 && histogram_percentile(&h, 0.5) <= 516);
    CHECK(histogram_percentile(&h, 0.99) >= 990 && histogram_percentile(&h, 1) == 1000);
    return failed != 0;
}
