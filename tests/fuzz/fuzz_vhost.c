/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * vhost-user messages: any request with any payload and descriptors, in any order, with frames on their way meanwhile
 *
 * An input is a sequence of operations; START does what a good front end would, as a way into the depth.
 */
#include "front.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MESSAGE, STRUCTURED, RAW, START, STORE, SEND, HONEST_SEND, TRUNCATE, RECONNECT, TURN, OPERATIONS };

#define FDS_MAX 9

static struct front front;
static struct port *honest;

/* A descriptor that makes sense for some request, or does not. The caller closes it. */
static int some_fd(unsigned int kind)
{
    switch (kind % 16) {
    case 10:
    case 11: return fcntl(front.memory, F_DUPFD_CLOEXEC, 0);
    case 12: return fcntl(front.kick[1], F_DUPFD_CLOEXEC, 0);
    case 13: return fcntl(front.call[kind / 16 % 2], F_DUPFD_CLOEXEC, 0);
    case 14: return fcntl(front.sock, F_DUPFD_CLOEXEC, 0);
    default: return fuzz_some_fd(kind % 16);
    }
}

static void send_message(struct input *in, uint32_t request, const void *payload, uint32_t len)
{
    unsigned int how = (unsigned int)take(in, 1), n = how % 16 < FDS_MAX + 1 ? how % 16 : 1;
    int fds[FDS_MAX];

    for (unsigned int i = 0; i < n; i++)
        fds[i] = some_fd((unsigned int)take(in, 1));
    front_message(&front, request, how & 16 ? 8 : 0, payload, len, fds, n);
    while (n)
        close(fds[--n]);
}

/* A request whose payload is made of queue, number and addresses that mostly lie in the memory. */
static void structured(struct input *in)
{
    uint32_t request = (uint32_t)take(in, 1) % 40;
    unsigned int words = (unsigned int)take(in, 1) % 12;
    uint64_t payload[12] = {0};

    for (unsigned int i = 0; i < words; i++) {
        unsigned int kind = (unsigned int)take(in, 1);

        payload[i] = kind < 64    ? take(in, 1)
                     : kind < 96  ? take(in, 1) | take(in, 1) << 32
                     : kind < 128 ? FRONT_UVA + take(in, 2)
                     : kind < 160 ? FRONT_GPA + take(in, 2)
                     : kind < 192 ? 1ull << take(in, 1) % 64
                     : kind < 224 ? take(in, 2) << 12
                                  : take(in, 8);
    }
    send_message(in, request, payload, words * 8);
}

static void truncate_memory(struct input *in)
{
    uint32_t at = (uint32_t)take(in, 1) << 8;

    if (take(in, 1) & 1) {
        if (fallocate(front.memory, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, 4096) < 0)
            return;
    } else if (ftruncate(front.memory, at) < 0) {
        return;
    }
}

static void step(struct input *in)
{
    switch (take(in, 1) % OPERATIONS) {
    case MESSAGE: {
        uint32_t request = (uint32_t)take(in, 1);
        size_t n = (size_t)take(in, 2) % 600;
        const uint8_t *payload;
        uint8_t bytes[600] = {0};
        uint32_t len = (uint32_t)n;

        payload = take_bytes(in, &n);
        memcpy(bytes, payload, n);
        send_message(in, request, bytes, len);
        break;
    }
    case STRUCTURED: structured(in); break;
    case RAW: {
        size_t n = (size_t)take(in, 1);
        const uint8_t *bytes = take_bytes(in, &n);

        fuzz_send(front.sock, bytes, n, NULL, 0);
        fuzz_turn();
        break;
    }
    case START: {
        static const uint64_t bits[] = {VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_RING_F_EVENT_IDX, VHOST_F_LOG_ALL,
                                        VIRTIO_RING_F_INDIRECT_DESC};
        unsigned int chosen = (unsigned int)take(in, 1);
        uint64_t features = 0;

        for (int i = 0; i < 5; i++)
            features |= chosen & 1u << i ? bits[i] : 0;
        front_start(&front, features, (unsigned int)take(in, 1) % 8);
        break;
    }
    case STORE: {
        uint32_t at = (uint32_t)take(in, 2);
        size_t n = (size_t)take(in, 1);
        const uint8_t *bytes = take_bytes(in, &n);

        front_store(&front, at, bytes, at + n > FRONT_MEMORY ? FRONT_MEMORY - at : n);
        break;
    }
    case SEND: { /* offers a buffer in each direction */
        unsigned int index = (unsigned int)take(in, 1) % FRONT_QUEUE;
        struct virtq_desc d = {.addr = FRONT_GPA + FRONT_SIZE + index * 64, .len = 1526};

        front_descriptor(&front, 1, index, &d);
        d.flags = VIRTQ_DESC_WRITE;
        front_descriptor(&front, 0, index, &d);
        front_available(&front, 0, (uint16_t)index);
        front_available(&front, 1, (uint16_t)index);
        front_kick(&front, 1);
        break;
    }
    case HONEST_SEND:
        fuzz_native_drain(honest);
        fuzz_native_send(honest, (unsigned int)take(in, 1) % 40, 1514, 0);
        fuzz_work();
        break;
    case TRUNCATE: truncate_memory(in); break;
    case RECONNECT:
        front_close(&front);
        fuzz_turn();
        fuzz_turn();
        front_connect(&front);
        break;
    case TURN: fuzz_turn(); break;
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

    fuzz_begin();
    front_port("vale1:v");
    honest = fuzz_native("vale1:a", 0);
    front_connect(&front);
    while (in.left)
        step(&in);
    fuzz_turn();
    front_close(&front);
    fuzz_end();
    return 0;
}
