/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fdb - the forwarding database of a switch: which port a station was last heard on
 *
 * Set-associative: a hash of the address with a secret seed picks a bucket of one cache line with FDB_WAYS entries, so a
 * collision made on purpose needs the seed, and costs at most somebody's entry in one bucket. Entries age lazily: one that
 * was not refreshed for `age` seconds counts as absent. A station that moves is re-learned at once. A port that has as many
 * stations as `cap` allows teaches no more: what goes to them is flooded.
 *
 * Static entries are set by management: they do not age, do not move, are not evicted, and are locks as well: who sends from
 * such an address on another port is refused.
 *
 * Threads: lookups take no lock and may run beside any change; an entry is one 64-bit word, so a reader sees the old or the
 * new one. Changes take the fdb's lock, for a few dozen instructions. `generation` moves with every change: a worker's
 * cached lookup is valid as long as it did not.
 */
#ifndef VALED_FDB_H
#define VALED_FDB_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define FDB_BUCKETS 1024
#define FDB_WAYS    5
#define FDB_AGE     300  /* seconds, by default */
#define FDB_CAP     1024 /* stations of one port, by default */
#define FDB_PORTS   254
#define FDB_NONE    255 /* no port has this number */

/* An entry: address in bits 0-47 (first byte lowest), port in bits 48-55, then flags. 0 is free. */
#define FDB_MAC_MASK 0xffffffffffffull
#define FDB_USED     (1ull << 56)
#define FDB_STATIC   (1ull << 57)

struct fdb_bucket {
    _Atomic uint64_t entry[FDB_WAYS];
    _Atomic uint32_t seen[FDB_WAYS]; /* seconds of the monotonic clock */
} __attribute__((aligned(64)));

struct fdb {
    struct fdb_bucket *bucket;
    uint64_t seed[2];
    _Atomic uint32_t generation;
    _Atomic uint32_t age; /* seconds */
    _Atomic uint32_t cap;
    pthread_mutex_t lock;
    uint16_t stations[FDB_PORTS]; /* entries of each port, fresh or not; under the lock */
    uint32_t swept;               /* the second in which aged entries were last forgotten; under the lock */
};

/* 0, or -ENOMEM. */
int fdb_init(struct fdb *fdb);
void fdb_destroy(struct fdb *fdb);

/* The port that mac was heard on, or FDB_NONE. now: seconds of the monotonic clock. */
unsigned int fdb_lookup(const struct fdb *fdb, uint64_t mac, uint32_t now);

/* mac was heard on port. Multicast sources are not learned. False: the address is locked to another port. */
bool fdb_learn(struct fdb *fdb, uint64_t mac, unsigned int port, uint32_t now);

/* Sets a static entry. 0, -EINVAL (multicast), -ENOSPC (its bucket is full of static entries). */
int fdb_set_static(struct fdb *fdb, uint64_t mac, unsigned int port, uint32_t now);

/* Forgets a station, static or not. 0 or -ENOENT. */
int fdb_remove(struct fdb *fdb, uint64_t mac);

/* Forgets every station of a port: those that were learned, or (all) the static ones too. */
void fdb_flush_port(struct fdb *fdb, unsigned int port, bool all);

/* Calls fn for every station that is known now; age in seconds. */
struct fdb_station {
    uint64_t mac;
    unsigned int port;
    uint32_t age;
    bool is_static;
};
void fdb_each(const struct fdb *fdb, uint32_t now, void (*fn)(const struct fdb_station *station, void *arg), void *arg);

/* Stations known now. */
unsigned int fdb_count(const struct fdb *fdb, uint32_t now);

#endif
