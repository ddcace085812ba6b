/* SPDX-License-Identifier: BSD-2-Clause */
/* The forwarding database of a switch. */
#include "fdb.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>

#define MULTICAST_BIT 1ull /* lowest bit of the first byte */

static inline uint64_t entry_mac(uint64_t entry)
{
    return entry & FDB_MAC_MASK;
}

static inline unsigned int entry_port(uint64_t entry)
{
    return (entry >> 48) & 0xff;
}

/* Two multiplications with secret words, high and low halves folded: spreads well, and cannot be steered without the seed. */
static inline struct fdb_bucket *bucket_of(const struct fdb *fdb, uint64_t mac)
{
    __uint128_t p = (__uint128_t)(mac ^ fdb->seed[0]) * (fdb->seed[1] | 1);
    uint64_t h = (uint64_t)p ^ (uint64_t)(p >> 64);

    p = (__uint128_t)(h ^ fdb->seed[1]) * (fdb->seed[0] | 1);
    h = (uint64_t)p ^ (uint64_t)(p >> 64);
    return &fdb->bucket[h % FDB_BUCKETS];
}

int fdb_init(struct fdb *fdb)
{
    if (getrandom(fdb->seed, sizeof(fdb->seed), 0) != sizeof(fdb->seed))
        return -errno;
    /* Pages of empty buckets are never touched, so a large table costs nothing until it is used. */
    fdb->bucket = mmap(NULL, FDB_BUCKETS * sizeof(struct fdb_bucket), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                       -1, 0);
    if (fdb->bucket == MAP_FAILED)
        return -ENOMEM;
    atomic_store(&fdb->generation, 1);
    pthread_mutex_init(&fdb->lock, NULL);
    return 0;
}

void fdb_destroy(struct fdb *fdb)
{
    munmap(fdb->bucket, FDB_BUCKETS * sizeof(struct fdb_bucket));
    pthread_mutex_destroy(&fdb->lock);
}

static bool is_fresh(const struct fdb_bucket *b, unsigned int way, uint32_t now)
{
    return now - atomic_load_explicit(&b->seen[way], memory_order_relaxed) < FDB_AGE;
}

/* The way of mac in its bucket, or -1. */
static int find_way(const struct fdb_bucket *b, uint64_t mac)
{
    for (int i = 0; i < FDB_WAYS; i++) {
        uint64_t e = atomic_load_explicit(&b->entry[i], memory_order_relaxed);

        if ((e & FDB_USED) && entry_mac(e) == mac)
            return i;
    }
    return -1;
}

unsigned int fdb_lookup(const struct fdb *fdb, uint64_t mac, uint32_t now)
{
    const struct fdb_bucket *b = bucket_of(fdb, mac);

    for (int i = 0; i < FDB_WAYS; i++) {
        uint64_t e = atomic_load_explicit(&b->entry[i], memory_order_acquire);

        if ((e & FDB_USED) && entry_mac(e) == mac)
            return is_fresh(b, i, now) ? entry_port(e) : FDB_NONE;
    }
    return FDB_NONE;
}

/* Where a new station goes: a free way, else the one that was silent for longest. */
static int victim_way(const struct fdb_bucket *b, uint32_t now)
{
    int oldest = 0;

    for (int i = 0; i < FDB_WAYS; i++) {
        if (!(b->entry[i] & FDB_USED))
            return i;
        if (now - b->seen[i] > now - b->seen[oldest])
            oldest = i;
    }
    return oldest;
}

void fdb_learn(struct fdb *fdb, uint64_t mac, unsigned int port, uint32_t now)
{
    struct fdb_bucket *b = bucket_of(fdb, mac);
    uint64_t entry = mac | (uint64_t)port << 48 | FDB_USED;
    int way;

    if (mac & MULTICAST_BIT)
        return;
    way = find_way(b, mac);
    if (way >= 0 && atomic_load_explicit(&b->entry[way], memory_order_relaxed) == entry && is_fresh(b, way, now)) {
        atomic_store_explicit(&b->seen[way], now, memory_order_relaxed);
        return;
    }
    pthread_mutex_lock(&fdb->lock);
    way = find_way(b, mac);
    if (way < 0)
        way = victim_way(b, now);
    atomic_store_explicit(&b->seen[way], now, memory_order_relaxed);
    atomic_store_explicit(&b->entry[way], entry, memory_order_release);
    atomic_fetch_add(&fdb->generation, 1);
    pthread_mutex_unlock(&fdb->lock);
}

void fdb_flush_port(struct fdb *fdb, unsigned int port)
{
    pthread_mutex_lock(&fdb->lock);
    for (struct fdb_bucket *b = fdb->bucket; b < fdb->bucket + FDB_BUCKETS; b++) {
        for (int i = 0; i < FDB_WAYS; i++) {
            uint64_t e = atomic_load_explicit(&b->entry[i], memory_order_relaxed);

            if ((e & FDB_USED) && entry_port(e) == port)
                atomic_store_explicit(&b->entry[i], 0, memory_order_release);
        }
    }
    atomic_fetch_add(&fdb->generation, 1);
    pthread_mutex_unlock(&fdb->lock);
}

unsigned int fdb_count(const struct fdb *fdb, uint32_t now)
{
    unsigned int n = 0;

    for (const struct fdb_bucket *b = fdb->bucket; b < fdb->bucket + FDB_BUCKETS; b++)
        for (unsigned int i = 0; i < FDB_WAYS; i++)
            n += (b->entry[i] & FDB_USED) && is_fresh(b, i, now);
    return n;
}
