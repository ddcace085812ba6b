/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * port_user.c - a port of valed: its region, and what wakes whom
 *
 * The region's geometry is checked once against its size, when it has just been mapped; bounds are kept in private copies
 * after that. Programs use the rings through net/netmap.h's formulae and so trust what is mapped, as with the kernel.
 *
 * When valed is gone (its connection hung up), whichever thread notices comes back for all: it holds `busy` for the moment of
 * a try, and the others go on as if rings were full or empty. The new descriptors take the numbers of the old ones before
 * `gone` is cleared.
 */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* One direction of a port; a thread of its own may use it. */
struct half {
    struct vale_ring rings[VALE_MAX_RINGS];
    unsigned int count;
    bool kick_wanted; /* sticky until the kick */
    unsigned int idle; /* syncs in a row that found nothing new */
    int call_fd;
};

struct user_priv {
    struct vale_port_priv common;
    struct half tx;
    struct half rx;
    int kick_fd;
    bool gone;
    struct vale_resume resume;

    bool busy; /* a thread is coming back; what follows is its own */
    bool refused;
    int socks[2];       /* of a request without answer yet; -1: none */
    int64_t asked;      /* when that was, in milliseconds */
    int64_t tried;      /* when retry() last did something */
    int64_t gone_since; /* 0: retry() has not yet noticed */
};

static struct user_priv *priv_of(const struct vale_port *port)
{
    return (struct user_priv *)port->priv;
}

static struct half *half_of(const struct vale_port *port, int direction)
{
    return direction == VALE_TX ? &priv_of(port)->tx : &priv_of(port)->rx;
}

/* ---------------------------------------------------------------------------------------------------- geometry --- */

/* [offset, offset + length) lies within the region. */
static bool inside(const struct vale_port *port, int64_t offset, uint64_t length)
{
    return offset >= 0 && (uint64_t)offset <= port->memsize && length <= port->memsize - (uint64_t)offset;
}

/* Fills in one ring, from the region's header and from the ring's own. */
static bool map_ring(const struct vale_port *port, const struct vale_region *region, struct vale_ring *r,
                     struct netmap_ring *ring, unsigned int ctl_index, uint32_t num_slots)
{
    char *base = port->mem;
    int64_t offset = (char *)ring - base;

    if (!inside(port, offset, sizeof(*ring) + (uint64_t)num_slots * sizeof(struct netmap_slot)) ||
        offset % _Alignof(struct netmap_ring) != 0 || ring->num_slots != num_slots ||
        ring->nr_buf_size != region->buf_size || ring->buf_ofs > (int64_t)port->memsize ||
        ring->buf_ofs < -(int64_t)port->memsize ||
        !inside(port, offset + ring->buf_ofs, (uint64_t)region->buf_count * region->buf_size)) {
        return false;
    }
    r->ring = ring;
    r->ctl = (struct vale_ring_ctl *)(base + VALE_RING_CTL_OFS) + ctl_index;
    r->num_slots = num_slots;
    r->buf_size = region->buf_size;
    r->buf_count = region->buf_count;
    return true;
}

/* A ring's address, or one outside the region where the offset is nonsense. */
static struct netmap_ring *ring_at(const struct vale_port *port, unsigned int index)
{
    int64_t nifp_offset = (char *)port->nifp - (char *)port->mem;
    int64_t ring_ofs = port->nifp->ring_ofs[index];

    if (ring_ofs < -nifp_offset || ring_ofs >= (int64_t)port->memsize) {
        ring_ofs = (int64_t)port->memsize;
    }
    return (struct netmap_ring *)(void *)((char *)port->nifp + ring_ofs);
}

static bool header_is_sound(const struct vale_port *port, const struct vale_region *region, uint64_t if_offset)
{
    uint64_t rings = (uint64_t)region->tx_rings + region->rx_rings;

    return region->magic == VALE_REGION_MAGIC && region->version == VALE_PROTO_VERSION &&
           region->memsize == port->memsize && region->if_offset == if_offset && region->tx_rings >= 1 &&
           region->tx_rings <= VALE_MAX_RINGS && region->rx_rings >= 1 && region->rx_rings <= VALE_MAX_RINGS &&
           region->tx_slots >= 2 && region->tx_slots <= VALE_MAX_SLOTS && region->rx_slots >= 2 &&
           region->rx_slots <= VALE_MAX_SLOTS && region->buf_size >= 64 && region->buf_size <= UINT16_MAX + 1u &&
           if_offset >= VALE_RING_CTL_OFS + rings * sizeof(struct vale_ring_ctl) && if_offset % 8 == 0 &&
           if_offset <= port->memsize;
}

/* Checks the whole layout and fills in the halves. */
static bool map_rings(struct vale_port *port, uint64_t if_offset)
{
    const struct vale_region *region = port->mem;
    struct user_priv *priv = priv_of(port);
    struct netmap_if *nifp;
    uint64_t hosts;
    unsigned int i;

    if (port->memsize < VALE_RING_CTL_OFS || !header_is_sound(port, region, if_offset)) {
        return false;
    }
    nifp = port->nifp = NETMAP_IF(port->mem, if_offset);
    if (!inside(port, (int64_t)if_offset, sizeof(*nifp))) {
        return false;
    }
    hosts = (uint64_t)nifp->ni_host_tx_rings + nifp->ni_host_rx_rings;
    if (nifp->ni_tx_rings != region->tx_rings || nifp->ni_rx_rings != region->rx_rings || hosts > 2 * VALE_MAX_RINGS ||
        !inside(port, (int64_t)if_offset,
                sizeof(*nifp) + (region->tx_rings + region->rx_rings + hosts) * sizeof(nifp->ring_ofs[0]))) {
        return false;
    }
    for (i = 0; i < region->tx_rings; i++) {
        if (!map_ring(port, region, &priv->tx.rings[i], ring_at(port, i), i, region->tx_slots)) {
            return false;
        }
    }
    for (i = 0; i < region->rx_rings; i++) {
        if (!map_ring(port, region, &priv->rx.rings[i],
                      ring_at(port, region->tx_rings + nifp->ni_host_tx_rings + i), region->tx_rings + i,
                      region->rx_slots)) {
            return false;
        }
    }
    port->tx_rings = priv->tx.count = region->tx_rings;
    port->rx_rings = priv->rx.count = region->rx_rings;
    return true;
}

/* -------------------------------------------------------------------------------------------------- open, close --- */

static int user_bind(struct vale_port *port, const struct vale_open_args *args, struct vale_error *err)
{
    struct user_priv *priv = priv_of(port);
    struct vale_attachment got;
    struct nmreq_register reg;
    void *mem;
    int rc;

    priv->kick_fd = priv->tx.call_fd = priv->rx.call_fd = -1;
    priv->resume.mem_fd = priv->socks[0] = priv->socks[1] = -1;
    vale_fill_register(&reg, args);
    rc = vale_attach_register(port->fd, port->device, port->name, &reg, &got, err);
    if (rc < 0) {
        return rc;
    }
    priv->kick_fd = got.fds[VALE_FD_KICK];
    priv->rx.call_fd = got.fds[VALE_FD_CALL_RX];
    priv->tx.call_fd = got.fds[VALE_FD_CALL_TX];
    priv->resume.reg = got.reg;
    priv->resume.mem_fd = got.fds[VALE_FD_MEM];
    mem = mmap(NULL, got.reg.nr_memsize, PROT_READ | PROT_WRITE, MAP_SHARED, got.fds[VALE_FD_MEM], 0);
    rc = errno;
    if (mem == MAP_FAILED) {
        return vale_fail(err, rc, "%s: its %llu bytes cannot be mapped: %s", port->name,
                         (unsigned long long)got.reg.nr_memsize, strerror(rc));
    }
    port->mem = mem;
    port->memsize = got.reg.nr_memsize;
    if (!map_rings(port, got.reg.nr_offset)) {
        return vale_fail(err, EPROTO, "%s: the memory of %s has no valid layout: install valed and its clients from one "
                         "release", port->device, port->name);
    }
    priv->resume.incarnation = ((const struct vale_region *)mem)->incarnation;
    return 0;
}

static int user_set_vnet_hdr(struct vale_port *port, const struct nmreq_port_hdr *body, struct vale_error *err)
{
    priv_of(port)->resume.vnet_hdr_len = body->nr_hdr_len;
    priv_of(port)->resume.accepts = body->pad1;
    return vale_attach_vnet_hdr(port->fd, port->device, port->name, body, err);
}

static void wake_valed(const struct user_priv *priv)
{
    uint64_t one = 1;

    if (write(priv->kick_fd, &one, sizeof(one)) < 0) {
        /* Full: valed has been told already. */
    }
}

static void kick(struct user_priv *priv, struct half *half)
{
    half->kick_wanted = false;
    wake_valed(priv);
}

/* Closes the sockets of a request, if there are any. */
static void forget_request(struct user_priv *priv)
{
    if (priv->socks[0] >= 0) {
        close(priv->socks[0]);
        close(priv->socks[1]);
    }
    priv->socks[0] = priv->socks[1] = -1;
}

static void user_close(struct vale_port *port)
{
    struct user_priv *priv = priv_of(port);

    if (port->mem != NULL) {
        if (priv->tx.kick_wanted) {
            kick(priv, &priv->tx);
        }
        munmap(port->mem, port->memsize);
    }
    if (priv->kick_fd >= 0) {
        close(priv->kick_fd);
        close(priv->rx.call_fd);
        close(priv->tx.call_fd);
        close(priv->resume.mem_fd);
    }
    forget_request(priv);
    close(port->fd);
}

/* --------------------------------------------------------------------------------------------------------- sync --- */

static bool user_gone(const struct vale_port *port)
{
    struct user_priv *priv = priv_of(port);
    struct pollfd conn = {.fd = port->fd, .events = POLLIN};

    /* valed says nothing on the connection: all that can happen there is its end. */
    if (poll(&conn, 1, 0) > 0) {
        __atomic_store_n(&priv->gone, true, __ATOMIC_RELAXED);
    }
    return __atomic_load_n(&priv->gone, __ATOMIC_RELAXED);
}

/* ------------------------------------------------------------------------------------------------- coming back --- */

/* Puts a new descriptor in the place of an old one: programs hold the number. */
static void take_place(int new, int old)
{
    int flags = fcntl(old, F_GETFD);

    dup3(new, old, flags >= 0 && flags & FD_CLOEXEC ? O_CLOEXEC : 0);
    close(new);
}

/* valed has taken the port back. */
static void be_back(struct vale_port *port, const struct vale_attachment *got)
{
    struct user_priv *priv = priv_of(port);

    priv->resume.incarnation = ((const struct vale_region *)port->mem)->incarnation;
    close(got->fds[VALE_FD_MEM]);
    take_place(got->fds[VALE_FD_KICK], priv->kick_fd);
    take_place(got->fds[VALE_FD_CALL_RX], priv->rx.call_fd);
    take_place(got->fds[VALE_FD_CALL_TX], priv->tx.call_fd);
    take_place(priv->socks[0], port->fd);
    priv->socks[0] = -1;
    close(priv->socks[1]);
    priv->gone_since = 0;
    __atomic_store_n(&priv->gone, false, __ATOMIC_RELEASE);
    /* Whoever published while nobody was there kicked nobody. */
    wake_valed(priv);
}

/* A refusal that time may change. */
static bool is_passing(int error)
{
    return error == ENOMEM || error == EMFILE || error == ENFILE;
}

/* One try: the next step of coming back that needs no waiting. As vale_reconnect(). */
static int come_back(struct vale_port *port)
{
    struct user_priv *priv = priv_of(port);
    struct vale_attachment got;
    int rc;

    if (priv->refused) {
        return -ENXIO;
    }
    if (priv->socks[0] < 0) {
        if (vale_attach_resume_begin(port->device, port->name, &priv->resume, priv->socks) < 0) {
            return -EAGAIN;
        }
        priv->asked = vale_now_ms();
    }
    rc = vale_attach_resume_end(priv->socks, &priv->resume, &got);
    if (rc == 0) {
        be_back(port, &got);
        return 0;
    }
    if (rc != -EAGAIN || vale_now_ms() - priv->asked > VALE_ANSWER_MS) {
        forget_request(priv);
    }
    priv->refused = rc > 0 && !is_passing(rc);
    return priv->refused ? -ENXIO : -EAGAIN;
}

/* True: this thread may come back. It calls leave() then. */
static bool enter(struct user_priv *priv)
{
    return !__atomic_exchange_n(&priv->busy, true, __ATOMIC_ACQUIRE);
}

static void leave(struct user_priv *priv)
{
    __atomic_store_n(&priv->busy, false, __ATOMIC_RELEASE);
}

/* Whether the connection has hung up; only this tells, and only whoever is the one that comes back may act on it. */
static bool really_gone(struct vale_port *port)
{
    __atomic_store_n(&priv_of(port)->gone, false, __ATOMIC_RELAXED);
    return user_gone(port);
}

static int user_reconnect(struct vale_port *port)
{
    struct user_priv *priv = priv_of(port);
    int rc;

    if (!user_gone(port)) {
        return 0;
    }
    if (!enter(priv)) {
        return -EAGAIN;
    }
    rc = really_gone(port) ? come_back(port) : 0;
    leave(priv);
    return rc;
}

static int user_retry(struct vale_port *port)
{
    struct user_priv *priv = priv_of(port);
    int64_t now = vale_now_ms();
    int rc = 0;

    if (!enter(priv)) {
        return 0;
    }
    if (priv->gone_since == 0) {
        priv->gone_since = now;
    }
    if (now - priv->tried >= VALE_RETRY_MS) {
        priv->tried = now;
        if (really_gone(port)) {
            come_back(port);
        }
    }
    if (!__atomic_load_n(&priv->gone, __ATOMIC_RELAXED)) {
        priv->gone_since = 0;
    } else {
        rc = priv->refused || now - priv->gone_since > VALE_BACK_MS ? -ENXIO : 0;
    }
    leave(priv);
    return rc;
}

/* Syncs ring i. True when that brought something new. */
static bool sync_ring(struct half *half, unsigned int i)
{
    struct vale_ring *r = &half->rings[i];
    uint32_t tail = r->ring->tail;

    half->kick_wanted |= vale_ring_sync(r);
    return r->ring->tail != tail;
}

static int sync_half(struct vale_port *port, struct half *half)
{
    struct user_priv *priv = priv_of(port);
    bool news = false;
    unsigned int i;

    for (i = 0; i < half->count; i++) {
        news |= sync_ring(half, i);
    }
    if (half->kick_wanted) {
        kick(priv, half);
    }
    /* Who polls without ever waiting has to learn it, too, that valed is gone. */
    half->idle = news ? 0 : half->idle + 1;
    if (half->idle % 1024 == 1023) {
        user_gone(port);
    }
    return __atomic_load_n(&priv->gone, __ATOMIC_RELAXED) ? user_retry(port) : 0;
}

static int user_txsync(struct vale_port *port)
{
    return sync_half(port, &priv_of(port)->tx);
}

static int user_rxsync(struct vale_port *port)
{
    return sync_half(port, &priv_of(port)->rx);
}

static bool user_tx_publish(struct vale_port *port, unsigned int i)
{
    struct half *tx = &priv_of(port)->tx;

    sync_ring(tx, i);
    return tx->kick_wanted;
}

static int user_tx_kick(struct vale_port *port)
{
    struct user_priv *priv = priv_of(port);

    if (priv->tx.kick_wanted) {
        kick(priv, &priv->tx);
    }
    return __atomic_load_n(&priv->gone, __ATOMIC_RELAXED) ? -ENXIO : 0;
}

/* ------------------------------------------------------------------------------------------------------ waiting --- */

static int user_poll_fd(const struct vale_port *port, int direction)
{
    return half_of(port, direction)->call_fd;
}

static short user_poll_events(int direction)
{
    (void)direction;
    return POLLIN;
}

static bool half_ready(const struct half *half)
{
    unsigned int i;

    for (i = 0; i < half->count; i++) {
        if (vale_ring_ready(&half->rings[i])) {
            return true;
        }
    }
    return false;
}

static void disarm(struct half *half)
{
    unsigned int i;

    for (i = 0; i < half->count; i++) {
        vale_ring_disarm(&half->rings[i]);
    }
}

static bool user_wait_begin(struct vale_port *port, int direction)
{
    struct half *half = half_of(port, direction);
    bool still = true;
    unsigned int i;

    sync_half(port, half);
    if (half_ready(half)) {
        return true;
    }
    for (i = 0; i < half->count; i++) {
        still &= vale_ring_arm(&half->rings[i]);
    }
    if (!still) {
        sync_half(port, half);
        still = !half_ready(half);
    }
    if (!still) {
        disarm(half);
    }
    return !still;
}

static bool user_wait_end(struct vale_port *port, int direction)
{
    struct half *half = half_of(port, direction);
    char calls[64];

    disarm(half);
    if (read(half->call_fd, calls, sizeof(calls)) == 0) {
        user_gone(port);
    }
    sync_half(port, half);
    return half_ready(half);
}

const struct vale_ops vale_user_ops = {
    .provider = VALE_PROVIDER_USER,
    .priv_size = sizeof(struct user_priv),
    .find = vale_attach_connect,
    .bind = user_bind,
    .set_vnet_hdr = user_set_vnet_hdr,
    .close = user_close,
    .tx_publish = user_tx_publish,
    .tx_kick = user_tx_kick,
    .txsync = user_txsync,
    .rxsync = user_rxsync,
    .poll_fd = user_poll_fd,
    .poll_events = user_poll_events,
    .wait_begin = user_wait_begin,
    .wait_end = user_wait_end,
    .gone = user_gone,
    .reconnect = user_reconnect,
    .retry = user_retry,
};
