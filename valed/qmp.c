/* SPDX-License-Identifier: BSD-2-Clause */
/* qmp.sock: management in the QEMU Machine Protocol. */
#include "qmp.h"

#include "control.h"
#include "handed_fds.h"
#include "impair.h"
#include "log.h"
#include "main.h"
#include "monitor.h"
#include "query.h"
#include "state.h"
#include "switch_commands.h"
#include "tuning.h"
#include "version.h"
#include "vswitch.h"
#include "worker.h"

#include <vale_proto.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define INPUT_MAX  (64 * 1024)
#define OUTPUT_MAX (1024 * 1024)
#define DESC_MAX   1024 /* of an error */

struct client {
    struct watch watch;
    bool negotiated;
    char *input; /* INPUT_MAX bytes */
    size_t input_len;
    char *output; /* what the socket did not take yet */
    size_t output_len;
    bool broken; /* to be closed by its own handler */
    struct handed_fds fds;
    struct client *next;
};

static struct watch listener;
static struct client *clients;
static unsigned int client_count;
static struct client *speaker; /* whose command runs */

/* ------------------------------------------------------------------------------------------------------- output --- */

static void flush_output(struct client *c)
{
    while (c->output_len) {
        ssize_t n = send(c->watch.fd, c->output, c->output_len, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (n < 0) {
            c->broken = c->broken || (errno != EAGAIN && errno != EINTR);
            break;
        }
        c->output_len -= (size_t)n;
        memmove(c->output, c->output + n, c->output_len);
    }
    watch_events(&c->watch, EPOLLIN | (c->output_len ? EPOLLOUT : 0));
}

/* Takes the reference to message. */
static void send_json(struct client *c, json_t *message)
{
    char *text = json_dumps(message, JSON_COMPACT);
    size_t len = text ? strlen(text) : 0;
    char *grown = NULL;

    if (text && c->output_len + len + 2 <= OUTPUT_MAX)
        grown = realloc(c->output, c->output_len + len + 2);
    if (grown) {
        c->output = grown;
        memcpy(c->output + c->output_len, text, len);
        memcpy(c->output + c->output_len + len, "\r\n", 2);
        c->output_len += len + 2;
        flush_output(c);
    } else {
        c->broken = true;
        shutdown(c->watch.fd, SHUT_RDWR); /* its handler sees the end */
    }
    free(text);
    json_decref(message);
}

/* desc may quote what a client wrote, cut inside a character: no JSON string, so it is then given in ASCII. */
static json_t *error_object(const char *class, const char *desc)
{
    json_t *text = json_string(desc);
    char ascii[DESC_MAX];

    if (!text) {
        snprintf(ascii, sizeof(ascii), "%s", desc);
        for (char *p = ascii; *p; p++)
            *p = *p & 0x80 ? '?' : *p;
        text = json_string(ascii);
    }
    return json_pack("{s:{s:s, s:o}}", "error", "class", class, "desc", text);
}

static void broadcast(const char *event, json_t *data)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    for (struct client *c = clients; c; c = c->next)
        if (c->negotiated && !c->broken)
            send_json(c, json_pack("{s:s, s:O, s:{s:I, s:I}}", "event", event, "data", data, "timestamp", "seconds",
                                   (json_int_t)now.tv_sec, "microseconds", (json_int_t)now.tv_nsec / 1000));
    json_decref(data);
}

void qmp_event_port(const char *event, const struct port *port, const char *reason)
{
    json_t *data = reason ? query_port(port) : json_pack("{s:s, s:s}", "name", port->name.full, "kind", port->ops->kind);

    if (reason)
        json_object_set_new(data, "reason", json_string(reason));
    broadcast(event, data);
}

void qmp_event_monitor(const char *event, const struct monitor *monitor, const char *reason)
{
    json_t *data = monitor_describe(monitor);

    if (reason)
        json_object_set_new(data, "reason", json_string(reason));
    broadcast(event, data);
}

void qmp_event_switch(const char *event, const struct vswitch *sw)
{
    broadcast(event, json_pack("{s:s}", "name", sw->name));
}

/* ----------------------------------------------------------------------------------------------------- commands --- */

/* A command returns its result, or NULL and a line in *error. */
struct command {
    const char *name;
    json_t *(*run)(json_t *arguments, const char **error);
};

static const struct command commands[];

static json_t *cmd_version(json_t *arguments, const char **error)
{
    (void)arguments, (void)error;
    return query_version();
}

static json_t *cmd_commands(json_t *arguments, const char **error);

static json_t *cmd_switches(json_t *arguments, const char **error)
{
    (void)arguments, (void)error;
    return query_switches();
}

/* What `query` says of all switches, or of the one that is named. */
static json_t *of_switches(json_t *arguments, const char **error, json_t *(*query)(const char *switch_name))
{
    const char *name = NULL;
    json_t *list;

    *error = "expected one argument, switch: the name of a switch; or none";
    if (arguments && json_unpack(arguments, "{s?s !}", "switch", &name) != 0)
        return NULL;
    list = query(name);
    *error = "no such switch; query-switches lists them";
    return list;
}

static json_t *cmd_ports(json_t *arguments, const char **error)
{
    return of_switches(arguments, error, query_ports);
}

static json_t *cmd_monitors(json_t *arguments, const char **error)
{
    return of_switches(arguments, error, query_monitors);
}

static json_t *cmd_stats(json_t *arguments, const char **error)
{
    return of_switches(arguments, error, query_stats);
}

static json_t *cmd_workers(json_t *arguments, const char **error)
{
    (void)arguments, (void)error;
    return workers_describe();
}

static json_t *cmd_getfd(json_t *arguments, const char **error)
{
    const char *name;
    int err;

    *error = "getfd takes one argument, fdname, of at most 63 characters";
    if (json_unpack(arguments, "{s:s !}", "fdname", &name) != 0)
        return NULL;
    err = handed_fds_name(&speaker->fds, name);
    if (err == -ENOENT)
        *error = "no descriptor came with this command (SCM_RIGHTS)";
    if (err == -ENOSPC)
        *error = "too many descriptors wait to be used; closefd closes one";
    return err ? NULL : json_object();
}

static json_t *cmd_closefd(json_t *arguments, const char **error)
{
    const char *name;
    int fd;

    *error = "closefd takes one argument, fdname: a name given by getfd";
    if (json_unpack(arguments, "{s:s !}", "fdname", &name) != 0)
        return NULL;
    fd = qmp_take_fd(name);
    if (fd < 0)
        return NULL;
    close(fd);
    return json_object();
}

int qmp_take_fd(const char *name)
{
    return handed_fds_take(&speaker->fds, name);
}

static json_t *cmd_quit(json_t *arguments, const char **error)
{
    int forget = 0;

    if (arguments && json_unpack(arguments, "{s?b !}", "forget", &forget) != 0) {
        *error = "quit takes one argument, forget: true when the next valed shall not have the same ports";
        return NULL;
    }
    if (forget)
        state_freeze(true);
    main_quit("quit");
    return json_object();
}

static const struct command commands[] = {
    {"query-version", cmd_version}, {"query-commands", cmd_commands}, {"query-switches", cmd_switches},
    {"query-ports", cmd_ports},     {"query-workers", cmd_workers},   {"port-add", control_port_add},
    {"port-del", control_port_del}, {"port-set", impair_port_set},    {"switch-set", switch_set},
    {"query-parameters", tuning_query}, {"parameter-set", tuning_set}, {"worker-set", tuning_worker},
    {"query-stats", cmd_stats},     {"query-monitors", cmd_monitors},
    {"query-fdb", fdb_query},       {"fdb-add", fdb_add},             {"fdb-del", fdb_del},
    {"fdb-flush", fdb_flush},       {"getfd", cmd_getfd},
    {"closefd", cmd_closefd},       {"quit", cmd_quit},
};

#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

static json_t *cmd_commands(json_t *arguments, const char **error)
{
    json_t *list = json_pack("[{s:s}]", "name", "qmp_capabilities");

    (void)arguments, (void)error;
    for (size_t i = 0; i < COMMANDS; i++)
        json_array_append_new(list, json_pack("{s:s}", "name", commands[i].name));
    return list;
}

static json_t *run_command(const struct command *command, json_t *arguments)
{
    const char *error = NULL;
    json_t *result = command->run(arguments, &error);

    return result ? json_pack("{s:o}", "return", result) : error_object("GenericError", error);
}

static json_t *dispatch(struct client *c, const char *name, json_t *arguments)
{
    if (strcmp(name, "qmp_capabilities") == 0) {
        if (c->negotiated)
            return error_object("CommandNotFound", "capabilities negotiation is already complete");
        c->negotiated = true;
        return json_pack("{s:{}}", "return");
    }
    if (!c->negotiated)
        return error_object("CommandNotFound", "expecting capabilities negotiation with 'qmp_capabilities'");
    for (size_t i = 0; i < COMMANDS; i++)
        if (strcmp(commands[i].name, name) == 0)
            return run_command(&commands[i], arguments);
    return error_object("CommandNotFound", "no such command; query-commands lists them");
}

static void execute(struct client *c, json_t *message)
{
    const char *name = NULL;
    json_t *arguments = NULL, *id = json_object_get(message, "id"), *answer;

    speaker = c;
    if (json_unpack(message, "{s:s, s?o, s?o !}", "execute", &name, "arguments", &arguments, "id", &id) != 0)
        answer = error_object("GenericError", "expected an object with execute, and perhaps arguments and id");
    else if (arguments && !json_is_object(arguments))
        answer = error_object("GenericError", "arguments must be an object");
    else
        answer = dispatch(c, name, arguments);
    if (id)
        json_object_set(answer, "id", id);
    send_json(c, answer);
}

/* -------------------------------------------------------------------------------------------------------- input --- */

/* Executes every complete object of the input and keeps the rest. */
static void parse_input(struct client *c)
{
    while (!c->broken) {
        size_t skip = strspn(c->input, " \t\r\n");
        json_error_t error;
        json_t *message;

        memmove(c->input, c->input + skip, c->input_len - skip + 1);
        c->input_len -= skip;
        if (c->input_len == 0)
            return;
        message = json_loadb(c->input, c->input_len, JSON_DISABLE_EOF_CHECK, &error);
        /* What is cut anywhere, in a word or an escape, is an error to the parser: only a line's end tells which it is. */
        if (!message && !strchr(c->input + error.position, '\n') && c->input_len < INPUT_MAX - 1)
            return;
        if (!message) {
            send_json(c, error_object("GenericError", "not JSON"));
            c->input_len = 0;
            c->input[0] = '\0';
            return;
        }
        memmove(c->input, c->input + error.position, c->input_len - (size_t)error.position + 1);
        c->input_len -= (size_t)error.position;
        execute(c, message);
        json_decref(message);
    }
}

static void disconnect(struct client *c)
{
    struct client **link = &clients;

    while (*link != c)
        link = &(*link)->next;
    *link = c->next;
    client_count--;
    free(c->input);
    free(c->output);
    handed_fds_close_all(&c->fds);
    watch_free(&c->watch);
}

static bool read_input(struct client *c)
{
    struct iovec iov = {c->input + c->input_len, INPUT_MAX - 1 - c->input_len};
    char control[HANDED_CMSG_SIZE] __attribute__((aligned(sizeof(size_t))));
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    ssize_t n = recvmsg(c->watch.fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    if (n > 0)
        handed_fds_receive(&c->fds, &msg);
    if (n <= 0)
        return n < 0 && (errno == EAGAIN || errno == EINTR);
    /* A NUL cannot be part of JSON text, and would hide what follows it from the parser. */
    if (memchr(c->input + c->input_len, '\0', (size_t)n))
        return false;
    c->input_len += (size_t)n;
    c->input[c->input_len] = '\0';
    parse_input(c);
    return true;
}

void qmp_ready(struct watch *w, uint32_t events)
{
    struct client *c = (struct client *)w;

    if (events & EPOLLOUT)
        flush_output(c);
    if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && !read_input(c))
        c->broken = true;
    if (c->broken)
        disconnect(c);
}

void qmp_accept(struct watch *w)
{
    int fd = watch_accept(w, true);
    struct client *c;

    if (fd < 0)
        return;
    c = calloc(1, sizeof(*c));
    if (c)
        c->input = calloc(1, INPUT_MAX);
    if (!c || !c->input || watch_add(&c->watch, WATCH_QMP, fd) < 0) {
        log_warn("cannot accept a QMP client: %s", strerror(errno));
        close(fd);
        if (c)
            free(c->input);
        free(c);
        return;
    }
    handed_fds_init(&c->fds);
    c->next = clients;
    clients = c;
    client_count++;
    send_json(c, json_pack("{s:{s:o, s:i, s:[]}}", "QMP", "version", query_version(), "protocol", VALE_PROTO_VERSION,
                           "capabilities"));
}

int qmp_start(int fd)
{
    if (listen(fd, 16) < 0)
        return -errno;
    return watch_add(&listener, WATCH_QMP_LISTEN, fd);
}

void qmp_stop(void)
{
    while (clients) {
        flush_output(clients);
        disconnect(clients);
    }
    close(listener.fd);
}

unsigned int qmp_clients(void)
{
    return client_count;
}
