/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_offload - what comes out of offload_egress() is what a receiver accepts, and adds up to what went in
 *
 * Frames are cut into segments of memory of their exact length, so that the sanitizer sees every byte read beyond one.
 * Receivers sum byte by byte, with the pseudo-header made from the addresses.
 */
#include "offload.h"

#include "check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROUNDS 3000

/* ------------------------------------------------------------------------------------------------------- helpers --- */

static uint64_t seed = 88172645463325252ull;

static uint32_t random_below(uint32_t n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)(seed >> 16) % n;
}

static uint32_t be16(const uint8_t *p)
{
    return (uint32_t)p[0] << 8 | p[1];
}

static uint32_t be32(const uint8_t *p)
{
    return be16(p) << 16 | be16(p + 2);
}

static void set16(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

/* One's complement sum as a receiver takes it. */
static uint32_t reference_sum(uint32_t sum, const uint8_t *p, uint32_t len)
{
    for (uint32_t i = 0; i < len; i++)
        sum += i % 2 ? p[i] : (uint32_t)p[i] << 8;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

/* ------------------------------------------------------------------------------------------------ a frame to send --- */

struct spec {
    bool v6, udp, gso, cwr, fin;
    uint32_t tags, ip_options, l4_options, payload, mss;
};

static uint8_t sent[70000];
static uint32_t sent_len, l3, l4, payload_at;

static uint32_t pseudo_sum(const uint8_t *frame, uint32_t l4_len, const struct spec *s)
{
    uint32_t sum = (s->udp ? 17 : 6) + l4_len;

    return s->v6 ? reference_sum(sum, frame + l3 + 8, 32) : reference_sum(sum, frame + l3 + 12, 8);
}

static void make_frame(const struct spec *s)
{
    uint8_t *p = sent;
    uint32_t header;

    l3 = 14 + 4 * s->tags;
    l4 = l3 + (s->v6 ? 40 : 20) + s->ip_options;
    header = s->udp ? 8 : 20 + s->l4_options;
    payload_at = l4 + header;
    sent_len = payload_at + s->payload;
    for (uint32_t i = 0; i < sent_len; i++)
        sent[i] = (uint8_t)random_below(256);
    for (uint32_t i = 0; i < s->tags; i++)
        set16(p + 12 + 4 * i, i ? 0x8100 : 0x88a8);
    set16(p + l3 - 2, s->v6 ? 0x86dd : 0x0800);
    p[l3] = (uint8_t)(s->v6 ? 0x60 : 0x45 + s->ip_options / 4);
    if (s->v6) {
        p[l3 + 6] = s->ip_options ? 60 : s->udp ? 17 : 6;
        set16(p + l3 + 4, sent_len - l3 - 40);
    } else {
        p[l3 + 9] = s->udp ? 17 : 6;
        set16(p + l3 + 2, sent_len - l3);
        set16(p + l3 + 10, 0);
        set16(p + l3 + 10, ~reference_sum(0, p + l3, l4 - l3));
    }
    if (s->udp) {
        set16(p + l4 + 4, sent_len - l4);
    } else {
        p[l4 + 12] = (uint8_t)(header / 4 << 4);
        p[l4 + 13] = (uint8_t)(0x18 | (s->cwr ? 0x80 : 0) | (s->fin ? 1 : 0));
    }
    set16(p + l4 + (s->udp ? 6 : 16), pseudo_sum(p, sent_len - l4, s));
}

static void make_header(const struct spec *s, uint8_t *h)
{
    struct offload o = {.flags = 1,
                        .hdr_len = (uint16_t)random_below(65536),
                        .csum_start = (uint16_t)l4,
                        .csum_offset = s->udp ? 6 : 16};

    if (s->gso) {
        o.gso_type = (uint8_t)(s->udp ? 5 : (s->v6 ? 4 : 1) | (s->cwr ? 0x80 : 0));
        o.gso_size = (uint16_t)s->mss;
    }
    memcpy(h, &o, 10);
}

/* ------------------------------------------------------------------------------------------------------- batches --- */

static struct batch in;

static void clear_batch(void)
{
    for (unsigned int i = 0; i < in.segs; i++)
        free((void *)(uintptr_t)in.seg[i].data);
    in.frames = in.segs = in.needs = 0;
}

/* Appends a frame in up to `parts` pieces of memory. */
static void add_frame(const uint8_t *bytes, uint32_t len, unsigned int parts)
{
    struct frame *f = &in.frame[in.frames++];

    *f = (struct frame){.first = in.segs, .len = (uint16_t)len};
    for (uint32_t at = 0; at < len; f->segs++) {
        uint32_t left = len - at, part = f->segs + 1u >= parts ? left : 1 + random_below(random_below(2) ? left : 16);
        uint8_t *copy;

        part = part > left ? left : part;
        copy = malloc(part);
        memcpy(copy, bytes + at, part);
        in.seg[in.segs++] = (struct segment){copy, part};
        at += part;
    }
}

/* ------------------------------------------------------------------------------------------------- a port that notes --- */

static uint8_t got[16 << 20];
static uint32_t got_at[1 << 18], got_len[1 << 18], got_count, got_bytes;
static struct offload got_offload[1 << 18];
static uint8_t got_needs[1 << 18];

static unsigned int note_egress(struct port *port, unsigned int queue, const struct batch *b, const uint16_t *order,
                                unsigned int n)
{
    CHECK(queue == 3);
    for (unsigned int k = 0; k < n; k++) {
        const struct frame *f = &b->frame[order[k]];
        uint32_t len = 0;

        CHECK(f->segs <= FRAME_SEGS_MAX && f->segs > 0);
        CHECK(!(f->needs & ~port->accepts));
        got_at[got_count] = got_bytes;
        got_len[got_count] = f->len;
        got_needs[got_count] = f->needs;
        got_offload[got_count++] = b->offload[order[k]];
        for (unsigned int i = 0; i < f->segs; i++) {
            memcpy(got + got_bytes + len, b->seg[f->first + i].data, b->seg[f->first + i].len);
            len += b->seg[f->first + i].len;
        }
        CHECK(len == f->len);
        got_bytes += len;
    }
    count(&port->counters.tx_frames, n);
    return n;
}

static const struct port_ops note_ops = {.kind = "test", .egress = note_egress};
static struct port port = {.ops = &note_ops};

/* Sends the batch to a port with these abilities, and lets the port's books be checked. */
static void deliver(uint8_t accepts)
{
    struct port_counters *c = &port.counters;

    memset(&port.counters, 0, sizeof(port.counters));
    got_count = got_bytes = 0;
    port.accepts = accepts;
    for (unsigned int i = 0; i < in.frames; i++)
        in.order[i] = (uint16_t)i;
    CHECK(offload_egress(&port, 3, &in, in.order, in.frames, NULL) == in.frames);
    CHECK(in.frames - c->tx_segmented + c->tx_segments == c->tx_frames + c->tx_dropped[DROP_BAD_HEADER]);
}

/* --------------------------------------------------------------------------------------------------------- tests --- */

static struct spec random_spec(void)
{
    struct spec s = {.v6 = random_below(2), .udp = random_below(4) == 0, .gso = random_below(2)};

    s.tags = random_below(3);
    s.ip_options = random_below(3) ? 0 : 8 * (1 + random_below(5));
    s.l4_options = s.udp ? 0 : 4 * random_below(11);
    s.mss = random_below(8) ? 8 + random_below(3000) : 8 + random_below(9);
    s.payload = 1 + random_below(s.mss < 20 ? 400 : random_below(2) ? 4000 : 65000);
    s.cwr = s.gso && !s.udp && random_below(4) == 0;
    s.fin = random_below(4) == 0;
    if (!s.gso && random_below(4) == 0)
        s.payload = 0;
    return s;
}

/* The L4 checksum: right, or with `partial` the pseudo-header's sum. */
static void check_l4(const uint8_t *p, uint32_t len, const struct spec *s, bool partial)
{
    uint32_t pseudo = pseudo_sum(p, len - l4, s), field = be16(p + l4 + (s->udp ? 6 : 16));

    if (partial) {
        CHECK(field % 0xffff == pseudo % 0xffff);
        return;
    }
    CHECK(field != 0);
    CHECK(reference_sum(pseudo, p + l4, len - l4) == 0xffff);
}

static void check_segment(const uint8_t *p, uint32_t len, const struct spec *s, uint32_t number, uint32_t last, bool partial)
{
    uint32_t part = len - payload_at, flags = 0x10;

    CHECK(part == (number < last ? s->mss : s->payload - last * s->mss));
    CHECK(memcmp(p, sent, l3) == 0);
    CHECK(memcmp(p + payload_at, sent + payload_at + number * s->mss, part) == 0);
    if (s->v6) {
        CHECK(be16(p + l3 + 4) == len - l3 - 40 && memcmp(p + l3 + 6, sent + l3 + 6, l4 - l3 - 6) == 0);
    } else {
        CHECK(be16(p + l3 + 2) == len - l3 && be16(p + l3 + 4) == ((be16(sent + l3 + 4) + number) & 0xffff));
        CHECK(reference_sum(0, p + l3, l4 - l3) == 0xffff && memcmp(p + l3 + 12, sent + l3 + 12, l4 - l3 - 12) == 0);
    }
    check_l4(p, len, s, partial);
    CHECK(memcmp(p + l4, sent + l4, 4) == 0);
    if (s->udp) {
        CHECK(be16(p + l4 + 4) == len - l4);
        return;
    }
    CHECK(be32(p + l4 + 4) == be32(sent + l4 + 4) + number * s->mss);
    flags |= s->cwr && number == 0 ? 0x80 : 0;
    flags |= number == last ? 0x08 | s->fin : 0;
    CHECK(p[l4 + 13] == flags && p[l4 + 12] == sent[l4 + 12]);
    CHECK(memcmp(p + l4 + 20, sent + l4 + 20, payload_at - l4 - 20) == 0);
}

static void check_delivered(const struct spec *s, uint8_t accepts)
{
    uint32_t last = s->gso ? (s->payload - 1) / s->mss : 0;
    bool partial = accepts & OFFLOAD_CSUM;

    CHECK(got_count == last + 1);
    for (uint32_t i = 0; i < got_count; i++) {
        const uint8_t *p = got + got_at[i];

        CHECK(got_needs[i] == (partial ? OFFLOAD_CSUM : 0));
        if (partial)
            CHECK(got_offload[i].flags == 1 && got_offload[i].gso_type == 0 && got_offload[i].csum_start == l4 &&
                  got_offload[i].csum_offset == (s->udp ? 6 : 16));
        if (s->gso) {
            check_segment(p, got_len[i], s, i, last, partial);
        } else {
            check_l4(p, got_len[i], s, partial);
            CHECK(got_len[i] == sent_len);
        }
    }
}

static void test_completion(void)
{
    for (int round = 0; round < ROUNDS; round++) {
        struct spec s = random_spec();
        uint8_t header[12] = {0};

        if (s.payload + 14 + 8 + 40 + 40 + 60 > FRAME_LEN_MAX)
            continue;
        make_frame(&s);
        make_header(&s, header);
        add_frame(sent, sent_len, 1 + random_below(INGRESS_SEGS_MAX));
        CHECK(offload_wanted(header) && offload_read(&in, 0, header));
        CHECK(in.needs == in.frame[0].needs && (in.needs & OFFLOAD_CSUM));
        deliver(0);
        check_delivered(&s, 0);
        deliver(OFFLOAD_CSUM);
        check_delivered(&s, OFFLOAD_CSUM);
        deliver(OFFLOAD_ALL);
        CHECK(got_count == 1 && got_len[0] == sent_len && memcmp(got, sent, sent_len) == 0);
        CHECK(got_needs[0] == in.needs && memcmp(&got_offload[0], &in.offload[0], 10) == 0);
        clear_batch();
    }
}

/* Frames with and without needs keep their order, and those without are not touched. */
static void test_order(void)
{
    struct spec s = {.gso = true, .payload = 5000, .mss = 1000};
    uint8_t header[12] = {0};

    make_frame(&s);
    make_header(&s, header);
    for (unsigned int i = 0; i < 100; i++) {
        uint8_t plain[60] = {(uint8_t)i};

        add_frame(plain, sizeof(plain), 2);
        add_frame(sent, sent_len, 5);
        CHECK(offload_read(&in, in.frames - 1, header));
    }
    deliver(0);
    CHECK(got_count == 600 && port.counters.tx_segmented == 100 && port.counters.tx_segments == 500);
    CHECK(port.counters.tx_segment_bytes == 100 * (5000 + 5 * 54));
    for (unsigned int i = 0; i < got_count; i++) {
        if (i % 6 == 0)
            CHECK(got_len[i] == 60 && got[got_at[i]] == i / 6 && got_needs[i] == 0);
        else
            check_segment(got + got_at[i], got_len[i], &s, i % 6 - 1, 4, false);
    }
    clear_batch();
}

/* More than fits into the scratch: many frames of many small segments. */
static void test_much(void)
{
    struct spec s = {.v6 = true, .gso = true, .payload = 60000, .mss = 8};
    uint8_t header[12] = {0};

    make_frame(&s);
    make_header(&s, header);
    for (unsigned int i = 0; i < 20; i++) {
        add_frame(sent, sent_len, 20);
        CHECK(offload_read(&in, i, header) && offload_weight(&in, i) >= 7500);
    }
    deliver(0);
    CHECK(got_count == 20 * 7500);
    for (unsigned int i = 0; i < got_count; i++)
        check_segment(got + got_at[i], got_len[i], &s, i % 7500, 7499, false);
    clear_batch();
}

static bool reads(const struct spec *s, void (*spoil)(struct offload *o), uint32_t len)
{
    struct offload o;
    bool good;

    make_frame(s);
    make_header(s, (uint8_t *)&o);
    if (spoil)
        spoil(&o);
    add_frame(sent, len ? len : sent_len, 3);
    good = offload_read(&in, 0, (uint8_t *)&o);
    clear_batch();
    return good;
}

static void no_csum(struct offload *o) { o->flags = 0; }
static void data_valid(struct offload *o) { o->flags = 2; }
static void start_beyond(struct offload *o) { o->csum_start = (uint16_t)sent_len; }
static void start_far(struct offload *o) { o->csum_start = 65535; }
static void offset_far(struct offload *o) { o->csum_offset = 65535; }
static void field_across_end(struct offload *o) { o->csum_offset = (uint16_t)(sent_len - o->csum_start - 1); }
static void field_at_end(struct offload *o) { o->csum_offset = (uint16_t)(sent_len - o->csum_start - 2); }
static void in_addresses(struct offload *o) { o->csum_start = 13; }
static void size_zero(struct offload *o) { o->gso_size = 0; }
static void size_tiny(struct offload *o) { o->gso_size = 7; }
static void type_udp_fragments(struct offload *o) { o->gso_type = 3; }
static void type_ecn_alone(struct offload *o) { o->gso_type = 0x80; }
static void type_udp_ecn(struct offload *o) { o->gso_type = 0x85; }
static void type_tcp6(struct offload *o) { o->gso_type = 4; }
static void wrong_offset(struct offload *o) { o->csum_offset = 6; }
static void wrong_start(struct offload *o) { o->csum_start++; }

static void test_hostile_headers(void)
{
    static const struct spec csum = {.payload = 100}, tso = {.gso = true, .payload = 100, .mss = 50},
                             uso = {.gso = true, .udp = true, .payload = 100, .mss = 50};

    CHECK(reads(&csum, NULL, 0) && reads(&tso, NULL, 0) && reads(&uso, NULL, 0));
    CHECK(reads(&csum, field_at_end, 0) && !reads(&csum, field_across_end, 0));
    CHECK(!reads(&csum, start_beyond, 0) && !reads(&csum, start_far, 0) && !reads(&csum, offset_far, 0));
    CHECK(!reads(&csum, in_addresses, 0) && !reads(&csum, type_udp_fragments, 0) && !reads(&csum, type_ecn_alone, 0));
    CHECK(!reads(&tso, no_csum, 0) && !reads(&tso, data_valid, 0));
    CHECK(!reads(&tso, size_zero, 0) && !reads(&tso, size_tiny, 0) && !reads(&tso, type_tcp6, 0));
    CHECK(!reads(&tso, wrong_offset, 0) && !reads(&tso, wrong_start, 0) && !reads(&uso, type_udp_ecn, 0));
    /* Cut short: within the headers, at their end, and with one byte of payload. */
    for (uint32_t len = FRAME_LEN_MIN; len <= 14 + 20 + 20; len++)
        CHECK(!reads(&tso, NULL, len));
    CHECK(reads(&tso, NULL, 14 + 20 + 20 + 1));
    CHECK(!reads(&uso, NULL, 14 + 20 + 8) && reads(&uso, NULL, 14 + 20 + 8 + 1));
}

/* Anything in the header and in the frame: refused, or something comes out that adds up. */
static void test_random(void)
{
    for (int round = 0; round < 20 * ROUNDS; round++) {
        struct spec s = random_spec();
        uint8_t header[12];

        s.payload %= 3000;
        make_frame(&s);
        make_header(&s, header);
        for (uint32_t n = random_below(4); n > 0; n--)
            header[random_below(10)] = (uint8_t)random_below(256);
        for (uint32_t n = random_below(4); n > 0; n--)
            sent[random_below(payload_at)] = (uint8_t)random_below(256);
        add_frame(sent, FRAME_LEN_MIN + random_below(sent_len - FRAME_LEN_MIN + 1), 1 + random_below(INGRESS_SEGS_MAX));
        if (offload_wanted(header) && !offload_read(&in, 0, header)) {
            clear_batch();
            continue;
        }
        /* The guest changes its mind after the check. */
        for (uint32_t n = random_below(2) ? 0 : random_below(20); n > 0; n--) {
            struct segment *seg = &in.seg[random_below(in.segs)];

            ((uint8_t *)(uintptr_t)seg->data)[random_below(seg->len)] = (uint8_t)random_below(256);
        }
        deliver((uint8_t)(random_below(2) ? OFFLOAD_CSUM | random_below(32) : 0));
        if (port.counters.tx_segmented == 0 && port.counters.tx_dropped[DROP_BAD_HEADER] == 0)
            CHECK(got_count == 1 && got_len[0] == in.frame[0].len);
        clear_batch();
    }
}

int main(void)
{
    test_completion();
    test_order();
    test_much();
    test_hostile_headers();
    test_random();
    printf("%d failed\n", failed);
    return failed != 0;
}
