/* SPDX-License-Identifier: BSD-2-Clause */
/* switch_commands - what management asks of a switch and its fdb (docs/qmp.md). */
#ifndef VALED_SWITCH_COMMANDS_H
#define VALED_SWITCH_COMMANDS_H

#include <jansson.h>

/* Each returns its result, or NULL and a line in *error, valid until the next call. */
json_t *switch_set(json_t *arguments, const char **error);
json_t *fdb_query(json_t *arguments, const char **error);
json_t *fdb_add(json_t *arguments, const char **error);
json_t *fdb_del(json_t *arguments, const char **error);
json_t *fdb_flush(json_t *arguments, const char **error);

#endif
