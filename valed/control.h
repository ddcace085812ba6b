/* SPDX-License-Identifier: BSD-2-Clause */
/* control - commands that change something: ports that are added and removed by management (docs/qmp.md). */
#ifndef VALED_CONTROL_H
#define VALED_CONTROL_H

#include <jansson.h>

/* Each returns its result, or NULL and a line in *error, valid until the next call. */
json_t *control_port_add(json_t *arguments, const char **error);
json_t *control_port_del(json_t *arguments, const char **error);

#endif
