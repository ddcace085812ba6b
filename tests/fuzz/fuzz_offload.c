/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Offload headers: frames in segments of their exact length, their bytes changed between the check and the use, toward a
 * port that accepts any set of offloads.
 *
 *     1 byte  what the port accepts       10  the virtio-net header
 *     1       how many bytes change       1   the longest segment
 *     1       how often the frame is repeated, and the receiver's room if it is waited for
 */
#include "fuzz.h"

#include "offload.h"

static struct batch batch;
static const uint8_t *piece[INGRESS_SEGS_MAX + 1]; /* where segments begin, and their lengths */
static uint32_t piece_len[INGRESS_SEGS_MAX + 1];
static unsigned int pieces;
static uint64_t frames_out, bytes_out;
static unsigned int room; /* of the receiver */

/* The receiver: every frame is what it says, and every byte of it is there. */
static unsigned int sink(struct port *port, unsigned int queue, const struct batch *b, const uint16_t *order, unsigned int n)
{
    static uint8_t copy[FRAME_LEN_MAX];
    uint8_t header[NET_HEADER_MAX];

    (void)queue;
    n = n < room ? n : room;
    room -= n;
    for (unsigned int k = 0; k < n; k++) {
        const struct frame *f = &b->frame[order[k]];
        uint32_t len = 0;

        MUST(f->segs && f->segs <= FRAME_SEGS_MAX && f->first + f->segs <= BATCH_SEGS_MAX);
        for (unsigned int i = 0; i < f->segs; i++) {
            const struct segment *s = &b->seg[f->first + i];

            MUST(s->len && len + s->len <= f->len);
            memcpy(copy + len, s->data, s->len);
            len += s->len;
        }
        MUST(len == f->len && !(f->needs & ~port->accepts));
        offload_write(b, order[k], header);
        frames_out++;
        bytes_out += len;
    }
    count(&port->counters.tx_frames, n);
    return n;
}

static const struct port_ops sink_ops = {.kind = "sink", .egress = sink};

/* The frame in pieces, each an allocation of its own. False: too many, or too long. */
static bool make_frame(struct input *in, uint32_t longest)
{
    struct frame *f = &batch.frame[0];
    uint32_t len = 0;

    pieces = 0;
    while (in->left && pieces < INGRESS_SEGS_MAX && len < FRAME_LEN_MAX) {
        size_t n = longest ? longest : FRAME_LEN_MAX;
        const uint8_t *bytes = take_bytes(in, &n);
        uint8_t *p = malloc(n);

        memcpy(p, bytes, n);
        piece[pieces] = p;
        piece_len[pieces] = (uint32_t)n;
        batch.seg[pieces++] = (struct segment){.data = p, .len = (uint32_t)n};
        len += (uint32_t)n;
    }
    *f = (struct frame){.first = 0, .segs = (uint8_t)pieces, .len = (uint16_t)len};
    batch.frames = 1;
    batch.segs = pieces;
    batch.needs = 0;
    return len >= FRAME_LEN_MIN && len <= FRAME_LEN_MAX;
}

/* The sender goes on writing into its frame. */
static void change(uint8_t times, uint8_t seed)
{
    for (uint32_t i = 0, at = seed; i < times && pieces; i++, at = at * 31 + 7) {
        unsigned int p = at / 3 % pieces;

        ((uint8_t *)(uintptr_t)piece[p])[at % piece_len[p]] ^= (uint8_t)(1u << at % 8);
    }
}

/* Toward a port that drops, or one that has room for a few frames at a time and is waited for. */
static void forward(uint8_t accepts, unsigned int times, unsigned int few)
{
    struct port port = {.ops = &sink_ops, .accepts = accepts};
    uint16_t order[8] = {0}, passed = 0;
    const struct port_counters *c = &port.counters;

    frames_out = bytes_out = 0;
    room = few ? few : UINT32_MAX;
    for (unsigned int done = 0; done < times; room = few)
        done += offload_egress(&port, 0, &batch, order, times - done, few ? &passed : NULL);
    MUST(frames_out + c->tx_dropped[DROP_BAD_HEADER] == times - c->tx_segmented + c->tx_segments);
    if (c->tx_segmented == 0 && c->tx_dropped[DROP_BAD_HEADER] == 0)
        MUST(bytes_out == (uint64_t)times * batch.frame[0].len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    uint8_t accepts = (uint8_t)take(&in, 1) & OFFLOAD_ALL, changes = (uint8_t)take(&in, 1);
    uint32_t longest = (uint32_t)take(&in, 1);
    unsigned int form = (unsigned int)take(&in, 1);
    uint8_t header[NET_HEADER_MAX] = {0};

    for (int i = 0; i < 10; i++)
        header[i] = (uint8_t)take(&in, 1);
    if (make_frame(&in, longest) && offload_wanted(header) && offload_read(&batch, 0, header)) {
        MUST(offload_weight(&batch, 0) <= FRAME_LEN_MAX / 8 + 1);
        change(changes & 15, header[9]);
        forward(accepts & OFFLOAD_CSUM ? accepts : 0, 1 + form % 8, form / 8);
    }
    while (pieces)
        free((void *)(uintptr_t)piece[--pieces]);
    return 0;
}
