/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * qmp_client - commands to a valed over its qmp.sock, one at a time
 *
 * Events that come between are passed over. An answer that takes longer than QMP_TIMEOUT seconds is an error.
 */
#ifndef QMP_CLIENT_H
#define QMP_CLIENT_H

#include <jansson.h>
#include <libvale.h>

#define QMP_TIMEOUT 10

struct qmp_client;

/*
 * Connects to the valed that libvale's search of runtime directories finds ($VALE_RUNDIR is the whole list, where set). NULL
 * on failure; err->code is then ENOENT when no valed answers.
 */
struct qmp_client *qmp_connect(struct vale_error *err);

/* Takes the reference to arguments (NULL: none). What the command returns, or NULL with valed's line in err. */
json_t *qmp_execute(struct qmp_client *c, const char *command, json_t *arguments, struct vale_error *err);

/* Gives valed a copy of the descriptor, under that name (getfd). 0 or -errno. */
int qmp_hand_over(struct qmp_client *c, int fd, const char *name, struct vale_error *err);

void qmp_disconnect(struct qmp_client *c);

#endif
