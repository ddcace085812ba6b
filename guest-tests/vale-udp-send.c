/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * vale-udp-send: send numbered UDP datagrams for some seconds, at a rate or as fast as possible.
 *
 * Theory of operation
 *
 * A batch of datagrams lies ready in memory; for each sendmmsg() only their headers are written
 * anew. A number is used up only by a datagram that the kernel took: after a short write or an
 * error the next batch starts with the first number that was not sent, so numbers have no gaps
 * that the network did not make. IP_RECVERR makes the kernel say when it dropped a datagram at
 * its own queue, which it otherwise keeps to itself.
 *
 * With a rate, datagram n is due n / rate seconds after the start. A batch holds what is due, so
 * a sender that was held up catches up, and one that is early waits: it sleeps while there is
 * time for that and spins for the rest.
 *
 * A run ends with several end markers, some milliseconds apart, because each of them can be lost.
 */
#include <arpa/inet.h>
#include <getopt.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vale_udp.h"

#define PROGRAM         "vale-udp-send"
#define END_MARKERS     20
#define END_INTERVAL    0.01
#define SPIN            0.0001          /* a sleep can take this much longer than was asked */

struct sender {
    struct sockaddr_in to;
    size_t payload;
    double seconds;
    double rate;                        /* datagrams a second; 0: as many as go */
    unsigned batch;
    bool json;

    int fd;
    uint32_t run;
    uint8_t *buffer;
    struct mmsghdr messages[VALE_UDP_BATCH_MAX];
    struct iovec iov[VALE_UDP_BATCH_MAX];
    uint64_t sent;
    uint64_t errors;
    int last_error;
};

static volatile sig_atomic_t stopped;

static void on_signal(int signal)
{
    (void)signal;
    stopped = 1;
}

static void sleep_until(double when)
{
    struct timespec until = { .tv_sec = (time_t)when,
                              .tv_nsec = (long)((when - floor(when)) * 1e9) };

    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

/* Wait until the next datagram is due; give how many are, at most a batch. */
static unsigned wait_until_due(const struct sender *s, double start, double end)
{
    double now, due = start + s->sent / s->rate;

    if (due >= end) {
        sleep_until(end);
        return 0;
    }
    if (due - vale_udp_now() > SPIN) {
        sleep_until(due - SPIN);
    }
    do {
        now = vale_udp_now();
    } while (now < due && !stopped);
    due = floor((now - start) * s->rate) + 1 - s->sent;
    return due < 1 ? 1 : due > s->batch ? s->batch : (unsigned)due;
}

static void send_batch(struct sender *s, unsigned count)
{
    int done;

    for (unsigned i = 0; i < count; i++) {
        vale_udp_put(s->iov[i].iov_base, 0, s->run, s->sent + i);
    }
    done = sendmmsg(s->fd, s->messages, count, 0);
    if (done >= 0) {
        s->sent += done;
    } else if (errno != EINTR) {
        s->errors++;
        s->last_error = errno;
    }
}

static double send_data(struct sender *s)
{
    double start = vale_udp_now(), end = start + s->seconds, now = start;

    while (now < end && !stopped) {
        unsigned count = s->rate > 0 ? wait_until_due(s, start, end) : s->batch;

        if (count > 0) {
            send_batch(s, count);
        }
        now = vale_udp_now();
    }
    return now - start;
}

/* A receiver that has its marker leaves, and the kernel refuses the next: that ends it here too. */
static void send_end_markers(struct sender *s)
{
    double when = vale_udp_now();

    vale_udp_put(s->buffer, VALE_UDP_END, s->run, s->sent);
    for (int i = 0; i < END_MARKERS; i++) {
        sleep_until(when += END_INTERVAL);
        if (send(s->fd, s->buffer, s->payload, 0) < 0 && errno == ECONNREFUSED) {
            break;
        }
    }
}

static void open_socket(struct sender *s)
{
    int on = 1;

    s->fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (s->fd < 0 || setsockopt(s->fd, IPPROTO_IP, IP_RECVERR, &on, sizeof(on)) < 0 ||
        connect(s->fd, (struct sockaddr *)&s->to, sizeof(s->to)) < 0) {
        fprintf(stderr, PROGRAM ": cannot send to %s: %s\n", inet_ntoa(s->to.sin_addr),
                strerror(errno));
        exit(1);
    }
}

static void prepare_batch(struct sender *s)
{
    s->buffer = calloc(s->batch, s->payload);
    if (!s->buffer || getrandom(&s->run, sizeof(s->run), 0) != sizeof(s->run)) {
        perror(PROGRAM);
        exit(1);
    }
    for (unsigned i = 0; i < s->batch; i++) {
        s->iov[i].iov_base = s->buffer + i * s->payload;
        s->iov[i].iov_len = s->payload;
        s->messages[i].msg_hdr.msg_iov = &s->iov[i];
        s->messages[i].msg_hdr.msg_iovlen = 1;
    }
}

static void report(const struct sender *s, double seconds, double cpu)
{
    struct vale_udp_report r = { .json = s->json };
    uint64_t bytes = s->sent * s->payload;

    vale_udp_text(&r, "role", "tx");
    vale_udp_count(&r, "run", s->run);
    vale_udp_count(&r, "sent", s->sent);
    vale_udp_count(&r, "bytes", bytes);
    vale_udp_real(&r, "seconds", seconds);
    vale_udp_real(&r, "pps", s->sent / seconds);
    vale_udp_real(&r, "bps", bytes * 8 / seconds);
    vale_udp_count(&r, "frame", s->payload + VALE_UDP_OVERHEAD);
    vale_udp_count(&r, "batch", s->batch);
    vale_udp_real(&r, "rate", s->rate);
    vale_udp_real(&r, "cpu_seconds", cpu);
    vale_udp_count(&r, "send_errors", s->errors);
    if (s->errors) {
        vale_udp_text(&r, "last_error", strerror(s->last_error));
    }
    vale_udp_finish(&r);
}

static void usage(FILE *out)
{
    fprintf(out, "usage: " PROGRAM " --to IP [--port PORT] [--frame BYTES] [--seconds N] "
                 "[--rate PPS]\n                     [--batch N] [--json]\n");
}

static void set_destination(struct sender *s, const char *text)
{
    if (inet_pton(AF_INET, text, &s->to.sin_addr) != 1) {
        fprintf(stderr, PROGRAM ": --to %s: give an IPv4 address\n", text);
        exit(2);
    }
    s->to.sin_family = AF_INET;
}

static double number(const char *option, double low, double high)
{
    return vale_udp_number(PROGRAM, option, optarg, low, high);
}

static void parse(struct sender *s, int argc, char **argv)
{
    static const struct option options[] = {
        { "to", required_argument, NULL, 't' },     { "port", required_argument, NULL, 'p' },
        { "frame", required_argument, NULL, 'f' },  { "seconds", required_argument, NULL, 's' },
        { "rate", required_argument, NULL, 'r' },   { "batch", required_argument, NULL, 'b' },
        { "json", no_argument, NULL, 'j' },         { "help", no_argument, NULL, 'h' },
        { 0 },
    };
    int option;

    while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        switch (option) {
        case 't': set_destination(s, optarg); break;
        case 'p': s->to.sin_port = htons(number("port", 1, 65535)); break;
        case 'f':
            s->payload = number("frame", VALE_UDP_FRAME_MIN, VALE_UDP_FRAME_MAX) -
                         VALE_UDP_OVERHEAD;
            break;
        case 's': s->seconds = number("seconds", 0.001, 1e6); break;
        case 'r': s->rate = number("rate", 0, 1e9); break;
        case 'b': s->batch = number("batch", 1, VALE_UDP_BATCH_MAX); break;
        case 'j': s->json = true; break;
        case 'h': usage(stdout); exit(0);
        default: usage(stderr); exit(2);
        }
    }
    if (optind < argc || !s->to.sin_family) {
        usage(stderr);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    static struct sender sender;
    struct sigaction action = { .sa_handler = on_signal };
    double seconds, cpu;

    sender.to.sin_port = htons(VALE_UDP_PORT);
    sender.payload = VALE_UDP_FRAME_MIN - VALE_UDP_OVERHEAD;
    sender.seconds = 10;
    sender.batch = VALE_UDP_BATCH;
    parse(&sender, argc, argv);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    open_socket(&sender);
    prepare_batch(&sender);
    cpu = vale_udp_cpu();
    seconds = send_data(&sender);
    cpu = vale_udp_cpu() - cpu;
    send_end_markers(&sender);
    report(&sender, seconds, cpu);
    return 0;
}
