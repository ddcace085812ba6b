/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * sync.c - netmap's sync, on one ring of a valed port
 *
 * Theory of operation
 *
 * Both kinds of ring obey one rule: the program owns the slots from the head that it published last up to hwtail, so
 *
 *     published <= head <= cur <= hwtail     (circular)
 *
 * where `published` is client.head of the control block. head and cur are read from the ring once, checked, and published
 * as a pair of private copies; a tail that the program wrote is overwritten. A violation re-initialises the ring: head and
 * cur go back to what is published, slots that point nowhere are emptied; nobody is told, as with the kernel.
 *
 * Several processes may sync one ring at the same time. Publishing is one compare-and-swap from the head that the check was
 * made against: who loses leaves the ring to who won, as the kernel skips a ring that is busy. Nothing is held, so nobody
 * can die holding it. Being sequentially consistent, the exchange is also the fence between publishing and looking at
 * need_kick.
 */
#include "internal.h"

static uint32_t read_once(const uint32_t *p)
{
    return __atomic_load_n(p, __ATOMIC_RELAXED);
}

/* The ring's own tail stands for a hwtail that is no index. */
static uint32_t load_hwtail(const struct vale_ring *r, int order)
{
    uint32_t hwtail = order == __ATOMIC_SEQ_CST ? __atomic_load_n(&r->ctl->valed.hwtail, __ATOMIC_SEQ_CST)
                                                : __atomic_load_n(&r->ctl->valed.hwtail, __ATOMIC_ACQUIRE);

    return hwtail < r->num_slots ? hwtail : read_once(&r->ctl->client.head) % r->num_slots;
}

/* Steps from a to b, going up. */
static uint32_t distance(const struct vale_ring *r, uint32_t a, uint32_t b)
{
    return b >= a ? b - a : b + r->num_slots - a;
}

static bool legal(const struct vale_ring *r, uint32_t published, uint32_t head, uint32_t cur, uint32_t hwtail)
{
    if (head >= r->num_slots || cur >= r->num_slots || published >= r->num_slots) {
        return false;
    }
    return distance(r, published, head) <= distance(r, published, cur) &&
           distance(r, published, cur) <= distance(r, published, hwtail);
}

static void reinit(struct vale_ring *r, uint32_t published)
{
    uint32_t i;

    for (i = 0; i < r->num_slots; i++) {
        struct netmap_slot *slot = &r->ring->slot[i];

        if (slot->buf_idx < 2 || slot->buf_idx >= r->buf_count) {
            slot->buf_idx = 0;
            slot->len = 0;
        } else if (slot->len > r->buf_size) {
            slot->len = 0;
        }
    }
    r->ring->head = r->ring->cur = published < r->num_slots ? published : 0;
}

bool vale_ring_sync(struct vale_ring *r)
{
    uint32_t published = read_once(&r->ctl->client.head);
    uint32_t hwtail = load_hwtail(r, __ATOMIC_ACQUIRE);
    uint32_t head = read_once(&r->ring->head);
    uint32_t cur = read_once(&r->ring->cur);
    bool kick = false;

    if (!legal(r, published, head, cur, hwtail)) {
        reinit(r, published);
    } else if (head != published) {
        __atomic_store_n(&r->ctl->client.cur, cur, __ATOMIC_RELAXED);
        if (__atomic_compare_exchange_n(&r->ctl->client.head, &published, head, false, __ATOMIC_SEQ_CST,
                                        __ATOMIC_RELAXED)) {
            kick = __atomic_load_n(&r->ctl->valed.need_kick, __ATOMIC_SEQ_CST) != 0;
            hwtail = load_hwtail(r, __ATOMIC_ACQUIRE);
        }
    } else if (cur != read_once(&r->ctl->client.cur)) {
        __atomic_store_n(&r->ctl->client.cur, cur, __ATOMIC_RELAXED);
    }
    r->ring->tail = hwtail;
    return kick;
}

bool vale_ring_ready(const struct vale_ring *r)
{
    return read_once(&r->ring->cur) != read_once(&r->ring->tail);
}

bool vale_ring_arm(struct vale_ring *r)
{
    if (++r->call_number == 0) {
        r->call_number = 1;
    }
    __atomic_exchange_n(&r->ctl->client.need_call, r->call_number, __ATOMIC_SEQ_CST);
    return load_hwtail(r, __ATOMIC_SEQ_CST) == read_once(&r->ring->tail);
}

void vale_ring_disarm(struct vale_ring *r)
{
    __atomic_store_n(&r->ctl->client.need_call, 0, __ATOMIC_RELAXED);
}
