/* SPDX-License-Identifier: BSD-2-Clause */
/* Tap ports: the way to the host's network, one descriptor of /dev/net/tun each. */
#ifndef VALED_PORT_TAP_H
#define VALED_PORT_TAP_H

#include "port.h"
#include "watch.h"

/* Opens the tap of that name, made if it is not there. Its descriptor or -errno. */
int tap_open(const char *ifname);

/*
 * Makes a tap port, not yet in a switch, on an open tap; the descriptor is the port's when this succeeds. 0, -ENOTTY (not a
 * tap), -EPROTOTYPE (a tap whose frames have headers before them), or another -errno.
 */
int tap_port_create(struct port **port, const struct vale_name *name, int fd);

/* The loop's part: the device is gone. */
void tap_gone(struct watch *w);

#endif
