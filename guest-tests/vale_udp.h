/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What vale-udp-send and vale-udp-recv share: the datagram's header, clocks, options, the report.
 *
 * Every datagram starts with this header, in network byte order; the rest of it is padding.
 * The header fits the 18 bytes of UDP payload that a 64-byte Ethernet frame has room for.
 *
 *      0       2       4               8                               16
 *      +-------+-------+---------------+-------------------------------+
 *      | magic | flags |      run      |           sequence            |
 *      +-------+-------+---------------+-------------------------------+
 *
 * Data datagrams of a run are numbered 0, 1, 2, ...; an end marker carries how many were sent.
 * A run has a random number, so that a late datagram of an earlier run cannot be taken for one
 * of this run.
 */
#ifndef VALE_UDP_H
#define VALE_UDP_H

#include <endian.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#define VALE_UDP_MAGIC      0x5641      /* "VA" */
#define VALE_UDP_END        0x0001      /* end marker: sequence is the number of datagrams sent */
#define VALE_UDP_PORT       9000
#define VALE_UDP_BATCH      64
#define VALE_UDP_BATCH_MAX  1024        /* sendmmsg and recvmmsg take no more */

/* Ethernet header and FCS, IPv4 and UDP headers: what a frame has besides the UDP payload. */
#define VALE_UDP_OVERHEAD   46
#define VALE_UDP_FRAME_MIN  64
#define VALE_UDP_FRAME_MAX  9216

struct vale_udp_header {
    uint16_t magic;
    uint16_t flags;
    uint32_t run;
    uint64_t sequence;
} __attribute__((packed));
_Static_assert(sizeof(struct vale_udp_header) == 16, "a 64-byte frame carries 18 bytes");

static inline void vale_udp_put(void *payload, uint16_t flags, uint32_t run, uint64_t sequence)
{
    struct vale_udp_header header = {
        .magic = htobe16(VALE_UDP_MAGIC),
        .flags = htobe16(flags),
        .run = htobe32(run),
        .sequence = htobe64(sequence),
    };

    memcpy(payload, &header, sizeof(header));
}

/* Read a header in host byte order; false for a datagram that is none of ours. */
static inline bool vale_udp_get(const void *payload, size_t length, struct vale_udp_header *header)
{
    if (length < sizeof(*header)) {
        return false;
    }
    memcpy(header, payload, sizeof(*header));
    header->magic = be16toh(header->magic);
    header->flags = be16toh(header->flags);
    header->run = be32toh(header->run);
    header->sequence = be64toh(header->sequence);
    return header->magic == VALE_UDP_MAGIC;
}

static inline double vale_udp_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

/* CPU time of this process, user and system. */
static inline double vale_udp_cpu(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_utime.tv_usec / 1e6 +
           usage.ru_stime.tv_sec + usage.ru_stime.tv_usec / 1e6;
}

/* Read the value of an option, a number from low to high; anything else is a usage error. */
static inline double vale_udp_number(const char *program, const char *option, const char *text,
                                     double low, double high)
{
    char *end;
    double value = strtod(text, &end);

    if (end == text || *end || !(value >= low && value <= high)) {
        fprintf(stderr, "%s: --%s %s: give a number from %.15g to %.15g\n", program, option, text,
                low, high);
        exit(2);
    }
    return value;
}

/* A report is one JSON object on one line, or one "name value" line for each figure. */
struct vale_udp_report {
    bool json;
    bool started;
};

static inline void vale_udp_key(struct vale_udp_report *report, const char *name)
{
    if (report->json) {
        printf("%s\"%s\": ", report->started ? ", " : "{", name);
    } else {
        printf("%-14s ", name);
    }
    report->started = true;
}

static inline void vale_udp_text(struct vale_udp_report *report, const char *name, const char *text)
{
    vale_udp_key(report, name);
    printf(report->json ? "\"%s\"" : "%s\n", text);
}

static inline void vale_udp_count(struct vale_udp_report *report, const char *name, uint64_t count)
{
    vale_udp_key(report, name);
    printf(report->json ? "%llu" : "%llu\n", (unsigned long long)count);
}

static inline void vale_udp_real(struct vale_udp_report *report, const char *name, double real)
{
    vale_udp_key(report, name);
    printf(report->json ? "%.6f" : "%.6f\n", real);
}

static inline void vale_udp_null(struct vale_udp_report *report, const char *name)
{
    vale_udp_key(report, name);
    printf(report->json ? "null" : "unknown\n");
}

static inline void vale_udp_finish(struct vale_udp_report *report)
{
    printf(report->json ? "}\n" : "");
    fflush(stdout);
}

#endif
