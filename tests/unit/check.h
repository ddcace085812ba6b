/* SPDX-License-Identifier: BSD-2-Clause */
/* check - what the C unit tests share: a condition that is counted and shown when it does not hold. */
#ifndef TESTS_CHECK_H
#define TESTS_CHECK_H

#include <stdio.h>

static int failed;

#define CHECK(cond)                                                                                                    \
    do {                                                                                                               \
        if (!(cond)) {                                                                                                 \
            fprintf(stderr, "%s:%d: %s\n", __func__, __LINE__, #cond);                                                 \
            failed++;                                                                                                  \
        }                                                                                                              \
    } while (0)

#endif
