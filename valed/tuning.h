/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * tuning - what can be set while valed runs, beside switches and ports
 *
 *   bridge_batch  frames of one batch        netmap's names and meanings
 *   max_bridges   switches
 *   verbose       0 warnings, 1 ports that come and go, 2 more
 *   busy_poll     microseconds that a worker polls a ring after its last frames; "auto": some where CPUs are to spare
 *
 * and which worker runs on which CPU and serves which ring.
 */
#ifndef VALED_TUNING_H
#define VALED_TUNING_H

#include <jansson.h>

#define BUSY_POLL_MAX 10000 /* microseconds */

/* Takes the options of the command line over. */
void tuning_start(void);

/* query-parameters, parameter-set, worker-set: see docs/qmp.md. NULL with a line in *error. */
json_t *tuning_query(json_t *arguments, const char **error);
json_t *tuning_set(json_t *arguments, const char **error);
json_t *tuning_worker(json_t *arguments, const char **error);

#endif
