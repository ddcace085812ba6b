/* SPDX-License-Identifier: BSD-2-Clause */
/* Log lines of valed, to stderr. */
#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static enum log_level max_level = LOG_WARN;

void log_set_level(enum log_level level)
{
    max_level = level;
}

static void write_line(const char *fmt, va_list ap)
{
    char text[1024];
    int n = vsnprintf(text, sizeof(text), fmt, ap);

    if (n >= 0)
        fprintf(stderr, "valed: %s\n", text);
}

void log_line(enum log_level level, const char *fmt, ...)
{
    va_list ap;

    if (level > max_level)
        return;
    va_start(ap, fmt);
    write_line(fmt, ap);
    va_end(ap);
}

bool log_due(time_t *last)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    if (*last && now.tv_sec - *last < 10)
        return false;
    *last = now.tv_sec;
    return true;
}

void fatal(int code, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    write_line(fmt, ap);
    va_end(ap);
    exit(code);
}
