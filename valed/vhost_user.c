/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The vhost-user protocol, as the back end of a network device
 *
 * A message is a header of 12 bytes, a payload, and perhaps descriptors. Each has one handler in the table below, which
 * checks size and number of descriptors, takes what it needs, and says what comes back. Anything unexpected ends the
 * connection, and with it everything that the front end had set up; the port itself stays, for the next one.
 *
 * Source: the vhost-user specification of QEMU (docs/interop/vhost-user.rst).
 */
#include "log.h"
#include "vhost.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define FLAG_VERSION    0x1
#define FLAG_REPLY      0x4
#define FLAG_NEED_REPLY 0x8

#define PROTOCOL_MQ        (1ull << 0)
#define PROTOCOL_LOG_SHMFD (1ull << 1)
#define PROTOCOL_RARP      (1ull << 2)
#define PROTOCOL_REPLY_ACK (1ull << 3)
#define PROTOCOL_MEM_SLOTS (1ull << 15)

/* HOST: what the guest may leave undone for us. GUEST: what we may leave undone for the guest. */
#define VIRTIO_NET_F_CSUM           (1ull << 0)
#define VIRTIO_NET_F_GUEST_CSUM     (1ull << 1)
#define VIRTIO_NET_F_GUEST_TSO4     (1ull << 7)
#define VIRTIO_NET_F_GUEST_TSO6     (1ull << 8)
#define VIRTIO_NET_F_GUEST_ECN      (1ull << 9)
#define VIRTIO_NET_F_HOST_TSO4      (1ull << 11)
#define VIRTIO_NET_F_HOST_TSO6      (1ull << 12)
#define VIRTIO_NET_F_HOST_ECN       (1ull << 13)
#define VIRTIO_NET_F_MQ             (1ull << 22)
#define VIRTIO_NET_F_GUEST_ANNOUNCE (1ull << 21)
#define VIRTIO_F_ANY_LAYOUT         (1ull << 27)
#define VIRTIO_NET_F_GUEST_USO4     (1ull << 54)
#define VIRTIO_NET_F_GUEST_USO6     (1ull << 55)
#define VIRTIO_NET_F_HOST_USO       (1ull << 56)

#define OUR_OFFLOADS                                                                                                   \
    (VIRTIO_NET_F_CSUM | VIRTIO_NET_F_HOST_TSO4 | VIRTIO_NET_F_HOST_TSO6 | VIRTIO_NET_F_HOST_ECN |                      \
     VIRTIO_NET_F_GUEST_CSUM | VIRTIO_NET_F_GUEST_TSO4 | VIRTIO_NET_F_GUEST_TSO6 | VIRTIO_NET_F_GUEST_ECN |             \
     VIRTIO_NET_F_HOST_USO | VIRTIO_NET_F_GUEST_USO4 | VIRTIO_NET_F_GUEST_USO6)
#define OUR_FEATURES                                                                                                   \
    (VIRTIO_F_VERSION_1 | VIRTIO_NET_F_MRG_RXBUF | VIRTIO_RING_F_INDIRECT_DESC | VIRTIO_RING_F_EVENT_IDX |              \
     VIRTIO_F_ANY_LAYOUT | OUR_OFFLOADS | VIRTIO_NET_F_MQ | VIRTIO_NET_F_GUEST_ANNOUNCE | VHOST_USER_F_PROTOCOL | VHOST_F_LOG_ALL)
#define OUR_PROTOCOL (PROTOCOL_MQ | PROTOCOL_LOG_SHMFD | PROTOCOL_RARP | PROTOCOL_REPLY_ACK | PROTOCOL_MEM_SLOTS)

#define NO_FD 0x100 /* in a vring descriptor message */

enum request {
    GET_FEATURES = 1,
    SET_FEATURES = 2,
    SET_OWNER = 3,
    RESET_OWNER = 4,
    SET_MEM_TABLE = 5,
    SET_LOG_BASE = 6,
    SET_LOG_FD = 7,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9,
    SET_VRING_BASE = 10,
    GET_VRING_BASE = 11,
    SET_VRING_KICK = 12,
    SET_VRING_CALL = 13,
    SET_VRING_ERR = 14,
    GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16,
    GET_QUEUE_NUM = 17,
    SET_VRING_ENABLE = 18,
    SEND_RARP = 19,
    GET_MAX_MEM_SLOTS = 36,
    ADD_MEM_REG = 37,
    REM_MEM_REG = 38,
    REQUESTS
};

enum outcome {
    DONE,   /* acknowledged if the front end asked for it */
    REPLY,  /* the message, changed by the handler, goes back */
    LATER,  /* a continuation answers */
    BROKEN, /* end of the connection */
};

/* -------------------------------------------------------------------------------------------------- descriptors --- */

static bool is_eventfd(int fd)
{
    static const char eventfd[] = "anon_inode:[eventfd]";
    char link[32], target[sizeof(eventfd)];

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    return readlink(link, target, sizeof(target)) == sizeof(eventfd) - 1 &&
           memcmp(target, eventfd, sizeof(eventfd) - 1) == 0 && fcntl(fd, F_SETFL, O_NONBLOCK) == 0;
}

/*
 * What a front end has to hand over: eventfds and memory. Of other kinds some can hold its own end of the connection (that
 * socket itself, an io_uring): while we kept one, we would never see that the front end has gone.
 */
static bool is_acceptable(int fd)
{
    struct stat st;

    return is_eventfd(fd) || (fstat(fd, &st) == 0 && S_ISREG(st.st_mode));
}

/* ------------------------------------------------------------------------------------------------------ answers --- */

static void send_reply(struct vhost_port *vp)
{
    struct vhost_message *m = &vp->msg;

    m->flags = FLAG_VERSION | FLAG_REPLY;
    if (vp->connection && send(vp->connection->watch.fd, m, VHOST_HEADER + m->size, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        log_debug("%s: answer lost: %s", vp->port.name.full, strerror(errno));
}

static void reply_u64(struct vhost_port *vp, uint64_t value)
{
    vp->msg.u64 = value;
    vp->msg.size = sizeof(vp->msg.u64);
    send_reply(vp);
}

static bool wants_ack(const struct vhost_port *vp)
{
    return (vp->msg.flags & FLAG_NEED_REPLY) && (vp->protocol_features & PROTOCOL_REPLY_ACK);
}

/* Continuation: what the message changed is in force everywhere. */
static void acknowledge(struct vhost_port *vp)
{
    if (wants_ack(vp))
        reply_u64(vp, vp->later_value);
}

static enum outcome update_then_ack(struct vhost_port *vp)
{
    vp->later_value = 0;
    return vhost_dev_update(vp, acknowledge) < 0 ? BROKEN : LATER;
}

/* The descriptor that came with the message, now the caller's; -1 when there is none. */
static int take_fd(struct vhost_port *vp)
{
    return vp->fd_count ? vp->fds[--vp->fd_count] : -1;
}

/* ----------------------------------------------------------------------------------------------------- features --- */

static enum outcome get_features(struct vhost_port *vp)
{
    vp->msg.u64 = OUR_FEATURES;
    vp->msg.size = 8;
    return REPLY;
}

/* What the guest takes undone. Segmentation without checksums is nothing that virtio knows. */
static uint8_t accepted(uint64_t features)
{
    const uint64_t uso = VIRTIO_NET_F_GUEST_USO4 | VIRTIO_NET_F_GUEST_USO6;

    if (!(features & VIRTIO_NET_F_GUEST_CSUM))
        return 0;
    return OFFLOAD_CSUM | (features & VIRTIO_NET_F_GUEST_TSO4 ? OFFLOAD_TSO4 : 0) |
           (features & VIRTIO_NET_F_GUEST_TSO6 ? OFFLOAD_TSO6 : 0) |
           (features & VIRTIO_NET_F_GUEST_ECN ? OFFLOAD_ECN : 0) | ((features & uso) == uso ? OFFLOAD_USO : 0);
}

static enum outcome set_features(struct vhost_port *vp)
{
    if (vp->msg.u64 & ~OUR_FEATURES)
        return BROKEN;
    vp->features = vp->msg.u64;
    atomic_store(&vp->port.accepts, accepted(vp->features));
    /* Without the protocol bit rings are enabled from the start. */
    if (!(vp->features & VHOST_USER_F_PROTOCOL))
        for (unsigned int i = 0; i < 2 * vp->pairs; i++)
            vhost_queue(vp, i)->enabled = true;
    return update_then_ack(vp);
}

static enum outcome get_protocol_features(struct vhost_port *vp)
{
    vp->msg.u64 = OUR_PROTOCOL;
    vp->msg.size = 8;
    return REPLY;
}

static enum outcome set_protocol_features(struct vhost_port *vp)
{
    if (vp->msg.u64 & ~OUR_PROTOCOL)
        return BROKEN;
    vp->protocol_features = vp->msg.u64;
    return DONE;
}

static enum outcome get_queue_num(struct vhost_port *vp)
{
    vp->msg.u64 = vp->pairs;
    vp->msg.size = 8;
    return REPLY;
}

static enum outcome ignore(struct vhost_port *vp)
{
    (void)vp;
    return DONE;
}

/* ------------------------------------------------------------------------------------------------------- memory --- */

static int add_region(struct vhost_port *vp, struct guest_mem **mem, uint64_t gpa, uint64_t size, uint64_t uva,
                      uint64_t offset, int fd)
{
    struct guest_region region = {.gpa = gpa, .size = size, .uva = uva};
    struct guest_mem *grown;
    int err = guest_mem_add(&grown, *mem, &region, fd, offset, vp->allow_file, &vp->memory_died);

    if (err == -EMEDIUMTYPE)
        log_warn("%s: the guest's memory is an ordinary file; use -object memory-backend-memfd,share=on", vp->port.name.full);
    else if (err)
        log_info("%s: memory region refused: %s", vp->port.name.full, strerror(-err));
    if (err)
        return err;
    guest_mem_free(*mem);
    *mem = grown;
    return 0;
}

static enum outcome set_mem_table(struct vhost_port *vp)
{
    const struct vhost_message *m = &vp->msg;
    uint32_t n = m->memory.count;
    struct guest_mem *mem = NULL;

    if (n == 0 || n > 8 || n != vp->fd_count || m->size != 8 + n * sizeof(m->memory.region[0]))
        return BROKEN;
    for (uint32_t i = 0; i < n; i++) {
        if (add_region(vp, &mem, m->memory.region[i].gpa, m->memory.region[i].size, m->memory.region[i].uva,
                       m->memory.region[i].offset, vp->fds[i]) < 0) {
            guest_mem_free(mem);
            return BROKEN;
        }
    }
    vp->later_value = 0;
    return vhost_dev_set_memory(vp, mem, acknowledge) < 0 ? BROKEN : LATER;
}

static enum outcome get_max_mem_slots(struct vhost_port *vp)
{
    vp->msg.u64 = GUEST_REGIONS_MAX;
    vp->msg.size = 8;
    return REPLY;
}

static enum outcome add_mem_reg(struct vhost_port *vp)
{
    const struct vhost_message *m = &vp->msg;
    struct guest_mem *mem = guest_mem_copy(vp->mem);

    if (!mem || vp->fd_count != 1 ||
        add_region(vp, &mem, m->one_region.region.gpa, m->one_region.region.size, m->one_region.region.uva,
                   m->one_region.region.offset, vp->fds[0]) < 0) {
        guest_mem_free(mem);
        return BROKEN;
    }
    vp->later_value = 0;
    return vhost_dev_set_memory(vp, mem, acknowledge) < 0 ? BROKEN : LATER;
}

static enum outcome rem_mem_reg(struct vhost_port *vp)
{
    const struct vhost_message *m = &vp->msg;
    struct guest_region region = {.gpa = m->one_region.region.gpa, .size = m->one_region.region.size};
    struct guest_mem *mem;

    if (guest_mem_remove(&mem, vp->mem, &region) < 0)
        return BROKEN;
    vp->later_value = 0;
    return vhost_dev_set_memory(vp, mem, acknowledge) < 0 ? BROKEN : LATER;
}

/* Answered always: the front end waits for it before it migrates. */
static void log_answer(struct vhost_port *vp)
{
    reply_u64(vp, 0);
}

static enum outcome set_log_base(struct vhost_port *vp)
{
    const struct guest_region region = {.size = vp->msg.log.size};
    struct guest_mem *old = vp->log;

    /* As hostile as the guest's memory is, so it is mapped in the same way. */
    if (vp->fd_count != 1 || guest_mem_add(&vp->log, NULL, &region, vp->fds[0], vp->msg.log.offset, vp->allow_file,
                                           &vp->memory_died) < 0)
        return BROKEN;
    vhost_dev_update(vp, log_answer);
    if (old)
        reclaim(guest_mem_free, old);
    return LATER;
}

/* -------------------------------------------------------------------------------------------------------- rings --- */

static enum outcome set_vring_num(struct vhost_port *vp)
{
    struct vhost_queue *q = vhost_queue(vp, vp->msg.state.index);
    uint32_t n = vp->msg.state.num;

    if (!q || n == 0 || n > VIRTQ_SIZE_MAX || (n & (n - 1)))
        return BROKEN;
    q->size = (uint16_t)n;
    return DONE;
}

static enum outcome set_vring_addr(struct vhost_port *vp)
{
    struct vhost_queue *q = vhost_queue(vp, vp->msg.addr.index);

    if (!q)
        return BROKEN;
    q->desc_uva = vp->msg.addr.desc;
    q->avail_uva = vp->msg.addr.avail;
    q->used_uva = vp->msg.addr.used;
    return update_then_ack(vp);
}

static enum outcome set_vring_base(struct vhost_port *vp)
{
    struct vhost_queue *q = vhost_queue(vp, vp->msg.state.index);

    if (!q)
        return BROKEN;
    /* The ring itself knows better (see vhost.h): this is only for a queue that is asked for its base before it runs. */
    if (!atomic_load(&q->map))
        q->used = (uint16_t)vp->msg.state.num;
    return DONE;
}

/* Continuation: the queue has stopped. */
static void answer_vring_base(struct vhost_port *vp)
{
    vp->msg.state.index = (uint32_t)vp->later_value;
    vp->msg.state.num = vhost_queue(vp, vp->msg.state.index)->used;
    vp->msg.size = sizeof(vp->msg.state);
    send_reply(vp);
}

static enum outcome get_vring_base(struct vhost_port *vp)
{
    struct vhost_queue *q = vhost_queue(vp, vp->msg.state.index);

    if (!q)
        return BROKEN;
    q->has_kick = false;
    vp->later_value = vp->msg.state.index;
    vhost_dev_update(vp, answer_vring_base);
    return LATER;
}

/*
 * The queue and the descriptor of a KICK, CALL or ERR message; fd -1 where the message says so. NULL: malformed, or no eventfd:
 * workers write to it, and epoll asks it, which with anything else could take for ever.
 */
static struct vhost_queue *vring_fd(struct vhost_port *vp, int *fd)
{
    struct vhost_queue *q = vhost_queue(vp, vp->msg.u64 & 0xff);

    if (!q || vp->fd_count != (vp->msg.u64 & NO_FD ? 0u : 1u) || (vp->fd_count && !is_eventfd(vp->fds[0])))
        return NULL;
    *fd = take_fd(vp);
    return q;
}

static enum outcome set_vring_kick(struct vhost_port *vp)
{
    uint32_t index = vp->msg.u64 & 0xff;
    struct vhost_queue *q;
    int fd;

    q = vring_fd(vp, &fd);
    if (!q)
        return BROKEN;
    if (index % 2)
        worker_set_kick(&vp->tx[index / 2].ring, fd);
    else
        worker_set_room_kick(&vp->tx[index / 2].ring, fd);
    if (q->kick_fd >= 0)
        close(q->kick_fd);
    q->kick_fd = fd;
    q->has_kick = true;
    return update_then_ack(vp);
}

static enum outcome set_vring_call(struct vhost_port *vp)
{
    struct vhost_queue *q;
    int fd;

    q = vring_fd(vp, &fd);
    if (!q)
        return BROKEN;
    if (q->call_fd >= 0)
        close(q->call_fd);
    q->call_fd = fd;
    return update_then_ack(vp);
}

static enum outcome set_vring_err(struct vhost_port *vp)
{
    int fd;

    if (!vring_fd(vp, &fd))
        return BROKEN;
    if (fd >= 0)
        close(fd);
    return DONE;
}

static enum outcome set_vring_enable(struct vhost_port *vp)
{
    struct vhost_queue *q = vhost_queue(vp, vp->msg.state.index);

    if (!q || vp->msg.state.num > 1)
        return BROKEN;
    q->enabled = vp->msg.state.num;
    return update_then_ack(vp);
}

/*
 * A guest has come by migration and cannot announce itself: broadcasts who it is in its place, so that switches learn where
 * it is now. A request while the last one waits for the worker says nothing new.
 */
static enum outcome send_rarp(struct vhost_port *vp)
{
    static const uint8_t header[] = {0x80, 0x35, 0, 1, 0x08, 0, 6, 4, 0, 3}; /* RARP, Ethernet, IPv4, request reverse */
    struct vhost_tx *tx = &vp->tx[0];
    const uint8_t *mac = vp->msg.bytes;

    if (atomic_load(&tx->announce))
        return DONE;
    memset(tx->rarp, 0, sizeof(tx->rarp));
    memset(tx->rarp, 0xff, 6);
    memcpy(tx->rarp + 6, mac, 6);
    memcpy(tx->rarp + 12, header, sizeof(header));
    memcpy(tx->rarp + 22, mac, 6); /* sender */
    memcpy(tx->rarp + 32, mac, 6); /* target */
    atomic_store(&tx->announce, true);
    worker_poke_ring(&tx->ring);
    return DONE;
}

/* ----------------------------------------------------------------------------------------------------- dispatch --- */

struct handler {
    enum outcome (*run)(struct vhost_port *vp);
    uint32_t min_size;
    unsigned int max_fds;
};

#define STATE 8
#define ADDR  40

static const struct handler handlers[REQUESTS] = {
    [GET_FEATURES] = {get_features, 0, 0},
    [SET_FEATURES] = {set_features, 8, 0},
    [SET_OWNER] = {ignore, 0, 0},
    [RESET_OWNER] = {ignore, 0, 0},
    [SET_MEM_TABLE] = {set_mem_table, 8, 8},
    [SET_LOG_BASE] = {set_log_base, 16, 1},
    [SET_LOG_FD] = {ignore, 0, 1},
    [SET_VRING_NUM] = {set_vring_num, STATE, 0},
    [SET_VRING_ADDR] = {set_vring_addr, ADDR, 0},
    [SET_VRING_BASE] = {set_vring_base, STATE, 0},
    [GET_VRING_BASE] = {get_vring_base, STATE, 0},
    [SET_VRING_KICK] = {set_vring_kick, 8, 1},
    [SET_VRING_CALL] = {set_vring_call, 8, 1},
    [SET_VRING_ERR] = {set_vring_err, 8, 1},
    [GET_PROTOCOL_FEATURES] = {get_protocol_features, 0, 0},
    [SET_PROTOCOL_FEATURES] = {set_protocol_features, 8, 0},
    [GET_QUEUE_NUM] = {get_queue_num, 0, 0},
    [SET_VRING_ENABLE] = {set_vring_enable, STATE, 0},
    [SEND_RARP] = {send_rarp, 8, 0},
    [GET_MAX_MEM_SLOTS] = {get_max_mem_slots, 0, 0},
    [ADD_MEM_REG] = {add_mem_reg, 40, 1},
    [REM_MEM_REG] = {rem_mem_reg, 40, 1},
};

static bool dispatch(struct vhost_port *vp)
{
    const struct handler *h = vp->msg.request < REQUESTS ? &handlers[vp->msg.request] : NULL;
    enum outcome outcome = BROKEN;

    if (h && h->run && vp->msg.size >= h->min_size && vp->fd_count <= h->max_fds)
        outcome = h->run(vp);
    while (vp->fd_count)
        close(vp->fds[--vp->fd_count]);
    if (outcome == BROKEN)
        log_info("%s: vhost-user request %u is not acceptable", vp->port.name.full, vp->msg.request);
    else if (outcome == REPLY)
        send_reply(vp);
    else if (outcome == DONE && wants_ack(vp))
        reply_u64(vp, 0);
    return outcome != BROKEN;
}

static void keep_fds(struct vhost_port *vp, struct msghdr *msg)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        unsigned int n = c->cmsg_type == SCM_RIGHTS ? (unsigned int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int)) : 0;

        for (unsigned int i = 0; i < n; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
            if (vp->fd_count < VHOST_FDS_MAX && is_acceptable(fd))
                vp->fds[vp->fd_count++] = fd;
            else
                close(fd);
        }
    }
}

/* Bytes that the message still needs; 0: complete; -1: it claims to be longer than any. */
static ssize_t bytes_missing(const struct vhost_port *vp)
{
    if (vp->received < VHOST_HEADER)
        return (ssize_t)(VHOST_HEADER - vp->received);
    if (vp->msg.size > sizeof(vp->msg.bytes) || (vp->msg.flags & 3) != FLAG_VERSION)
        return -1;
    return (ssize_t)(VHOST_HEADER + vp->msg.size - vp->received);
}

/* More of the message: 1 something came, 0 nothing there, -1 the end. */
static int receive_more(struct vhost_port *vp, size_t want)
{
    struct iovec iov = {(uint8_t *)&vp->msg + vp->received, want};
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(VHOST_FDS_MAX * sizeof(int))];
    } control;
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t n = recvmsg(vp->connection->watch.fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    if (n <= 0)
        return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
    keep_fds(vp, &msg);
    vp->received += (size_t)n;
    return msg.msg_flags & MSG_CTRUNC ? -1 : 1;
}

bool vhost_user_receive(struct vhost_port *vp)
{
    ssize_t missing;

    while ((missing = bytes_missing(vp)) > 0) {
        int got = receive_more(vp, (size_t)missing);

        if (got <= 0)
            return got == 0;
    }
    vp->received = 0;
    return missing == 0 && dispatch(vp);
}
