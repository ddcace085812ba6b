/* SPDX-License-Identifier: BSD-2-Clause */
/* Commands that add and remove ports. */
#include "control.h"

#include "port.h"
#include "port_null.h"
#include "port_stream.h"
#include "port_tap.h"
#include "qmp.h"
#include "query.h"
#include "refuse.h"
#include "state.h"
#include "vhost.h"

#include <errno.h>
#include <netinet/ether.h>
#include <string.h>
#include <unistd.h>

/* ---------------------------------------------------------------------------------------------- kinds of port --- */

/* Each makes a port from what port-add was given besides name and kind, or returns NULL with a line in *error. */

static const char *why_no_socket(int err)
{
    return err == -EACCES ? "Permission denied: valed makes sockets in its runtime directory, and in each --socket-dir it was "
                            "started with"
                          : strerror(-err);
}

static struct port *add_vhost_user(const struct vale_name *name, json_t *arguments, const char **error)
{
    const char *path = name->full;
    int connect = 0, allow_file = 0, err;
    struct port *port;

    if (json_unpack(arguments, "{s?s, s?b, s?b !}", "path", &path, "connect", &connect, "allow-file-memory", &allow_file))
        return refuse(error, "a vhost-user port takes path, connect, allow-file-memory");
    err = vhost_port_create(&port, name, path, connect, allow_file);
    return err ? refuse(error, "%s: %s: %s", name->full, path, why_no_socket(err)) : port;
}

static struct port *add_stream(const struct vale_name *name, json_t *arguments, const char **error)
{
    const char *path = name->full;
    int connect = 0, err;
    struct port *port;

    if (json_unpack(arguments, "{s?s, s?b !}", "path", &path, "connect", &connect))
        return refuse(error, "a stream port takes path, connect");
    err = stream_port_create(&port, name, path, connect);
    return err ? refuse(error, "%s: %s: %s", name->full, path, why_no_socket(err)) : port;
}

static const char *why_no_tap(int err)
{
    switch (err) {
    case -ENOTTY: return "not a tap (/dev/net/tun with IFF_TAP)";
    case -EPROTOTYPE: return "its frames have headers: open it with IFF_NO_PI and without IFF_VNET_HDR";
    default: return strerror(-err);
    }
}

static struct port *add_tap(const struct vale_name *name, json_t *arguments, const char **error)
{
    const char *fdname;
    struct port *port;
    int fd, err;

    if (json_unpack(arguments, "{s:s !}", "fd", &fdname))
        return refuse(error, "a tap port takes fd, a name given by getfd; valectl add --tap opens it and hands it over");
    fd = qmp_take_fd(fdname);
    if (fd < 0)
        return refuse(error, "%s: no descriptor of that name; getfd gives names", fdname);
    err = tap_port_create(&port, name, fd);
    if (err == 0)
        return port;
    close(fd);
    return refuse(error, "%s: %s: %s", name->full, fdname, why_no_tap(err));
}

static bool unpack_source(json_t *source, struct null_source *s)
{
    const char *destination = "ff:ff:ff:ff:ff:ff", *origin = "02:00:00:00:00:01";
    json_int_t frames = 0;
    int length = 60;

    if (json_unpack(source, "{s?I, s?i, s?s, s?s !}", "frames", &frames, "length", &length, "destination", &destination,
                    "source", &origin) ||
        frames < 0 || length < FRAME_LEN_MIN || length > FRAME_LEN_MAX)
        return false;
    s->frames = (uint64_t)frames;
    s->length = (uint16_t)length;
    return ether_aton_r(destination, &s->destination) && ether_aton_r(origin, &s->source);
}

static struct port *add_null(const struct vale_name *name, json_t *arguments, const char **error)
{
    struct null_source source;
    json_t *object = NULL;
    struct port *port;
    int err;

    if (json_unpack(arguments, "{s?o !}", "source", &object) || (object && !unpack_source(object, &source)))
        return refuse(error, "a null port takes source: {frames, length from 14 to 65535, destination, source}");
    err = null_port_create(&port, name, object ? &source : NULL);
    return err ? refuse(error, "%s: %s", name->full, strerror(-err)) : port;
}

static const struct kind {
    const char *name;
    struct port *(*add)(const struct vale_name *name, json_t *arguments, const char **error);
} kinds[] = {
    {"vhost-user", add_vhost_user},
    {"stream", add_stream},
    {"tap", add_tap},
    {"null", add_null},
};

static struct port *create(const struct vale_name *name, const char *kind, json_t *arguments, const char **error)
{
    json_t *rest = json_copy(arguments);
    struct port *port = NULL;
    size_t i = 0;

    json_object_del(rest, "name");
    json_object_del(rest, "kind");
    while (i < sizeof(kinds) / sizeof(kinds[0]) && strcmp(kinds[i].name, kind) != 0)
        i++;
    if (i < sizeof(kinds) / sizeof(kinds[0]))
        port = kinds[i].add(name, rest, error);
    else
        refuse(error, "%s: no such kind of port; docs/qmp.md lists them", kind);
    json_decref(rest);
    return port;
}

/* -------------------------------------------------------------------------------------------------------- commands --- */

json_t *control_port_add(json_t *arguments, const char **error)
{
    const char *text = NULL, *kind = NULL;
    struct vale_name name;
    struct vale_error why;
    struct port *port;
    int err;

    if (json_unpack(arguments, "{s:s, s:s}", "name", &text, "kind", &kind) != 0)
        return refuse(error, "port-add takes name, kind, and what is of that kind");
    if (vale_name_parse(text, &name, &why) < 0)
        return refuse(error, "%s", why.text);
    if (port_find(&name))
        return refuse(error, "%s: there is such a port already", name.full);
    port = create(&name, kind, arguments, error);
    if (!port)
        return NULL;
    err = port_add(port);
    if (err)
        return refuse(error, "%s: %s", name.full, err == -ENOMEM ? "the switch is full" : strerror(-err));
    state_port_added(name.full, arguments);
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
