/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * VALE and netmap network backend: a port of a VALE switch as a netdev
 *
 *     -netdev netmap,id=n0,ifname=vale1:a[,devname=PATH]
 *
 * The switch is the kernel module behind /dev/netmap or the user-space switch
 * valed; libvale (net/vale) hides which, and both share with us the rings that
 * net/netmap.h describes.
 *
 * Theory of operation
 *
 *   guest -> switch                          switch -> guest
 *
 *   NIC model                                fd or call channel readable
 *     netmap_receive_iov()                     netmap_rx_ready()
 *       copy into slots, move head               netmap_rx_burst()
 *       vale_tx_publish()                          netmap_rx_frame() x 256
 *     once per burst                               NIC model
 *       vale_tx_kick()                             head moves on as it goes
 *
 * TX: each frame is copied once, into as many slots as it needs, and published
 * at once. valed that is awake sees it without a system call. Only the kick,
 * which wakes valed or is the kernel's TXSYNC, is put off: to a bottom half,
 * which runs when the NIC model is through with its burst. Two cases do not
 * wait. In a vCPU thread a bottom half would cost the same system call and a
 * detour over the main loop, so valed is kicked from there directly. And when
 * half the ring is unsent, sending shall overlap with filling.
 *
 * A ring without room for the largest frame makes can_receive() false, so that
 * frames stay in the NIC model, or in the hub, in their order. From then on we
 * wait for room and flush the NIC's queue when there is.
 *
 * RX: frames go to the NIC model from where they lie, at most 256 before the
 * main loop gets a turn. If the NIC model cannot take one, polling stops until
 * QEMU tells us that it was sent; then the ring fills, and the switch counts.
 *
 * All of this runs under the BQL, in the main loop or in vCPU threads. Only the
 * main loop opens and closes the port: code that NIC models call finds s->port
 * either good for the whole call or NULL.
 *
 * If the switch goes away we warn, once. valed may be restarted: a timer asks
 * libvale, which still has the port's memory, to come back. Meanwhile frames of
 * the guest are dropped; if it takes long the link goes down, and up again
 * afterwards. Not at once: a guest forgets its neighbours when its carrier
 * goes. What the switch writes into slots is checked before use.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-net.h"
#include "qemu/error-report.h"
#include "qemu/iov.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "hw/core/cpu.h"
#include "net/eth.h"
#include "net/net.h"
#include "clients.h"
#include "vale/libvale.h"

/* Frames given to the NIC model before the main loop gets its turn. */
#define NETMAP_RX_BURST 256

/*
 * Slots of the RX ring: as many as there can be. A guest that has to wait for
 * a CPU, or whose main loop is busy, then loses nothing for longer.
 */
#define NETMAP_RX_SLOTS 4096

/* Slots are given back to the switch at least this often during a burst. */
#define NETMAP_RX_RELEASE 32

/* How often we look whether a switch that is gone has come back. */
#define NETMAP_RECONNECT_MS 100

/* After how many of these looks the guest is told. */
#define NETMAP_GRACE 10

/* `info network` is at most this old. */
#define NETMAP_INFO_MS 100

typedef struct NetmapCounters {
    uint64_t tx_frames;     /* guest to switch */
    uint64_t tx_bytes;
    uint64_t tx_kicks;      /* system calls to wake the switch, or TXSYNCs */
    uint64_t tx_full;       /* times that the NIC had to wait for room */
    uint64_t tx_dropped;    /* too long for the ring, or bad slots */
    uint64_t rx_frames;     /* switch to guest */
    uint64_t rx_bytes;
    uint64_t rx_calls;      /* times that the switch woke us */
    uint64_t rx_dropped;    /* too short, or bad slots */
} NetmapCounters;

typedef struct NetmapState {
    NetClientState nc;
    struct vale_port *port;     /* NULL: the switch is gone */
    struct vale_port *lost;     /* then: the port that may come back */
    int looks;                  /* how often we have looked for it */
    bool link_taken;            /* and it was us who took the link down */
    struct netmap_ring *tx;
    struct netmap_ring *rx;
    uint32_t buffers;           /* buffers that lie in the port's memory */
    uint32_t tx_largest;        /* slots of the largest frame */
    uint32_t tx_unkicked;       /* slots that wait for a kick */
    bool tx_kick_due;           /* the bottom half will kick */
    bool tx_wait;               /* waiting for room */
    bool rx_wait;               /* reading; false: the NIC cannot receive */
    QEMUBH *tx_bh;
    QEMUBH *rx_bh;
    QEMUTimer *info_timer;
    QEMUTimer *reconnect_timer;
    NetmapCounters count;
    struct iovec iov[NETMAP_MAX_FRAGS];
} NetmapState;

static void netmap_rx_ready(void *opaque);
static void netmap_tx_ready(void *opaque);

/* What the port was opened as, and its counters, for `info network`. */
static void netmap_info(void *opaque)
{
    NetmapState *s = opaque;
    NetmapCounters *c = &s->count;

    if (!s->port) {
        qemu_set_info_str(&s->nc, "the switch is gone");
        return;
    }
    qemu_set_info_str(&s->nc, "ifname=%s,provider=%s"
                      ",tx_frames=%" PRIu64 ",tx_bytes=%" PRIu64
                      ",tx_kicks=%" PRIu64 ",tx_full=%" PRIu64
                      ",tx_dropped=%" PRIu64
                      ",rx_frames=%" PRIu64 ",rx_bytes=%" PRIu64
                      ",rx_calls=%" PRIu64 ",rx_dropped=%" PRIu64,
                      s->port->name, vale_provider_name(s->port->provider),
                      c->tx_frames, c->tx_bytes, c->tx_kicks, c->tx_full,
                      c->tx_dropped, c->rx_frames, c->rx_bytes, c->rx_calls,
                      c->rx_dropped);
}

/* Counters moved: renew the information soon, but not for every frame. */
static void netmap_counted(NetmapState *s)
{
    if (!timer_pending(s->info_timer)) {
        timer_mod(s->info_timer,
                  qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + NETMAP_INFO_MS);
    }
}

/*
 * Tells the main loop what to wait for. /dev/netmap has one descriptor for both
 * directions, valed a readable call channel for each.
 */
static void netmap_set_handlers(NetmapState *s)
{
    int rx_fd = vale_poll_fd(s->port, VALE_RX);
    int tx_fd = vale_poll_fd(s->port, VALE_TX);
    IOHandler *rx = s->rx_wait ? netmap_rx_ready : NULL;
    IOHandler *tx = s->tx_wait ? netmap_tx_ready : NULL;

    if (rx_fd == tx_fd) {
        qemu_set_fd_handler(rx_fd, rx, tx, s);
    } else {
        qemu_set_fd_handler(rx_fd, rx, NULL, s);
        qemu_set_fd_handler(tx_fd, tx, NULL, s);
    }
}

static void netmap_set_wait(NetmapState *s, bool *wait, bool enable)
{
    if (*wait != enable) {
        *wait = enable;
        netmap_set_handlers(s);
    }
}

/* From here on the port is not used; it is still open. */
static struct vale_port *netmap_stop(NetmapState *s)
{
    struct vale_port *port = s->port;

    s->rx_wait = false;
    s->tx_wait = false;
    s->tx_kick_due = false;
    netmap_set_handlers(s);
    qemu_set_fd_handler(s->port->fd, NULL, NULL, NULL);
    qemu_bh_cancel(s->tx_bh);
    qemu_bh_cancel(s->rx_bh);
    s->port = NULL;
    return port;
}

static void netmap_retry_later(NetmapState *s)
{
    timer_mod(s->reconnect_timer,
              qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + NETMAP_RECONNECT_MS);
}

/*
 * The switch is gone. Frames that waited for room are dropped by the flush, or
 * the NIC would wait for them for ever.
 */
static void netmap_down(NetmapState *s)
{
    warn_report("netdev %s: the switch of %s is gone",
                s->nc.name, s->port->name);
    s->lost = netmap_stop(s);
    s->looks = 0;
    qemu_flush_queued_packets(&s->nc);
    netmap_info(s);
    netmap_retry_later(s);
}

static void netmap_take_link(NetmapState *s)
{
    s->link_taken = !s->nc.link_down;
    qmp_set_link(s->nc.name, false, NULL);
}

static void netmap_give_link(NetmapState *s)
{
    if (s->link_taken) {
        s->link_taken = false;
        qmp_set_link(s->nc.name, true, NULL);
    }
}

static void netmap_start(NetmapState *s, struct vale_port *port);

/* Looks whether the switch is back. libvale does not wait for it either. */
static void netmap_reconnect(void *opaque)
{
    NetmapState *s = opaque;
    struct vale_port *port = s->lost;
    int rc = vale_reconnect(port);

    if (rc == -EAGAIN) {
        if (++s->looks == NETMAP_GRACE) {
            netmap_take_link(s);
        }
        netmap_retry_later(s);
        return;
    }
    s->lost = NULL;
    if (rc < 0) {
        warn_report("netdev %s: %s was taken away, the link stays down",
                    s->nc.name, port->name);
        vale_close(port);
        netmap_take_link(s);
        return;
    }
    info_report("netdev %s: the switch of %s is back", s->nc.name, port->name);
    netmap_start(s, port);
    netmap_give_link(s);
}

/* valed's connection carries nothing but its end. */
static void netmap_hangup(void *opaque)
{
    NetmapState *s = opaque;

    if (vale_gone(s->port)) {
        netmap_down(s);
    }
}

/* Slots free for us: netmap's own count starts at cur, which may wait ahead. */
static uint32_t netmap_tx_space(const struct netmap_ring *ring)
{
    uint32_t tail = ring->tail, head = ring->head;

    return tail >= head ? tail - head : tail + ring->num_slots - head;
}

static void netmap_tx_kick(NetmapState *s)
{
    s->tx_unkicked = 0;
    s->tx_kick_due = false;
    s->count.tx_kicks++;
    vale_tx_kick(s->port);
}

static void netmap_tx_bh(void *opaque)
{
    NetmapState *s = opaque;

    if (s->tx_kick_due) {
        netmap_tx_kick(s);
    }
}

/*
 * Makes room for @slots, or arms the wake-up for it and returns false. Room can
 * come while we arm; each turn of the loop has seen the switch take frames.
 */
static bool netmap_tx_make_room(NetmapState *s, uint32_t slots)
{
    if (s->tx_wait) {
        return false;
    }
    do {
        s->tx->cur = s->tx->head;
        if (vale_tx_publish(s->port, 0)) {
            netmap_tx_kick(s);
        }
        if (netmap_tx_space(s->tx) >= slots) {
            return true;
        }
        s->tx->cur = s->tx->tail;
    } while (vale_wait_begin(s->port, VALE_TX));
    s->count.tx_full++;
    netmap_set_wait(s, &s->tx_wait, true);
    return false;
}

static bool netmap_can_receive(NetClientState *nc)
{
    NetmapState *s = DO_UPCAST(NetmapState, nc, nc);

    return !s->port || netmap_tx_space(s->tx) >= s->tx_largest ||
           netmap_tx_make_room(s, s->tx_largest);
}

/* Room again, or the switch is gone. */
static void netmap_tx_ready(void *opaque)
{
    NetmapState *s = opaque;

    if (!vale_wait_end(s->port, VALE_TX) && vale_gone(s->port)) {
        netmap_down(s);
        return;
    }
    netmap_set_wait(s, &s->tx_wait, false);
    s->tx->cur = s->tx->head;
    qemu_flush_queued_packets(&s->nc);
}

/*
 * Copies a frame into the slots at head, and moves head behind it; false when a
 * slot's buffer is not in the port's memory.
 */
static bool netmap_tx_copy(NetmapState *s, const struct iovec *iov, int iovcnt,
                           size_t size)
{
    struct netmap_ring *ring = s->tx;
    uint32_t i = ring->head;
    size_t done = 0;

    while (done < size) {
        struct netmap_slot *slot = &ring->slot[i];
        uint32_t buf_idx = qatomic_read(&slot->buf_idx);
        size_t len = MIN(size - done, ring->nr_buf_size);

        if (buf_idx >= s->buffers) {
            return false;
        }
        iov_to_buf(iov, iovcnt, done, NETMAP_BUF(ring, buf_idx), len);
        done += len;
        slot->len = len;
        slot->flags = done < size ? NS_MOREFRAG : 0;
        i = nm_ring_next(ring, i);
    }
    ring->head = ring->cur = i;
    return true;
}

/* Publishes up to head, and sees to the kick if the switch wants one. */
static void netmap_tx_publish(NetmapState *s, uint32_t slots)
{
    if (!vale_tx_publish(s->port, 0)) {
        s->tx_unkicked = 0;
        return;
    }
    s->tx_unkicked += slots;
    if ((current_cpu && s->port->provider == VALE_PROVIDER_USER) ||
        s->tx_unkicked >= s->tx->num_slots / 2) {
        netmap_tx_kick(s);
    } else if (!s->tx_kick_due) {
        /* Not for each frame: scheduling can be a system call, too. */
        s->tx_kick_due = true;
        qemu_bh_schedule(s->tx_bh);
    }
}

static ssize_t netmap_receive_iov(NetClientState *nc, const struct iovec *iov,
                                  int iovcnt)
{
    NetmapState *s = DO_UPCAST(NetmapState, nc, nc);
    size_t size = iov_size(iov, iovcnt);
    uint32_t slots;

    if (!s->port) {
        return size;
    }
    netmap_counted(s);
    slots = DIV_ROUND_UP(size, s->tx->nr_buf_size);
    if (slots && slots <= s->tx_largest && netmap_tx_space(s->tx) < slots &&
        !netmap_tx_make_room(s, slots)) {
        return 0;
    }
    if (!slots || slots > s->tx_largest ||
        !netmap_tx_copy(s, iov, iovcnt, size)) {
        s->count.tx_dropped++;
        return -EINVAL;
    }
    s->count.tx_frames++;
    s->count.tx_bytes += size;
    netmap_tx_publish(s, slots);
    return size;
}

static ssize_t netmap_receive(NetClientState *nc, const uint8_t *buf,
                              size_t size)
{
    struct iovec iov = { .iov_base = (void *)buf, .iov_len = size };

    return netmap_receive_iov(nc, &iov, 1);
}

/* The NIC model took the frame that it had to leave waiting. */
static void netmap_rx_resume(NetClientState *nc, ssize_t len)
{
    NetmapState *s = DO_UPCAST(NetmapState, nc, nc);

    if (s->port) {
        netmap_set_wait(s, &s->rx_wait, true);
        qemu_bh_schedule(s->rx_bh);
    }
}

/* Hands s->iov to the NIC model, which shall not see less than 60 bytes. */
static void netmap_rx_deliver(NetmapState *s, int iovcnt, size_t size)
{
    uint8_t padded[ETH_ZLEN] = { 0 };

    s->count.rx_frames++;
    s->count.rx_bytes += size;
    if (size < sizeof(padded) && net_peer_needs_padding(&s->nc)) {
        iov_to_buf(s->iov, iovcnt, 0, padded, size);
        s->iov[0].iov_base = padded;
        s->iov[0].iov_len = sizeof(padded);
        iovcnt = 1;
    }
    if (!qemu_sendv_packet_async(&s->nc, s->iov, iovcnt, netmap_rx_resume)) {
        netmap_set_wait(s, &s->rx_wait, false);
    }
}

/* False: the slot points out of the port's memory. */
static bool netmap_rx_slot(NetmapState *s, const struct netmap_slot *slot,
                           struct iovec *iov)
{
    uint32_t buf_idx = qatomic_read(&slot->buf_idx);
    uint16_t len = qatomic_read(&slot->len);

    if (buf_idx >= s->buffers || len > s->rx->nr_buf_size) {
        return false;
    }
    iov->iov_base = NETMAP_BUF(s->rx, buf_idx);
    iov->iov_len = len;
    return true;
}

/* Gives slots back. With /dev/netmap the main loop's poll() does it. */
static void netmap_rx_release(NetmapState *s)
{
    if (s->port->provider == VALE_PROVIDER_USER) {
        vale_rxsync(s->port);
    }
}

/* Takes the frame at head; false when there is no complete one. */
static bool netmap_rx_frame(NetmapState *s)
{
    struct netmap_ring *ring = s->rx;
    uint32_t i = ring->head, tail = ring->tail;
    bool more = true, good = true;
    size_t size = 0;
    int n;

    for (n = 0; more && n < NETMAP_MAX_FRAGS; n++) {
        struct netmap_slot *slot = &ring->slot[i];

        if (i == tail) {
            ring->cur = tail;
            return false;
        }
        more = qatomic_read(&slot->flags) & NS_MOREFRAG;
        good = good && netmap_rx_slot(s, slot, &s->iov[n]);
        size += s->iov[n].iov_len;
        i = nm_ring_next(ring, i);
    }
    if (good && !more && size >= ETH_HLEN) {
        netmap_rx_deliver(s, n, size);
    } else {
        s->count.rx_dropped++;
    }
    ring->head = ring->cur = i;
    return true;
}

/* Ends waiting for the next burst, stopped by the NIC, or to be continued. */
static void netmap_rx_burst(void *opaque)
{
    NetmapState *s = opaque;
    int n;

    for (n = 0; n < NETMAP_RX_BURST && s->rx_wait && netmap_rx_frame(s); n++) {
        if (n % NETMAP_RX_RELEASE == NETMAP_RX_RELEASE - 1) {
            netmap_rx_release(s);
        }
    }
    netmap_counted(s);
    if (!s->rx_wait) {
        netmap_rx_release(s);
    } else if (n == NETMAP_RX_BURST || vale_wait_begin(s->port, VALE_RX)) {
        qemu_bh_schedule(s->rx_bh);
    }
}

/* Frames, or the switch is gone. */
static void netmap_rx_ready(void *opaque)
{
    NetmapState *s = opaque;

    s->count.rx_calls++;
    if (!vale_wait_end(s->port, VALE_RX) && vale_gone(s->port)) {
        netmap_down(s);
        return;
    }
    netmap_rx_burst(s);
}

static void netmap_cleanup(NetClientState *nc)
{
    NetmapState *s = DO_UPCAST(NetmapState, nc, nc);

    qemu_purge_queued_packets(nc);
    vale_close(s->port ? netmap_stop(s) : s->lost);
    timer_free(s->reconnect_timer);
    qemu_bh_delete(s->tx_bh);
    qemu_bh_delete(s->rx_bh);
    timer_free(s->info_timer);
}

static NetClientInfo net_netmap_info = {
    .type = NET_CLIENT_DRIVER_NETMAP,
    .size = sizeof(NetmapState),
    .receive = netmap_receive,
    .receive_iov = netmap_receive_iov,
    .can_receive = netmap_can_receive,
    .cleanup = netmap_cleanup,
};

/* Buffers of a ring that end within the port's memory, counted from index 0. */
static uint32_t netmap_buffers(const struct vale_port *port,
                               const struct netmap_ring *ring)
{
    const char *end = (const char *)port->mem + port->memsize;

    return (end - NETMAP_BUF(ring, 0)) / ring->nr_buf_size;
}

static void netmap_start(NetmapState *s, struct vale_port *port)
{
    s->port = port;
    s->tx_unkicked = 0;
    s->tx = vale_txring(port, 0);
    s->rx = vale_rxring(port, 0);
    s->buffers = netmap_buffers(port, s->rx);
    s->tx_largest = MIN(DIV_ROUND_UP(NET_BUFSIZE, s->tx->nr_buf_size),
                        MIN(NETMAP_MAX_FRAGS, s->tx->num_slots - 1));
    s->rx_wait = true;
    netmap_set_handlers(s);
    if (port->fd != vale_poll_fd(port, VALE_RX)) {
        qemu_set_fd_handler(port->fd, netmap_hangup, NULL, s);
    }
    qemu_bh_schedule(s->rx_bh);
    netmap_info(s);
}

int net_init_netmap(const Netdev *netdev, const char *name,
                    NetClientState *peer, Error **errp)
{
    const NetdevNetmapOptions *opts = &netdev->u.netmap;
    struct vale_open_args args = {
        .name = opts->ifname,
        .device = opts->devname,
        .rx_slots = NETMAP_RX_SLOTS,
    };
    struct vale_port *port;
    struct vale_error err;
    NetClientState *nc;
    NetmapState *s;

    port = vale_open(&args, &err);
    if (!port) {
        error_setg(errp, "%s", err.text);
        return -1;
    }
    nc = qemu_new_net_client(&net_netmap_info, peer, "netmap", name);
    s = DO_UPCAST(NetmapState, nc, nc);
    s->tx_bh = qemu_bh_new(netmap_tx_bh, s);
    s->rx_bh = qemu_bh_new(netmap_rx_burst, s);
    s->info_timer = timer_new_ms(QEMU_CLOCK_REALTIME, netmap_info, s);
    s->reconnect_timer = timer_new_ms(QEMU_CLOCK_REALTIME, netmap_reconnect, s);
    netmap_start(s, port);
    return 0;
}
