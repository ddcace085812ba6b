/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * vswitch - a named switch: up to 254 ports and a forwarding database
 *
 * A switch appears with its first port and vanishes with its last, unless management keeps it. Only the control thread adds and removes; workers read
 * ports[] without a lock, and a port they found stays valid until their next batch boundary (worker.h).
 */
#ifndef VALED_VSWITCH_H
#define VALED_VSWITCH_H

#include "fdb.h"
#include "port.h"

#define SWITCH_PORTS 254 /* indexes 0..253 */

#define WAIT_MS 20 /* by default */

struct vswitch {
    char name[VALE_SWITCH_MAX];
    struct fdb fdb;
    _Atomic bool p2p; /* a link of two ports: no learning, everything passes */
    bool waits;       /* for room, instead of dropping: */
    unsigned int wait_ms; /* for so long */
    _Atomic uint64_t wait_limit; /* the same for workers: microseconds, 0: drop at once */
    bool kept;        /* set up by management: stays without ports */
    _Atomic unsigned int port_limit; /* one more than the highest index in use */
    unsigned int port_count;
    _Atomic(struct monitor *) monitors; /* of the switch and of its ports: monitor.h */
    _Atomic(struct port *) ports[SWITCH_PORTS];
    struct vswitch *next;
};

/* All switches, by the order in which they appeared. */
extern struct vswitch *switches;

struct vswitch *vswitch_find(const char *name);

/* Ports of all switches. */
unsigned int vswitch_ports(void);

/* The same, created if need be; NULL: too many. vswitch_release() lets it go again if nothing keeps it. */
struct vswitch *vswitch_get(const char *name);
void vswitch_release(struct vswitch *sw);

/* Puts a port in, creating the switch if need be. 0, -EBUSY, -ENOMEM. */
int vswitch_add_port(struct port *port);

/*
 * Takes a port out: nobody finds it any more, its stations are forgotten. The switch goes with its last port.
 */
void vswitch_remove_port(struct port *port);

#endif
