/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * window - every frame sent into one VALE port must come out of another: in order, whole, once
 *
 *     netmap-window FROM TO FRAME_LENGTH COUNT [DEVICE]
 *
 * Theory of operation: one process owns both ports and never lets more frames be under way than half
 * a ring holds, so nothing overflows and a lost frame is a fault, on however slow a machine. What is
 * between the ports, a switch or several with bridges between them, does not matter. Each frame
 * carries its number and bytes made from it, and is compared byte by byte.
 *
 * Prints one JSON object; exit 0 all came, 1 a frame was lost, damaged or out of order, 2 usage.
 */
#include <libvale.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define HEADER_LEN 14
#define MAX_LEN    9000
#define STALL_SECONDS 20
#define QUIET_MS      100

struct run {
    struct vale_port *from, *to;
    uint32_t len;
    uint64_t count, sent, received;
};

static double now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static void __attribute__((noreturn)) fault(const struct run *r, const char *what)
{
    fprintf(stderr, "netmap-window: %s: sent %" PRIu64 ", received %" PRIu64 "\n", what, r->sent,
            r->received);
    exit(1);
}

static struct vale_port *open_or_exit(const char *name, const char *device)
{
    struct vale_open_args args = {.name = name, .device = device};
    struct vale_error err;
    struct vale_port *port = vale_open(&args, &err);

    if (port == NULL) {
        fprintf(stderr, "netmap-window: %s\n", err.text);
        exit(1);
    }
    return port;
}

/* Frame `number`: broadcast, a local experimental type, the number, bytes that depend on it. */
static void make_frame(uint8_t *frame, uint32_t len, uint64_t number)
{
    static const uint8_t header[HEADER_LEN] = {255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1,
                                               0x88, 0xb5};

    memcpy(frame, header, sizeof(header));
    for (uint32_t i = HEADER_LEN; i < len; i++)
        frame[i] = (uint8_t)(number * 13 + i);
    memcpy(frame + HEADER_LEN, &number, sizeof(number));
}

static uint32_t slots_of(const struct run *r)
{
    uint32_t size = vale_txring(r->from, 0)->nr_buf_size;

    return (r->len + size - 1) / size;
}

/* Fills what the window allows, and sends it. */
static void send_frames(struct run *r)
{
    struct netmap_ring *ring = vale_txring(r->from, 0);
    uint32_t slots = slots_of(r), window = ring->num_slots / 2 / slots;
    static uint8_t frame[MAX_LEN];

    while (r->sent < r->count && r->sent - r->received < window && nm_ring_space(ring) >= slots) {
        make_frame(frame, r->len, r->sent++);
        for (uint32_t done = 0; done < r->len;) {
            struct netmap_slot *slot = &ring->slot[ring->head];
            uint32_t left = r->len - done;

            slot->len = (uint16_t)(left < ring->nr_buf_size ? left : ring->nr_buf_size);
            memcpy(NETMAP_BUF(ring, slot->buf_idx), frame + done, slot->len);
            done += slot->len;
            slot->flags = done < r->len ? NS_MOREFRAG : 0;
            ring->head = ring->cur = nm_ring_next(ring, ring->head);
        }
    }
    if (vale_txsync(r->from) < 0)
        fault(r, "the switch is gone");
}

/* Takes the frame that lies in the ring and compares it with the one that is due. */
static void check_frame(struct run *r, struct netmap_ring *ring)
{
    static uint8_t want[MAX_LEN], got[MAX_LEN];
    bool more = true;
    uint32_t len = 0;

    while (more) {
        struct netmap_slot *slot = &ring->slot[ring->head];

        if (nm_ring_empty(ring) || len + slot->len > r->len)
            fault(r, "a frame is incomplete or too long");
        memcpy(got + len, NETMAP_BUF(ring, slot->buf_idx), slot->len);
        len += slot->len;
        more = slot->flags & NS_MOREFRAG;
        ring->head = ring->cur = nm_ring_next(ring, ring->head);
    }
    make_frame(want, r->len, r->received);
    if (len != r->len || memcmp(want, got, len) != 0)
        fault(r, "a frame is not the one that is due");
    r->received++;
}

static void receive_frames(struct run *r, int timeout_ms)
{
    struct netmap_ring *ring = vale_rxring(r->to, 0);

    vale_wait(r->to, VALE_RX, timeout_ms);
    while (!nm_ring_empty(ring))
        check_frame(r, ring);
    if (vale_rxsync(r->to) < 0)
        fault(r, "the switch is gone");
}

static void run_window(struct run *r)
{
    double progress = now();

    while (r->received < r->count) {
        uint64_t before = r->received;

        send_frames(r);
        receive_frames(r, QUIET_MS);
        if (r->received != before)
            progress = now();
        else if (now() - progress > STALL_SECONDS)
            fault(r, "frames are lost");
    }
}

int main(int argc, char **argv)
{
    struct run r = {0};
    double began, seconds;

    if (argc >= 5) {
        r.len = (uint32_t)strtoul(argv[3], NULL, 10);
        r.count = strtoull(argv[4], NULL, 10);
    }
    if (argc > 6 || r.len < HEADER_LEN + sizeof(uint64_t) || r.len > MAX_LEN) {
        fprintf(stderr, "usage: netmap-window FROM TO FRAME_LENGTH COUNT [DEVICE]\n");
        return 2;
    }
    r.to = open_or_exit(argv[2], argc == 6 ? argv[5] : NULL);
    r.from = open_or_exit(argv[1], argc == 6 ? argv[5] : NULL);
    began = now();
    run_window(&r);
    seconds = now() - began;
    receive_frames(&r, QUIET_MS);
    if (r.received != r.count)
        fault(&r, "frames came twice");
    printf("{\"packets\": %" PRIu64 ", \"bytes\": %" PRIu64 ", \"seconds\": %.6f, \"pps\": %.1f, "
           "\"bps\": %.1f, \"provider\": \"%s\"}\n",
           r.received, r.received * r.len, seconds, (double)r.received / seconds,
           (double)(r.received * r.len) * 8 / seconds, vale_provider_name(r.from->provider));
    vale_close(r.from);
    vale_close(r.to);
    return 0;
}
