/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Native ports: a client that stores anything in its region, next to two that do not
 *
 * An input is the length of the header and whether the switch waits for room, and then operations, below. What the switch
 * may not look at (the reserved buffers, the rest of the last page) is poisoned.
 */
#include "fuzz.h"

#include "port_ring.h"
#include "vswitch.h"
#include "worker.h"

#include <sanitizer/asan_interface.h>

#define SLOTS 64

enum { STORE_CONTROL, STORE_SLOT, STORE_BYTES, PUBLISH, KICK, HONEST_SEND, HONEST_READ, TURN, HEADER, WAIT, OPERATIONS };

static const unsigned int headers[] = {0, 10, 12};

static struct port *liar, *one, *two;

static void poison(const struct region *r)
{
    uint8_t *end = r->bufs + (size_t)r->buf_count * r->buf_size;

    __asan_poison_memory_region(r->bufs, 2 * (size_t)r->buf_size);
    __asan_poison_memory_region(end, (size_t)(r->base + r->size - end));
    __asan_poison_memory_region(r->base, VALE_RING_CTL_OFS);
    for (unsigned int i = 0; i < 2; i++)
        __asan_poison_memory_region(region_ring(r, i), sizeof(struct netmap_ring));
}

static void store_bytes(struct input *in, const struct region *r)
{
    uint32_t index = 2 + (uint32_t)take(in, 1) % (r->buf_count - 2), at = (uint32_t)take(in, 2) % r->buf_size;
    size_t n = (size_t)take(in, 1);
    const uint8_t *bytes = take_bytes(in, &n);

    if (n > r->buf_size - at)
        n = r->buf_size - at;
    memcpy(r->bufs + (size_t)index * r->buf_size + at, bytes, n);
}

static void store_slot(struct input *in, const struct region *r)
{
    struct netmap_slot *slot = &region_ring(r, (unsigned int)take(in, 1) % 2)->slot[take(in, 1) % SLOTS];

    slot->buf_idx = (uint32_t)take(in, 1);
    if (slot->buf_idx == 0xff) /* else mostly a real one */
        slot->buf_idx = (uint32_t)take(in, 4);
    slot->len = (uint16_t)take(in, 2);
    slot->flags = (uint16_t)take(in, 1);
}

static void step(struct input *in)
{
    const struct region *r = ring_port_region(liar);
    struct vale_ring_ctl *ctl = region_ctl(r, 0);

    switch (take(in, 1) % OPERATIONS) {
    case STORE_CONTROL: /* any word of both rings' control, also what is the switch's to write */
        ((uint32_t *)ctl)[take(in, 1) % (2 * sizeof(*ctl) / 4)] = (uint32_t)take(in, 4);
        break;
    case STORE_SLOT: store_slot(in, r); break;
    case STORE_BYTES: store_bytes(in, r); break;
    case PUBLISH: ctl->client.head = (ctl->client.head + (uint32_t)take(in, 1)) % SLOTS; break;
    case KICK: worker_poke_ring(liar->ring[0]); break;
    case HONEST_SEND: {
        unsigned int frames = (unsigned int)take(in, 1) % 40;

        fuzz_native_send(one, frames, 14 + (uint32_t)take(in, 2) % 9000, 0);
        break;
    }
    case HONEST_READ:
        fuzz_native_drain(one);
        fuzz_native_drain(two);
        region_ctl(r, 1)->client.head = region_ctl(r, 1)->valed.hwtail;
        break;
    case TURN: fuzz_turn(); break;
    case WAIT: fuzz_pass_time(WAIT_MS * 1000 / 2); break;
    case HEADER: {
        uint32_t byte = (uint32_t)take(in, 1);

        ring_port_set_header(liar, headers[byte % 3], byte & 128 ? VALE_ACCEPT_GIVEN | byte >> 2 : 0);
        break;
    }
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    fuzz_start();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    unsigned int form = (unsigned int)take(&in, 1);

    fuzz_begin();
    liar = fuzz_native("vale1:liar", headers[form % 3]);
    liar->sw->wait_limit = form & 64 ? WAIT_MS * 1000 : 0;
    liar->sw->p2p = form & 128;
    one = fuzz_native("vale1:one", 0);
    two = form & 128 ? one : fuzz_native("vale1:two", 12);
    poison(ring_port_region(liar));
    while (in.left)
        step(&in);
    worker_poke_ring(liar->ring[0]);
    fuzz_end();
    return 0;
}
