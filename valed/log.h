/* SPDX-License-Identifier: BSD-2-Clause */
/* Log lines of valed, to stderr. Setup errors end the program with fatal(); after start nothing a client does may. */
#ifndef VALED_LOG_H
#define VALED_LOG_H

#include <stdbool.h>
#include <stdnoreturn.h>
#include <time.h>

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

void log_set_level(enum log_level level);
void log_line(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_line(LOG_ERROR, __VA_ARGS__)
#define log_warn(...)  log_line(LOG_WARN, __VA_ARGS__)
#define log_info(...)  log_line(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_DEBUG, __VA_ARGS__)

/* A warning that peers can provoke: at most every ten seconds from one place. Control thread only. */
#define log_limited(...)                                                                                               \
    do {                                                                                                               \
        static time_t last;                                                                                            \
                                                                                                                       \
        if (log_due(&last))                                                                                            \
            log_warn(__VA_ARGS__);                                                                                     \
    } while (0)

bool log_due(time_t *last);

/* One line, then exit with the code given: 1 failure, 2 usage, 4 environment. */
noreturn void fatal(int code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
