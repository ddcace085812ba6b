/* SPDX-License-Identifier: BSD-2-Clause */
/* error.c - one line for a person, one number for a program */
#include "internal.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Text from outside (names, paths, logs) must not break the line or drive a terminal. */
static void make_one_line(char *text)
{
    for (; *text != '\0'; text++) {
        if ((unsigned char)*text < ' ' || *text == 0x7f) {
            *text = '?';
        }
    }
}

int vale_fail(struct vale_error *err, int code, const char *format, ...)
{
    va_list args;

    if (err != NULL) {
        va_start(args, format);
        vsnprintf(err->text, sizeof(err->text), format, args);
        va_end(args);
        make_one_line(err->text);
        err->code = code;
    }
    return -code;
}

static int fail_monitor(struct vale_error *err, int code, const char *name, const char *device)
{
    switch (code) {
    case EINVAL:
        return vale_fail(err, ENODEV, "%s is not open on %s, so there is nothing to watch: open it first", name, device);
    case EPERM:
        return vale_fail(err, code, "%s: %s shows others' frames to root, its own user and its --monitor-group only: be one of "
                         "them", name, device);
    case EOPNOTSUPP:
        return vale_fail(err, code, "%s: %s has no monitors: update it", name, device);
    default:
        return vale_fail(err, code, "%s: no monitor on %s: %s", name, device, strerror(code));
    }
}

int vale_fail_register(struct vale_error *err, int code, const char *name, const char *device, bool monitor)
{
    if (monitor) {
        return fail_monitor(err, code, name, device);
    }
    switch (code) {
    case EBUSY:
        return vale_fail(err, code, "%s: the port is taken on %s: close it there, or choose another port name", name,
                         device);
    case ENOMEM:
    case ENOSPC:
    case EMFILE:
    case ENFILE:
        return vale_fail(err, code, "%s: no room on %s (%s): the switch is full or a limit is reached, close some ports",
                         name, device, strerror(code));
    case EDQUOT:
        return vale_fail(err, code, "%s: refused by %s: your ports or their memory are at its limit: close some, or start "
                         "valed with more --ports-per-uid or --memory-per-uid", name, device);
    case EACCES:
    case EPERM:
        return vale_fail(err, code, "%s: not permitted by %s: run as the user who owns it", name, device);
    case EIO:
        return vale_fail(err, code, "%s: frames have a virtio-net header before them on %s: open it with one, or choose "
                         "another port name", name, device);
    default:
        return vale_fail(err, code, "%s: refused by %s: %s", name, device, strerror(code));
    }
}

int vale_fail_vnet_hdr(struct vale_error *err, int code, const char *name, const char *device, unsigned int len)
{
    return vale_fail(err, code, "%s: no virtio-net header of %u bytes on %s (%s): use 0, 10 or 12", name, len, device,
                     strerror(code));
}
