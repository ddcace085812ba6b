/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * vswitch - a named switch: up to 254 ports and a forwarding database
 *
 * A switch appears with its first port and vanishes with its last. Only the control thread adds and removes; workers read
 * ports[] without a lock, and a port they found stays valid until their next batch boundary (worker.h).
 */
#ifndef VALED_VSWITCH_H
#define VALED_VSWITCH_H

#include "fdb.h"
#include "port.h"

#define SWITCH_PORTS 254 /* indexes 0..253 */

struct vswitch {
    char name[VALE_SWITCH_MAX];
    struct fdb fdb;
    _Atomic unsigned int port_limit; /* one more than the highest index in use */
    unsigned int port_count;
    _Atomic(struct port *) ports[SWITCH_PORTS];
    struct vswitch *next;
};

/* All switches, by the order in which they appeared. */
extern struct vswitch *switches;

struct vswitch *vswitch_find(const char *name);

/* Puts a port in, creating the switch if need be. 0, -EBUSY, -ENOMEM. */
int vswitch_add_port(struct port *port, unsigned int max_switches);

/*
 * Takes a port out: nobody finds it any more, its stations are forgotten. The switch goes with its last port.
 */
void vswitch_remove_port(struct port *port);

#endif
