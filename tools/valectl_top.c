/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * valectl top - rates of every port, busiest first, again and again
 *
 * A rate is the difference of two looks over the time between them. A port that was not there at the first look counts from
 * zero; one with smaller counters than before is a new port of the same name.
 */
#include "valectl.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CLEAR_SCREEN "\033[H\033[J"

struct look {
    json_t *ports;
    double at;
};

struct rates {
    const char *name;
    double rx_pps, rx_bps, tx_pps, tx_bps, drops;
};

static double now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static json_t *find_port(json_t *ports, const char *name)
{
    json_t *port;
    size_t i;

    json_array_foreach(ports, i, port) {
        if (strcmp(json_string_value(json_object_get(port, "name")), name) == 0) {
            return port;
        }
    }
    return NULL;
}

static double rate(json_int_t from, json_int_t to, double seconds)
{
    return (double)(to >= from ? to - from : to) / seconds;
}

static struct rates port_rates(json_t *before, json_t *port, double seconds)
{
    json_t *old = find_port(before, json_string_value(json_object_get(port, "name")));

#define RATE(direction, counter) rate(get_counter(old, direction, counter), get_counter(port, direction, counter), seconds)
    return (struct rates){
        .name = json_string_value(json_object_get(port, "name")),
        .rx_pps = RATE("rx", "frames"),
        .rx_bps = RATE("rx", "bytes") * 8,
        .tx_pps = RATE("tx", "frames"),
        .tx_bps = RATE("tx", "bytes") * 8,
        .drops = rate(sum_drops(old, "rx") + sum_drops(old, "tx"), sum_drops(port, "rx") + sum_drops(port, "tx"), seconds),
    };
#undef RATE
}

/* By frames, then by name: idle ports stay where they are. */
static int compare_rates(const void *a, const void *b)
{
    const struct rates *x = a, *y = b;
    double difference = y->rx_pps + y->tx_pps - x->rx_pps - x->tx_pps;

    return difference > 0 ? 1 : difference < 0 ? -1 : strcmp(x->name, y->name);
}

static void print_json(const struct rates *r, size_t n, double seconds)
{
    json_t *list = json_array(), *line;

    for (size_t i = 0; i < n; i++) {
        json_array_append_new(list, json_pack("{s:s, s:{s:f, s:f}, s:{s:f, s:f}, s:f}", "name", r[i].name, "rx", "pps",
                                              r[i].rx_pps, "bps", r[i].rx_bps, "tx", "pps", r[i].tx_pps, "bps",
                                              r[i].tx_bps, "drops_per_second", r[i].drops));
    }
    line = json_pack("{s:f, s:o}", "seconds", seconds, "ports", list);
    json_dumpf(line, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(line);
    putchar('\n');
}

static void print_table(const struct rates *r, size_t n)
{
    if (isatty(STDOUT_FILENO)) {
        fputs(CLEAR_SCREEN, stdout);
    }
    printf("%-15s %12s %12s %12s %12s %12s\n", "PORT", "RX pps", "RX Gbit/s", "TX pps", "TX Gbit/s", "drops/s");
    for (size_t i = 0; i < n; i++) {
        printf("%-15s %12.0f %12.3f %12.0f %12.3f %12.0f\n", r[i].name, r[i].rx_pps, r[i].rx_bps * 1e-9, r[i].tx_pps,
               r[i].tx_bps * 1e-9, r[i].drops);
    }
}

static void print(const struct top_options *o, const struct look *before, const struct look *after)
{
    size_t n = json_array_size(after->ports);
    struct rates *r = calloc(n + 1, sizeof(*r));
    double seconds = after->at - before->at;

    if (r == NULL) {
        return;
    }
    for (size_t i = 0; i < n; i++) {
        r[i] = port_rates(before->ports, json_array_get(after->ports, i), seconds);
    }
    qsort(r, n, sizeof(*r), compare_rates);
    if (o->json) {
        print_json(r, n, seconds);
    } else {
        print_table(r, n);
    }
    fflush(stdout);
    free(r);
}

static void sleep_until(double end)
{
    struct timespec ts = {.tv_sec = (time_t)end, .tv_nsec = (long)(fmod(end, 1) * 1e9)};

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR) {
    }
}

static struct look take_look(json_t *(*query)(void *arg), void *arg)
{
    json_t *ports = query(arg);

    return (struct look){.ports = ports, .at = now()};
}

void top_run(const struct top_options *o, json_t *(*query)(void *arg), void *arg)
{
    struct look before = take_look(query, arg);

    for (unsigned long done = 0; o->count == 0 || done < o->count; done++) {
        struct look after;

        sleep_until(before.at + o->interval);
        after = take_look(query, arg);
        print(o, &before, &after);
        json_decref(before.ports);
        before = after;
    }
    json_decref(before.ports);
}
