/* SPDX-License-Identifier: BSD-2-Clause */
/* What valectl prints: JSON as it came, or text for people. */
#include "valectl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define NAME_WIDTH 15 /* most names; a longer one moves its line */

void show_json(json_t *value)
{
    json_dumpf(value, stdout, JSON_INDENT(2) | JSON_ENCODE_ANY);
    putchar('\n');
}

static const char *get_text(json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text != NULL ? text : "-";
}

static json_int_t get_number(json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

json_int_t get_counter(json_t *port, const char *direction, const char *counter)
{
    return get_number(json_object_get(port, direction), counter);
}

json_int_t sum_drops(json_t *port, const char *direction)
{
    json_t *drops = json_object_get(json_object_get(port, direction), "dropped"), *value;
    json_int_t sum = 0;
    const char *reason;

    json_object_foreach(drops, reason, value) {
        sum += json_integer_value(value);
    }
    return sum;
}

/* ------------------------------------------------------------------------------------------------------------ list --- */

static void list_port(json_t *port)
{
    json_t *peer = json_object_get(port, "peer");

    printf("  %-*s  %-10s", NAME_WIDTH, get_text(port, "name"), get_text(port, "kind"));
    if (get_number(peer, "pid") != 0) {
        printf("  pid %" JSON_INTEGER_FORMAT ", uid %" JSON_INTEGER_FORMAT, get_number(peer, "pid"),
               get_number(peer, "uid"));
    }
    putchar('\n');
}

static bool is_of_switch(json_t *port, const char *name)
{
    const char *full = get_text(port, "name");
    size_t len = strlen(name);

    return strncmp(full, name, len) == 0 && full[len] == ':';
}

void show_list(json_t *switches, json_t *ports)
{
    json_t *sw, *port;
    size_t i, k;

    json_array_foreach(switches, i, sw) {
        printf("%s  ports %" JSON_INTEGER_FORMAT ", stations %" JSON_INTEGER_FORMAT "\n", get_text(sw, "name"),
               get_number(sw, "ports"), get_number(sw, "stations"));
        json_array_foreach(ports, k, port) {
            if (is_of_switch(port, get_text(sw, "name"))) {
                list_port(port);
            }
        }
    }
}

/* ------------------------------------------------------------------------------------------------------------ show --- */

static void show_value(const char *key, json_t *value)
{
    printf("%-24s ", key);
    if (json_is_string(value)) {
        puts(json_string_value(value));
        return;
    }
    json_dumpf(value, stdout, JSON_ENCODE_ANY);
    putchar('\n');
}

static void show_members(json_t *object, const char *prefix);

/* Members of a list have their number for a name. */
static void show_list_members(json_t *list, const char *prefix)
{
    json_t *value;
    size_t i;

    json_array_foreach(list, i, value) {
        char path[160];

        snprintf(path, sizeof(path), "%s.%zu", prefix, i);
        show_members(value, path);
    }
}

static void show_members(json_t *object, const char *prefix)
{
    const char *key;
    json_t *value;

    json_object_foreach(object, key, value) {
        char path[128];

        snprintf(path, sizeof(path), "%s%s%s", prefix, *prefix ? "." : "", key);
        if (json_is_array(value)) {
            show_list_members(value, path);
        } else if (json_is_object(value)) {
            show_members(value, path);
        } else {
            show_value(path, value);
        }
    }
}

void show_object(json_t *object)
{
    show_members(object, "");
}

/* ----------------------------------------------------------------------------------------------------------- tables --- */

static void print_drops(json_t *port, const char *direction)
{
    json_t *drops = json_object_get(json_object_get(port, direction), "dropped"), *value;
    const char *reason;

    json_object_foreach(drops, reason, value) {
        printf("  %s.%s %" JSON_INTEGER_FORMAT, direction, reason, json_integer_value(value));
    }
}

void show_stats(json_t *ports)
{
    json_t *port;
    size_t i;

    printf("%-*s %15s %18s %15s %18s  %s\n", NAME_WIDTH, "PORT", "RX FRAMES", "RX BYTES", "TX FRAMES", "TX BYTES",
           "DROPPED");
    json_array_foreach(ports, i, port) {
        printf("%-*s", NAME_WIDTH, get_text(port, "name"));
        printf(" %15" JSON_INTEGER_FORMAT " %18" JSON_INTEGER_FORMAT, get_counter(port, "rx", "frames"),
               get_counter(port, "rx", "bytes"));
        printf(" %15" JSON_INTEGER_FORMAT " %18" JSON_INTEGER_FORMAT, get_counter(port, "tx", "frames"),
               get_counter(port, "tx", "bytes"));
        print_drops(port, "rx");
        print_drops(port, "tx");
        putchar('\n');
    }
}

void show_stations(json_t *stations)
{
    json_t *station;
    size_t i;

    printf("%-17s  %-*s  %s\n", "STATION", NAME_WIDTH, "PORT", "AGE");
    json_array_foreach(stations, i, station) {
        printf("%-17s  %-*s  ", get_text(station, "mac"), NAME_WIDTH, get_text(station, "port"));
        if (json_is_true(json_object_get(station, "static"))) {
            puts("static");
        } else {
            printf("%" JSON_INTEGER_FORMAT " s\n", get_number(station, "age"));
        }
    }
}
