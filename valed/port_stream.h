/* SPDX-License-Identifier: BSD-2-Clause */
/* Stream ports: QEMU's `stream` netdev, and whatever else sends frames with a length of 4 bytes before each. */
#ifndef VALED_PORT_STREAM_H
#define VALED_PORT_STREAM_H

#include "port.h"
#include "watch.h"

/* Makes a stream port, not yet in a switch, and its socket, which listens or connects. 0 or -errno. */
int stream_port_create(struct port **port, const struct vale_name *name, const char *path, bool connects);

/* The loop's part: a peer has hung up, and workers may have forwarded what such peers had sent. */
void stream_hangup(struct watch *w);
void stream_check_drained(void);

#endif
