/* SPDX-License-Identifier: BSD-2-Clause */
/* query - switches, ports and counters as JSON, as the query-* commands return them (docs/qmp.md). */
#ifndef VALED_QUERY_H
#define VALED_QUERY_H

#include <jansson.h>

struct port;
struct port_counters;
struct vswitch;

json_t *query_version(void);
json_t *query_switch(const struct vswitch *sw);
json_t *query_switches(void);
json_t *query_port(const struct port *port);

/* Of what went out to a port: offered, frames, bytes, dropped. */
json_t *query_egress(const struct port_counters *counters);

/* All monitors, or those of one switch and of its ports. NULL when there is no such switch. */
json_t *query_monitors(const char *switch_name);

/* All ports, or those of one switch. NULL when there is no such switch. */
/*
 * Every counter of every port of a switch (NULL: of all), flat, with the nanoseconds of the monotonic clock: two of them make
 * rates. NULL: no such switch.
 */
json_t *query_stats(const char *switch_name);

json_t *query_ports(const char *switch_name);

#endif
