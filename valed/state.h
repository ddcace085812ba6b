/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * state - what management set up, kept in the runtime directory so that the next valed has it again
 *
 * `state.json` holds arguments of commands, as they were given:
 *
 *     {"version": 1,
 *      "switches": {"vale1": switch-set's arguments},
 *      "ports": {"vale1:v": {"add": port-add's arguments, "set": its impairments, "fdb": [fdb-add's addresses]}}}
 *
 * Each change is written at once, to a temporary name that then replaces the file, so that there is always one whole file,
 * however valed ends; with nothing to keep there is none. A start runs the commands again; what fails is said in one line and forgotten. A port that ends is
 * forgotten, unless it ends because valed does. A port without "add" is a native one: its client comes back by itself, and
 * then finds what was set.
 */
#ifndef VALED_STATE_H
#define VALED_STATE_H

#include <jansson.h>
#include <stdbool.h>

struct port;

/* Reads the file. One that makes no sense, or is something else, is moved aside to state.json.bad, with one line. */
void state_read(void);

/* Runs what was read. */
void state_restore(void);

/* valed ends: ports that are closed from here on are to come back. forget: none are, the file goes. */
void state_freeze(bool forget);

/* Commands that succeeded. */
void state_port_added(const char *port, json_t *arguments);
/* settings: all that are in force, as port-set takes them, without the name; the reference is taken. */
void state_port_set(const char *port, json_t *settings);
void state_switch_set(const char *sw, json_t *arguments);
void state_fdb_added(const char *port, const char *mac);
void state_fdb_removed(const char *sw, const char *mac);

/* What has ended. */
void state_port_closed(const char *port);
void state_switch_removed(const char *sw);

/* A port has joined its switch: gives it what is noted for its name. */
void state_apply(const struct port *port);

#endif
