/* SPDX-License-Identifier: BSD-2-Clause */
/* test_frame - lengths, checksums and numbers of vale-pktgen's frames, at every length */
#include "frame.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

static struct frame frame;
static uint8_t copy[FRAME_MAX];
static int failed;

#define CHECK(cond)                                                                                                    \
    do {                                                                                                               \
        if (!(cond)) {                                                                                                 \
            fprintf(stderr, "%s:%d: %s, length %u\n", __func__, __LINE__, #cond, frame.len);                           \
            failed++;                                                                                                  \
        }                                                                                                              \
    } while (0)

/* One's complement sum of everything, as a receiver takes it: 0xffff if the checksum among it is right. */
static uint32_t receiver_sum(uint32_t sum, const uint8_t *p, uint32_t len)
{
    uint32_t i;

    for (i = 0; i < len; i++) {
        sum += i % 2 ? p[i] : (uint32_t)p[i] << 8;
    }
    while (sum >> 16) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return sum;
}

static uint32_t word(const uint8_t *p)
{
    return (uint32_t)p[0] << 8 | p[1];
}

static void check_checksums(const uint8_t *bytes, uint32_t len)
{
    CHECK(word(bytes + 12) == 0x0800 && bytes[14] == 0x45 && bytes[23] == 17);
    CHECK(word(bytes + 16) == len - 14 && word(bytes + 38) == len - 34);
    CHECK(receiver_sum(0, bytes + 14, 20) == 0xffff);
    CHECK(word(bytes + 40) != 0);
    CHECK(receiver_sum(17 + len - 34 + receiver_sum(0, bytes + 26, 8), bytes + 34, len - 34) == 0xffff);
}

static void check_length(struct frame_spec *spec, uint32_t len)
{
    static const uint64_t numbers[] = {0, 1, 0xffff, 0x123456789abcdef0, UINT64_MAX};
    uint64_t got = 1;
    size_t i;

    spec->len = len;
    frame_build(&frame, spec);
    CHECK(frame.len == len);
    check_checksums(frame.bytes, len);
    CHECK(frame_get_sequence(frame.bytes, len, &got) == (len >= FRAME_SEQ_MIN));
    for (i = 0; i < sizeof(numbers) / sizeof(numbers[0]) && len >= FRAME_SEQ_MIN; i++) {
        memcpy(copy, frame.bytes, len);
        frame_set_sequence(&frame, copy, numbers[i]);
        check_checksums(copy, len);
        CHECK(frame_get_sequence(copy, len, &got) && got == numbers[i]);
        if (len >= FRAME_TIME_MIN) {
            frame_set_time(&frame, copy, numbers[i], ~numbers[i]);
            check_checksums(copy, len);
            CHECK(frame_get_sequence(copy, len, &got) && got == numbers[i]);
            CHECK(frame_get_time(copy, len, &got) && got == ~numbers[i]);
        }
        CHECK(frame_get_time(copy, len, &got) == (len >= FRAME_TIME_MIN));
    }
}

static void check_macs(void)
{
    static const char *const bad[] = {"", "02:00:00:00:00", "02:00:00:00:00:01:", "02:00:00:00:00:01 ", "0g:00:00:00:00:01",
                                      "02-00-00-00-00-01"};
    uint8_t mac[6];
    size_t i;

    CHECK(frame_parse_mac("02:aB:00:00:00:01", mac) && mac[0] == 2 && mac[1] == 0xab && mac[5] == 1);
    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        CHECK(!frame_parse_mac(bad[i], mac));
    }
}

int main(void)
{
    struct frame_spec spec = {.src_mac = {2, 0, 0, 0, 0, 1}, .dst_mac = {2, 0, 0, 0, 0, 2}};
    uint32_t len;

    spec.src_ip.s_addr = htonl(0xc6120001);
    spec.dst_ip.s_addr = htonl(0xc6120002);
    for (len = FRAME_MIN; len <= 2200; len++) {
        check_length(&spec, len);
    }
    check_length(&spec, 9014);
    check_length(&spec, FRAME_MAX);
    check_macs();
    printf("%d failed\n", failed);
    return failed != 0;
}
