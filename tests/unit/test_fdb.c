/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_fdb - the forwarding database (valed/fdb.c) with a clock of the test's own, and with several threads
 *
 * What a switch does with it is tested on the real one (tests/blackbox/test_valed_forward.py); here is what time does.
 */
#include "fdb.h"

#include "check.h"

#include <stdio.h>
#include <string.h>

/* The n-th unicast address: an even first byte, which is the lowest. */
static uint64_t station(uint64_t n)
{
    return 2 | n << 8;
}

static void test_learning(struct fdb *fdb)
{
    CHECK(fdb_lookup(fdb, station(1), 100) == FDB_NONE);
    CHECK(fdb_learn(fdb, station(1), 0, 100));
    CHECK(fdb_learn(fdb, station(2), 253, 100));
    CHECK(fdb_lookup(fdb, station(1), 100) == 0);
    CHECK(fdb_lookup(fdb, station(2), 100) == 253);
    CHECK(fdb_learn(fdb, station(1), 7, 100)); /* it moves */
    CHECK(fdb_lookup(fdb, station(1), 100) == 7);
    CHECK(fdb_count(fdb, 100) == 2);
    CHECK(fdb_lookup(fdb, 0, 100) == FDB_NONE);
    CHECK(fdb_learn(fdb, 1 | station(3), 7, 100)); /* multicast: allowed, not learned */
    CHECK(fdb_count(fdb, 100) == 2);
}

static void test_generation(struct fdb *fdb)
{
    uint32_t before = fdb->generation;

    fdb_learn(fdb, station(1), 3, 100);
    CHECK(fdb->generation != before);
    before = fdb->generation;
    fdb_learn(fdb, station(1), 3, 150); /* nothing new: cached lookups stay valid */
    CHECK(fdb->generation == before);
    fdb_learn(fdb, station(1), 4, 150);
    CHECK(fdb->generation != before);
    before = fdb->generation;
    fdb_flush_port(fdb, 4, true);
    CHECK(fdb->generation != before);
}

static void test_age(struct fdb *fdb)
{
    fdb_learn(fdb, station(1), 3, 100);
    CHECK(fdb_lookup(fdb, station(1), 100 + FDB_AGE - 1) == 3);
    CHECK(fdb_lookup(fdb, station(1), 100 + FDB_AGE) == FDB_NONE);
    fdb_learn(fdb, station(1), 3, 100 + FDB_AGE - 1);
    CHECK(fdb_lookup(fdb, station(1), 100 + 2 * FDB_AGE - 2) == 3);
    CHECK(fdb_count(fdb, 100 + 2 * FDB_AGE) == 0);
    fdb_learn(fdb, station(1), 3, 1000);
    CHECK(fdb_lookup(fdb, station(1), 1000) == 3);
}

/* Workers read the clock at their own moments: one may ask in a second that is over for the other. */
static void test_clocks_of_two_workers(struct fdb *fdb)
{
    fdb_learn(fdb, station(1), 3, 101);
    CHECK(fdb_lookup(fdb, station(1), 100) == 3);
    CHECK(fdb_count(fdb, 100) == 1);
    fdb_learn(fdb, station(2), 3, UINT32_MAX); /* the counter of seconds wraps */
    CHECK(fdb_lookup(fdb, station(2), 5) == 3);
    CHECK(fdb_lookup(fdb, station(2), FDB_AGE) == FDB_NONE);
}

static void test_flush(struct fdb *fdb)
{
    for (unsigned int i = 0; i < 100; i++)
        fdb_learn(fdb, station(i), i % 4, 100);
    CHECK(fdb_set_static(fdb, station(1000), 1, 100) == 0);
    fdb_flush_port(fdb, 1, false);
    CHECK(fdb_count(fdb, 100) == 76);
    CHECK(fdb_lookup(fdb, station(1), 100) == FDB_NONE);
    CHECK(fdb_lookup(fdb, station(2), 100) == 2);
    CHECK(fdb_lookup(fdb, station(1000), 100) == 1);
    fdb_flush_port(fdb, 1, true);
    CHECK(fdb_lookup(fdb, station(1000), 100) == FDB_NONE);
}

static void test_static(struct fdb *fdb)
{
    fdb_learn(fdb, station(1), 3, 100);
    CHECK(fdb_set_static(fdb, station(1), 5, 100) == 0);
    CHECK(fdb_lookup(fdb, station(1), 100 + 10 * FDB_AGE) == 5);
    CHECK(!fdb_learn(fdb, station(1), 3, 100)); /* locked to another port */
    CHECK(fdb_learn(fdb, station(1), 5, 100));
    CHECK(fdb_lookup(fdb, station(1), 100) == 5);
    CHECK(fdb_set_static(fdb, 1, 5, 100) < 0);
    CHECK(fdb_remove(fdb, station(1)) == 0);
    CHECK(fdb_remove(fdb, station(1)) < 0);
    CHECK(fdb_learn(fdb, station(1), 3, 100));
}

/* Many more stations than there is room for: never a wrong port, no way used twice, the newest are there. */
static void test_overflow(struct fdb *fdb)
{
    unsigned int n = 4 * FDB_BUCKETS * FDB_WAYS;

    atomic_store(&fdb->cap, UINT16_MAX);
    for (unsigned int i = 0; i < n; i++) {
        fdb_learn(fdb, station(i), i % FDB_PORTS, 100 + i / 1000);
        CHECK(fdb_lookup(fdb, station(i), 100 + i / 1000) == i % FDB_PORTS);
    }
    for (unsigned int i = 0; i < n; i++) {
        unsigned int port = fdb_lookup(fdb, station(i), 100 + n / 1000);

        CHECK(port == i % FDB_PORTS || port == FDB_NONE);
    }
    CHECK(fdb_count(fdb, 100 + n / 1000) > FDB_BUCKETS * FDB_WAYS * 9 / 10);
}

static void test_cap(struct fdb *fdb)
{
    atomic_store(&fdb->cap, 10);
    for (unsigned int i = 0; i < 50; i++)
        fdb_learn(fdb, station(i), 3, 100);
    CHECK(fdb_count(fdb, 100) == 10);
    CHECK(fdb_lookup(fdb, station(10), 100) == FDB_NONE);
    CHECK(fdb_learn(fdb, station(0), 4, 100)); /* others are not concerned, and who leaves makes room */
    CHECK(fdb_lookup(fdb, station(0), 100) == 4);
    fdb_learn(fdb, station(10), 3, 100);
    CHECK(fdb_lookup(fdb, station(10), 100) == 3);
    fdb_learn(fdb, station(11), 3, 100);
    CHECK(fdb_lookup(fdb, station(11), 100) == FDB_NONE);
    /* Stations that have aged do not use up the cap. */
    for (unsigned int i = 100; i < 105; i++)
        fdb_learn(fdb, station(i), 3, 100 + FDB_AGE);
    CHECK(fdb_count(fdb, 100 + FDB_AGE) == 5);
}

struct shared {
    struct fdb *fdb;
    unsigned int index;
    int wrong;
};

/* Learns its own stations on its own port, and looks up everybody's. */
static void *talk(void *arg)
{
    struct shared *s = arg;

    for (unsigned int lap = 0; lap < 200; lap++) {
        for (unsigned int i = 0; i < 40; i++)
            fdb_learn(s->fdb, station(100 * s->index + i), s->index, 100 + lap);
        for (unsigned int i = 0; i < 400; i++) {
            unsigned int port = fdb_lookup(s->fdb, station(i), 100 + lap);

            s->wrong += port != FDB_NONE && port != i / 100;
        }
        if (lap % 10 == 0)
            fdb_flush_port(s->fdb, s->index, true);
    }
    return NULL;
}

static void test_threads(struct fdb *fdb)
{
    struct shared shared[4];
    pthread_t thread[4];

    for (unsigned int i = 0; i < 4; i++) {
        shared[i] = (struct shared){.fdb = fdb, .index = i};
        pthread_create(&thread[i], NULL, talk, &shared[i]);
    }
    for (unsigned int i = 0; i < 4; i++) {
        pthread_join(thread[i], NULL);
        CHECK(shared[i].wrong == 0);
    }
    CHECK(fdb_count(fdb, 300) == 160);
}

int main(void)
{
    static void (*const tests[])(struct fdb *) = {
        test_learning, test_generation, test_age,      test_clocks_of_two_workers,
        test_flush,    test_static,     test_overflow, test_cap,
        test_threads,
    };

    for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
        struct fdb fdb;

        memset(&fdb, 0, sizeof(fdb));
        CHECK(fdb_init(&fdb) == 0);
        tests[i](&fdb);
        fdb_destroy(&fdb);
    }
    return failed != 0;
}
