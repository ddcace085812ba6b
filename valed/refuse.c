/* SPDX-License-Identifier: BSD-2-Clause */
/* Why a command cannot be. Control thread. */
#include "refuse.h"

#include <stdarg.h>
#include <stdio.h>

static char message[600];

void *refuse(const char **error, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(message, sizeof(message), fmt, ap);
    va_end(ap);
    *error = message;
    return NULL;
}
