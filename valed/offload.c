/* SPDX-License-Identifier: BSD-2-Clause */
/* Checksums and segmentation in software. */
#include "offload.h"

#include <string.h>

/* The virtio-net header (virtio 1.2, 5.1.6), little-endian like everything that valed runs on. */
#define NEEDS_CSUM 1

enum { GSO_NONE = 0, GSO_TCP4 = 1, GSO_TCP6 = 4, GSO_UDP = 5, GSO_ECN = 0x80 };

#define GSO_SIZE_MIN 8     /* smaller segments are an attack */
#define HEADERS_MAX  256   /* Ethernet to TCP, of a frame to be segmented */
#define BYTES_MAX    65536 /* new bytes of one batch */

#define ETHER_LEN  14
#define TYPE_IPV4  0x0800
#define TYPE_IPV6  0x86dd
#define IPV4_LEN   20
#define IPV6_LEN   40
#define PROTO_TCP  6
#define PROTO_UDP  17
#define TCP_LEN    20
#define UDP_LEN    8
#define TCP_CSUM   16
#define UDP_CSUM   6
#define TCP_FLAGS  13
#define TCP_FIN    0x01
#define TCP_PSH    0x08
#define TCP_CWR    0x80

static inline uint16_t get16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

static inline void put16(uint8_t *p, uint32_t value)
{
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

static inline uint32_t get32(const uint8_t *p)
{
    return (uint32_t)get16(p) << 16 | get16(p + 2);
}

static inline void put32(uint8_t *p, uint32_t value)
{
    put16(p, value >> 16);
    put16(p + 2, value);
}

/* ------------------------------------------------------------------------------------------------------- summing --- */

/*
 * The internet checksum (RFC 1071) of bytes that come in pieces of any length: words are added as they lie in memory, those
 * of a piece that begins at an odd byte are swapped.
 */
struct sum {
    uint64_t value;
    bool odd;
};

static inline uint16_t fold(uint64_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

static void sum_add(struct sum *s, const uint8_t *p, uint32_t len)
{
    uint64_t low = 0, high = 0, word;
    const uint8_t *end = p + len;
    uint16_t part;

    for (; end - p >= 8; p += 8) {
        memcpy(&word, p, 8);
        low += (uint32_t)word;
        high += word >> 32;
    }
    word = 0;
    memcpy(&word, p, (size_t)(end - p));
    part = fold((uint64_t)fold(low) + fold(high) + fold(word));
    s->value += s->odd ? __builtin_bswap16(part) : part;
    s->odd ^= len & 1;
}

/* Puts the checksum where it belongs. Never 0: in UDP that stands for none, elsewhere 0xffff means the same. */
static void sum_put(const struct sum *s, uint8_t *to)
{
    uint16_t check = (uint16_t)~fold(s->value);

    if (check == 0)
        check = 0xffff;
    memcpy(to, &check, 2);
}

/* ------------------------------------------------------------------------------------------------ reading a frame --- */

/* A position in a frame's segments. */
struct cursor {
    const struct segment *seg;
    uint32_t at;
};

static inline struct cursor frame_start(const struct batch *b, unsigned int i)
{
    return (struct cursor){.seg = &b->seg[b->frame[i].first]};
}

/* The next bytes, at most len, that lie together; moves on. */
static struct segment next_piece(struct cursor *c, uint32_t len)
{
    uint32_t left = c->seg->len - c->at;
    struct segment piece = {.data = c->seg->data + c->at, .len = len < left ? len : left};

    c->at += piece.len;
    if (c->at == c->seg->len)
        *c = (struct cursor){.seg = c->seg + 1};
    return piece;
}

/* Moves over the next len bytes. */
static void skip(struct cursor *c, uint32_t len)
{
    while (len)
        len -= next_piece(c, len).len;
}

/* Copies the next len bytes. */
static void take(struct cursor *c, uint8_t *to, uint32_t len)
{
    while (len) {
        struct segment piece = next_piece(c, len);

        memcpy(to, piece.data, piece.len);
        to += piece.len;
        len -= piece.len;
    }
}

/* --------------------------------------------------------------------------------------------- checking a header --- */

/* Where the headers of a frame to be segmented lie. */
struct layout {
    uint32_t l3;
    uint32_t l4;
    uint32_t end; /* of the headers */
    bool ipv6;
    bool udp;
};

static inline bool is_tag(uint16_t type)
{
    return type == 0x8100 || type == 0x88a8 || type == 0x9100;
}

static bool ip_fits(const uint8_t *h, uint16_t type, const struct layout *l)
{
    uint8_t proto = l->udp ? PROTO_UDP : PROTO_TCP;

    if (type == TYPE_IPV4)
        return l->l3 + IPV4_LEN <= l->l4 && h[l->l3] >> 4 == 4 && l->l3 + (h[l->l3] & 15) * 4u == l->l4 &&
               h[l->l3 + 9] == proto;
    /* Extension headers stay as they are. */
    return type == TYPE_IPV6 && l->l3 + IPV6_LEN <= l->l4 && h[l->l3] >> 4 == 6 &&
           (l->l3 + IPV6_LEN < l->l4 || h[l->l3 + 6] == proto);
}

/* Finds the headers among the first `have` bytes (no less than Ethernet's) of a frame; false if they are not what o says. */
static bool find_headers(const uint8_t *h, uint32_t have, const struct offload *o, struct layout *l)
{
    uint8_t gso = o->gso_type & ~GSO_ECN;
    uint16_t type = get16(h + 12);

    *l = (struct layout){.l3 = ETHER_LEN, .l4 = o->csum_start, .udp = gso == GSO_UDP};
    while (is_tag(type) && l->l3 + 4 <= have) {
        type = get16(h + l->l3 + 2);
        l->l3 += 4;
    }
    l->ipv6 = type == TYPE_IPV6;
    if (l->l4 + (l->udp ? UDP_LEN : TCP_LEN) > have || (l->ipv6 ? gso == GSO_TCP4 : gso == GSO_TCP6) ||
        !ip_fits(h, type, l))
        return false;
    l->end = l->l4 + (l->udp ? UDP_LEN : (h[l->l4 + 12] >> 4) * 4u);
    return l->end >= l->l4 + (l->udp ? UDP_LEN : TCP_LEN) && l->end <= have &&
           o->csum_offset == (l->udp ? UDP_CSUM : TCP_CSUM);
}

static uint8_t gso_needs(uint8_t gso_type)
{
    uint8_t ecn = gso_type & GSO_ECN ? OFFLOAD_ECN : 0;

    switch (gso_type & ~GSO_ECN) {
    case GSO_TCP4: return OFFLOAD_TSO4 | ecn;
    case GSO_TCP6: return OFFLOAD_TSO6 | ecn;
    case GSO_UDP: return ecn ? 0 : OFFLOAD_USO;
    default: return 0;
    }
}

/* Segmentation: the frame must have the headers that it is said to have, and something behind them. */
static bool check_gso(const struct batch *b, unsigned int i, struct offload *o)
{
    uint32_t len = b->frame[i].len, have = len < HEADERS_MAX ? len : HEADERS_MAX;
    struct cursor c = frame_start(b, i);
    uint8_t headers[HEADERS_MAX];
    struct layout l;

    take(&c, headers, have);
    if (o->gso_size < GSO_SIZE_MIN || !find_headers(headers, have, o, &l) || l.end >= len)
        return false;
    o->hdr_len = (uint16_t)l.end; /* the guest's is a hint, and may be anything */
    return true;
}

bool offload_read(struct batch *b, unsigned int i, const uint8_t *header)
{
    struct frame *f = &b->frame[i];
    struct offload o;
    uint8_t needs = OFFLOAD_CSUM;

    memcpy(&o, header, sizeof(o));
    o.flags &= NEEDS_CSUM;
    /* Segmentation implies checksums; and nobody lets the switch write into addresses. */
    if (!o.flags || o.csum_start < ETHER_LEN || (uint32_t)o.csum_start + o.csum_offset + 2 > f->len)
        return false;
    if (o.gso_type == GSO_NONE) {
        o.hdr_len = o.gso_size = 0;
    } else {
        needs |= gso_needs(o.gso_type);
        if (needs == OFFLOAD_CSUM || !check_gso(b, i, &o))
            return false;
    }
    b->offload[i] = o;
    b->needs |= f->needs = needs;
    return true;
}

void offload_write(const struct batch *b, unsigned int i, uint8_t *header)
{
    memset(header, 0, NET_HEADER_MAX);
    if (b->frame[i].needs)
        memcpy(header, &b->offload[i], sizeof(struct offload));
}

void offload_fill_checksum(uint8_t *frame, uint16_t len, const struct offload *o)
{
    struct sum sum = {0};

    sum_add(&sum, frame + o->csum_start, (uint32_t)len - o->csum_start);
    sum_put(&sum, frame + o->csum_start + o->csum_offset);
}

/* ---------------------------------------------------------------------------------------------------- completing --- */

/* Where a frame on its way out comes from. */
struct origin {
    uint16_t at;     /* place in the order */
    uint16_t number; /* of the segment */
    bool is_segment, is_last;
};

/* Frames for one destination on their way out. */
struct job {
    struct port *port;
    unsigned int queue;
    const struct batch *in;
    const uint16_t *order;
    struct batch *out;
    uint8_t *bytes;      /* what is new in out */
    uint32_t bytes_used;
    uint8_t accepts;     /* of the port, for as long as the job takes */
    struct origin *origin; /* of the frames in out */
    unsigned int at;       /* the frame that is being worked on: its place in the order */
    bool waits;            /* stop where room lacks, instead of dropping */
    bool blocked;          /* it did: */
    struct origin blocked_at;
    uint64_t segmented, segments, segment_bytes, spoiled;
};

static _Thread_local struct batch out_scratch;
static _Thread_local struct origin origin_scratch[BATCH_MAX];
static _Thread_local uint8_t bytes_scratch[BYTES_MAX];
static _Thread_local uint64_t undelivered_scratch[BATCH_MAX / 64];

/* The segments from `delivered` on, and those that the port has noted, make their frames undelivered ones. */
static void note_undelivered(struct job *j, unsigned int delivered)
{
    for (unsigned int i = 0; j->in->undelivered && i < j->out->frames; i++)
        if (i >= delivered || undelivered_scratch[i / 64] & 1ull << i % 64)
            batch_undelivered(j->in, j->order[j->origin[i].at]);
}

/* Hands over what is there. Segments are counted when they are done with: delivered or dropped. */
static void flush(struct job *j)
{
    struct batch *out = j->out;
    unsigned int done = 0;

    if (j->in->undelivered)
        memset(out->undelivered = undelivered_scratch, 0, sizeof(undelivered_scratch));
    if (out->frames && !j->blocked)
        done = j->port->ops->egress(j->port, j->queue, out, out->order, out->frames);
    note_undelivered(j, j->waits ? out->frames : done);
    out->undelivered = NULL;
    if (done < out->frames && !j->waits) {
        count(&j->port->counters.tx_dropped[DROP_RING_FULL], out->frames - done);
        done = out->frames;
    } else if (done < out->frames && !j->blocked) {
        j->blocked = true;
        j->blocked_at = j->origin[done];
    }
    for (unsigned int i = 0; i < done; i++) {
        j->segments += j->origin[i].is_segment;
        j->segment_bytes += j->origin[i].is_segment ? out->frame[i].len : 0;
        j->segmented += j->origin[i].is_last;
    }
    out->frames = out->segs = out->needs = 0;
    j->bytes_used = 0;
}

/* The next frame of out, empty so far, with room for its segments and for `bytes` new bytes. */
static struct frame *begin(struct job *j, uint32_t bytes)
{
    struct batch *out = j->out;
    struct frame *f;

    if (out->frames == BATCH_MAX || out->segs + FRAME_SEGS_MAX > BATCH_SEGS_MAX || j->bytes_used + bytes > BYTES_MAX)
        flush(j);
    f = &out->frame[out->frames];
    *f = (struct frame){.first = out->segs};
    return f;
}

static void end(struct job *j, struct origin origin)
{
    struct batch *out = j->out;

    out->needs |= out->frame[out->frames].needs;
    out->order[out->frames] = (uint16_t)out->frames;
    j->origin[out->frames] = origin;
    out->frames++;
}

/* Adds a view to the frame, or widens its last one. */
static void add(struct job *j, struct frame *f, struct segment piece)
{
    struct batch *out = j->out;
    struct segment *last = f->segs ? &out->seg[out->segs - 1] : NULL;

    if (last && last->data + last->len == piece.data) {
        last->len += piece.len;
    } else if (piece.len) {
        out->seg[out->segs++] = piece;
        f->segs++;
    }
    f->len = (uint16_t)(f->len + piece.len);
}

/* Adds the next len bytes of the source, and sums them where a sum is given. */
static void add_view(struct job *j, struct frame *f, struct cursor *c, uint32_t len, struct sum *sum)
{
    while (len) {
        struct segment piece = next_piece(c, len);

        if (sum)
            sum_add(sum, piece.data, piece.len);
        add(j, f, piece);
        len -= piece.len;
    }
}

/* Adds new bytes, to be filled in. */
static uint8_t *add_new(struct job *j, struct frame *f, uint32_t len)
{
    uint8_t *bytes = j->bytes + j->bytes_used;

    add(j, f, (struct segment){.data = bytes, .len = len});
    j->bytes_used += len;
    return bytes;
}

static void pass(struct job *j, unsigned int i)
{
    struct cursor c = frame_start(j->in, i);
    struct frame *f = begin(j, 0);

    add_view(j, f, &c, j->in->frame[i].len, NULL);
    f->needs = j->in->frame[i].needs;
    if (f->needs)
        j->out->offload[j->out->frames] = j->in->offload[i];
    end(j, (struct origin){.at = (uint16_t)j->at});
}

static void fill_checksum(struct job *j, unsigned int i)
{
    const struct offload *o = &j->in->offload[i];
    struct cursor c = frame_start(j->in, i);
    struct frame *f = begin(j, 2);
    struct sum sum = {0};
    uint8_t *check;

    add_view(j, f, &c, o->csum_start, NULL);
    add_view(j, f, &c, o->csum_offset, &sum);
    check = add_new(j, f, 2);
    take(&c, check, 2);
    sum_add(&sum, check, 2);
    add_view(j, f, &c, j->in->frame[i].len - f->len, &sum);
    sum_put(&sum, check);
    end(j, (struct origin){.at = (uint16_t)j->at});
}

/* A frame that is being cut. */
struct cut {
    const struct offload *o;
    struct layout l;
    uint8_t headers[HEADERS_MAX];
    uint32_t payload, done; /* bytes in all, and in segments before the one at hand */
    uint32_t number;        /* of the one at hand */
};

/* Turns the headers of the whole into those of a segment with `part` bytes of payload. Its checksum is still partial. */
static void segment_headers(const struct cut *cut, uint8_t *h, uint32_t part)
{
    const struct layout *l = &cut->l;
    uint32_t whole = l->end + cut->payload, mine = l->end + part;
    uint8_t *ip = h + l->l3, *tcp = h + l->l4, *check = tcp + cut->o->csum_offset;
    struct sum sum = {0};

    memcpy(h, cut->headers, l->end);
    if (l->ipv6) {
        put16(ip + 4, mine - l->l3 - IPV6_LEN);
    } else {
        put16(ip + 2, mine - l->l3);
        put16(ip + 4, get16(ip + 4) + cut->number);
        put16(ip + 10, 0);
        sum_add(&sum, ip, l->l4 - l->l3);
        sum_put(&sum, ip + 10);
    }
    /* The checksum field holds the sum of the pseudo-header, in which only the length changes. */
    put16(check, fold(get16(check) + (0xffff - (whole - l->l4)) + (mine - l->l4)));
    if (l->udp) {
        put16(tcp + 4, mine - l->l4);
        return;
    }
    put32(tcp + 4, get32(tcp + 4) + cut->done);
    if (cut->done)
        tcp[TCP_FLAGS] &= (uint8_t)~TCP_CWR;
    if (cut->done + part < cut->payload)
        tcp[TCP_FLAGS] &= (uint8_t) ~(TCP_FIN | TCP_PSH);
}

static void emit_segment(struct job *j, const struct cut *cut, struct cursor *c, uint32_t part)
{
    const struct layout *l = &cut->l;
    bool partial = j->accepts & OFFLOAD_CSUM;
    struct frame *f = begin(j, l->end);
    uint8_t *h = add_new(j, f, l->end);
    struct sum sum = {0};

    segment_headers(cut, h, part);
    sum_add(&sum, h + l->l4, l->end - l->l4);
    add_view(j, f, c, part, partial ? NULL : &sum);
    if (partial) {
        f->needs = OFFLOAD_CSUM;
        j->out->offload[j->out->frames] = (struct offload){
            .flags = NEEDS_CSUM, .csum_start = (uint16_t)l->l4, .csum_offset = cut->o->csum_offset};
    } else {
        sum_put(&sum, h + l->l4 + cut->o->csum_offset);
    }
    end(j, (struct origin){.at = (uint16_t)j->at,
                           .number = (uint16_t)cut->number,
                           .is_segment = true,
                           .is_last = cut->done + part == cut->payload});
}

/* Cuts frame i, without its first `passed` segments. */
static void segment(struct job *j, unsigned int i, unsigned int passed)
{
    struct cursor c = frame_start(j->in, i);
    struct cut cut = {.o = &j->in->offload[i]};

    take(&c, cut.headers, cut.o->hdr_len);
    /* The sender may have changed them since they were checked: then it has spoiled its frame. */
    if (!find_headers(cut.headers, cut.o->hdr_len, cut.o, &cut.l) || cut.l.end != cut.o->hdr_len) {
        flush(j);
        j->spoiled += !j->blocked;
        batch_undelivered(j->in, i);
        return;
    }
    cut.payload = j->in->frame[i].len - cut.l.end;
    while (cut.done < cut.payload && !j->blocked) {
        uint32_t left = cut.payload - cut.done, part = left < cut.o->gso_size ? left : cut.o->gso_size;

        if (cut.number < passed)
            skip(&c, part);
        else
            emit_segment(j, &cut, &c, part);
        cut.done += part;
        cut.number++;
    }
    j->segmented += passed && cut.number <= passed; /* it has shrunk since */
}

unsigned int offload_egress(struct port *port, unsigned int queue, const struct batch *b, const uint16_t *order,
                            unsigned int n, uint16_t *passed)
{
    struct port_counters *c = &port->counters;
    struct job j = {.port = port,
                    .queue = queue,
                    .in = b,
                    .order = order,
                    .out = &out_scratch,
                    .origin = origin_scratch,
                    .bytes = bytes_scratch,
                    .waits = passed != NULL};

    j.accepts = atomic_load_explicit(&port->accepts, memory_order_relaxed);
    j.out->frames = j.out->segs = j.out->needs = 0;
    j.out->dead = b->dead;
    for (j.at = 0; j.at < n && !j.blocked; j.at++) {
        unsigned int i = order[j.at];
        uint8_t lacks = b->frame[i].needs & ~j.accepts;

        if (!lacks)
            pass(&j, i);
        else if (lacks == OFFLOAD_CSUM)
            fill_checksum(&j, i);
        else
            segment(&j, i, j.at == 0 && passed ? *passed : 0);
    }
    flush(&j);
    if (passed)
        *passed = j.blocked ? j.blocked_at.number : 0;
    count(&c->tx_dropped[DROP_BAD_HEADER], j.spoiled);
    count(&c->tx_segmented, j.segmented);
    count(&c->tx_segments, j.segments);
    count(&c->tx_segment_bytes, j.segment_bytes);
    return j.blocked ? j.blocked_at.at : n;
}
