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

/* `whole`: a switch alone is a name too. */
static int parse(const char *text, bool whole, struct vale_name *name, struct vale_error *err)
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
             ((whole && colon[1] == '\0') ||
              copy_word(name->port, sizeof(name->port), colon + 1, strlen(colon + 1), strict));
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

int vale_name_parse(const char *text, struct vale_name *name, struct vale_error *err)
{
    return parse(text, false, name, err);
}

int vale_name_parse_monitored(const char *text, struct vale_name *name, struct vale_error *err)
{
    return parse(text, true, name, err);
}

int vale_name_parse_monitor(const char *text, struct vale_name *name, struct vale_error *err)
{
    const char *slash = strchr(text, '/');
    char before[NETMAP_REQ_IFNAMSIZ];
    int flags = 0, rc;

    if (slash == NULL) {
        return parse(text, false, name, err);
    }
    flags |= strchr(slash, 'r') != NULL ? VALE_OPEN_MONITOR_RX : 0;
    flags |= strchr(slash, 't') != NULL ? VALE_OPEN_MONITOR_TX : 0;
    if (flags == 0 || slash[1 + strspn(slash + 1, "rt")] != '\0') {
        return vale_fail(err, EINVAL, "\"%.64s\" ends in no monitor: write /r to see what is delivered to the port, /t what it "
                         "sends, /rt both", text);
    }
    /* What does not fit is no name, and its beginning is none either. */
    snprintf(before, sizeof(before), "%.*s", (int)(slash - text), text);
    rc = parse(before, true, name, err);
    return rc < 0 ? rc : flags;
}
