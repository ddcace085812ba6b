/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Descriptor chains: a front end that has started as it should, and then stores anything into its rings
 *
 * An input is features, the size of the queues and whether the switch waits for room, and operations.
 */
#include "front.h"
#include "vswitch.h"

#include <sanitizer/asan_interface.h>

enum { DESCRIPTOR, AVAILABLE, INDEX, STORE, KICK, HONEST_SEND, HONEST_READ, GOOD_BUFFER, GOOD_FRAME, WAIT, OPERATIONS };

static struct front front;
static struct port *honest;

/* What lies in a mapping before its region is memory of the front end that it has not handed over. */
static void poison(const struct guest_mem *mem)
{
    MUST(mem && mem->count == 2);
    __asan_poison_memory_region(mem->base[1] - FRONT_SECOND, FRONT_SECOND);
}

static uint64_t guest_address(struct input *in)
{
    unsigned int kind = (unsigned int)take(in, 1);

    return kind < 224 ? FRONT_GPA + take(in, 2) : take(in, 8);
}

static void store_descriptor(struct input *in)
{
    unsigned int where = (unsigned int)take(in, 1);
    struct virtq_desc d = {.addr = guest_address(in)};

    d.flags = (uint16_t)take(in, 1);
    d.len = (uint32_t)take(in, d.flags & 0x80 ? 4 : 2);
    d.flags &= 0x7f;
    d.next = (uint16_t)take(in, 1);
    front_descriptor(&front, where & 1, where / 2, &d);
}

/* A buffer of the length given, in the second region, where the others are too. */
static void good_buffer(struct input *in)
{
    static const uint16_t lengths[] = {64, 1526, 2048, 4096};
    unsigned int index = (unsigned int)take(in, 1) % FRONT_QUEUE;
    struct virtq_desc d = {
        .addr = FRONT_GPA + FRONT_SIZE + index * 64, .len = lengths[take(in, 1) % 4], .flags = VIRTQ_DESC_WRITE};

    front_descriptor(&front, 0, index, &d);
    front_available(&front, 0, (uint16_t)index);
}

/* A broadcast frame behind a header that the input gives. */
static void good_frame(struct input *in)
{
    unsigned int index = (unsigned int)take(in, 1) % FRONT_QUEUE;
    struct virtq_desc d = {.addr = FRONT_GPA + FRONT_SIZE + index * 64, .len = 12 + 60 + (uint32_t)take(in, 2) % 0x2000};
    uint8_t bytes[80] = {0};
    size_t n = 10 + 60;

    memset(bytes + 12, 0xff, 6);
    if (take(in, 1) & 1)
        memcpy(bytes, take_bytes(in, &n), n);
    front_store(&front, FRONT_SECOND + index * 64, bytes, sizeof(bytes));
    front_descriptor(&front, 1, index, &d);
    front_available(&front, 1, (uint16_t)index);
}

static void step(struct input *in)
{
    switch (take(in, 1) % OPERATIONS) {
    case DESCRIPTOR: store_descriptor(in); break;
    case AVAILABLE: {
        unsigned int head = (unsigned int)take(in, 1);

        front_available(&front, head & 1, head == 0xff ? (uint16_t)take(in, 2) : (uint16_t)(head / 2));
        break;
    }
    case INDEX: {
        unsigned int q = (unsigned int)take(in, 1) & 1;

        front.avail[q] = (uint16_t)take(in, 2);
        front_available(&front, q, 0);
        break;
    }
    case STORE: {
        uint32_t at = (uint32_t)take(in, 2) % FRONT_MEMORY;
        size_t n = (size_t)take(in, 1);
        const uint8_t *bytes = take_bytes(in, &n);

        front_store(&front, at, bytes, at + n > FRONT_MEMORY ? FRONT_MEMORY - at : n);
        break;
    }
    case KICK: front_kick(&front, 1); break;
    case HONEST_SEND: {
        unsigned int frames = (unsigned int)take(in, 1) % 40;

        fuzz_native_send(honest, frames, 14 + (uint32_t)take(in, 2) % 9000, 0);
        fuzz_turn();
        break;
    }
    case HONEST_READ: fuzz_native_drain(honest); break;
    case GOOD_BUFFER: good_buffer(in); break;
    case WAIT: fuzz_pass_time(WAIT_MS * 1000 / 2); break;
    case GOOD_FRAME: good_frame(in); break;
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
    static const uint64_t bits[] = {VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_RING_F_EVENT_IDX, VHOST_F_LOG_ALL,
                                    1 << 0, 1 << 1, 1 << 7 | 1 << 11, 1 << 8 | 1 << 12}; /* the last: checksums, TSO */
    struct input in = {data, size};
    uint64_t features = VIRTIO_RING_F_INDIRECT_DESC;
    uint8_t chosen = (uint8_t)take(&in, 1), form = (uint8_t)take(&in, 1);
    struct port *port;

    fuzz_begin();
    for (int i = 0; i < 8; i++)
        features |= chosen & 1 << i ? bits[i] : 0;
    port = front_port("vale1:v");
    honest = fuzz_native("vale1:a", chosen & 16 ? 12 : 0);
    port->sw->wait_limit = form & 64 ? WAIT_MS * 1000 : 0;
    front_connect(&front);
    front_start(&front, features, form % 8);
    poison(to_vhost_port(port)->mem);
    while (in.left)
        step(&in);
    front_kick(&front, 1);
    front_close(&front);
    fuzz_end();
    return 0;
}
