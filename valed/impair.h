/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * impair - the impairments of a port, as management sets them
 *
 * Each direction has its settings, and, where they impair anything, a delay line (line.h) that the workers see. Changing a
 * setting keeps the others and what the line holds. A line that ends, because nothing is impaired any more, because its limit
 * changes, or with its port, lets go of what it holds at once: no frame is lost, and it comes too early.
 */
#ifndef VALED_IMPAIR_H
#define VALED_IMPAIR_H

#include "port.h"

#include <jansson.h>

/* port-set. Returns its result, or NULL and a line in *error, valid until the next call. */
json_t *impair_port_set(json_t *arguments, const char **error);

/* What is set, in the form that port-set takes, without the name: {"in": {...}, "out": {...}}; directions without are left out. */
json_t *impair_settings(const struct port *port);

/* Ends the impairments of a port that closes. True when no line refers to it any more; call again until then. */
bool impair_end(struct port *port);

#endif
