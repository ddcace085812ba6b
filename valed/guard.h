/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * guard - surviving a peer that takes its memory away
 *
 * Memory that a peer has mapped for us can be truncated by it at any time; the next access is SIGBUS, which would end valed
 * for everybody. Each foreign mapping is therefore entered in a table. The handler finds the one that the address lies in,
 * sets the owner's mark, puts anonymous zero pages over all of it, wakes the control thread, and returns: the access is
 * repeated and reads zeros. The control thread then retires the owner. A SIGBUS anywhere else is a bug, and fatal.
 *
 * The table is read by the handler in any thread, at any time: entries are published and withdrawn by single stores, and
 * none is reused while its mapping exists.
 */
#ifndef VALED_GUARD_H
#define VALED_GUARD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#define GUARD_MAX 16384 /* mappings */

/* Installs the handler. wake_fd: an eventfd of ours, written when a mapping has died. 0 or -errno. */
int guard_start(int wake_fd);

/* Enters a mapping. mark is set when it has died. 0 or -ENOSPC. */
int guard_add(void *address, size_t length, atomic_bool *mark);

/* Before the mapping is unmapped. */
void guard_remove(const void *address);

#endif
