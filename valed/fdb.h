/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fdb - the forwarding database of a switch: which port a station was last heard on
 *
 * Set-associative: a hash of the address with a secret seed picks a bucket of one cache line with FDB_WAYS entries, so a
 * collision made on purpose needs the seed, and costs at most somebody's entry in one bucket. Entries age lazily: one that
 * was not refreshed for FDB_AGE seconds counts as absent. A station that moves is re-learned at once.
 *
 * Threads: lookups take no lock and may run beside any change; an entry is one 64-bit word, so a reader sees the old or the
 * new one. Changes take the fdb's lock, for a few dozen instructions. `generation` moves with every change: a worker's
 * cached lookup is valid as long as it did not.
 */
#ifndef VALED_FDB_H
#define VALED_FDB_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#define FDB_BUCKETS 1024
#define FDB_WAYS    5
#define FDB_AGE     300 /* seconds */
#define FDB_NONE    255 /* no port has this number */

/* An entry: address in bits 0-47 (first byte lowest), port in bits 48-55, FDB_USED in bit 56. 0 is free. */
#define FDB_MAC_MASK 0xffffffffffffull
#define FDB_USED     (1ull << 56)

struct fdb_bucket {
    _Atomic uint64_t entry[FDB_WAYS];
    _Atomic uint32_t seen[FDB_WAYS]; /* seconds of the monotonic clock */
} __attribute__((aligned(64)));

struct fdb {
    struct fdb_bucket *bucket;
    uint64_t seed[2];
    _Atomic uint32_t generation;
    pthread_mutex_t lock;
};

/* 0, or -ENOMEM. */
int fdb_init(struct fdb *fdb);
void fdb_destroy(struct fdb *fdb);

/* The port that mac was heard on, or FDB_NONE. now: seconds of the monotonic clock. */
unsigned int fdb_lookup(const struct fdb *fdb, uint64_t mac, uint32_t now);

/* mac was heard on port. Multicast sources are not learned. */
void fdb_learn(struct fdb *fdb, uint64_t mac, unsigned int port, uint32_t now);

/* Forgets every station of a port. */
void fdb_flush_port(struct fdb *fdb, unsigned int port);

/* Stations known now. */
unsigned int fdb_count(const struct fdb *fdb, uint32_t now);

#endif
