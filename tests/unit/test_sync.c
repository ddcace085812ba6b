/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_sync - netmap's sync rules (libvale/sync.c) on a ring made by hand
 *
 * The test plays valed: it sets hwtail and need_kick and looks at what is published.
 */
#include "internal.h"

#include "check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS    8
#define BUF_SIZE 256
#define BUFS     (2 + SLOTS)

static struct {
    struct netmap_ring ring;
    struct netmap_slot slots[SLOTS];
} memory;

static struct vale_ring_ctl ctl;
static struct vale_ring r;
static void reset(uint32_t at, uint32_t hwtail)
{
    uint32_t i;

    memset((void *)&memory, 0, sizeof(memory));
    memset(&ctl, 0, sizeof(ctl));
    for (i = 0; i < SLOTS; i++) {
        memory.slots[i] = (struct netmap_slot){.buf_idx = 2 + i, .len = BUF_SIZE};
    }
    memory.ring.head = memory.ring.cur = ctl.client.head = ctl.client.cur = ctl.valed.hwcur = at;
    memory.ring.tail = ctl.valed.hwtail = hwtail;
    r = (struct vale_ring){
        .ring = &memory.ring, .ctl = &ctl, .num_slots = SLOTS, .buf_size = BUF_SIZE, .buf_count = BUFS};
}

static bool is_reinitialised(uint32_t at, uint32_t hwtail)
{
    return memory.ring.head == at && memory.ring.cur == at && memory.ring.tail == hwtail && ctl.client.head == at;
}

static void publishes_head_and_cur(void)
{
    reset(0, 7);
    memory.ring.head = 3;
    memory.ring.cur = 5;
    CHECK(!vale_ring_sync(&r));
    CHECK(ctl.client.head == 3 && ctl.client.cur == 5);
    CHECK(memory.ring.head == 3 && memory.ring.cur == 5 && memory.ring.tail == 7);
}

static void publishes_cur_alone(void)
{
    reset(0, 7);
    memory.ring.cur = 7;
    ctl.valed.need_kick = 1;
    CHECK(!vale_ring_sync(&r));
    CHECK(ctl.client.head == 0 && ctl.client.cur == 7);
}

static void kicks_only_for_news(void)
{
    reset(0, 7);
    ctl.valed.need_kick = 1;
    CHECK(!vale_ring_sync(&r));
    memory.ring.head = memory.ring.cur = 1;
    CHECK(vale_ring_sync(&r));
    CHECK(!vale_ring_sync(&r));
}

static void refreshes_and_restores_tail(void)
{
    reset(0, 7);
    ctl.valed.hwtail = 2;
    memory.ring.tail = 5;
    vale_ring_sync(&r);
    CHECK(memory.ring.tail == 2);
}

static void wraps(void)
{
    reset(6, 5);
    memory.ring.head = memory.ring.cur = 2;
    vale_ring_sync(&r);
    CHECK(ctl.client.head == 2);
    memory.ring.head = memory.ring.cur = 5;
    vale_ring_sync(&r);
    CHECK(ctl.client.head == 5 && memory.ring.head == 5);
}

/* Every pair of head and cur, legal or not, from every position, with indexes out of range among them. */
static void judges_every_pair(void)
{
    static const uint32_t beyond[] = {SLOTS, SLOTS + 1, 0x7fffffff, 0xffffffff};
    uint32_t at, owned, h, c;

    for (at = 0; at < SLOTS; at++) {
        for (owned = 0; owned < SLOTS; owned++) {
            uint32_t hwtail = (at + owned) % SLOTS;

            for (h = 0; h < SLOTS + 4; h++) {
                for (c = 0; c < SLOTS + 4; c++) {
                    uint32_t head = h < SLOTS ? (at + h) % SLOTS : beyond[h - SLOTS];
                    uint32_t cur = c < SLOTS ? (at + c) % SLOTS : beyond[c - SLOTS];

                    reset(at, hwtail);
                    memory.ring.head = head;
                    memory.ring.cur = cur;
                    vale_ring_sync(&r);
                    if (h <= c && c <= owned) {
                        CHECK(ctl.client.head == head && ctl.client.cur == cur && memory.ring.head == head);
                    } else {
                        CHECK(is_reinitialised(at, hwtail));
                    }
                }
            }
        }
    }
}

static void reinit_empties_bad_slots(void)
{
    reset(0, 4);
    memory.slots[0].buf_idx = 1;
    memory.slots[1].buf_idx = BUFS;
    memory.slots[2].len = BUF_SIZE + 1;
    memory.ring.head = 5;
    CHECK(!vale_ring_sync(&r));
    CHECK(memory.slots[0].buf_idx == 0 && memory.slots[0].len == 0);
    CHECK(memory.slots[1].buf_idx == 0 && memory.slots[1].len == 0);
    CHECK(memory.slots[2].buf_idx == 4 && memory.slots[2].len == 0);
    CHECK(memory.slots[3].buf_idx == 5 && memory.slots[3].len == BUF_SIZE);
}

static void survives_nonsense_in_the_control_block(void)
{
    reset(0, 4);
    ctl.valed.hwtail = 0xffffffff;
    vale_ring_sync(&r);
    CHECK(memory.ring.tail < SLOTS);
    reset(0, 4);
    ctl.client.head = 0xfffffff0;
    vale_ring_sync(&r);
    CHECK(memory.ring.head < SLOTS && memory.ring.cur < SLOTS);
}

static void arms_with_a_new_number_each_time(void)
{
    uint32_t first;

    reset(2, 2);
    CHECK(vale_ring_arm(&r));
    first = ctl.client.need_call;
    CHECK(first != 0);
    vale_ring_disarm(&r);
    CHECK(ctl.client.need_call == 0);
    CHECK(vale_ring_arm(&r));
    CHECK(ctl.client.need_call != 0 && ctl.client.need_call != first);
    r.call_number = 0xffffffff;
    CHECK(vale_ring_arm(&r));
    CHECK(ctl.client.need_call != 0);
}

static void notices_what_came_before_arming(void)
{
    reset(2, 2);
    ctl.valed.hwtail = 3;
    CHECK(!vale_ring_arm(&r));
    CHECK(!vale_ring_ready(&r));
    vale_ring_sync(&r);
    CHECK(vale_ring_ready(&r));
}

int main(void)
{
    publishes_head_and_cur();
    publishes_cur_alone();
    kicks_only_for_news();
    refreshes_and_restores_tail();
    wraps();
    judges_every_pair();
    reinit_empties_bad_slots();
    survives_nonsense_in_the_control_block();
    arms_with_a_new_number_each_time();
    notices_what_came_before_arming();
    printf("%d failed\n", failed);
    return failed != 0;
}
