/* SPDX-License-Identifier: BSD-2-Clause */
/* name.c - the grammar of port names; the vectors that fix it are in tests/vectors/names.json */
#include "internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define LETTERS_AND_DIGITS "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

/* Copies length bytes, `-` becoming `_`, when they are 1..size-1 characters of the set. */
static bool copy_word(char *to, size_t size, const char *from, size_t length, const char *set)
{
    size_t i;

    if (length == 0 || length >= size || strspn(from, set) < length) {
        return false;
    }
    for (i = 0; i < length; i++) {
        to[i] = from[i] == '-' ? '_' : from[i];
    }
    to[length] = '\0';
    return true;
}

int vale_name_parse(const char *text, struct vale_name *name, struct vale_error *err)
{
    static const char strict[] = LETTERS_AND_DIGITS "_";
    static const char early[] = LETTERS_AND_DIGITS "_-";
    size_t prefix = strlen(NM_BDG_NAME);
    const char *colon = strchr(text, ':');
    bool ok;

    memset(name, 0, sizeof(*name));
    if (strncmp(text, NM_BDG_NAME, prefix) != 0) {
        ok = false;
    } else if (colon == NULL) {
        memcpy(name->sw, NM_BDG_NAME, prefix);
        ok = copy_word(name->port, sizeof(name->port), text, strlen(text), early);
    } else {
        ok = copy_word(name->sw, sizeof(name->sw), text, (size_t)(colon - text), early) &&
             copy_word(name->port, sizeof(name->port), colon + 1, strlen(colon + 1), strict);
    }
    if (!ok) {
        return vale_fail(err, EINVAL,
                         "\"%.64s\" is not a port name: write vale1:a, that is `vale` and up to %d letters, digits or _, "
                         "a colon, and 1 to %d letters, digits or _",
                         text, (int)(VALE_SWITCH_MAX - 1 - prefix), VALE_PORT_MAX - 1);
    }
    snprintf(name->full, sizeof(name->full), "%s:%s", name->sw, name->port);
    return 0;
}
