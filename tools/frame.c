/* SPDX-License-Identifier: BSD-2-Clause */
/* The test frames of vale-pktgen. */
#include "frame.h"

#include <arpa/inet.h>
#include <endian.h>
#include <net/ethernet.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <stdio.h>
#include <string.h>

#define IP_OFS      14
#define UDP_OFS     34
#define PAYLOAD_OFS 42
#define SEQ_OFS     46
#define TIME_OFS    54
#define UDP_SUM_OFS (UDP_OFS + 6)

#define SOURCE_PORT      1234
#define DESTINATION_PORT 4321

static const char magic[4] = "VPKG";

/* Adds 16-bit words in network order, not folded. */
static uint32_t sum_bytes(uint32_t sum, const uint8_t *p, uint32_t len)
{
    for (; len >= 2; p += 2, len -= 2) {
        sum += (uint32_t)p[0] << 8 | p[1];
    }
    return len ? sum + ((uint32_t)p[0] << 8) : sum;
}

static uint16_t checksum(uint32_t sum)
{
    while (sum >> 16) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return (uint16_t)~sum;
}

/* A UDP checksum of 0 would mean "none". */
static void put_udp_sum(uint8_t *bytes, uint32_t sum)
{
    uint16_t value = checksum(sum);

    value = htons(value != 0 ? value : 0xffff);
    memcpy(bytes + UDP_SUM_OFS, &value, sizeof(value));
}

static void build_ip(uint8_t *bytes, const struct frame_spec *spec)
{
    struct iphdr ip = {
        .version = 4,
        .ihl = 5,
        .tot_len = htons((uint16_t)(spec->len - IP_OFS)),
        .frag_off = htons(IP_DF),
        .ttl = 64,
        .protocol = IPPROTO_UDP,
        .saddr = spec->src_ip.s_addr,
        .daddr = spec->dst_ip.s_addr,
    };

    memcpy(bytes + IP_OFS, &ip, sizeof(ip));
    ip.check = htons(checksum(sum_bytes(0, bytes + IP_OFS, sizeof(ip))));
    memcpy(bytes + IP_OFS, &ip, sizeof(ip));
}

/* Fills in header and payload; returns the sum for the checksum, pseudo header included. */
static uint32_t build_udp(uint8_t *bytes, const struct frame_spec *spec)
{
    uint32_t length = spec->len - UDP_OFS, i;
    struct udphdr udp = {
        .source = htons(SOURCE_PORT), .dest = htons(DESTINATION_PORT), .len = htons((uint16_t)length)};

    memcpy(bytes + UDP_OFS, &udp, sizeof(udp));
    for (i = PAYLOAD_OFS; i < spec->len; i++) {
        bytes[i] = (uint8_t)(i - PAYLOAD_OFS);
    }
    if (spec->len >= FRAME_SEQ_MIN) {
        memcpy(bytes + PAYLOAD_OFS, magic, sizeof(magic));
        memset(bytes + SEQ_OFS, 0, sizeof(uint64_t));
    }
    return sum_bytes(IPPROTO_UDP + length, bytes + IP_OFS + 12, 8) + sum_bytes(0, bytes + UDP_OFS, length);
}

void frame_build(struct frame *frame, const struct frame_spec *spec)
{
    uint16_t type = htons(ETHERTYPE_IP);

    frame->len = spec->len;
    memcpy(frame->bytes, spec->dst_mac, 6);
    memcpy(frame->bytes + 6, spec->src_mac, 6);
    memcpy(frame->bytes + 12, &type, sizeof(type));
    build_ip(frame->bytes, spec);
    frame->udp_sum = build_udp(frame->bytes, spec);
    put_udp_sum(frame->bytes, frame->udp_sum);
}

void frame_set_sequence(const struct frame *frame, uint8_t *copy, uint64_t sequence)
{
    uint64_t wire = htobe64(sequence);

    memcpy(copy + SEQ_OFS, &wire, sizeof(wire));
    put_udp_sum(copy, sum_bytes(frame->udp_sum, copy + SEQ_OFS, sizeof(wire)));
}

void frame_set_time(const struct frame *frame, uint8_t *copy, uint64_t sequence, uint64_t ns)
{
    uint64_t wire[2] = {htobe64(sequence), htobe64(ns)};
    uint32_t rest = frame->udp_sum - sum_bytes(0, frame->bytes + TIME_OFS, sizeof(ns));

    memcpy(copy + SEQ_OFS, wire, sizeof(wire));
    put_udp_sum(copy, sum_bytes(rest, copy + SEQ_OFS, sizeof(wire)));
}

bool frame_get_time(const uint8_t *bytes, uint32_t len, uint64_t *ns)
{
    uint64_t wire;

    if (len < FRAME_TIME_MIN) {
        return false;
    }
    memcpy(&wire, bytes + TIME_OFS, sizeof(wire));
    *ns = be64toh(wire);
    return true;
}

bool frame_get_sequence(const uint8_t *bytes, uint32_t len, uint64_t *sequence)
{
    uint64_t wire;

    if (len < FRAME_SEQ_MIN || memcmp(bytes + PAYLOAD_OFS, magic, sizeof(magic)) != 0) {
        return false;
    }
    memcpy(&wire, bytes + SEQ_OFS, sizeof(wire));
    *sequence = be64toh(wire);
    return true;
}

bool frame_parse_mac(const char *text, uint8_t mac[6])
{
    unsigned int b[6];
    int i, end = 0;

    if (strspn(text, "0123456789abcdefABCDEF:") != strlen(text) ||
        sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%n", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5], &end) != 6 ||
        text[end] != '\0') {
        return false;
    }
    for (i = 0; i < 6; i++) {
        mac[i] = (uint8_t)b[i];
    }
    return true;
}
