/* SPDX-License-Identifier: BSD-2-Clause */
/* Native ports: netmap's rings in a region shared with the client. */
#ifndef VALED_PORT_RING_H
#define VALED_PORT_RING_H

#include "port.h"
#include "region.h"

/* Makes a native port for a user, not yet in a switch. config must be clamped. 0, -EDQUOT (quota.h) or -errno. */
int ring_port_create(struct port **port, const struct vale_name *name, const struct region_config *config, uid_t uid);

/*
 * The same with the memory that the port had at an earlier valed (VALE_OPT_RESUME), and with the header it says. mem_fd becomes the
 * port's, also when this fails. ring_port_wake() when it is in its switch.
 */
int ring_port_resume(struct port **port, const struct vale_name *name, const struct region_config *config, int mem_fd,
                     const struct vale_opt_resume *resume, uid_t uid);

/* Has the workers look at all rings: there may be frames that nobody kicked for. */
void ring_port_wake(struct port *port);

/* Whether a descriptor is the port's memory. */
bool ring_port_is_memory(const struct port *port, int fd);

const struct region *ring_port_region(const struct port *port);
/* Bytes of virtio-net header before each frame: 0, 10 or 12. With one, frames may come with offloads undone. */
unsigned int ring_port_header(const struct port *port);
/* Sets it, and what may be undone in frames that go: as pad1 of PORT_HDR_SET (vale_proto.h, OFFLOADS). */
void ring_port_set_header(struct port *port, unsigned int len, uint32_t accepts);

/* What REGISTER hands over; the descriptors stay the port's. */
void ring_port_fds(const struct port *port, int fds[VALE_FD_COUNT]);

/* Leaves the client without room to send, for ever. Before the port is handed over. */
void ring_port_close_tx(struct port *port);

/* The egress of ring_port_ops, with these flags (NS_*) in the slots. */
unsigned int ring_port_egress(struct port *port, unsigned int queue, const struct batch *b, const uint16_t *order,
                              unsigned int n, uint32_t flags);

extern const struct port_ops ring_port_ops;

#endif
