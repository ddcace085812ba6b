/* SPDX-License-Identifier: BSD-2-Clause */
/* Commands to a valed over its qmp.sock. */
#include "qmp_client.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <vale_proto.h>

struct qmp_client {
    FILE *in;
    int fd; /* of in */
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    char *line;
    size_t line_size;
};

static void __attribute__((format(printf, 3, 4))) set_error(struct vale_error *err, int code, const char *fmt, ...)
{
    va_list ap;

    err->code = code;
    va_start(ap, fmt);
    vsnprintf(err->text, sizeof(err->text), fmt, ap);
    va_end(ap);
}

/* ------------------------------------------------------------------------------------------------------- messages --- */

static int send_all(struct qmp_client *c, const char *text, size_t len, struct vale_error *err)
{
    while (len > 0) {
        ssize_t n = send(c->fd, text, len, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            set_error(err, errno, "%s: %s", c->path, strerror(errno));
            return -1;
        }
        text += n;
        len -= (size_t)n;
    }
    return 0;
}

/* The next message, or NULL. */
static json_t *receive(struct qmp_client *c, struct vale_error *err)
{
    json_t *message;

    errno = 0;
    if (getline(&c->line, &c->line_size, c->in) < 0) {
        int timed_out = errno == EAGAIN;

        set_error(err, timed_out ? ETIMEDOUT : ENXIO, timed_out ? "%s: no answer for %d s: see valed's log"
                  : "%s: valed has hung up", c->path, QMP_TIMEOUT);
        return NULL;
    }
    message = json_loads(c->line, 0, NULL);
    if (!json_is_object(message)) {
        set_error(err, EPROTO, "%s: does not speak QMP: not valed's socket", c->path);
        json_decref(message);
        return NULL;
    }
    return message;
}

/* The answer to the command sent last, passing over events. */
static json_t *receive_answer(struct qmp_client *c, struct vale_error *err)
{
    json_t *message = receive(c, err);

    while (message != NULL && json_object_get(message, "event") != NULL) {
        json_decref(message);
        message = receive(c, err);
    }
    return message;
}

json_t *qmp_execute(struct qmp_client *c, const char *command, json_t *arguments, struct vale_error *err)
{
    json_t *request = json_pack("{s:s, s:o*}", "execute", command, "arguments", arguments);
    char *text = json_dumps(request, JSON_COMPACT);
    json_t *answer = NULL, *result;
    const char *why = "not an answer";

    json_decref(request);
    if (text == NULL) {
        set_error(err, EINVAL, "%s: arguments that are not UTF-8", command);
        return NULL;
    }
    if (send_all(c, text, strlen(text), err) == 0 && send_all(c, "\n", 1, err) == 0) {
        answer = receive_answer(c, err);
    }
    free(text);
    if (answer == NULL) {
        return NULL;
    }
    result = json_incref(json_object_get(answer, "return"));
    if (result == NULL) {
        json_unpack(answer, "{s:{s:s}}", "error", "desc", &why);
        set_error(err, EINVAL, "%s", why);
    }
    json_decref(answer);
    return result;
}

/* The descriptor travels with a space, which means nothing between messages. */
int qmp_hand_over(struct qmp_client *c, int fd, const char *name, struct vale_error *err)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {.header = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))}};
    struct iovec iov = {(void *)" ", 1};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    json_t *result;

    memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
    if (sendmsg(c->fd, &msg, MSG_NOSIGNAL) < 0) {
        set_error(err, errno, "%s: cannot hand a descriptor over: %s", c->path, strerror(errno));
        return -err->code;
    }
    result = qmp_execute(c, "getfd", json_pack("{s:s}", "fdname", name), err);
    json_decref(result);
    return result == NULL ? -err->code : 0;
}

/* ----------------------------------------------------------------------------------------------------- connection --- */

static int open_socket(struct qmp_client *c, struct vale_error *err)
{
    struct timeval timeout = {.tv_sec = QMP_TIMEOUT};
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    char dir[sizeof(addr.sun_path)];
    struct vale_error why;

    if (vale_rundir(dir, sizeof(dir), false, &why) < 0) {
        set_error(err, ENOENT, "%s", why.text);
        return -1;
    }
    if ((size_t)snprintf(c->path, sizeof(c->path), "%s/%s", dir, VALE_QMP_NAME) >= sizeof(c->path)) {
        set_error(err, ENOENT, "%s: too long for a socket's path", dir);
        return -1;
    }
    memcpy(addr.sun_path, c->path, sizeof(c->path));
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd >= 0 && connect(c->fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        set_error(err, ENOENT, errno == EACCES ? "%s: %s: it is for root and the user who runs valed"
                  : "%s: no valed answers (%s): start valed, or say --rundir DIR", c->path, strerror(errno));
        close(c->fd);
        return -1;
    }
    if (c->fd < 0 || setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)) < 0 ||
        (c->in = fdopen(c->fd, "r")) == NULL) {
        set_error(err, ENOENT, "%s: %s", c->path, strerror(errno));
        return -1;
    }
    return 0;
}

/* The greeting must be of a valed that speaks our protocol. */
static int check_greeting(struct qmp_client *c, struct vale_error *err)
{
    json_t *greeting = receive(c, err), *result = NULL;
    int protocol = -1, rc = -1;

    if (greeting == NULL) {
        return -1;
    }
    if (json_unpack(greeting, "{s:{s:i}}", "QMP", "protocol", &protocol) != 0) {
        set_error(err, EPROTO, "%s: not a valed: it greets in another way", c->path);
    } else if (protocol != VALE_PROTO_VERSION) {
        set_error(err, EPROTO, "%s: valed speaks protocol %d and valectl %d: install both from one release", c->path,
                  protocol, VALE_PROTO_VERSION);
    } else {
        result = qmp_execute(c, "qmp_capabilities", NULL, err);
        rc = result == NULL ? -1 : 0;
    }
    json_decref(result);
    json_decref(greeting);
    return rc;
}

struct qmp_client *qmp_connect(struct vale_error *err)
{
    struct qmp_client *c = calloc(1, sizeof(*c));

    if (c == NULL) {
        set_error(err, ENOMEM, "out of memory");
        return NULL;
    }
    if (open_socket(c, err) < 0 || check_greeting(c, err) < 0) {
        qmp_disconnect(c);
        return NULL;
    }
    return c;
}

void qmp_disconnect(struct qmp_client *c)
{
    if (c->in != NULL) {
        fclose(c->in);
    }
    free(c->line);
    free(c);
}
