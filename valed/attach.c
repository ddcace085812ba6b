/* SPDX-License-Identifier: BSD-2-Clause */
/* netmap.sock: connections, requests, answers. */
#include "attach.h"

#include "log.h"
#include "monitor.h"
#include "port_ring.h"
#include "quota.h"
#include "vswitch.h"

#include <errno.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define MONITOR_FLAGS (NR_MONITOR_TX | NR_MONITOR_RX | NR_ZCOPY_MON)
#define FDS_MAX 8 /* accepted with a message; all but the first two are closed */

struct request {
    union {
        struct nmreq_header header;
        uint8_t bytes[VALE_MSG_MAX];
    };
    size_t length;
    uid_t uid; /* whose QUOTA_ANSWERS it counts against */
    int reply_fd;
    int mem_fd;                     /* came along, for VALE_OPT_RESUME; -1: none */
    struct vale_opt_resume *resume; /* in the message; NULL: not asked for */
    int out_fds[VALE_FD_COUNT];
    unsigned int out_count;
};

struct connection {
    struct watch watch;
    struct ucred peer;
    struct port *port;       /* what it has bound */
    struct request *waiting; /* for a name to become free */
    struct connection *next;
};

/* An answer that has not been read. */
struct answer {
    struct watch watch;
    uid_t uid;
    struct answer *next;
};

static struct watch listener;
static struct answer *answers;
static struct connection *connections;
static unsigned int connection_count;

/* ---------------------------------------------------------------------------------------------------- requests --- */

/* A structure inside the message, at an offset that the client chose. NULL when it does not fit. */
static void *message_part(struct request *req, uint64_t offset, size_t size)
{
    if (offset < sizeof(struct nmreq_header) || offset % 8 || offset > req->length || size > req->length - offset)
        return NULL;
    return req->bytes + offset;
}

/* VALE_OPT_RESUME of a REGISTER: 0 or an errno. */
static int check_resume(struct request *req, uint64_t at)
{
    struct vale_opt_resume *opt = message_part(req, at, sizeof(*opt));

    if (req->header.nr_reqtype != NETMAP_REQ_REGISTER)
        return EOPNOTSUPP;
    if (!opt || req->mem_fd < 0 || (opt->hdr_len != 0 && opt->hdr_len != 10 && opt->hdr_len != 12))
        return EINVAL;
    req->resume = opt;
    return 0;
}

/* Each option gets its status. One that is not known, or fails, makes the request fail, as netmap does it. */
static int check_options(struct request *req)
{
    uint64_t at = req->header.nr_options;
    int err = 0;

    req->resume = NULL;
    for (unsigned int n = 0; at != 0; n++) {
        struct nmreq_option *opt = message_part(req, at, sizeof(*opt));

        if (!opt || opt->nro_reqtype == 0)
            return EINVAL;
        if (n == 16)
            return EMSGSIZE;
        opt->nro_status = (uint32_t)(opt->nro_reqtype == VALE_OPT_RESUME ? check_resume(req, at) : EOPNOTSUPP);
        err = opt->nro_status ? (int)opt->nro_status : err;
        at = opt->nro_next;
    }
    return err;
}

/* A port's name, or, for a monitor, that of a whole switch. */
static int parse_name(const struct request *req, bool monitor, struct vale_name *name)
{
    const char *text = req->header.nr_name;
    struct vale_error err;

    if (memchr(text, '\0', sizeof(req->header.nr_name)) == NULL)
        return EINVAL;
    return -(monitor ? vale_name_parse_monitored : vale_name_parse)(text, name, &err);
}

static bool is_going(const struct port *port);

/* Another descriptor of a port that is open already, or the same port resumed by another process that has it. */
static int share_port(struct connection *conn, struct port *port, const struct nmreq_register *reg, const struct request *req)
{
    if (port->state != PORT_LIVE || port->ops != &ring_port_ops || port->uid != conn->peer.uid)
        return EBUSY;
    if (req->resume ? !ring_port_is_memory(port, req->mem_fd) : port->exclusive || (reg->nr_flags & NR_EXCLUSIVE))
        return EBUSY;
    if (!req->resume && ring_port_header(port) && !(reg->nr_flags & NR_ACCEPT_VNET_HDR))
        return EIO;
    port->users++;
    conn->port = port;
    return 0;
}

/* The descriptor of the memory is the port's from here on. */
static int take_mem_fd(struct request *req)
{
    int fd = req->mem_fd;

    req->mem_fd = -1;
    return fd;
}

/*
 * Whether the host has an interface of that name. Any socket can be asked; libc would make one, if need be of a domain that
 * the sandbox forbids.
 */
static bool is_interface(const char *name)
{
    struct ifreq request = {0};

    if (strlen(name) >= sizeof(request.ifr_name))
        return false;
    strcpy(request.ifr_name, name);
    return ioctl(listener.fd, SIOCGIFINDEX, &request) == 0;
}

static int create_port(struct connection *conn, const struct vale_name *name, const struct nmreq_register *reg,
                       struct request *req)
{
    struct region_config config = {
        .tx_rings = reg->nr_tx_rings,
        .rx_rings = reg->nr_rx_rings,
        .tx_slots = reg->nr_tx_slots,
        .rx_slots = reg->nr_rx_slots,
        .extra_bufs = reg->nr_extra_bufs,
    };
    struct port *port;
    int err;

    if (is_interface(name->port))
        return EINVAL;
    if (req->resume) {
        err = ring_port_resume(&port, name, &config, take_mem_fd(req), req->resume, conn->peer.uid);
    } else {
        region_clamp(&config);
        err = ring_port_create(&port, name, &config, conn->peer.uid);
    }
    if (err)
        return -err;
    port->pid = conn->peer.pid;
    port->exclusive = reg->nr_flags & NR_EXCLUSIVE;
    port->users = 1;
    err = port_add(port);
    if (err)
        return -err;
    conn->port = port;
    if (req->resume)
        ring_port_wake(port);
    return 0;
}

/* EAGAIN: the name will be free soon. */
static int bind_port(struct connection *conn, struct request *req, const struct nmreq_register *reg)
{
    bool monitor = reg->nr_flags & MONITOR_FLAGS;
    struct vale_name name;
    struct port *port;

    if (reg->nr_mode != NR_REG_ALL_NIC || parse_name(req, monitor, &name) != 0)
        return EINVAL;
    if (conn->port)
        return EBUSY;
    if (req->resume && (monitor || req->resume->incarnation == region_incarnation()))
        return ENXIO; /* it ended with the port that it watched, or we took it away */
    if (monitor && !monitor_permitted(conn->watch.fd, &conn->peer))
        return EPERM;
    port = port_find(&name);
    if (port && is_going(port))
        return EAGAIN;
    if (monitor)
        return monitor_open(&name, reg, &conn->peer, &conn->port);
    return port ? share_port(conn, port, reg, req) : create_port(conn, &name, reg, req);
}

static int do_register(struct connection *conn, struct request *req)
{
    struct nmreq_register *reg = message_part(req, req->header.nr_body, sizeof(*reg));
    const struct region *region;
    int err = reg ? bind_port(conn, req, reg) : EINVAL;

    if (err)
        return err;
    region = ring_port_region(conn->port);
    reg->nr_offset = region->if_offset;
    reg->nr_memsize = region->size;
    reg->nr_tx_rings = region->config.tx_rings;
    reg->nr_rx_rings = region->config.rx_rings;
    reg->nr_tx_slots = region->config.tx_slots;
    reg->nr_rx_slots = region->config.rx_slots;
    reg->nr_host_tx_rings = reg->nr_host_rx_rings = 1;
    reg->nr_extra_bufs = region->config.extra_bufs;
    reg->nr_mem_id = 2; /* private memory; the kernel's global allocator is 1 */
    ring_port_fds(conn->port, req->out_fds);
    req->out_count = VALE_FD_COUNT;
    return 0;
}

static int do_port_info(struct request *req)
{
    struct nmreq_port_info_get *info = message_part(req, req->header.nr_body, sizeof(*info));
    struct region_config config = {0};
    struct vale_name name;
    struct port *port;

    if (!info || parse_name(req, false, &name) != 0)
        return EINVAL;
    port = port_find(&name);
    if (port && port->ops != &ring_port_ops)
        return EINVAL;
    if (port)
        config = ring_port_region(port)->config;
    else
        region_clamp(&config); /* what it would get */
    *info = (struct nmreq_port_info_get){
        .nr_memsize = port ? ring_port_region(port)->size : 0,
        .nr_tx_slots = config.tx_slots,
        .nr_rx_slots = config.rx_slots,
        .nr_tx_rings = config.tx_rings,
        .nr_rx_rings = config.rx_rings,
        .nr_host_tx_rings = 1,
        .nr_host_rx_rings = 1,
        .nr_mem_id = 2,
    };
    return 0;
}

/*
 * Gets or sets the length of the virtio-net header of a port, which must be the peer's to be set. Who has bound a monitor
 * means that one, and not the port that it watches.
 */
static int do_port_header(const struct connection *conn, struct request *req)
{
    struct nmreq_port_hdr *hdr = message_part(req, req->header.nr_body, sizeof(*hdr));
    struct vale_name name;
    struct port *port;

    if (!hdr || parse_name(req, conn->port && conn->port->monitor, &name) != 0)
        return EINVAL;
    port = conn->port && conn->port->monitor ? conn->port : port_find(&name);
    if (!port || port->ops != &ring_port_ops)
        return ENXIO;
    if (req->header.nr_reqtype == NETMAP_REQ_PORT_HDR_SET) {
        if (hdr->nr_hdr_len != 0 && hdr->nr_hdr_len != 10 && hdr->nr_hdr_len != 12)
            return EINVAL;
        if (conn->peer.uid != 0 && conn->peer.uid != port->uid)
            return EPERM;
        ring_port_set_header(port, hdr->nr_hdr_len, hdr->pad1);
    }
    hdr->nr_hdr_len = ring_port_header(port);
    return 0;
}

/* The first port at or behind (*sw_index, *port_index), which are moved to it; NULL at the end. */
static struct port *next_port(uint16_t *sw_index, uint32_t *port_index)
{
    struct vswitch *sw = switches;

    for (unsigned int i = 0; sw; sw = sw->next, i++) {
        if (i < *sw_index)
            continue;
        for (unsigned int p = i == *sw_index ? *port_index : 0; p < sw->port_limit; p++) {
            if (sw->ports[p]) {
                *sw_index = (uint16_t)i;
                *port_index = p;
                return sw->ports[p];
            }
        }
    }
    return NULL;
}

static int do_list(struct request *req)
{
    struct nmreq_vale_list *list = message_part(req, req->header.nr_body, sizeof(*list));
    struct vale_name name;
    struct port *port, *wanted = NULL;

    if (!list)
        return EINVAL;
    if (req->header.nr_name[0] != '\0') {
        if (parse_name(req, false, &name) != 0)
            return EINVAL;
        wanted = port_find(&name);
        if (!wanted)
            return ENOENT;
        list->nr_bridge_idx = 0;
        list->nr_port_idx = 0;
    }
    port = next_port(&list->nr_bridge_idx, &list->nr_port_idx);
    while (port && wanted && port != wanted) {
        list->nr_port_idx++;
        port = next_port(&list->nr_bridge_idx, &list->nr_port_idx);
    }
    if (!port)
        return ENOENT;
    strncpy(req->header.nr_name, port->name.full, sizeof(req->header.nr_name) - 1);
    return 0;
}

/* Handles one request. An errno, or EAGAIN when it has to wait for a name. */
static int handle(struct connection *conn, struct request *req)
{
    const struct nmreq_header *h = &req->header;
    int err;

    if (req->length < sizeof(*h) || h->nr_version < NETMAP_MIN_API || h->nr_version > NETMAP_MAX_API || h->nr_reserved)
        return EINVAL;
    err = check_options(req);
    if (err)
        return err;
    switch (h->nr_reqtype) {
    case NETMAP_REQ_REGISTER: return do_register(conn, req);
    case NETMAP_REQ_PORT_INFO_GET: return do_port_info(req);
    case NETMAP_REQ_PORT_HDR_SET:
    case NETMAP_REQ_PORT_HDR_GET: return do_port_header(conn, req);
    case NETMAP_REQ_VALE_LIST: return do_list(req);
    default: return EOPNOTSUPP;
    }
}

/* ---------------------------------------------------------------------------------------------------- transport --- */

static void put_fds(struct msghdr *msg, const int *fds, unsigned int n)
{
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(msg);

    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(n * sizeof(int));
    memcpy(CMSG_DATA(cmsg), fds, n * sizeof(int));
    msg->msg_controllen = CMSG_SPACE(n * sizeof(int));
}

static bool has_been_read(int fd)
{
    int unread; /* with the socket's own count in it for a moment, when the kernel wakes us */

    return ioctl(fd, SIOCOUTQ, &unread) < 0 || unread <= 1;
}

static void forget_answer(struct answer *a)
{
    struct answer **link = &answers;

    while (*link != a)
        link = &(*link)->next;
    *link = a->next;
    quota_give(a->uid, QUOTA_ANSWERS, 1);
    watch_free(&a->watch);
}

void attach_answer_ready(struct watch *w)
{
    if (has_been_read(w->fd))
        forget_answer((struct answer *)w);
}

/* Takes the request's reply socket and its place in the quota, until the answer has been read. */
static void hold_answer(struct request *req)
{
    struct answer *a = calloc(1, sizeof(*a));

    if (!a || watch_add(&a->watch, WATCH_ANSWER, req->reply_fd) < 0) {
        free(a);
        return;
    }
    a->uid = req->uid;
    a->next = answers;
    answers = a;
    req->reply_fd = -1;
    watch_events(&a->watch, EPOLLOUT | EPOLLET); /* reports at once, and whenever something has been read */
}

static void drop_request(struct request *req)
{
    if (!req)
        return;
    if (req->reply_fd >= 0) {
        quota_give(req->uid, QUOTA_ANSWERS, 1);
        close(req->reply_fd);
    }
    if (req->mem_fd >= 0)
        close(req->mem_fd);
    free(req);
}

/* Answers and ends the request. A client that has gone, or whose socket is full, has its answer lost. */
static void answer(struct request *req, int error)
{
    struct vale_reply reply = {
        .magic = VALE_REPLY_MAGIC, .version = VALE_PROTO_VERSION, .error = error, .length = (uint32_t)req->length};
    struct iovec iov[2] = {{&reply, sizeof(reply)}, {req->bytes, req->length}};
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(VALE_FD_COUNT * sizeof(int))];
    } control = {0};
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};

    if (req->out_count) {
        msg.msg_control = &control;
        msg.msg_controllen = sizeof(control);
        put_fds(&msg, req->out_fds, req->out_count);
    }
    if (sendmsg(req->reply_fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        log_debug("answer to a request lost: %s", strerror(errno));
    else
        hold_answer(req);
    drop_request(req);
}

/* Keeps the first two descriptors that came along, closes the rest. */
static void take_fds(struct msghdr *msg, struct request *req)
{
    req->reply_fd = req->mem_fd = -1;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        unsigned int n = c->cmsg_type == SCM_RIGHTS ? (unsigned int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int)) : 0;

        for (unsigned int i = 0; i < n; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
            if (req->reply_fd < 0)
                req->reply_fd = fd;
            else if (req->mem_fd < 0)
                req->mem_fd = fd;
            else
                close(fd);
        }
    }
}

/* The next request, NULL when there is none (*gone false) or never will be (*gone true). */
static struct request *receive(struct connection *conn, bool *gone)
{
    struct request *req = malloc(sizeof(*req));
    struct iovec iov = {req ? req->bytes : NULL, VALE_MSG_MAX};
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(FDS_MAX * sizeof(int))];
    } control;
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t n;

    *gone = true;
    if (!req)
        return NULL;
    memset(req, 0, sizeof(*req));
    n = recvmsg(conn->watch.fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0) {
        *gone = errno != EAGAIN && errno != EINTR;
        free(req);
        return NULL;
    }
    req->length = (size_t)n;
    /* Also of an empty message, which looks like the end. */
    take_fds(&msg, req);
    if (n == 0 || req->reply_fd < 0 || (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) {
        log_debug("pid %d: hung up, or sent no request: no reply socket, or too long", (int)conn->peer.pid);
        goto refuse;
    }
    req->uid = conn->peer.uid;
    if (!quota_take(req->uid, QUOTA_ANSWERS, 1))
        goto refuse;
    *gone = false;
    return req;

refuse:
    if (req->reply_fd >= 0)
        close(req->reply_fd);
    if (req->mem_fd >= 0)
        close(req->mem_fd);
    free(req);
    return NULL;
}

static void disconnect(struct connection *conn)
{
    struct connection **link = &connections;

    while (*link != conn)
        link = &(*link)->next;
    *link = conn->next;
    connection_count--;
    quota_give(conn->peer.uid, QUOTA_CONNECTIONS, 1);
    drop_request(conn->waiting);
    if (conn->port && conn->port->monitor)
        monitor_close(conn->port->monitor, "closed by its client");
    else if (conn->port && --conn->port->users == 0)
        port_close(conn->port, "closed by its client");
    watch_free(&conn->watch);
}

/*
 * Whether the name of a port is about to become free: it is closing, or its client has hung up and the event is still to be
 * handled.
 */
static bool is_going(const struct port *port)
{
    unsigned int users = 0;

    if (port->state != PORT_LIVE)
        return true;
    for (struct connection *c = connections; c; c = c->next) {
        char byte;

        if (c->port == port && recv(c->watch.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) != 0)
            users++;
    }
    return port->users > 0 && users == 0;
}

static void serve_request(struct connection *conn, struct request *req)
{
    int err = handle(conn, req);

    if (err == EAGAIN) {
        conn->waiting = req;
        watch_events(&conn->watch, 0); /* a hang-up is reported all the same */
    } else {
        answer(req, err);
    }
}

void attach_ready(struct watch *w, uint32_t events)
{
    struct connection *conn = (struct connection *)w;
    bool gone = false;

    /* One request at a time: who sends many does not keep the others waiting. */
    if (!conn->waiting) {
        struct request *req = receive(conn, &gone);

        if (req)
            serve_request(conn, req);
    }
    if (gone || (conn->waiting && (events & (EPOLLHUP | EPOLLRDHUP | EPOLLERR))))
        disconnect(conn);
}

void attach_port_closed(const struct port *port)
{
    for (struct connection *c = connections; c; c = c->next) {
        if (c->port == port) {
            c->port = NULL;
            shutdown(c->watch.fd, SHUT_RDWR); /* its handler sees the end */
        }
    }
}

void attach_name_freed(void)
{
    for (struct connection *c = connections; c; c = c->next) {
        struct request *req = c->waiting;

        if (req) {
            c->waiting = NULL;
            watch_events(&c->watch, EPOLLIN);
            serve_request(c, req);
        }
    }
}

void attach_accept(struct watch *w)
{
    socklen_t len = sizeof(struct ucred);
    struct connection *conn;
    int fd = watch_accept(w, false);

    if (fd < 0)
        return;
    conn = calloc(1, sizeof(*conn));
    if (!conn || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &conn->peer, &len) < 0) {
        log_limited("cannot accept a client: %s", strerror(errno));
        goto refuse;
    }
    if (!quota_take(conn->peer.uid, QUOTA_CONNECTIONS, 1))
        goto refuse;
    if (watch_add(&conn->watch, WATCH_ATTACH, fd) < 0) {
        quota_give(conn->peer.uid, QUOTA_CONNECTIONS, 1);
        goto refuse;
    }
    conn->next = connections;
    connections = conn;
    connection_count++;
    return;

refuse:
    close(fd);
    free(conn);
}

int attach_start(int fd)
{
    if (listen(fd, 128) < 0)
        return -errno;
    return watch_add(&listener, WATCH_ATTACH_LISTEN, fd);
}

void attach_stop(void)
{
    while (connections)
        disconnect(connections);
    while (answers)
        forget_answer(answers);
    close(listener.fd);
}

unsigned int attach_clients(void)
{
    return connection_count;
}
