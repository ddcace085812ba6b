/* SPDX-License-Identifier: BSD-2-Clause */
/* Null ports: they take every frame and keep none, and can be a source, so that forwarding is measured and nothing else. */
#ifndef VALED_PORT_NULL_H
#define VALED_PORT_NULL_H

#include "port.h"

#include <net/ethernet.h>

/* The frames that a source sends. */
struct null_source {
    uint64_t frames; /* 0: without end */
    uint16_t length; /* without FCS */
    struct ether_addr destination;
    struct ether_addr source;
};

/* Makes a null port, not yet in a switch. source NULL: a sink only. 0 or -errno. */
int null_port_create(struct port **port, const struct vale_name *name, const struct null_source *source);

#endif
