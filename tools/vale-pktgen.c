/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * vale-pktgen - send or count test frames on a VALE port
 *
 * A frame that fits a buffer is written to every TX buffer once; after that only slots are filled, as pkt-gen does, so that
 * the switch is measured and not the generator. With --seq each frame is numbered (its one cache line written and read),
 * and the receiver finds losses. With --latency each also says when it was sent, and the receiver how long they took. Longer frames take several slots, and are copied each time.
 *
 * A sender whose ring is full and a receiver whose ring is empty sleep. After a large batch, though, more is likely to be
 * on its way, and a wake-up would cost more than the batch: then they look again for a while first (--busy-poll), yielding
 * the CPU between looks. Slow traffic never polls.
 */
#include "frame.h"
#include "histogram.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <libvale.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#define VERSION "0.1.0"

enum { EXIT_USAGE = 2, EXIT_NO_PROVIDER = 4 };

/* Sleeps are cut into pieces of this length, so that limits in seconds and signals are honoured. */
#define WAIT_MS 100
#define DRAIN_MS 5000

/* A yield that took so long shows that the CPU is wanted by others; for how long it is not tried again. */
#define CROWDED_S 1e-3
#define AVOID_S   10e-3

/* A batch of so many frames makes it worth while to poll for the next. */
#define LARGE_BATCH 64

enum role { ROLE_NONE, ROLE_TX, ROLE_RX };

struct options {
    const char *name;
    const char *device;
    enum role role;
    struct frame_spec spec;
    uint64_t count; /* 0: no limit */
    uint32_t batch;
    double rate;    /* frames per second, 0: no limit */
    double seconds; /* 0: no limit */
    double idle;    /* RX: end so long after the last frame, 0: do not */
    double poll;    /* seconds of polling before sleep */
    uint16_t rings;
    uint32_t slots; /* of a ring, 0: the default */
    bool has_src_mac;
    bool seq;
    bool latency;
    bool json;
};

struct result {
    uint64_t packets;
    uint64_t bytes;
    double first, last; /* RX: of a frame; TX: begin and end */
    uint64_t next;      /* sequence number expected */
    uint64_t lost, late, unnumbered;
    struct histogram latency; /* nanoseconds */
};

static volatile sig_atomic_t stopped;

static void on_signal(int sig)
{
    (void)sig;
    stopped = 1;
}

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static double now(void)
{
    return (double)now_ns() * 1e-9;
}

/* ------------------------------------------------------------------------------------------------------ options --- */

static const char help[] =
    "Usage: vale-pktgen -i PORT -f tx|rx [options]\n"
    "Send or count test frames on a VALE port.\n"
    "\n"
    "  -i, --interface PORT  port to open, such as vale1:a; rx: or to watch, vale1:a/rt\n"
    "  -f, --function ROLE   tx: send; rx: receive\n"
    "  -l, --length LEN      frame length without FCS, 42 to 65535 (default 60)\n"
    "  -n, --count COUNT     stop after COUNT frames (default 0: no limit)\n"
    "  -b, --batch BATCH     publish so many frames at a time (default 512)\n"
    "  -R, --rate RATE       send RATE frames per second (default 0: as many as possible)\n"
    "  -S, --src-mac MAC     source address (default: made from the port's name)\n"
    "  -D, --dst-mac MAC     destination address (default ff:ff:ff:ff:ff:ff)\n"
    "  -s, --src-ip IP       source IPv4 address (default 10.0.0.1)\n"
    "  -d, --dst-ip IP       destination IPv4 address (default 10.1.0.1)\n"
    "      --seconds N       stop after N seconds\n"
    "      --wait-idle N     rx: stop N seconds after the last frame\n"
    "      --seq             number the frames (tx), find losses by the numbers (rx)\n"
    "      --latency         the same, and each frame says when it was sent (tx; at least 62 bytes): how long\n"
    "                        they took (rx)\n"
    "      --busy-poll US    poll so many microseconds after a large batch (default 200)\n"
    "      --rings N         ring pairs (default 1)\n"
    "      --slots N         of a ring, 64 to 4096 (default 1024)\n"
    "      --device PATH     /dev/netmap or a valed's netmap.sock (default: search)\n"
    "      --json            print the report as one JSON object\n"
    "  -h, --help            print this help\n"
    "  -V, --version         print the version\n"
    "\n"
    "Exit status: 0 done, 1 failure, 2 wrong usage, 4 no switch found.\n";

enum { OPT_SECONDS = 256, OPT_IDLE, OPT_POLL, OPT_SEQ, OPT_LATENCY, OPT_RINGS, OPT_SLOTS, OPT_DEVICE, OPT_JSON };

static const struct option long_options[] = {
    {"interface", required_argument, NULL, 'i'}, {"function", required_argument, NULL, 'f'},
    {"length", required_argument, NULL, 'l'},    {"count", required_argument, NULL, 'n'},
    {"batch", required_argument, NULL, 'b'},     {"rate", required_argument, NULL, 'R'},
    {"src-mac", required_argument, NULL, 'S'},   {"dst-mac", required_argument, NULL, 'D'},
    {"src-ip", required_argument, NULL, 's'},    {"dst-ip", required_argument, NULL, 'd'},
    {"seconds", required_argument, NULL, OPT_SECONDS},
    {"wait-idle", required_argument, NULL, OPT_IDLE},
    {"busy-poll", required_argument, NULL, OPT_POLL},
    {"seq", no_argument, NULL, OPT_SEQ},
    {"latency", no_argument, NULL, OPT_LATENCY},
    {"slots", required_argument, NULL, OPT_SLOTS},
    {"rings", required_argument, NULL, OPT_RINGS},
    {"device", required_argument, NULL, OPT_DEVICE},
    {"json", no_argument, NULL, OPT_JSON},
    {"help", no_argument, NULL, 'h'},            {"version", no_argument, NULL, 'V'},
    {NULL, 0, NULL, 0},
};

static void __attribute__((noreturn)) usage_error(const char *what, const char *value)
{
    fprintf(stderr, "vale-pktgen: %s%s%s: see vale-pktgen --help\n", what, value ? ": " : "", value ? value : "");
    exit(EXIT_USAGE);
}

static uint64_t parse_count(const char *text, uint64_t least, uint64_t most, const char *what)
{
    char *end;
    unsigned long long value;

    errno = 0;
    value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || value < least || value > most) {
        usage_error(what, text);
    }
    return value;
}

static double parse_real(const char *text, const char *what)
{
    char *end;
    double value = strtod(text, &end);

    if (end == text || *end != '\0' || !isfinite(value) || value < 0) {
        usage_error(what, text);
    }
    return value;
}

static void parse_mac(const char *text, uint8_t mac[6])
{
    if (!frame_parse_mac(text, mac)) {
        usage_error("not a MAC address", text);
    }
}

static void parse_ip(const char *text, struct in_addr *ip)
{
    if (inet_pton(AF_INET, text, ip) != 1) {
        usage_error("not an IPv4 address", text);
    }
}

static void parse_role(const char *text, enum role *role)
{
    *role = strcmp(text, "tx") == 0 ? ROLE_TX : strcmp(text, "rx") == 0 ? ROLE_RX : ROLE_NONE;
    if (*role == ROLE_NONE) {
        usage_error("-f is tx or rx, not", text);
    }
}

static void parse_option(struct options *o, int c)
{
    switch (c) {
    case 'i': o->name = optarg; break;
    case 'f': parse_role(optarg, &o->role); break;
    case 'l': o->spec.len = (uint32_t)parse_count(optarg, FRAME_MIN, FRAME_MAX, "-l is 42 to 65535, not"); break;
    case 'n': o->count = parse_count(optarg, 0, UINT64_MAX, "-n is a number of frames, not"); break;
    case 'b': o->batch = (uint32_t)parse_count(optarg, 1, 65536, "-b is 1 to 65536, not"); break;
    case 'R': o->rate = parse_real(optarg, "-R is frames per second, not"); break;
    case 'S': parse_mac(optarg, o->spec.src_mac); o->has_src_mac = true; break;
    case 'D': parse_mac(optarg, o->spec.dst_mac); break;
    case 's': parse_ip(optarg, &o->spec.src_ip); break;
    case 'd': parse_ip(optarg, &o->spec.dst_ip); break;
    case OPT_SECONDS: o->seconds = parse_real(optarg, "--seconds is a time, not"); break;
    case OPT_IDLE: o->idle = parse_real(optarg, "--wait-idle is a time, not"); break;
    case OPT_POLL: o->poll = parse_real(optarg, "--busy-poll is a time, not") * 1e-6; break;
    case OPT_SEQ: o->seq = true; break;
    case OPT_LATENCY: o->seq = o->latency = true; break;
    case OPT_SLOTS: o->slots = (uint32_t)parse_count(optarg, 64, 4096, "--slots is 64 to 4096, not"); break;
    case OPT_RINGS: o->rings = (uint16_t)parse_count(optarg, 1, 16, "--rings is 1 to 16, not"); break;
    case OPT_DEVICE: o->device = optarg; break;
    case OPT_JSON: o->json = true; break;
    case 'h': fputs(help, stdout); exit(0);
    case 'V': puts("vale-pktgen " VERSION); exit(0);
    default: exit(EXIT_USAGE); /* getopt has said why */
    }
}

/* Two senders on one switch need two addresses, or the switch would see one station move to and fro. */
static void make_src_mac(const char *name, uint8_t mac[6])
{
    uint64_t hash = 0xcbf29ce484222325;
    int i;

    for (; *name != '\0'; name++) {
        hash = (hash ^ (uint8_t)*name) * 0x100000001b3;
    }
    mac[0] = 0x02;
    for (i = 1; i < 6; i++) {
        mac[i] = (uint8_t)(hash >> (8 * i));
    }
}

static void parse_options(struct options *o, int argc, char **argv)
{
    int c;

    while ((c = getopt_long(argc, argv, "i:f:l:n:b:R:S:D:s:d:hV", long_options, NULL)) != -1) {
        parse_option(o, c);
    }
    if (optind < argc) {
        usage_error("unexpected argument", argv[optind]);
    }
    if (o->name == NULL || o->role == ROLE_NONE) {
        usage_error("-i PORT and -f tx|rx are needed", NULL);
    }
    if (strchr(o->name, '/') != NULL && o->role == ROLE_TX) {
        usage_error("a monitor only receives: -f rx", o->name);
    }
    if (o->seq && o->role == ROLE_TX && o->spec.len < FRAME_SEQ_MIN) {
        usage_error("--seq needs -l of at least 54", NULL);
    }
    if (o->latency && o->role == ROLE_TX && o->spec.len < FRAME_TIME_MIN) {
        usage_error("--latency needs -l of at least 62", NULL);
    }
    if (!o->has_src_mac) {
        make_src_mac(o->name, o->spec.src_mac);
    }
}

/* --------------------------------------------------------------------------------------------------------- waiting --- */

static bool ready(const struct vale_port *port, int direction)
{
    unsigned int count = direction == VALE_TX ? port->tx_rings : port->rx_rings, i;

    for (i = 0; i < count; i++) {
        if (nm_ring_space(direction == VALE_TX ? vale_txring(port, i) : vale_rxring(port, i)) > 0) {
            return true;
        }
    }
    return false;
}

/*
 * Lets others run. False where one of them kept the CPU for long: then yielding costs more than sleeping (the scheduler
 * charges a yield as a whole slice), and polling is given up for a while.
 */
static bool yield_cpu(double begin, double *crowded_until)
{
    double end;

    sched_yield();
    end = now();
    if (end - begin > CROWDED_S) {
        *crowded_until = end + AVOID_S;
        return false;
    }
    return true;
}

/* Syncs, and waits until a ring is ready or WAIT_MS are over: polling for so many seconds, then asleep. 0 or -ENXIO. */
static int await(struct vale_port *port, int direction, double poll)
{
    static double crowded_until;
    double begin = poll > 0 ? now() : 0, t = begin;
    int rc;

    for (;;) {
        rc = direction == VALE_TX ? vale_txsync(port) : vale_rxsync(port);
        if (rc < 0 || ready(port, direction)) {
            return rc;
        }
        if (t - begin >= poll || t < crowded_until || !yield_cpu(t, &crowded_until)) {
            break;
        }
        t = now();
    }
    rc = vale_wait(port, direction, WAIT_MS);
    return rc < 0 && rc != -EINTR ? rc : 0;
}

/* -------------------------------------------------------------------------------------------------------------- tx --- */

static struct frame frame; /* what is sent; too large for the stack */

/* Writes the frame into the buffers of every slot; a no-op for frames that need several. */
static void prefill(struct vale_port *port)
{
    unsigned int i;
    uint32_t s;

    for (i = 0; i < port->tx_rings; i++) {
        struct netmap_ring *ring = vale_txring(port, i);

        for (s = 0; s < ring->num_slots && frame.len <= ring->nr_buf_size; s++) {
            memcpy(NETMAP_BUF(ring, ring->slot[s].buf_idx), frame.bytes, frame.len);
        }
    }
}

/* Numbers a frame that lies in a buffer, as far as was asked for. */
static void mark(const struct options *o, char *buf, uint64_t number)
{
    if (o->latency) {
        frame_set_time(&frame, (uint8_t *)buf, number, now_ns());
    } else if (o->seq) {
        frame_set_sequence(&frame, (uint8_t *)buf, number);
    }
}

/* Copies the frame into the slots from at on. The slot behind it. */
static uint32_t put_long(const struct options *o, struct netmap_ring *ring, uint32_t at, uint64_t number)
{
    uint32_t done = 0;

    while (done < frame.len) {
        struct netmap_slot *slot = &ring->slot[at];
        uint32_t left = frame.len - done, part = left < ring->nr_buf_size ? left : ring->nr_buf_size;
        char *buf = NETMAP_BUF(ring, slot->buf_idx);

        memcpy(buf, frame.bytes + done, part);
        if (done == 0) {
            mark(o, buf, number);
        }
        slot->len = (uint16_t)part;
        done += part;
        slot->flags = done < frame.len ? NS_MOREFRAG : 0;
        at = nm_ring_next(ring, at);
    }
    return at;
}

static uint32_t put_short(const struct options *o, struct netmap_ring *ring, uint32_t at, uint64_t number)
{
    struct netmap_slot *slot = &ring->slot[at];

    mark(o, NETMAP_BUF(ring, slot->buf_idx), number);
    slot->len = (uint16_t)frame.len;
    slot->flags = 0;
    return nm_ring_next(ring, at);
}

/* Fills up to max frames into a ring, numbered from `number` on. Their count; cur = tail asks for more room. */
static uint32_t fill(const struct options *o, struct netmap_ring *ring, uint64_t max, uint64_t number)
{
    uint32_t slots = (frame.len + ring->nr_buf_size - 1) / ring->nr_buf_size;
    uint32_t room = (ring->tail + ring->num_slots - ring->head) % ring->num_slots / slots;
    uint32_t n = room < max ? room : (uint32_t)max, at = ring->head, k;

    for (k = 0; k < n; k++) {
        at = slots == 1 ? put_short(o, ring, at, number + k) : put_long(o, ring, at, number + k);
    }
    ring->head = at;
    ring->cur = n == max ? at : ring->tail;
    return n;
}

/* Frames that may go now: all of a batch, or as many as the rate has made due; sleeps until there is one. */
static uint64_t due(const struct options *o, const struct result *r)
{
    uint64_t n = o->batch;

    if (o->count != 0 && o->count - r->packets < n) {
        n = o->count - r->packets;
    }
    if (o->rate > 0) {
        double ahead = (double)r->packets - (now() - r->first) * o->rate;

        if (ahead > 0) {
            double pause = ahead / o->rate < WAIT_MS * 1e-3 ? ahead / o->rate : WAIT_MS * 1e-3;
            struct timespec ts = {.tv_nsec = (long)(pause * 1e9)};

            nanosleep(&ts, NULL);
            ahead = (double)r->packets - (now() - r->first) * o->rate;
        }
        if (ahead > 0) {
            return 0;
        }
        n = -ahead + 1 < (double)n ? (uint64_t)(-ahead + 1) : n;
    }
    return n;
}

/* Waits until the switch has taken everything. 0, -ETIMEDOUT or -ENXIO. */
static int drain(struct vale_port *port)
{
    double end = now() + DRAIN_MS * 1e-3;
    unsigned int i;
    int rc;

    for (i = 0; i < port->tx_rings; i++) {
        struct netmap_ring *ring = vale_txring(port, i);

        rc = vale_txsync(port);
        while (rc >= 0 && nm_tx_pending(ring)) {
            unsigned int k;

            if (now() > end) {
                return -ETIMEDOUT;
            }
            for (k = 0; k < port->tx_rings; k++) {
                vale_txring(port, k)->cur = vale_txring(port, k)->tail;
            }
            rc = await(port, VALE_TX, 0);
        }
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

static int run_tx(struct vale_port *port, const struct options *o, struct result *r)
{
    unsigned int i = 0;
    int rc = 0;

    frame_build(&frame, &o->spec);
    prefill(port);
    r->first = now();
    while (!stopped && rc >= 0 && (o->count == 0 || r->packets < o->count)) {
        uint64_t max = due(o, r);
        uint32_t n = max ? fill(o, vale_txring(port, i), max, r->packets) : 0;

        r->packets += n;
        r->bytes += (uint64_t)n * frame.len;
        rc = vale_txsync(port);
        i = (i + 1) % port->tx_rings;
        if (rc >= 0 && n < max) {
            rc = await(port, VALE_TX, o->rate > 0 ? 0 : o->poll);
        }
        if (o->seconds > 0 && now() - r->first >= o->seconds) {
            break;
        }
    }
    rc = rc < 0 ? rc : drain(port);
    r->last = now();
    return rc;
}

/* -------------------------------------------------------------------------------------------------------------- rx --- */

/* False: it has no number. */
static bool check_sequence(struct result *r, const uint8_t *bytes, uint32_t len)
{
    uint64_t number;

    if (!frame_get_sequence(bytes, len, &number)) {
        r->unnumbered++;
        return false;
    }
    if (number >= r->next) {
        r->lost += number - r->next;
        r->next = number + 1;
    } else {
        r->late++;
        r->lost -= r->lost > 0;
    }
    return true;
}

/* How long a frame was on its way. One that says that it was sent later than now has no time in it. */
static void check_time(struct result *r, const uint8_t *bytes, uint32_t len, uint64_t t)
{
    uint64_t sent;

    if (frame_get_time(bytes, len, &sent) && sent <= t) {
        histogram_add(&r->latency, t - sent);
    }
}

/* Consumes what is in a ring, at most up to frame number max. */
static void take(const struct options *o, struct netmap_ring *ring, struct result *r, uint64_t max)
{
    uint32_t at = ring->head, tail = ring->tail;
    uint64_t t = o->latency ? now_ns() : 0;
    bool first = true;

    while (at != tail && r->packets < max) {
        const struct netmap_slot *slot = &ring->slot[at];
        const uint8_t *bytes = (const uint8_t *)NETMAP_BUF(ring, slot->buf_idx);

        if (o->seq && first && check_sequence(r, bytes, slot->len) && o->latency) {
            check_time(r, bytes, slot->len, t);
        }
        first = !(slot->flags & NS_MOREFRAG);
        r->bytes += slot->len;
        r->packets += first;
        at = nm_ring_next(ring, at);
    }
    ring->head = ring->cur = at;
}

static bool rx_ended(const struct options *o, const struct result *r, double begin, double t)
{
    return stopped || (o->count != 0 && r->packets >= o->count) || (o->seconds > 0 && t - begin >= o->seconds) ||
           (o->idle > 0 && r->packets > 0 && t - r->last >= o->idle);
}

static void take_all(struct vale_port *port, const struct options *o, struct result *r)
{
    unsigned int i;

    for (i = 0; i < port->rx_rings; i++) {
        take(o, vale_rxring(port, i), r, o->count ? o->count : UINT64_MAX);
    }
}

static int run_rx(struct vale_port *port, const struct options *o, struct result *r)
{
    double begin = now(), t = begin;
    uint64_t got = 0;
    int rc = 0;

    fputs("ready\n", stderr);
    while (rc >= 0 && !rx_ended(o, r, begin, t)) {
        uint64_t before = r->packets;

        rc = await(port, VALE_RX, got >= LARGE_BATCH ? o->poll : 0);
        take_all(port, o, r);
        t = now();
        got = r->packets - before;
        if (got != 0) {
            r->first = before == 0 ? t : r->first;
            r->last = t;
        }
    }
    /* What came before the end counts, however the end came. */
    rc = rc < 0 ? rc : vale_rxsync(port);
    if (rc >= 0) {
        take_all(port, o, r);
    }
    return rc < 0 ? rc : 0;
}

/* ---------------------------------------------------------------------------------------------------------- report --- */

static double cpu_seconds(void)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

static double latency_us(const struct result *r, double fraction)
{
    return (double)histogram_percentile(&r->latency, fraction) * 1e-3;
}

static void report_latency(const struct options *o, const struct result *r)
{
    const char *form = o->json ? "\"latency_us\": {\"p50\": %.1f, \"p99\": %.1f, \"p999\": %.1f, \"max\": %.1f}, "
                               : "; latency p50 %.1f us, p99 %.1f us, p99.9 %.1f us, max %.1f us";

    if (o->latency && o->role == ROLE_RX && r->latency.count) {
        printf(form, latency_us(r, 0.5), latency_us(r, 0.99), latency_us(r, 0.999), (double)r->latency.max * 1e-3);
    }
}

/* drops: a sender loses nothing (it waits); a receiver knows only by the numbers. */
static void report(const struct vale_port *port, const struct options *o, const struct result *r)
{
    double seconds = r->last - r->first;
    double pps = seconds > 0 ? (double)r->packets / seconds : 0, bps = seconds > 0 ? (double)r->bytes * 8 / seconds : 0;
    const char *role = o->role == ROLE_TX ? "tx" : "rx", *provider = vale_provider_name(port->provider);

    if (!o->json) {
        printf("%s %s: %" PRIu64 " frames, %" PRIu64 " bytes in %.3f s: %.3f Mpps, %.3f Gbit/s", port->name, role, r->packets,
               r->bytes, seconds, pps * 1e-6, bps * 1e-9);
        if (o->seq && o->role == ROLE_RX) {
            printf("; lost %" PRIu64 ", late %" PRIu64 ", unnumbered %" PRIu64, r->lost, r->late, r->unnumbered);
        }
        report_latency(o, r);
        printf(" (%s: %s)\n", provider, port->device);
        return;
    }
    printf("{\"role\": \"%s\", \"packets\": %" PRIu64 ", \"bytes\": %" PRIu64 ", \"seconds\": %.6f, \"pps\": %.1f, "
           "\"bps\": %.1f, ", role, r->packets, r->bytes, seconds, pps, bps);
    if (o->role == ROLE_TX) {
        printf("\"drops\": 0, ");
    } else if (!o->seq) {
        printf("\"drops\": null, ");
    } else {
        printf("\"drops\": %" PRIu64 ", \"late\": %" PRIu64 ", \"unnumbered\": %" PRIu64 ", ", r->lost, r->late, r->unnumbered);
    }
    report_latency(o, r);
    printf("\"provider\": \"%s\", \"port\": \"%s\", \"cpu_seconds\": %.6f}\n", provider, port->name, cpu_seconds());
}

static void catch_signals(void)
{
    struct sigaction sa = {.sa_handler = on_signal};

    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
}

static int open_failed(const struct vale_error *err)
{
    fprintf(stderr, "vale-pktgen: %s\n", err->text);
    return err->code == ENOENT ? EXIT_NO_PROVIDER : err->code == EINVAL ? EXIT_USAGE : EXIT_FAILURE;
}

int main(int argc, char **argv)
{
    struct options o = {
        .spec = {.dst_mac = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
                 .src_ip.s_addr = htonl(0x0a000001),
                 .dst_ip.s_addr = htonl(0x0a010001),
                 .len = 60},
        .batch = 512,
        .poll = 200e-6,
        .rings = 1,
    };
    struct vale_open_args args = {.flags = VALE_OPEN_START};
    static struct result r;
    struct vale_port *port;
    struct vale_error err;
    int rc;

    parse_options(&o, argc, argv);
    catch_signals();
    args.name = o.name;
    args.device = o.device;
    args.tx_rings = args.rx_rings = o.rings;
    args.tx_slots = args.rx_slots = o.slots;
    port = vale_open(&args, &err);
    if (port == NULL) {
        return open_failed(&err);
    }
    rc = o.role == ROLE_TX ? run_tx(port, &o, &r) : run_rx(port, &o, &r);
    if (rc < 0) {
        fprintf(stderr, "vale-pktgen: %s: %s\n", port->name,
                rc == -ENXIO ? "the switch is gone, start again" : "the switch takes no frames, see its log");
    } else {
        report(port, &o, &r);
    }
    vale_close(port);
    return rc < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
