/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * monitor - copies of other ports' frames for who watches
 *
 * A monitor is a native port in no switch: rings and memory of its own (port_ring.c), which receive copies. It watches one
 * port, or every port of a switch. In netmap's words, NR_MONITOR_TX shows what the port sends into the switch, each frame
 * marked NS_TXMON, and NR_MONITOR_RX what the switch has delivered to it. Frames that are no frames (the drops of the way
 * in up to `bad_header`, see port.h) are not shown, nor those that were offered to the port and dropped.
 *
 * Frames are shown as they came from their sender: where it left a checksum or segmentation to be done, that is not done
 * for a monitor. One with a virtio-net header (PORT_HDR_SET on its own connection) is told what there is to do; a frame that
 * was cut for the port is shown whole, once, if all its segments were delivered. The copy is made of the sender's memory
 * after the delivery: a sender that writes there meanwhile spoils what its monitors see, as it does its frame.
 *
 * A monitor that is slow loses its own copies, counted as ring_full, and nothing else notices: the ports it watches
 * do not wait for it, also on a switch that waits. One notification per batch and direction, as for any port.
 *
 * LIFE  The monitors of a switch are one list, which the control thread changes and workers read without a lock; a monitor
 * that is taken out is freed when no worker can hold it (reclaim()). It ends with its client, with its port when that is
 * unlinked, all its frames forwarded, or with its switch. It keeps none of them alive.
 *
 * COST  A switch without monitors: one relaxed load per batch and destination. A monitor that has no room: its ring's lock
 * once per batch, and no copy.
 */
#ifndef VALED_MONITOR_H
#define VALED_MONITOR_H

#include "batch.h"
#include "port.h"
#include "vswitch.h"

#include <jansson.h>
#include <sys/socket.h>

#define MONITORS_MAX 16 /* of one switch and its ports */

struct nmreq_register;

/* ------------------------------------------------------------------------------------------------- control thread --- */

/* Whether the peer of this connection may see others' frames: root, valed's own user, a member of --monitor-group. */
bool monitor_permitted(int fd, const struct ucred *peer);

/*
 * Makes a monitor as requested by reg, of the port of that name, or of the whole switch where the name has no port. Its
 * rings and memory are *port, with port->monitor set, for the caller to hand out. 0 or an errno, as a REGISTER answers:
 * EINVAL there is no such port or switch, or the flags make no sense; ENOMEM too many.
 */
int monitor_open(const struct vale_name *name, const struct nmreq_register *reg, const struct ucred *peer,
                 struct port **port);

/* Ends a monitor: its client is hung up, if it is still there. */
void monitor_close(struct monitor *monitor, const char *reason);

/* The same for all monitors of a port, or of a switch and of its ports (port NULL). */
void monitor_close_all(struct vswitch *sw, const struct port *port, const char *reason);

/* For query-monitors. */
json_t *monitor_describe(const struct monitor *monitor);

/* The monitor behind another; NULL at the end. The first is sw->monitors. */
struct monitor *monitor_next(const struct monitor *monitor);

/* -------------------------------------------------------------------------------------------------------- workers --- */

static inline bool is_monitored(const struct vswitch *sw)
{
    return atomic_load_explicit(&sw->monitors, memory_order_relaxed) != NULL;
}

/* Shows the first n frames of the batch as sent by the ring's port. */
void monitor_sent(const struct ring *ring, const struct batch *b, unsigned int n);

/* An egress is to follow: has the kind note which frames it does not deliver. */
void monitor_begin(struct batch *b);

/* The egress is over, and done with the first n frames of b->order: shows those delivered. `queue` is the sender's ring. */
void monitor_delivered(const struct port *port, unsigned int queue, struct batch *b, unsigned int n);

#endif
