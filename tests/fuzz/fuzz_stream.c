/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Stream ports: bytes of a peer that frames as it likes, reads as it likes, and comes back
 *
 * An input is a sequence of operations; FRAME writes a length that fits what follows.
 */
#include "fuzz.h"

#include "port_stream.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#define SOCKET "s.sock"

enum { BYTES, FRAME, HONEST_SEND, READ, RECONNECT, TURN, OPERATIONS };

static struct port *honest;
static int peer;

static void step(struct input *in)
{
    static uint8_t bytes[70000];
    uint32_t length;
    size_t n;

    switch (take(in, 1) % OPERATIONS) {
    case BYTES:
        n = (size_t)take(in, 1);
        fuzz_send(peer, take_bytes(in, &n), n, NULL, 0);
        break;
    case FRAME:
        n = (size_t)take(in, 2);
        length = htonl((uint32_t)n);
        memset(bytes, 0xff, n);
        fuzz_send(peer, &length, sizeof(length), NULL, 0);
        fuzz_send(peer, bytes, n, NULL, 0);
        break;
    case HONEST_SEND:
        n = (size_t)take(in, 1) % 40;
        fuzz_native_drain(honest);
        fuzz_native_send(honest, (unsigned int)n, 14 + (uint32_t)take(in, 2) % 9000, 0);
        break;
    case READ:
        n = (size_t)take(in, 2);
        while (n && recv(peer, bytes, n, MSG_DONTWAIT) > 0)
            n = 0;
        break;
    case RECONNECT:
        close(peer);
        fuzz_turn();
        fuzz_turn();
        peer = fuzz_connect(SOCKET, SOCK_STREAM);
        break;
    case TURN: break;
    }
    fuzz_turn();
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
    struct vale_name name;
    struct vale_error err;
    struct port *port;

    fuzz_begin();
    MUST(vale_name_parse("vale1:s", &name, &err) == 0);
    MUST(stream_port_create(&port, &name, SOCKET, false) == 0 && port_add(port) == 0);
    honest = fuzz_native("vale1:a", 0);
    peer = fuzz_connect(SOCKET, SOCK_STREAM);
    fuzz_turn();
    while (in.left)
        step(&in);
    close(peer);
    fuzz_end();
    return 0;
}
