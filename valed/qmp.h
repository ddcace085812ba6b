/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * qmp - qmp.sock: management in the QEMU Machine Protocol
 *
 * Newline-separated JSON objects both ways, a greeting first, qmp_capabilities before anything else, events to every client
 * that has done so. A command is one entry of the table in qmp.c: a name and a function from arguments to a result. Clients
 * that do not read lose their connection when 1 MiB waits for them.
 */
#ifndef VALED_QMP_H
#define VALED_QMP_H

#include "watch.h"

struct monitor;
struct port;
struct vswitch;

int qmp_start(int fd);
void qmp_stop(void);

void qmp_accept(struct watch *w);
void qmp_ready(struct watch *w, uint32_t events);

/* Events. reason: why a port or monitor was closed, else NULL. */
void qmp_event_port(const char *event, const struct port *port, const char *reason);
void qmp_event_monitor(const char *event, const struct monitor *monitor, const char *reason);
void qmp_event_switch(const char *event, const struct vswitch *sw);

/* The descriptor to which the client whose command runs gave this name by getfd; it is the caller's now. -ENOENT. */
int qmp_take_fd(const char *name);

/* Connections open now. */
unsigned int qmp_clients(void);

#endif
