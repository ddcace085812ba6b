/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fuzz - what the fuzz targets share: valed without its threads, and what must hold after every input
 *
 * A target is one file with LLVMFuzzerTestOneInput(), linked with all of valed's own sources. Nothing runs by itself: the
 * target says when the worker does a round and when the control thread does one, so an input always does the same.
 *
 *     fuzz_start()   once: the epoll set, and two workers that are not started
 *     fuzz_begin()   before each input
 *     fuzz_turn()    as often as the target likes
 *     fuzz_end()     after each input: every port closed, and nothing left over: no port, client, mapping or descriptor
 *
 * What valed maps from a descriptor lies between pages that nobody may touch: a byte beyond it is a crash.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include "port.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MUST(condition) \
    do {                \
        if (!(condition)) \
            __builtin_trap(); \
    } while (0)

/* ------------------------------------------------------------------------------------------------------------ valed --- */

void fuzz_start(void);
void fuzz_begin(void);

/* A round of each worker, and one of the control thread. */
void fuzz_turn(void);

/* Turns until nothing is under way. */
void fuzz_settle(void);

/* The equations of accounting, for every port; nobody is sending. */
void fuzz_check_books(void);

/* Closes all ports and lets go of all switches; then nothing may be left that was not there at the beginning. */
void fuzz_end(void);

/* In fuzz_worker.c: a round of each worker, and their clock, which goes on by little in each round. */
void fuzz_work(void);
void fuzz_reset_time(void);
void fuzz_pass_time(uint64_t us);

/* In fuzz_guard.c: mappings that valed has of descriptors. */
extern unsigned int fuzz_mappings;

/* A listening or connected socket of the name in our directory. */
int fuzz_listen(const char *name, int type);
int fuzz_connect(const char *name, int type);

/* Descriptors for messages, by a number of any size: memfds, eventfds, pipes, sockets and others. The caller closes it. */
int fuzz_some_fd(unsigned int kind);

/* Sends bytes with n descriptors, without waiting. */
void fuzz_send(int sock, const void *data, size_t len, const int *fds, unsigned int n);

/* A native port in vale1, or another that is named; what its client would do with it. */
struct port *fuzz_native(const char *name, unsigned int header);
void fuzz_native_send(struct port *port, unsigned int frames, uint32_t len, uint8_t fill);
void fuzz_native_drain(struct port *port);

/* ------------------------------------------------------------------------------------------------------------ input --- */

struct input {
    const uint8_t *data;
    size_t left;
};

/* The next n bytes as a little-endian number; zeros behind the end. */
static inline uint64_t take(struct input *in, unsigned int n)
{
    uint64_t value = 0;

    for (unsigned int i = 0; i < n && in->left; i++, in->left--)
        value |= (uint64_t)*in->data++ << (8 * i);
    return value;
}

/* At most n bytes, as they lie there. */
static inline const uint8_t *take_bytes(struct input *in, size_t *n)
{
    const uint8_t *bytes = in->data;

    if (*n > in->left)
        *n = in->left;
    in->data += *n;
    in->left -= *n;
    return bytes;
}

int LLVMFuzzerInitialize(int *argc, char ***argv); /* libFuzzer calls it once */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
