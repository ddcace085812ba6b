/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * attach.c - the client's side of the attach protocol (vale_proto.h)
 *
 * The socket's path may have been given by the user, so what listens there need not be valed: it may answer nonsense, with
 * any descriptors, or not at all. Nothing of an answer is used before it was checked, and an answer has a deadline. A
 * descriptor that is not what it should be could make a later write or access fatal (a pipe: SIGPIPE; a file that shrinks:
 * SIGBUS), so their kinds are checked too.
 *
 * An open waits for its answer. Coming back after a restart does not: its request is sent, and looked after now and then.
 */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

/* A request as it travels: the body stands right behind the header, then an option that most do not use. */
struct request {
    struct nmreq_header hdr;
    union {
        struct nmreq_register reg;
        struct nmreq_port_hdr port_hdr;
    };
    struct vale_opt_resume resume;
};

struct answer {
    struct vale_reply reply;
    struct request msg;
};

/* flags: SOCK_NONBLOCK, or 0. */
static int connect_to(const char *path, int flags)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct timeval limit = {.tv_sec = VALE_ANSWER_MS / 1000};
    int fd;

    if (strlen(path) >= sizeof(addr.sun_path)) {
        return -ENAMETOOLONG;
    }
    strcpy(addr.sun_path, path);
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | flags, 0);
    if (fd < 0) {
        return -errno;
    }
    /* Bounds connect() where the listener's backlog is full, and sendmsg() where nobody reads. */
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        int code = errno;

        close(fd);
        return code == EAGAIN ? -ETIMEDOUT : -code;
    }
    return fd;
}

int vale_attach_connect(const char *path)
{
    return connect_to(path, 0);
}

/* Sends the request, with the descriptor that the answer shall go to, and perhaps (not -1) the port's memory. 0 or -errno. */
static int send_request(int conn, struct request *msg, int reply_fd, int mem_fd)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control = {.bytes = {0}};
    struct iovec iov = {.iov_base = msg, .iov_len = sizeof(*msg)};
    struct msghdr mh = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&mh);
    int fds[2] = {reply_fd, mem_fd};
    size_t length = (mem_fd < 0 ? 1 : 2) * sizeof(int);

    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(length);
    mh.msg_controllen = CMSG_SPACE(length);
    memcpy(CMSG_DATA(cmsg), fds, length);
    return sendmsg(conn, &mh, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* Waits for an answer, or for the end of the connection that should bring it. 0 or -errno. */
static int await_answer(int conn, int reply_fd, int timeout_ms)
{
    struct pollfd fds[2] = {{.fd = reply_fd, .events = POLLIN}, {.fd = conn, .events = POLLIN}};
    int rc;

    do {
        rc = poll(fds, 2, timeout_ms);
    } while (rc < 0 && errno == EINTR);
    if (rc <= 0) {
        return rc < 0 ? -errno : -ETIMEDOUT;
    }
    return fds[0].revents & POLLIN ? 0 : -ECONNRESET;
}

/* Takes the descriptors of a message: all of them, so that none leaks, however many there are. Their number. */
static unsigned int take_fds(struct msghdr *mh, int *fds, unsigned int max)
{
    struct cmsghdr *cmsg;
    unsigned int count = 0;

    for (cmsg = CMSG_FIRSTHDR(mh); cmsg != NULL; cmsg = CMSG_NXTHDR(mh, cmsg)) {
        size_t i;

        if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        for (i = 0; i < (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof(int), sizeof(fd));
            if (count < max) {
                fds[count] = fd;
            } else {
                close(fd);
            }
            count++;
        }
    }
    return count;
}

/*
 * Receives and checks the frame of the answer, which on success brings `wanted` descriptors. Descriptors are put into fds,
 * in any case. 0 or -errno.
 */
static int receive_answer(int reply_fd, struct answer *answer, int fds[VALE_FD_COUNT], unsigned int wanted)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * VALE_FD_COUNT)];
    } control;
    struct iovec iov = {.iov_base = answer, .iov_len = sizeof(*answer)};
    struct msghdr mh = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
    ssize_t length = recvmsg(reply_fd, &mh, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    unsigned int count;

    if (length <= 0) {
        return length < 0 ? -errno : -ECONNRESET;
    }
    count = take_fds(&mh, fds, VALE_FD_COUNT);
    if (length < (ssize_t)sizeof(answer->reply) || mh.msg_flags & (MSG_TRUNC | MSG_CTRUNC) ||
        answer->reply.magic != VALE_REPLY_MAGIC) {
        return -EPROTO;
    }
    if (answer->reply.version != VALE_PROTO_VERSION) {
        return -EPROTONOSUPPORT;
    }
    if (answer->reply.error != 0) {
        return answer->reply.error > 0 && answer->reply.error < 4096 ? 0 : -EPROTO;
    }
    return length == (ssize_t)sizeof(*answer) && answer->reply.length == sizeof(answer->msg) && count == wanted ? 0 : -EPROTO;
}

/* The kinds of the descriptors: a sealed memfd of that size, an eventfd (an inode of no type), two pipes. */
static bool fds_are_sound(const int fds[VALE_FD_COUNT], uint64_t memsize)
{
    const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    struct stat st;
    int i, got;

    got = fcntl(fds[VALE_FD_MEM], F_GET_SEALS);
    if (got < 0 || (got & seals) != seals || fstat(fds[VALE_FD_MEM], &st) < 0 || st.st_size < 0 ||
        (uint64_t)st.st_size != memsize) {
        return false;
    }
    if (fstat(fds[VALE_FD_KICK], &st) < 0 || (st.st_mode & S_IFMT) != 0) {
        return false;
    }
    for (i = VALE_FD_CALL_RX; i <= VALE_FD_CALL_TX; i++) {
        if (fstat(fds[i], &st) < 0 || !S_ISFIFO(st.st_mode)) {
            return false;
        }
    }
    for (i = VALE_FD_KICK; i <= VALE_FD_CALL_TX; i++) {
        if (fcntl(fds[i], F_SETFL, fcntl(fds[i], F_GETFL) | O_NONBLOCK) < 0) {
            return false;
        }
    }
    return true;
}

static void close_fds(int fds[VALE_FD_COUNT])
{
    int i;

    for (i = 0; i < VALE_FD_COUNT; i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
}

/* One request and its answer. 0 or -errno. */
static int transact(int conn, struct request *msg, struct answer *answer, int fds[VALE_FD_COUNT])
{
    int pair[2];
    int rc;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
        return -errno;
    }
    rc = send_request(conn, msg, pair[1], -1);
    close(pair[1]);
    if (rc == 0) {
        rc = await_answer(conn, pair[0], VALE_ANSWER_MS);
    }
    if (rc == 0) {
        rc = receive_answer(pair[0], answer, fds, msg->hdr.nr_reqtype == NETMAP_REQ_REGISTER ? VALE_FD_COUNT : 0);
    }
    close(pair[0]);
    return rc;
}

static int explain(int rc, const char *path, struct vale_error *err)
{
    switch (-rc) {
    case ETIMEDOUT:
    case EAGAIN:
        return vale_fail(err, ETIMEDOUT, "%s: no answer within %d s: valed hangs, or the socket is not valed's", path,
                         VALE_ANSWER_MS / 1000);
    case EPROTONOSUPPORT:
        return vale_fail(err, EPROTO, "%s: speaks another version of the protocol than %d: install valed and its clients "
                         "from one release", path, VALE_PROTO_VERSION);
    case EPIPE:
    case ECONNRESET:
        return vale_fail(err, EPROTO, "%s: hung up without an answer: valed is at a limit, which its log names, or the socket "
                         "is not valed's", path);
    case EPROTO:
        return vale_fail(err, EPROTO, "%s: not a valed's socket (its answer makes no sense): check the path", path);
    default:
        return vale_fail(err, -rc, "%s: %s", path, strerror(-rc));
    }
}

int vale_attach_register(int conn, const char *path, const char *name, const struct nmreq_register *reg,
                         struct vale_attachment *got, struct vale_error *err)
{
    struct request msg = {
        .hdr = {.nr_version = NETMAP_API,
                .nr_reqtype = NETMAP_REQ_REGISTER,
                .nr_body = offsetof(struct request, reg)},
        .reg = *reg,
    };
    struct answer answer;
    int fds[VALE_FD_COUNT] = {-1, -1, -1, -1};
    int rc;

    memset(&answer, 0, sizeof(answer));
    snprintf(msg.hdr.nr_name, sizeof(msg.hdr.nr_name), "%s", name);
    rc = transact(conn, &msg, &answer, fds);
    if (rc == 0 && answer.reply.error != 0) {
        rc = vale_fail_register(err, answer.reply.error, name, path,
                                reg->nr_flags & (NR_MONITOR_RX | NR_MONITOR_TX));
    } else if (rc == 0 && !fds_are_sound(fds, answer.msg.reg.nr_memsize)) {
        rc = explain(-EPROTO, path, err);
    } else if (rc < 0) {
        rc = explain(rc, path, err);
    }
    if (rc < 0) {
        close_fds(fds);
        return rc;
    }
    got->reg = answer.msg.reg;
    memcpy(got->fds, fds, sizeof(fds));
    return 0;
}

int vale_attach_resume_begin(const char *path, const char *name, const struct vale_resume *what, int socks[2])
{
    struct request msg = {
        .hdr = {.nr_version = NETMAP_API,
                .nr_reqtype = NETMAP_REQ_REGISTER,
                .nr_options = offsetof(struct request, resume),
                .nr_body = offsetof(struct request, reg)},
        .reg = what->reg,
        .resume = {.nro = {.nro_reqtype = VALE_OPT_RESUME},
                   .incarnation = what->incarnation,
                   .hdr_len = what->vnet_hdr_len,
                   .accepts = what->accepts},
    };
    int pair[2];
    int conn, rc;

    snprintf(msg.hdr.nr_name, sizeof(msg.hdr.nr_name), "%s", name);
    conn = connect_to(path, SOCK_NONBLOCK);
    if (conn < 0) {
        return conn;
    }
    if (fcntl(conn, F_SETFL, O_RDWR) < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
        rc = -errno;
        close(conn);
        return rc;
    }
    rc = send_request(conn, &msg, pair[1], what->mem_fd);
    close(pair[1]);
    if (rc < 0) {
        close(conn);
        close(pair[0]);
        return rc;
    }
    socks[0] = conn;
    socks[1] = pair[0];
    return 0;
}

int vale_attach_resume_end(const int socks[2], const struct vale_resume *what, struct vale_attachment *got)
{
    struct answer answer;
    int fds[VALE_FD_COUNT] = {-1, -1, -1, -1};
    int rc = await_answer(socks[0], socks[1], 0);

    if (rc < 0) {
        return rc == -ETIMEDOUT ? -EAGAIN : rc;
    }
    memset(&answer, 0, sizeof(answer));
    rc = receive_answer(socks[1], &answer, fds, VALE_FD_COUNT);
    if (rc == 0) {
        rc = answer.reply.error;
    }
    if (rc == 0 && !fds_are_sound(fds, what->reg.nr_memsize)) {
        rc = -EPROTO;
    }
    if (rc != 0) {
        close_fds(fds);
        return rc == -EAGAIN ? -EPROTO : rc;
    }
    got->reg = answer.msg.reg;
    memcpy(got->fds, fds, sizeof(fds));
    return 0;
}

int vale_attach_vnet_hdr(int conn, const char *path, const char *name, const struct nmreq_port_hdr *body,
                         struct vale_error *err)
{
    struct request msg = {
        .hdr = {.nr_version = NETMAP_API,
                .nr_reqtype = NETMAP_REQ_PORT_HDR_SET,
                .nr_body = offsetof(struct request, port_hdr)},
        .port_hdr = *body,
    };
    struct answer answer;
    int fds[VALE_FD_COUNT] = {-1, -1, -1, -1};
    int rc;

    memset(&answer, 0, sizeof(answer));
    snprintf(msg.hdr.nr_name, sizeof(msg.hdr.nr_name), "%s", name);
    rc = transact(conn, &msg, &answer, fds);
    close_fds(fds);
    if (rc < 0) {
        return explain(rc, path, err);
    }
    return answer.reply.error != 0 ? vale_fail_vnet_hdr(err, answer.reply.error, name, path, body->nr_hdr_len) : 0;
}
