/* SPDX-License-Identifier: BSD-2-Clause */
/* Commands that add and remove ports. */
#include "control.h"

#include "port.h"
#include "port_stream.h"
#include "query.h"
#include "vhost.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static char message[600];

static json_t *refuse(const char **error, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static json_t *refuse(const char **error, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(message, sizeof(message), fmt, ap);
    va_end(ap);
    *error = message;
    return NULL;
}

static int create(struct port **port, const struct vale_name *name, const char *kind, const char *path, bool connect,
                  bool allow_file)
{
    char default_path[108];

    if (!path) {
        snprintf(default_path, sizeof(default_path), "%s", name->full);
        path = default_path;
    }
    if (strcmp(kind, "vhost-user") == 0)
        return vhost_port_create(port, name, path, connect, allow_file);
    if (strcmp(kind, "stream") == 0)
        return stream_port_create(port, name, path, connect);
    return -EOPNOTSUPP;
}

json_t *control_port_add(json_t *arguments, const char **error)
{
    const char *text = NULL, *kind = NULL, *path = NULL;
    int connect = 0, allow_file = 0, err;
    struct vale_name name;
    struct vale_error why;
    struct port *port;

    if (json_unpack(arguments, "{s:s, s:s, s?s, s?b, s?b !}", "name", &text, "kind", &kind, "path", &path, "connect",
                    &connect, "allow-file-memory", &allow_file) != 0)
        return refuse(error, "port-add takes name, kind, and perhaps path, connect, allow-file-memory");
    if (vale_name_parse(text, &name, &why) < 0)
        return refuse(error, "%s", why.text);
    if (port_find(&name))
        return refuse(error, "%s: there is such a port already", name.full);
    err = create(&port, &name, kind, path, connect, allow_file);
    if (err == -EOPNOTSUPP)
        return refuse(error, "%s: no such kind of port; there are vhost-user and stream", kind);
    if (err)
        return refuse(error, "%s: %s: %s", name.full, path ? path : "its socket", strerror(-err));
    err = port_add(port);
    if (err) {
        port->ops->destroy(port);
        return refuse(error, "%s: %s", name.full, err == -ENOMEM ? "the switch is full" : strerror(-err));
    }
    return query_port(port);
}

json_t *control_port_del(json_t *arguments, const char **error)
{
    const char *text = NULL;
    struct vale_name name;
    struct vale_error why;
    struct port *port;

    if (json_unpack(arguments, "{s:s !}", "name", &text) != 0)
        return refuse(error, "port-del takes one argument, name");
    if (vale_name_parse(text, &name, &why) < 0)
        return refuse(error, "%s", why.text);
    port = port_find(&name);
    if (!port)
        return refuse(error, "%s: no such port; query-ports lists them", name.full);
    port_close(port, "port-del");
    return json_object();
}
