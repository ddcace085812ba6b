/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * vale-udp-recv: receive the datagrams of one vale-udp-send run, and account for each of them.
 *
 * Theory of operation
 *
 * The first datagram decides which run this is; datagrams of other runs are only counted.
 *
 * A bitmap over the last WINDOW sequence numbers up to the highest seen says which have arrived:
 *
 *      number above the highest    new; the bits of the numbers skipped are cleared
 *      within the window           bit clear: it arrived out of order; bit set: a duplicate
 *      below the window            too old to tell those two apart: counted as late
 *
 * so that with `late` at 0 the counts are exact:
 *
 *      received = distinct + duplicated        lost = sent - distinct
 *
 * where `sent` is what the end marker says. If no marker arrived, the numbers up to the highest
 * are taken for what was sent, and what was lost at the very end goes unseen.
 *
 * It ends when all that was sent has arrived, when nothing more came for a moment after an end
 * marker, when traffic stopped without one, when time is up, or by a signal; and reports always.
 */
#include <getopt.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "vale_udp.h"

#define PROGRAM     "vale-udp-recv"
#define WINDOW      (UINT64_C(1) << 23)
#define SLOT        9216                /* longest datagram that is read whole */
#define TICK_US     50000               /* how long a receive call waits before time is looked at */
#define AFTER_END   0.2                 /* seconds of silence after an end marker */

struct receiver {
    uint16_t port;
    double idle;
    double max_seconds;
    int rcvbuf;
    unsigned batch;
    bool json;

    int fd;
    struct mmsghdr messages[VALE_UDP_BATCH_MAX];
    struct iovec iov[VALE_UDP_BATCH_MAX];

    bool started;
    bool ended;
    uint32_t run;
    uint64_t next;                      /* one above the highest sequence number seen */
    uint64_t seen[WINDOW / 64];
    uint64_t first_sequence;
    uint64_t received, bytes, duplicated, reordered, late, foreign;
    uint64_t sent_by_peer;
    double begin, last;
    double cpu;
};

static volatile sig_atomic_t stopped;

static void on_signal(int signal)
{
    (void)signal;
    stopped = 1;
}

static uint64_t *word_of(struct receiver *r, uint64_t sequence)
{
    return &r->seen[sequence % WINDOW / 64];
}

static bool test_and_set(struct receiver *r, uint64_t sequence)
{
    uint64_t *word = word_of(r, sequence), bit = UINT64_C(1) << sequence % 64;
    bool was_set = *word & bit;

    *word |= bit;
    return was_set;
}

/* Move the window up to a new highest number; the numbers skipped have not arrived. */
static void advance(struct receiver *r, uint64_t sequence)
{
    if (sequence - r->next >= WINDOW) {
        memset(r->seen, 0, sizeof(r->seen));
    } else {
        for (uint64_t n = r->next; n <= sequence; n++) {
            if (n % 64 == 0 && sequence - n >= 64) {
                *word_of(r, n) = 0;
                n += 63;
            } else {
                *word_of(r, n) &= ~(UINT64_C(1) << n % 64);
            }
        }
    }
    r->next = sequence + 1;
}

static void account(struct receiver *r, uint64_t sequence, size_t length)
{
    r->received++;
    r->bytes += length;
    if (sequence >= r->next) {
        advance(r, sequence);
        test_and_set(r, sequence);
    } else if (r->next - sequence > WINDOW) {
        r->late++;
    } else if (test_and_set(r, sequence)) {
        r->duplicated++;
    } else {
        r->reordered++;
    }
}

static uint64_t distinct(const struct receiver *r)
{
    return r->received - r->duplicated - r->late;
}

static void start_run(struct receiver *r, const struct vale_udp_header *header, double now)
{
    r->started = true;
    r->run = header->run;
    r->first_sequence = header->sequence;
    r->begin = r->last = now;
    r->cpu = vale_udp_cpu();
}

static void take(struct receiver *r, const void *payload, size_t length, double now)
{
    struct vale_udp_header header;

    if (!vale_udp_get(payload, length, &header) || header.sequence == UINT64_MAX ||
        (r->started && header.run != r->run)) {
        r->foreign++;
        return;
    }
    if (!r->started) {
        start_run(r, &header, now);
    }
    if (header.flags & VALE_UDP_END) {
        r->ended = true;
        r->sent_by_peer = header.sequence;
        return;
    }
    account(r, header.sequence, length);
    r->last = now;
}

static void receive_batch(struct receiver *r)
{
    int count = recvmmsg(r->fd, r->messages, r->batch, MSG_WAITFORONE | MSG_TRUNC, NULL);
    double now = vale_udp_now();

    if (count < 0 && errno != EAGAIN && errno != EINTR) {
        perror(PROGRAM ": recvmmsg");
        exit(1);
    }
    for (int i = 0; i < count; i++) {
        take(r, r->iov[i].iov_base, r->messages[i].msg_len, now);
    }
}

/* Say why reception is over, or NULL while it is not. */
static const char *why_over(const struct receiver *r, double deadline)
{
    double now = vale_udp_now();

    if (r->ended && (distinct(r) == r->sent_by_peer || now - r->last > AFTER_END)) {
        return "end";
    }
    if (r->started && now - r->last > r->idle) {
        return "idle";
    }
    return stopped ? "signal" : now >= deadline ? "timeout" : NULL;
}

static void open_socket(struct receiver *r)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(r->port) };
    struct timeval tick = { .tv_usec = TICK_US };

    r->fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (r->fd < 0 || bind(r->fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        fprintf(stderr, PROGRAM ": cannot receive on UDP port %u: %s\n", r->port, strerror(errno));
        exit(1);
    }
    /* Only root may pass the limit net.core.rmem_max; others get as much as it allows. */
    if (setsockopt(r->fd, SOL_SOCKET, SO_RCVBUFFORCE, &r->rcvbuf, sizeof(r->rcvbuf)) < 0) {
        setsockopt(r->fd, SOL_SOCKET, SO_RCVBUF, &r->rcvbuf, sizeof(r->rcvbuf));
    }
    setsockopt(r->fd, SOL_SOCKET, SO_RCVTIMEO, &tick, sizeof(tick));
}

static void prepare_batch(struct receiver *r)
{
    uint8_t *buffer = calloc(r->batch, SLOT);

    if (!buffer) {
        perror(PROGRAM);
        exit(1);
    }
    for (unsigned i = 0; i < r->batch; i++) {
        r->iov[i].iov_base = buffer + (size_t)i * SLOT;
        r->iov[i].iov_len = SLOT;
        r->messages[i].msg_hdr.msg_iov = &r->iov[i];
        r->messages[i].msg_hdr.msg_iovlen = 1;
    }
}

/* Datagrams that the kernel dropped because this socket's buffer was full. */
static uint64_t rcvbuf_errors(const struct receiver *r)
{
    uint32_t info[SK_MEMINFO_VARS] = { 0 };
    socklen_t size = sizeof(info);

    getsockopt(r->fd, SOL_SOCKET, SO_MEMINFO, info, &size);
    return info[SK_MEMINFO_DROPS];
}

static int rcvbuf_size(const struct receiver *r)
{
    int bytes = 0;
    socklen_t size = sizeof(bytes);

    getsockopt(r->fd, SOL_SOCKET, SO_RCVBUF, &bytes, &size);
    return bytes;
}

static void report(const struct receiver *r, const char *why)
{
    struct vale_udp_report out = { .json = r->json };
    double seconds = r->last - r->begin, per = seconds > 0 ? 1 / seconds : 0;
    uint64_t sent = r->ended ? r->sent_by_peer : r->next;

    vale_udp_text(&out, "role", "rx");
    vale_udp_count(&out, "run", r->run);
    vale_udp_count(&out, "received", r->received);
    vale_udp_count(&out, "bytes", r->bytes);
    vale_udp_count(&out, "lost", sent > distinct(r) ? sent - distinct(r) : 0);
    vale_udp_count(&out, "reordered", r->reordered);
    vale_udp_count(&out, "duplicated", r->duplicated);
    vale_udp_count(&out, "late", r->late);
    vale_udp_count(&out, "foreign", r->foreign);
    vale_udp_count(&out, "first_seq", r->first_sequence);
    vale_udp_count(&out, "last_seq", r->next ? r->next - 1 : 0);
    vale_udp_real(&out, "seconds", seconds);
    vale_udp_real(&out, "pps", r->received * per);
    vale_udp_real(&out, "bps", r->bytes * 8 * per);
    vale_udp_real(&out, "cpu_seconds", r->started ? vale_udp_cpu() - r->cpu : 0);
    vale_udp_count(&out, "rcvbuf_errors", rcvbuf_errors(r));
    vale_udp_count(&out, "rcvbuf", rcvbuf_size(r));
    if (r->ended) {
        vale_udp_count(&out, "sent_by_peer", r->sent_by_peer);
    } else {
        vale_udp_null(&out, "sent_by_peer");
    }
    vale_udp_text(&out, "ended_by", why);
    vale_udp_finish(&out);
}

static void usage(FILE *out)
{
    fprintf(out, "usage: " PROGRAM " [--port PORT] [--idle-ms MS] [--max-seconds N] "
                 "[--rcvbuf BYTES]\n                     [--batch N] [--json]\n");
}

static double number(const char *option, double low, double high)
{
    return vale_udp_number(PROGRAM, option, optarg, low, high);
}

static void parse(struct receiver *r, int argc, char **argv)
{
    static const struct option options[] = {
        { "port", required_argument, NULL, 'p' },   { "idle-ms", required_argument, NULL, 'i' },
        { "rcvbuf", required_argument, NULL, 'r' }, { "max-seconds", required_argument, NULL, 'm' },
        { "batch", required_argument, NULL, 'b' },  { "json", no_argument, NULL, 'j' },
        { "help", no_argument, NULL, 'h' },         { 0 },
    };
    int option;

    while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        switch (option) {
        case 'p': r->port = number("port", 1, 65535); break;
        case 'i': r->idle = number("idle-ms", 1, 1e9) / 1000; break;
        case 'm': r->max_seconds = number("max-seconds", 0.001, 1e9); break;
        case 'r': r->rcvbuf = number("rcvbuf", 2048, 1 << 30); break;
        case 'b': r->batch = number("batch", 1, VALE_UDP_BATCH_MAX); break;
        case 'j': r->json = true; break;
        case 'h': usage(stdout); exit(0);
        default: usage(stderr); exit(2);
        }
    }
    if (optind < argc) {
        usage(stderr);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    static struct receiver receiver;
    struct sigaction action = { .sa_handler = on_signal };
    const char *why;
    double deadline;

    receiver.port = VALE_UDP_PORT;
    receiver.idle = 2;
    receiver.max_seconds = INFINITY;
    receiver.rcvbuf = 8 << 20;
    receiver.batch = VALE_UDP_BATCH;
    parse(&receiver, argc, argv);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGHUP, &action, NULL);
    open_socket(&receiver);
    prepare_batch(&receiver);
    puts("ready");
    fflush(stdout);
    deadline = vale_udp_now() + receiver.max_seconds;
    while (!(why = why_over(&receiver, deadline))) {
        receive_batch(&receiver);
    }
    report(&receiver, why);
    return 0;
}
