/* SPDX-License-Identifier: BSD-2-Clause */
/* valectl's files: valectl.c (command line and commands), valectl_show.c (what it prints), valectl_top.c (rates). */
#ifndef VALECTL_H
#define VALECTL_H

#include <jansson.h>
#include <stdbool.h>

/* ------------------------------------------------------------------------------------------------- valectl_show.c --- */

void show_json(json_t *value);

/* Switches, each with its ports below it. */
void show_list(json_t *switches, json_t *ports);

/* Every member of an object on a line of its own, as `rx.frames  10`. */
void show_object(json_t *object);

/* A table of the ports' counters. */
void show_stats(json_t *ports);

/* A table of stations. */
void show_stations(json_t *stations);

/* Drops of one direction ("rx", "tx") of a port, all reasons. */
json_int_t sum_drops(json_t *port, const char *direction);

/* A counter of one direction. */
json_int_t get_counter(json_t *port, const char *direction, const char *counter);

/* -------------------------------------------------------------------------------------------------- valectl_top.c --- */

struct top_options {
    unsigned long count; /* tables; 0: without end */
    double interval;     /* seconds between them */
    bool json;           /* a line of JSON instead of a table */
};

/* Prints rates until count is reached. query() returns the ports, never NULL. */
void top_run(const struct top_options *o, json_t *(*query)(void *arg), void *arg);

#endif
