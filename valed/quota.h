/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * quota - what one user may hold of a switch that many share
 *
 * Accounts are kept by the uid of the peer, so that who starts more processes gets no more. Everybody has the same limits,
 * root and valed's own user too: a program of theirs that runs wild is stopped like any other. Control thread only.
 */
#ifndef VALED_QUOTA_H
#define VALED_QUOTA_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum quota_kind {
    QUOTA_CONNECTIONS, /* of netmap.sock */
    QUOTA_ANSWERS,     /* requests under way, and answers that lie in a socket unread: they hold descriptors */
    QUOTA_PORTS,       /* native ones */
    QUOTA_BYTES,       /* of their regions */
    QUOTA_KINDS
};

/* Ports and bytes; the rest follows. bytes 0: half of the machine's memory. */
void quota_set(uint64_t ports, uint64_t bytes);

/* Takes an amount for uid. False when it would be too much, which the log says now and then. */
bool quota_take(uid_t uid, enum quota_kind kind, uint64_t amount);

/* Gives it back. */
void quota_give(uid_t uid, enum quota_kind kind, uint64_t amount);

#endif
