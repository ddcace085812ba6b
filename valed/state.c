/* SPDX-License-Identifier: BSD-2-Clause */
/* What management set up, kept for the next valed. */
#include "state.h"

#include "control.h"
#include "impair.h"
#include "log.h"
#include "port.h"
#include "rundir.h"
#include "switch_commands.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define STATE_NAME "state.json"
#define STATE_TEMP STATE_NAME ".new"
#define STATE_BAD  STATE_NAME ".bad"
#define STATE_MAX  (16 * 1024 * 1024) /* bytes; 254 ports of long names take 50 KiB */
#define VERSION    1

typedef json_t *command_fn(json_t *arguments, const char **error);

static json_t *switches_noted, *ports_noted; /* as in the file */
static bool replaying; /* the start: not written before all is done */
static bool frozen;    /* the end: nothing is noted any more */

/* ------------------------------------------------------------------------------------------------------ the file --- */

/* In one write: json_dumpfd() makes one of each word. */
static bool write_file(int fd, json_t *state)
{
    char *text = json_dumps(state, JSON_INDENT(1));
    size_t length = text ? strlen(text) : 0;
    bool good = text && write(fd, text, length) == (ssize_t)length;

    free(text);
    return close(fd) == 0 && good && rename(STATE_TEMP, STATE_NAME) == 0;
}

static void save(void)
{
    json_t *state;
    int fd;

    if (replaying || frozen)
        return;
    if (json_object_size(switches_noted) + json_object_size(ports_noted) == 0) {
        unlink(STATE_NAME);
        return;
    }
    state = json_pack("{s:i, s:O, s:O}", "version", VERSION, "switches", switches_noted, "ports", ports_noted);
    fd = open(STATE_TEMP, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 || !write_file(fd, state))
        log_warn("%s/" STATE_NAME ": %s: a restart will not restore what has changed", rundir_path(), strerror(errno));
    json_decref(state);
}

/* The file's text is only ever ours, but a disk that was full or a curious user may have changed it. */
static json_t *load(int fd, json_error_t *why)
{
    json_t *state = NULL, *switches, *ports;
    struct stat st;
    int version;

    snprintf(why->text, sizeof(why->text), "not a file, or over 16 MiB");
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size <= STATE_MAX)
        state = json_loadfd(fd, JSON_REJECT_DUPLICATES, why);
    if (state && (json_unpack_ex(state, why, 0, "{s:i, s:o, s:o !}", "version", &version, "switches", &switches, "ports",
                                 &ports) != 0 ||
                  version != VERSION || !json_is_object(switches) || !json_is_object(ports))) {
        snprintf(why->text, sizeof(why->text), "not the state of this version of valed");
        json_decref(state);
        state = NULL;
    }
    return state;
}

/* The state, or NULL: none, or none that can be used. */
static json_t *read_file(void)
{
    int fd = open(STATE_NAME, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    json_error_t why = {0};
    json_t *state = NULL;

    if (fd >= 0) {
        state = load(fd, &why);
        close(fd);
    } else if (errno == ENOENT) {
        return NULL;
    } else {
        snprintf(why.text, sizeof(why.text), "%s", strerror(errno));
    }
    if (!state) {
        log_warn("%s/" STATE_NAME ": %s: nothing is restored, the file is now " STATE_BAD, rundir_path(), why.text);
        unlink(STATE_BAD);
        rename(STATE_NAME, STATE_BAD);
    }
    return state;
}

/* ------------------------------------------------------------------------------------------------------- restoring --- */

/* Runs a command again. False after saying in one line why it failed. */
static bool run(const char *what, command_fn *command, json_t *arguments)
{
    const char *error = "its arguments are no object";
    json_t *result = json_is_object(arguments) ? command(arguments, &error) : NULL;

    if (!result && strstr(error, what))
        log_warn("not restored: %s", error);
    else if (!result)
        log_warn("not restored: %s: %s", what, error);
    json_decref(result);
    return result != NULL;
}

static void restore_port(const char *name, json_t *record)
{
    json_t *add = json_object_get(record, "add");

    /* Noted before the port is there: state_apply() finds it. */
    if (json_is_object(record))
        json_object_set_new(ports_noted, name, json_deep_copy(record));
    if (json_object_get(add, "fd")) {
        log_warn("not restored: %s: its descriptor ended with the last valed: add it again", name);
        json_object_del(ports_noted, name);
    } else if (add && !run(name, control_port_add, add)) {
        json_object_del(ports_noted, name);
    }
}

/* Switches first, since a p2p switch limits its ports, and kept for the while. */
static void restore(json_t *switches, json_t *ports)
{
    const char *name;
    json_t *value;

    json_object_foreach(switches, name, value) {
        json_t *kept = json_copy(value);

        json_object_del(kept, "keep");
        run(name, switch_set, kept);
        json_decref(kept);
    }
    json_object_foreach(ports, name, value)
        restore_port(name, value);
    json_object_foreach(switches, name, value)
        if (json_is_false(json_object_get(value, "keep")))
            run(name, switch_set, value);
}

static json_t *found; /* at the start, until it is restored */

void state_read(void)
{
    found = read_file();
}

void state_restore(void)
{
    json_t *state = found;

    found = NULL;
    switches_noted = json_object();
    ports_noted = json_object();
    if (!state)
        return;
    replaying = true;
    restore(json_object_get(state, "switches"), json_object_get(state, "ports"));
    replaying = false;
    json_decref(state);
    save();
}

void state_freeze(bool forget)
{
    if (forget) {
        json_object_clear(switches_noted);
        json_object_clear(ports_noted);
        save();
    }
    frozen = true;
}

static void apply_settings(const char *name, const json_t *settings)
{
    json_t *arguments = json_pack("{s:s}", "name", name);

    if (json_object_update(arguments, (json_t *)(uintptr_t)settings) == 0)
        run(name, impair_port_set, arguments);
    json_decref(arguments);
}

void state_apply(const struct port *port)
{
    const json_t *settings = json_object_get(json_object_get(ports_noted, port->name.full), "set");
    json_t *macs = json_copy(json_object_get(json_object_get(ports_noted, port->name.full), "fdb")), *mac;
    size_t i;

    if (settings)
        apply_settings(port->name.full, settings);
    json_array_foreach(macs, i, mac) {
        json_t *arguments = json_pack("{s:s, s:O}", "port", port->name.full, "mac", mac);

        run(port->name.full, fdb_add, arguments);
        json_decref(arguments);
    }
    json_decref(macs);
}

/* ---------------------------------------------------------------------------------------------------------- noting --- */

/* The member of an object, made if it is not there. */
static json_t *member(json_t *object, const char *key, json_t *(*make)(void))
{
    json_t *value = json_object_get(object, key);

    if (!value) {
        value = make();
        json_object_set_new(object, key, value);
    }
    return value;
}

void state_port_added(const char *port, json_t *arguments)
{
    json_object_set(member(ports_noted, port, json_object), "add", arguments);
    save();
}

void state_port_set(const char *port, json_t *settings)
{
    if (json_object_size(settings))
        json_object_set(member(ports_noted, port, json_object), "set", settings);
    else
        json_object_del(json_object_get(ports_noted, port), "set");
    json_decref(settings);
    save();
}

void state_switch_set(const char *sw, json_t *arguments)
{
    json_t *record = member(switches_noted, sw, json_object);

    json_object_del(record, "keep"); /* not given is true, whatever it was before */
    json_object_update(record, arguments);
    save();
}

/* Where an address stands in the list; its end: not there. */
static size_t index_of(const json_t *macs, const char *mac)
{
    size_t i = 0;

    while (i < json_array_size(macs)) {
        const char *known = json_string_value(json_array_get(macs, i));

        if (known && strcasecmp(known, mac) == 0)
            break;
        i++;
    }
    return i;
}

/* An address is of one port of its switch. */
static bool forget_station(const char *sw, const char *mac)
{
    size_t length = strlen(sw);
    const char *name;
    json_t *record;
    bool found = false;

    json_object_foreach(ports_noted, name, record) {
        json_t *macs = json_object_get(record, "fdb");

        if (strncmp(name, sw, length) == 0 && name[length] == ':')
            found |= json_array_remove(macs, index_of(macs, mac)) == 0;
    }
    return found;
}

void state_fdb_added(const char *port, const char *mac)
{
    struct vale_name name;

    vale_name_parse(port, &name, NULL);
    forget_station(name.sw, mac);
    json_array_append_new(member(member(ports_noted, port, json_object), "fdb", json_array), json_string(mac));
    save();
}

void state_fdb_removed(const char *sw, const char *mac)
{
    if (forget_station(sw, mac))
        save();
}

void state_port_closed(const char *port)
{
    if (!frozen && json_object_del(ports_noted, port) == 0)
        save();
}

void state_switch_removed(const char *sw)
{
    if (!frozen && json_object_del(switches_noted, sw) == 0)
        save();
}
