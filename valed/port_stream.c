/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Stream ports: frames over a socket, each behind its length in 4 bytes, big-endian
 *
 * INGRESS  The ring's worker reads as much as there is into the port's own buffer and views the frames there; what is left of
 * the last, incomplete one moves to the front when the batch is consumed. A length that no frame can have ends the
 * connection: the stream cannot be found again.
 *
 * EGRESS  Workers take turns (a lock: a stream has one end). A batch is one sendmsg of lengths and views, straight from the
 * source. A frame that the socket took only in part is finished from a copy, by whoever comes next, or by the ring's
 * worker when the socket has room again. Frames that find the socket full are dropped.
 *
 * The connection belongs to the control thread, which makes it and, after a hang-up, takes it away: `peer` is cleared first,
 * and closed when no worker uses it any more. Before that the worker forwards what the peer has sent: it is in the socket, so
 * there is an end to it, and the worker says when that is reached (`drained`).
 */
#include "port_stream.h"

#include "endpoint.h"
#include "forward.h"
#include "log.h"
#include "qmp.h"
#include "vswitch.h"
#include "worker.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define LENGTH      4
#define BUFFER      (256 * 1024)
#define FRAMES_MAX  256 /* of one sendmsg */
#define IOV_PER_MSG 1024

struct peer {
    int fd;
    _Atomic bool hung_up; /* nothing is sent to it any more */
    _Atomic bool drained; /* nor will anything come from it */
};

struct stream_port {
    struct port port;
    struct ring ring;
    struct endpoint *endpoint;
    _Atomic(struct peer *) peer; /* NULL: nobody is there */
    struct port_watch *hangup;
    struct stream_port *next_ending;

    /* Ingress: the ring's worker. */
    uint8_t *buffer;
    uint32_t filled;   /* bytes in the buffer */
    uint32_t consumed; /* of these, in frames of the batch at hand */
    uint32_t begin;    /* of its first frame: bad ones may lie before it */

    /* Egress: under the lock. */
    pthread_mutex_t lock;
    uint8_t *rest; /* of a frame that was sent in part */
    uint32_t rest_at, rest_len;
};

static struct stream_port *ending; /* their peers have hung up and are being drained */

static inline struct stream_port *to_stream_port(const struct port *port)
{
    return (struct stream_port *)(uintptr_t)port;
}

/* ----------------------------------------------------------------------------------------------------------- ingress --- */

/* Views complete frames; false when a length is impossible. */
static bool view_frames(struct stream_port *sp, struct batch *b, unsigned int budget)
{
    while (b->frames < budget && sp->filled - sp->consumed >= LENGTH) {
        const uint8_t *p = sp->buffer + sp->consumed;
        uint32_t len;

        memcpy(&len, p, LENGTH);
        len = ntohl(len);
        if (len > FRAME_LEN_MAX)
            return false;
        if (sp->filled - sp->consumed - LENGTH < len)
            break;
        if (len < FRAME_LEN_MIN && b->frames)
            break;
        sp->consumed += LENGTH + len;
        if (len < FRAME_LEN_MIN) {
            sp->begin = sp->consumed;
            count(&sp->port.counters.rx_frames, 1);
            count(&sp->port.counters.rx_dropped[DROP_SHORT], 1);
            continue;
        }
        b->end[b->frames] = sp->consumed;
        b->frame[b->frames++] = (struct frame){.first = b->segs, .segs = 1, .len = (uint16_t)len};
        b->seg[b->segs++] = (struct segment){.data = p + LENGTH, .len = len};
    }
    return true;
}

static bool flush_rest(struct stream_port *sp, int fd);

/* Asks for no more word of room, unless somebody waits for it. In this order: who comes to wait sets himself down first. */
static void room_came(struct stream_port *sp)
{
    worker_want_room(&sp->ring, false);
    if (atomic_load(&sp->port.waiting))
        worker_want_room(&sp->ring, true);
}

/* Says so to the control thread. */
static void set_drained(struct peer *peer)
{
    if (!atomic_exchange(&peer->drained, true))
        worker_notice();
}

static unsigned int stream_ingress(struct ring *ring, struct batch *b, unsigned int budget, bool *seen)
{
    struct stream_port *sp = to_stream_port(ring->port);
    struct peer *peer = atomic_load(&sp->peer);
    bool sound, ended;
    ssize_t n;

    *seen = false;
    sp->consumed = sp->begin = 0;
    if (!peer)
        return 0;
    pthread_mutex_lock(&sp->lock);
    if (sp->rest_len && flush_rest(sp, peer->fd))
        room_came(sp);
    pthread_mutex_unlock(&sp->lock);
    n = recv(peer->fd, sp->buffer + sp->filled, BUFFER - sp->filled, MSG_DONTWAIT);
    ended = n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
    if (n > 0)
        sp->filled += (uint32_t)n;
    sound = view_frames(sp, b, budget);
    if (!sound)
        shutdown(peer->fd, SHUT_RDWR); /* the control thread sees the end */
    if ((ended || !sound) && !sp->consumed)
        set_drained(peer);
    *seen = n > 0 || sp->consumed;
    return b->frames;
}

static void stream_consumed(struct ring *ring, const struct batch *b, unsigned int n)
{
    struct stream_port *sp = to_stream_port(ring->port);

    if (n < b->frames)
        sp->consumed = n ? b->end[n - 1] : sp->begin;
    sp->filled -= sp->consumed;
    memmove(sp->buffer, sp->buffer + sp->consumed, sp->filled);
    sp->consumed = 0;
}

/* The socket is watched edge-triggered, and the last read found nothing: the next bytes are an edge. */
static bool stream_want_kick(struct ring *ring, bool on)
{
    (void)ring, (void)on;
    return false;
}

/* ------------------------------------------------------------------------------------------------------------ egress --- */

/* Sends what is left of a frame. True when nothing is left. */
static bool flush_rest(struct stream_port *sp, int fd)
{
    while (sp->rest_len) {
        ssize_t n = send(fd, sp->rest + sp->rest_at, sp->rest_len, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (n < 0)
            return false;
        sp->rest_at += (uint32_t)n;
        sp->rest_len -= (uint32_t)n;
    }
    return true;
}

/* One sendmsg as it is built. */
struct message {
    unsigned int frames;
    unsigned int iovs;
    uint32_t length[FRAMES_MAX]; /* as on the wire */
    struct iovec iov[IOV_PER_MSG];
};

static _Thread_local struct message message_scratch;

static void build(struct message *m, const struct batch *b, const uint16_t *order, unsigned int n)
{
    m->frames = m->iovs = 0;
    while (m->frames < n && m->frames < FRAMES_MAX) {
        const struct frame *f = &b->frame[order[m->frames]];

        if (m->iovs + 1 + f->segs > IOV_PER_MSG)
            break;
        m->length[m->frames] = htonl(f->len);
        m->iov[m->iovs++] = (struct iovec){&m->length[m->frames], LENGTH};
        for (unsigned int i = 0; i < f->segs; i++) {
            const struct segment *s = &b->seg[f->first + i];

            m->iov[m->iovs++] = (struct iovec){(void *)(uintptr_t)s->data, s->len};
        }
        m->frames++;
    }
}

/* Copies the part of frame f, length included, that lies behind its first `sent` bytes. */
static void keep_rest(struct stream_port *sp, const struct batch *b, const struct frame *f, uint32_t sent)
{
    uint32_t length = htonl(f->len), at = LENGTH;

    memcpy(sp->rest, &length, LENGTH);
    for (unsigned int i = 0; i < f->segs; i++) {
        memcpy(sp->rest + at, b->seg[f->first + i].data, b->seg[f->first + i].len);
        at += b->seg[f->first + i].len;
    }
    sp->rest_at = sent;
    sp->rest_len = at - sent;
}

/*
 * Sends up to n frames. How many are on their way: whole, or with their rest kept. *lost is set when the memory of the first
 * has gone; where only the rest of a frame has, that is sent as zeros, since its length is on its way.
 */
static unsigned int send_frames(struct stream_port *sp, int fd, const struct batch *b, const uint16_t *order, unsigned int n,
                                bool *lost)
{
    struct message *m = &message_scratch;
    struct msghdr msg = {.msg_iov = m->iov};
    unsigned int done = 0;
    ssize_t sent;

    build(m, b, order, n);
    msg.msg_iovlen = m->iovs;
    sent = sendmsg(fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
    *lost = sent < 0 && errno == EFAULT;
    if (sent <= 0)
        return 0;
    for (; done < m->frames; done++) {
        uint32_t len = LENGTH + b->frame[order[done]].len;

        if ((size_t)sent < len)
            break;
        sent -= len;
    }
    if (done < m->frames && sent > 0)
        keep_rest(sp, b, &b->frame[order[done++]], (uint32_t)sent);
    return done;
}

static unsigned int stream_egress(struct port *port, unsigned int queue, const struct batch *b, const uint16_t *order,
                                  unsigned int n)
{
    struct stream_port *sp = to_stream_port(port);
    struct port_counters *c = &port->counters;
    struct peer *peer = atomic_load(&sp->peer);
    unsigned int done = 0, step;
    uint64_t bytes = 0;
    bool lost = false;

    (void)queue;
    if (!peer || atomic_load(&peer->hung_up)) {
        count(&c->tx_dropped[DROP_DOWN], n);
        batch_undelivered_all(b, order, n);
        return n;
    }
    pthread_mutex_lock(&sp->lock);
    while (done < n && flush_rest(sp, peer->fd)) {
        step = send_frames(sp, peer->fd, b, order + done, n - done, &lost);
        if (step == 0)
            break;
        done += step;
    }
    if (sp->rest_len)
        worker_want_room(&sp->ring, true);
    pthread_mutex_unlock(&sp->lock);
    for (unsigned int k = 0; k < done; k++)
        bytes += b->frame[order[k]].len;
    count(&c->tx_frames, done);
    count(&c->tx_bytes, bytes);
    if (!lost)
        return done;
    count(&c->tx_dropped[DROP_PEER_MEMORY], n - done);
    batch_undelivered_all(b, order + done, n - done);
    return n;
}

/* The socket says so by itself once it is asked, also when it has room already. */
static bool stream_want_room(struct port *port, unsigned int queue, bool on)
{
    (void)queue;
    if (on)
        worker_want_room(&to_stream_port(port)->ring, true);
    return false;
}

/* --------------------------------------------------------------------------------------------------- connection --- */

static void free_peer(void *arg)
{
    struct peer *peer = arg;

    close(peer->fd);
    free(peer);
}

/* No worker uses the old peer any more: the next one may come. */
static void finish_down(void *arg)
{
    struct stream_port *sp = arg;

    sp->filled = sp->rest_len = 0;
    if (sp->endpoint)
        endpoint_resume(sp->endpoint);
}

static void take_down(struct stream_port *sp)
{
    struct peer *peer = atomic_exchange(&sp->peer, NULL);

    worker_set_kick(&sp->ring, -1);
    fdb_flush_port(&sp->port.sw->fdb, sp->port.index, false);
    qmp_event_port("PORT_DOWN", &sp->port, "closed by its peer");
    sp->port.uid = 0; /* nobody is there: pid 0 says so */
    sp->port.pid = 0;
    reclaim(free_peer, peer);
    reclaim(finish_down, sp);
}

/* No longer watched: the end of a socket would wake us for ever. */
static void unwatch(struct stream_port *sp)
{
    if (sp->hangup)
        watch_free(&sp->hangup->watch);
    sp->hangup = NULL;
}

void stream_hangup(struct watch *w)
{
    struct stream_port *sp = to_stream_port(((struct port_watch *)w)->port);

    unwatch(sp);
    sp->next_ending = ending;
    ending = sp;
    atomic_store(&atomic_load(&sp->peer)->hung_up, true);
    forward_room(&sp->port); /* frames for it are dropped now */
    worker_poke_ring(&sp->ring);
    stream_check_drained();
}

void stream_check_drained(void)
{
    struct stream_port **link = &ending;

    while (*link) {
        struct stream_port *sp = *link;

        if (atomic_load(&sp->peer)->drained) {
            *link = sp->next_ending;
            take_down(sp);
        } else {
            link = &sp->next_ending;
        }
    }
}

/* Watches a copy of the socket for its end: the socket itself is in the worker's epoll. */
static struct port_watch *watch_end(struct stream_port *sp, int fd)
{
    struct port_watch *w = calloc(1, sizeof(*w));
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);

    if (!w || copy < 0 || watch_add(&w->watch, WATCH_STREAM, copy) < 0) {
        if (copy >= 0)
            close(copy);
        free(w);
        return NULL;
    }
    w->port = &sp->port;
    watch_events(&w->watch, EPOLLRDHUP);
    return w;
}

static bool connected(void *arg, int fd)
{
    struct stream_port *sp = arg;
    struct peer *peer = malloc(sizeof(*peer));
    socklen_t len = sizeof(struct ucred);
    struct ucred who;

    if (!peer || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) < 0 || !(sp->hangup = watch_end(sp, fd))) {
        log_warn("%s: cannot take a peer: %s", sp->port.name.full, strerror(errno));
        free(peer);
        return false;
    }
    *peer = (struct peer){.fd = fd};
    sp->port.uid = who.uid;
    sp->port.pid = who.pid;
    atomic_store(&sp->peer, peer);
    worker_set_kick(&sp->ring, fd);
    qmp_event_port("PORT_UP", &sp->port, NULL);
    return true;
}

/* ------------------------------------------------------------------------------------------------ making and ending --- */

/* The peer stays until the ring has been drained like any other. */
static void stream_close(struct port *port)
{
    struct stream_port *sp = to_stream_port(port), **link = &ending;

    endpoint_close(sp->endpoint);
    sp->endpoint = NULL;
    unwatch(sp);
    while (*link && *link != sp)
        link = &(*link)->next_ending;
    if (*link)
        *link = sp->next_ending;
}

static void stream_destroy(struct port *port)
{
    struct stream_port *sp = to_stream_port(port);
    struct peer *peer = atomic_load(&sp->peer);

    if (peer)
        free_peer(peer);
    endpoint_close(sp->endpoint);
    free(sp->buffer);
    free(sp->rest);
    free(sp);
}

static const struct port_ops stream_port_ops = {
    .kind = "stream",
    .ring = {.ingress = stream_ingress, .consumed = stream_consumed, .want_kick = stream_want_kick},
    .egress = stream_egress,
    .want_room = stream_want_room,
    .close = stream_close,
    .destroy = stream_destroy,
};

int stream_port_create(struct port **port, const struct vale_name *name, const char *path, bool connects)
{
    struct stream_port *sp = calloc(1, sizeof(*sp));
    int err;

    if (!sp)
        return -ENOMEM;
    sp->port.ops = &stream_port_ops;
    sp->port.name = *name;
    sp->port.ring_count = 1;
    sp->port.ring[0] = &sp->ring;
    sp->ring.port = &sp->port;
    sp->ring.kick_fd = -1;
    pthread_mutex_init(&sp->lock, NULL);
    sp->buffer = malloc(BUFFER);
    sp->rest = malloc(LENGTH + FRAME_LEN_MAX);
    err = sp->buffer && sp->rest ? endpoint_open(&sp->endpoint, path, connects, connected, sp) : -ENOMEM;
    if (err) {
        stream_destroy(&sp->port);
        return err;
    }
    *port = &sp->port;
    return 0;
}
