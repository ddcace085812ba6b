/* SPDX-License-Identifier: BSD-2-Clause */
/* The forwarding database of a switch. */
#include "fdb.h"

#include <errno.h>
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
    atomic_store(&fdb->age, FDB_AGE);
    atomic_store(&fdb->cap, FDB_CAP);
    pthread_mutex_init(&fdb->lock, NULL);
    return 0;
}

void fdb_destroy(struct fdb *fdb)
{
    munmap(fdb->bucket, FDB_BUCKETS * sizeof(struct fdb_bucket));
    pthread_mutex_destroy(&fdb->lock);
}

static inline uint64_t load(const struct fdb_bucket *b, int way)
{
    return atomic_load_explicit(&b->entry[way], memory_order_acquire);
}

/* Seconds since it was heard. Another worker may have heard it in a second that has not begun for this one. */
static inline uint32_t silence(const struct fdb_bucket *b, int way, uint32_t now)
{
    int32_t age = (int32_t)(now - atomic_load_explicit(&b->seen[way], memory_order_relaxed));

    return age > 0 ? (uint32_t)age : 0;
}

static inline bool is_fresh(const struct fdb *fdb, const struct fdb_bucket *b, int way, uint32_t now)
{
    return silence(b, way, now) < atomic_load_explicit(&fdb->age, memory_order_relaxed) || (load(b, way) & FDB_STATIC);
}

/* The way of mac in its bucket, or -1. */
static inline int find_way(const struct fdb_bucket *b, uint64_t mac)
{
    for (int i = 0; i < FDB_WAYS; i++) {
        uint64_t e = load(b, i);

        if ((e & FDB_USED) && entry_mac(e) == mac)
            return i;
    }
    return -1;
}

unsigned int fdb_lookup(const struct fdb *fdb, uint64_t mac, uint32_t now)
{
    const struct fdb_bucket *b = bucket_of(fdb, mac);

    for (int i = 0; i < FDB_WAYS; i++) {
        uint64_t e = load(b, i);

        if ((e & FDB_USED) && entry_mac(e) == mac)
            return is_fresh(fdb, b, i, now) ? entry_port(e) : FDB_NONE;
    }
    return FDB_NONE;
}

/* ------------------------------------------------------------------------------------------------------ changes --- */

/* Where a new station goes: a free way, else the learned one that was silent for longest; -1 when all are static. */
static int victim_way(const struct fdb_bucket *b, uint32_t now)
{
    int oldest = -1;

    for (int i = 0; i < FDB_WAYS; i++) {
        uint64_t e = load(b, i);

        if (!(e & FDB_USED))
            return i;
        if (!(e & FDB_STATIC) && (oldest < 0 || silence(b, i, now) > silence(b, oldest, now)))
            oldest = i;
    }
    return oldest;
}

/* Under the lock: puts an entry (0: none) into a way, and keeps the books. */
static void replace(struct fdb *fdb, struct fdb_bucket *b, int way, uint64_t entry, uint32_t now)
{
    uint64_t old = load(b, way);

    if (old & FDB_USED)
        fdb->stations[entry_port(old)]--;
    if (entry & FDB_USED)
        fdb->stations[entry_port(entry)]++;
    atomic_store_explicit(&b->seen[way], now, memory_order_relaxed);
    atomic_store_explicit(&b->entry[way], entry, memory_order_release);
    atomic_fetch_add(&fdb->generation, 1);
}

/* Under the lock, at most once a second: makes room under the caps by forgetting who counts as absent anyway. */
static void forget_aged(struct fdb *fdb, uint32_t now)
{
    if (fdb->swept == now)
        return;
    fdb->swept = now;
    for (struct fdb_bucket *b = fdb->bucket; b < fdb->bucket + FDB_BUCKETS; b++)
        for (int i = 0; i < FDB_WAYS; i++)
            if ((load(b, i) & FDB_USED) && !is_fresh(fdb, b, i, now))
                replace(fdb, b, i, 0, 0);
}

static bool is_capped(const struct fdb *fdb, unsigned int port)
{
    return fdb->stations[port] >= atomic_load_explicit(&fdb->cap, memory_order_relaxed);
}

/* Under the lock. False: locked to another port. */
static bool learn(struct fdb *fdb, struct fdb_bucket *b, uint64_t entry, uint32_t now)
{
    int way = find_way(b, entry_mac(entry));
    bool is_new = way < 0 || entry_port(load(b, way)) != entry_port(entry);

    if (way >= 0 && (load(b, way) & FDB_STATIC))
        return !is_new;
    if (is_new && is_capped(fdb, entry_port(entry))) {
        forget_aged(fdb, now);
        if (is_capped(fdb, entry_port(entry)))
            return true;
        way = find_way(b, entry_mac(entry));
    }
    if (way < 0)
        way = victim_way(b, now);
    if (way >= 0)
        replace(fdb, b, way, entry, now);
    return true;
}

bool fdb_learn(struct fdb *fdb, uint64_t mac, unsigned int port, uint32_t now)
{
    struct fdb_bucket *b = bucket_of(fdb, mac);
    uint64_t entry = mac | (uint64_t)port << 48 | FDB_USED;
    int way = find_way(b, mac);
    bool allowed;

    if (mac & MULTICAST_BIT)
        return true;
    /* Almost always it is known, and known to be here: then only its age changes. */
    if (way >= 0 && (load(b, way) & ~FDB_STATIC) == entry && is_fresh(fdb, b, way, now)) {
        atomic_store_explicit(&b->seen[way], now, memory_order_relaxed);
        return true;
    }
    pthread_mutex_lock(&fdb->lock);
    allowed = learn(fdb, b, entry, now);
    pthread_mutex_unlock(&fdb->lock);
    return allowed;
}

int fdb_set_static(struct fdb *fdb, uint64_t mac, unsigned int port, uint32_t now)
{
    struct fdb_bucket *b = bucket_of(fdb, mac);
    int way;

    if (mac & MULTICAST_BIT)
        return -EINVAL;
    pthread_mutex_lock(&fdb->lock);
    way = find_way(b, mac);
    if (way < 0)
        way = victim_way(b, now);
    if (way >= 0)
        replace(fdb, b, way, mac | (uint64_t)port << 48 | FDB_USED | FDB_STATIC, now);
    pthread_mutex_unlock(&fdb->lock);
    return way < 0 ? -ENOSPC : 0;
}

int fdb_remove(struct fdb *fdb, uint64_t mac)
{
    struct fdb_bucket *b = bucket_of(fdb, mac);
    int way;

    pthread_mutex_lock(&fdb->lock);
    way = find_way(b, mac);
    if (way >= 0)
        replace(fdb, b, way, 0, 0);
    pthread_mutex_unlock(&fdb->lock);
    return way < 0 ? -ENOENT : 0;
}

void fdb_flush_port(struct fdb *fdb, unsigned int port, bool all)
{
    pthread_mutex_lock(&fdb->lock);
    for (struct fdb_bucket *b = fdb->bucket; fdb->stations[port] && b < fdb->bucket + FDB_BUCKETS; b++) {
        for (int i = 0; i < FDB_WAYS; i++) {
            uint64_t e = load(b, i);

            if ((e & FDB_USED) && entry_port(e) == port && (all || !(e & FDB_STATIC)))
                replace(fdb, b, i, 0, 0);
        }
    }
    pthread_mutex_unlock(&fdb->lock);
}

/* ------------------------------------------------------------------------------------------------------ reading --- */

void fdb_each(const struct fdb *fdb, uint32_t now, void (*fn)(const struct fdb_station *station, void *arg), void *arg)
{
    for (const struct fdb_bucket *b = fdb->bucket; b < fdb->bucket + FDB_BUCKETS; b++) {
        for (int i = 0; i < FDB_WAYS; i++) {
            uint64_t e = load(b, i);
            struct fdb_station station = {
                .mac = entry_mac(e), .port = entry_port(e), .age = silence(b, i, now), .is_static = e & FDB_STATIC};

            if ((e & FDB_USED) && is_fresh(fdb, b, i, now))
                fn(&station, arg);
        }
    }
}

static void count_one(const struct fdb_station *station, void *arg)
{
    (void)station;
    ++*(unsigned int *)arg;
}

unsigned int fdb_count(const struct fdb *fdb, uint32_t now)
{
    unsigned int n = 0;

    fdb_each(fdb, now, count_one, &n);
    return n;
}
