/* SPDX-License-Identifier: BSD-2-Clause */
/* Switches, ports and counters as JSON. */
#include "query.h"

#include "impair.h"
#include "monitor.h"
#include "version.h"
#include "vswitch.h"
#include "worker.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

json_t *query_version(void)
{
    return json_pack("{s:{s:i, s:i, s:i}, s:s}", "vale", "major", VALE_VERSION_MAJOR, "minor", VALE_VERSION_MINOR, "micro",
                     VALE_VERSION_MICRO, "package", "valed " VALE_VERSION);
}

json_t *query_switch(const struct vswitch *sw)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return json_pack("{s:s, s:i, s:i, s:b, s:b, s:i, s:i, s:s, s:i}", "name", sw->name, "ports", (int)sw->port_count, "stations",
                     (int)fdb_count(&sw->fdb, (uint32_t)now.tv_sec), "p2p", (int)sw->p2p, "kept", sw->kept, "age",
                     (int)sw->fdb.age, "cap", (int)sw->fdb.cap, "overflow", sw->waits ? "wait" : "drop", "wait-limit", (int)sw->wait_ms);
}

json_t *query_switches(void)
{
    json_t *list = json_array();

    for (const struct vswitch *sw = switches; sw; sw = sw->next)
        json_array_append_new(list, query_switch(sw));
    return list;
}

static json_t *number(const _Atomic uint64_t *counter)
{
    return json_integer((json_int_t)atomic_load_explicit(counter, memory_order_relaxed));
}

/* Only the reasons that happened. */
static json_t *drops(const _Atomic uint64_t *dropped)
{
    json_t *object = json_object();

    for (int i = 0; i < DROP_REASONS; i++)
        if (dropped[i])
            json_object_set_new(object, drop_names[i], number(&dropped[i]));
    return object;
}

/* What was cut in software on its way out: frames, into segments, of so many bytes. */
static json_t *segmented(const struct port_counters *c)
{
    json_t *object = json_object();

    json_object_set_new(object, "frames", number(&c->tx_segmented));
    json_object_set_new(object, "segments", number(&c->tx_segments));
    json_object_set_new(object, "bytes", number(&c->tx_segment_bytes));
    return object;
}

/* Which worker serves each ring. */
static json_t *ring_workers(const struct port *port)
{
    json_t *list = json_array();

    for (unsigned int i = 0; i < port->ring_count; i++)
        if (port->ring[i]->worker)
            json_array_append_new(list, json_integer(worker_of(port->ring[i])));
    return list;
}

json_t *query_egress(const struct port_counters *c)
{
    json_t *object = json_object();

    json_object_set_new(object, "offered", number(&c->tx_offered));
    json_object_set_new(object, "frames", number(&c->tx_frames));
    json_object_set_new(object, "bytes", number(&c->tx_bytes));
    json_object_set_new(object, "dropped", drops(c->tx_dropped));
    return object;
}

/* What the delay line of one way holds and has done. */
static void add_line(json_t *object, const struct port_counters *c, enum direction direction)
{
    json_object_set_new(object, "held", number(&c->line[direction].held));
    json_object_set_new(object, "duplicated", number(&c->line[direction].duplicated));
    json_object_set_new(object, "corrupted", number(&c->line[direction].corrupted));
}

json_t *query_port(const struct port *port)
{
    const struct port_counters *c = &port->counters;
    json_t *object = json_pack("{s:s, s:s, s:i, s:i, s:b, s:{s:I, s:i}}", "name", port->name.full, "kind", port->ops->kind,
                               "index", (int)port->index, "rings", (int)port->ring_count, "exclusive", port->exclusive,
                               "peer", "uid", (json_int_t)port->uid, "pid", (int)port->pid);
    json_t *rx = json_object(), *tx = query_egress(c);

    json_object_set_new(rx, "frames", number(&c->rx_frames));
    json_object_set_new(rx, "bytes", number(&c->rx_bytes));
    json_object_set_new(rx, "unicast", number(&c->unicast));
    json_object_set_new(rx, "flooded", number(&c->flooded));
    json_object_set_new(rx, "dropped", drops(c->rx_dropped));
    add_line(rx, c, DIRECTION_IN);
    json_object_set_new(tx, "segmented", segmented(c));
    add_line(tx, c, DIRECTION_OUT);
    json_object_set_new(object, "workers", ring_workers(port));
    json_object_set_new(object, "rx", rx);
    json_object_set_new(object, "tx", tx);
    json_object_update_new(object, impair_settings(port));
    json_object_set_new(object, "kicks", number(&c->kicks));
    json_object_set_new(object, "calls", number(&c->calls));
    json_object_set_new(object, "bad-head", number(&c->bad_head));
    return object;
}

json_t *query_ports(const char *switch_name)
{
    json_t *list;

    if (switch_name && !vswitch_find(switch_name))
        return NULL;
    list = json_array();
    for (struct vswitch *sw = switches; sw; sw = sw->next)
        for (unsigned int i = 0; i < sw->port_limit && (!switch_name || strcmp(sw->name, switch_name) == 0); i++)
            if (sw->ports[i])
                json_array_append_new(list, query_port(sw->ports[i]));
    return list;
}

/* tx.dropped.ring_full: 5, and so on, for all numbers in an object. */
static void flatten(json_t *flat, const char *prefix, json_t *object)
{
    const char *key;
    json_t *value;

    json_object_foreach(object, key, value) {
        char name[64];

        snprintf(name, sizeof(name), "%s%s%s", prefix, prefix[0] ? "." : "", key);
        if (json_is_object(value))
            flatten(flat, name, value);
        else if (json_is_integer(value))
            json_object_set(flat, name, value);
    }
}

json_t *query_stats(const char *switch_name)
{
    json_t *ports = query_ports(switch_name), *list = json_array(), *port;
    struct timespec now;
    size_t i;

    if (!ports) {
        json_decref(list);
        return NULL;
    }
    clock_gettime(CLOCK_MONOTONIC, &now);
    json_array_foreach(ports, i, port) {
        json_t *flat = json_object();

        json_object_set(flat, "name", json_object_get(port, "name"));
        json_object_del(port, "peer");
        json_object_del(port, "index");
        json_object_del(port, "rings");
        json_object_del(port, "in");
        json_object_del(port, "out");
        flatten(flat, "", port);
        json_array_append_new(list, flat);
    }
    json_decref(ports);
    return json_pack("{s:I, s:o}", "time", (json_int_t)now.tv_sec * 1000000000 + now.tv_nsec, "ports", list);
}

json_t *query_monitors(const char *switch_name)
{
    json_t *list;

    if (switch_name && !vswitch_find(switch_name))
        return NULL;
    list = json_array();
    for (const struct vswitch *sw = switches; sw; sw = sw->next)
        for (struct monitor *m = sw->monitors; m; m = monitor_next(m))
            if (!switch_name || strcmp(sw->name, switch_name) == 0)
                json_array_append_new(list, monitor_describe(m));
    return list;
}
