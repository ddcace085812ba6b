/* SPDX-License-Identifier: BSD-2-Clause */
/* What management asks of a switch and its fdb. */
#include "switch_commands.h"

#include "query.h"
#include "refuse.h"
#include "state.h"
#include "vswitch.h"
#include "worker.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define WAIT_MS_MAX 10000

static uint32_t now_seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint32_t)now.tv_sec;
}

static bool is_switch_name(const char *name)
{
    struct vale_name parsed;
    struct vale_error err;
    char port[VALE_SWITCH_MAX + 4];

    return (size_t)snprintf(port, sizeof(port), "%s:x", name) < sizeof(port) &&
           vale_name_parse(port, &parsed, &err) == 0 && strcmp(parsed.sw, name) == 0;
}

/* overflow: NULL, or drop or wait; wait: milliseconds, or -1. */
static void set_overflow(struct vswitch *sw, const char *overflow, int wait)
{
    if (overflow)
        sw->waits = strcmp(overflow, "wait") == 0;
    if (wait > 0)
        sw->wait_ms = (unsigned int)wait;
    atomic_store(&sw->wait_limit, sw->waits ? sw->wait_ms * 1000ull : 0);
    workers_retry(UINT64_MAX);
}

json_t *switch_set(json_t *arguments, const char **error)
{
    int p2p = -1, keep = -1, age = -1, cap = -1, wait = -1;
    const char *overflow = NULL;
    struct vswitch *sw;
    const char *name;

    if (json_unpack(arguments, "{s:s, s?b, s?b, s?i, s?i, s?s, s?i !}", "name", &name, "p2p", &p2p, "keep", &keep, "age", &age,
                    "cap", &cap, "overflow", &overflow, "wait-limit", &wait) != 0)
        return refuse(error, "switch-set takes name, and perhaps p2p, keep, age, cap, overflow, wait-limit");
    if (!is_switch_name(name))
        return refuse(error, "not the name of a switch: vale and up to 11 letters, digits and _");
    if (age == 0 || cap == 0 || age < -1 || cap < -1)
        return refuse(error, "age (seconds) and cap (stations of one port) are at least 1");
    if (overflow && strcmp(overflow, "drop") != 0 && strcmp(overflow, "wait") != 0)
        return refuse(error, "overflow is drop or wait");
    if (wait == 0 || wait < -1 || wait > WAIT_MS_MAX)
        return refuse(error, "wait-limit is a number of milliseconds from 1 to 10000");
    sw = vswitch_get(name);
    if (!sw)
        return refuse(error, "there are --max-bridges switches already");
    if (p2p > 0 && sw->port_count > 2) {
        return refuse(error, "a p2p switch has two ports, and this one has more");
    }
    if (p2p >= 0)
        atomic_store(&sw->p2p, p2p);
    if (age > 0)
        atomic_store(&sw->fdb.age, (uint32_t)age);
    if (cap > 0)
        atomic_store(&sw->fdb.cap, (uint32_t)cap);
    set_overflow(sw, overflow, wait);
    sw->kept = keep != 0; /* what is set up stays, unless told otherwise */
    state_switch_set(name, arguments);
    vswitch_release(sw);
    return json_object();
}

/* ---------------------------------------------------------------------------------------------------------- fdb --- */

static bool parse_mac(const char *text, uint64_t *mac)
{
    unsigned int b[6];
    char end;

    if (strlen(text) != 17 ||
        sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%c", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5], &end) != 6)
        return false;
    *mac = 0;
    for (int i = 0; i < 6; i++)
        *mac |= (uint64_t)b[i] << (8 * i);
    return true;
}

struct listing {
    const struct vswitch *sw;
    json_t *list;
};

static void add_station(const struct fdb_station *s, void *arg)
{
    struct listing *l = arg;
    const struct port *port = l->sw->ports[s->port];
    char mac[18];

    if (!port)
        return;
    snprintf(mac, sizeof(mac), "%02x:%02x:%02x:%02x:%02x:%02x", (unsigned int)(s->mac & 0xff),
             (unsigned int)(s->mac >> 8 & 0xff), (unsigned int)(s->mac >> 16 & 0xff), (unsigned int)(s->mac >> 24 & 0xff),
             (unsigned int)(s->mac >> 32 & 0xff), (unsigned int)(s->mac >> 40 & 0xff));
    json_array_append_new(l->list, json_pack("{s:s, s:s, s:i, s:b}", "mac", mac, "port", port->name.full, "age",
                                             s->is_static ? 0 : (int)s->age, "static", s->is_static));
}

json_t *fdb_query(json_t *arguments, const char **error)
{
    struct listing l = {0};
    const char *name;

    if (json_unpack(arguments, "{s:s !}", "switch", &name) != 0)
        return refuse(error, "query-fdb takes one argument, switch");
    l.sw = vswitch_find(name);
    if (!l.sw)
        return refuse(error, "no such switch; query-switches lists them");
    l.list = json_array();
    fdb_each(&l.sw->fdb, now_seconds(), add_station, &l);
    return l.list;
}

/* The port that the argument `port` names, or NULL with *error. */
static struct port *named_port(const char *text, const char **error)
{
    struct vale_name name;
    struct vale_error err;
    struct port *port = vale_name_parse(text, &name, &err) == 0 ? port_find(&name) : NULL;

    if (!port)
        *error = "no such port; query-ports lists them";
    return port;
}

json_t *fdb_add(json_t *arguments, const char **error)
{
    const char *text, *mac_text;
    struct port *port;
    uint64_t mac;
    int err;

    if (json_unpack(arguments, "{s:s, s:s !}", "port", &text, "mac", &mac_text) != 0)
        return refuse(error, "fdb-add takes port and mac");
    if (!parse_mac(mac_text, &mac))
        return refuse(error, "mac is six pairs of hexadecimal digits: 02:00:00:00:00:01");
    port = named_port(text, error);
    if (!port)
        return NULL;
    err = fdb_set_static(&port->sw->fdb, mac, port->index, now_seconds());
    if (err == -EINVAL)
        return refuse(error, "a multicast address is not a station");
    if (err)
        return refuse(error, "no room: the bucket of this address is full of static entries");
    state_fdb_added(port->name.full, mac_text);
    return json_object();
}

json_t *fdb_del(json_t *arguments, const char **error)
{
    const char *name, *mac_text;
    struct vswitch *sw;
    uint64_t mac;

    if (json_unpack(arguments, "{s:s, s:s !}", "switch", &name, "mac", &mac_text) != 0)
        return refuse(error, "fdb-del takes switch and mac");
    sw = vswitch_find(name);
    if (!sw || !parse_mac(mac_text, &mac) || fdb_remove(&sw->fdb, mac) < 0)
        return refuse(error, "no such station; query-fdb lists them");
    state_fdb_removed(name, mac_text);
    return json_object();
}

json_t *fdb_flush(json_t *arguments, const char **error)
{
    const char *name;
    struct vswitch *sw;

    if (json_unpack(arguments, "{s:s !}", "switch", &name) != 0)
        return refuse(error, "fdb-flush takes one argument, switch");
    sw = vswitch_find(name);
    if (!sw)
        return refuse(error, "no such switch; query-switches lists them");
    for (unsigned int i = 0; i < sw->port_limit; i++)
        fdb_flush_port(&sw->fdb, i, false);
    return json_object();
}
