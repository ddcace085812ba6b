/* SPDX-License-Identifier: BSD-2-Clause */
/* refuse - the one line that says why a command of qmp.sock cannot be */
#ifndef VALED_REFUSE_H
#define VALED_REFUSE_H

/* Sets *error, until the next refusal. NULL, for the caller to return. */
void *refuse(const char **error, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
