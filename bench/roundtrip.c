/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * roundtrip - how long a frame takes there and back, through the switch or through a bare relay
 *
 *   vale      ping --port--> valed --port--> pong     and back; both sides sleep while they wait
 *   eventfd   ping -eventfd-> relay -eventfd-> pong   and back: the wake-ups alone, which no switch can do without
 *
 * ping, pong and the relay are processes. Usage: roundtrip vale|eventfd SECONDS. Prints one JSON object.
 */
#include <libvale.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define FRAME   60
#define SAMPLES 1000000

static double samples[SAMPLES]; /* microseconds */

static double now_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec * 1e-3;
}

static void die(const char *what)
{
    fprintf(stderr, "roundtrip: %s\n", what);
    exit(1);
}

/* A process of our own; true in the child, which ends with us. */
static int is_child(pid_t *pid)
{
    *pid = fork();
    if (*pid < 0) {
        die("fork failed");
    }
    return *pid == 0 && prctl(PR_SET_PDEATHSIG, SIGKILL) == 0;
}

/* ------------------------------------------------------------------------------------------------------ the relay --- */

static void wait_event(int fd)
{
    uint64_t n;

    if (read(fd, &n, sizeof(n)) != sizeof(n)) {
        die("eventfd: read failed");
    }
}

static void signal_event(int fd)
{
    uint64_t one = 1;

    if (write(fd, &one, sizeof(one)) != sizeof(one)) {
        die("eventfd: write failed");
    }
}

/* Passes on what comes, in turns: there and back. */
static void relay(const int fd[4])
{
    for (;;) {
        wait_event(fd[0]);
        signal_event(fd[1]);
        wait_event(fd[2]);
        signal_event(fd[3]);
    }
}

static size_t measure_eventfd(double seconds)
{
    double begin, end, deadline = now_us() + seconds * 1e6;
    pid_t relaying, answering;
    size_t n = 0;
    int fd[4];

    for (int i = 0; i < 4; i++) {
        fd[i] = eventfd(0, 0);
    }
    if (is_child(&relaying)) {
        relay(fd);
    }
    if (is_child(&answering)) {
        for (;;) {
            wait_event(fd[1]);
            signal_event(fd[2]);
        }
    }
    do {
        begin = now_us();
        signal_event(fd[0]);
        wait_event(fd[3]);
        end = now_us();
        samples[n++] = end - begin;
    } while (end < deadline && n < SAMPLES);
    kill(relaying, SIGKILL);
    kill(answering, SIGKILL);
    return n;
}

/* ----------------------------------------------------------------------------------------------------- the switch --- */

static struct vale_port *open_port(const char *name)
{
    struct vale_open_args args = {.name = name};
    struct vale_error err;
    struct vale_port *port = vale_open(&args, &err);

    if (port == NULL) {
        die(err.text);
    }
    return port;
}

/* Waits for a frame and gives it back to the switch at once. */
static void receive(struct vale_port *port)
{
    struct netmap_ring *ring = vale_rxring(port, 0);

    vale_rxsync(port);
    while (nm_ring_empty(ring)) {
        if (vale_wait(port, VALE_RX, 1000) < 0) {
            die("the switch has gone");
        }
    }
    ring->head = ring->cur = nm_ring_next(ring, ring->head);
}

static void transmit(struct vale_port *port)
{
    struct netmap_ring *ring = vale_txring(port, 0);
    struct netmap_slot *slot = &ring->slot[ring->head];

    memset(NETMAP_BUF(ring, slot->buf_idx), 0xff, FRAME);
    NETMAP_BUF(ring, slot->buf_idx)[6] = 2; /* the source: no multicast */
    slot->len = FRAME;
    slot->flags = 0;
    ring->head = ring->cur = nm_ring_next(ring, ring->head);
    vale_txsync(port);
}

static size_t measure_vale(double seconds)
{
    double begin, end, deadline = now_us() + seconds * 1e6;
    struct vale_port *ping = open_port("vale1:ping");
    int ready = eventfd(0, 0);
    pid_t answering;
    size_t n = 0;

    if (is_child(&answering)) {
        struct vale_port *pong = open_port("vale1:pong");

        signal_event(ready);
        for (;;) {
            receive(pong);
            transmit(pong);
        }
    }
    wait_event(ready);
    do {
        begin = now_us();
        transmit(ping);
        receive(ping);
        end = now_us();
        samples[n++] = end - begin;
    } while (end < deadline && n < SAMPLES);
    kill(answering, SIGKILL);
    waitpid(answering, NULL, 0);
    vale_close(ping);
    return n;
}

/* -------------------------------------------------------------------------------------------------------- results --- */

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    double seconds = argc == 3 ? strtod(argv[2], NULL) : 0;
    size_t n;

    if (seconds <= 0 || (strcmp(argv[1], "vale") != 0 && strcmp(argv[1], "eventfd") != 0)) {
        fprintf(stderr, "usage: roundtrip vale|eventfd SECONDS\n");
        return 2;
    }
    n = strcmp(argv[1], "vale") == 0 ? measure_vale(seconds) : measure_eventfd(seconds);
    qsort(samples, n, sizeof(samples[0]), compare);
    printf("{\"trips\": %zu, \"median_us\": %.2f, \"p99_us\": %.2f}\n", n, samples[n / 2], samples[n * 99 / 100]);
    return 0;
}
