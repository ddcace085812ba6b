/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * VALE and netmap network backend: a port of a VALE switch as a netdev
 *
 *     -netdev netmap,id=n0,ifname=vale1:a[,devname=PATH][,queues=N]
 *             [,reconnect-ms=MS]
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
 * main loop gets a turn. If the NIC model cannot take one, we leave its ring
 * until QEMU tells us that the frame was sent; then the ring fills, and the
 * switch counts.
 *
 * Queues: a port with queues=N has N ring pairs, and we are N net clients with
 * a ring pair each. The switch wakes us for the port, not for a ring: rings
 * that nobody waits for have cur at their tail, so that they are not ready.
 * The switch knows not how many queues the guest uses. Frames for one that is
 * off go to the first.
 *
 * Offloads: a NIC model that knows virtio-net headers has them put before each
 * frame of the port (PORT_HDR_SET), with what the guest accepts. They pass
 * through here unread, unless the switch is the kernel's, which hands on what
 * the guest does not accept, too.
 *
 * All of this runs under the BQL, in the main loop or in vCPU threads. Only the
 * main loop opens and closes the port: code that NIC models call finds
 * port->vale either good for the whole call or NULL.
 *
 * If the switch goes away we warn, once. valed may be restarted: a timer asks
 * libvale, which still has the port's memory, to come back. Meanwhile frames of
 * the guest are dropped; if it takes long the link goes down, and up again
 * afterwards. Not at once: a guest forgets its neighbours when its carrier
 * goes.
 *
 * The switch may be another user's process, and write to the port's memory at
 * any time. So bounds are taken once, into NetmapRing, and what it writes into
 * rings and slots is read once and checked.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-net.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/iov.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "qom/object.h"
#include "hw/core/cpu.h"
#include "net/checksum.h"
#include "net/eth.h"
#include "net/net.h"
#include "clients.h"
#include "netmap-compat.h"
#include "standard-headers/linux/virtio_net.h"
#include "vale/libvale.h"

/* Frames of a ring given to the NIC model before others get their turn. */
#define NETMAP_RX_BURST 256

/*
 * Slots of the RX ring: as many as there can be. A guest that has to wait for
 * a CPU, or whose main loop is busy, then loses nothing for longer.
 */
#define NETMAP_RX_SLOTS 4096

/* Slots are given back to the switch at least this often during a burst. */
#define NETMAP_RX_RELEASE 32

/* reconnect-ms: how often we look whether a switch that is gone is back. */
#define NETMAP_RECONNECT_MS 100

/* For how long the guest is not told that it is gone. */
#define NETMAP_GRACE_MS 1000

/* `info network` is at most this old. */
#define NETMAP_INFO_MS 100

/* Where the objects with our counters are, one for each netdev. */
#define NETMAP_QOM_FOLDER "netmap"
#define TYPE_NETMAP_PORT "netmap-port"

typedef struct NetmapCounters {
    uint64_t tx_frames;     /* guest to switch */
    uint64_t tx_bytes;
    uint64_t tx_kicks;      /* system calls to wake the switch, or TXSYNCs */
    uint64_t tx_full;       /* times that the NIC had to wait for room */
    uint64_t tx_calls;      /* times that the switch woke us for room */
    uint64_t tx_dropped;    /* too long for the ring, or bad slots */
    uint64_t tx_gone;       /* dropped because the switch was gone */
    uint64_t rx_frames;     /* switch to guest */
    uint64_t rx_bytes;
    uint64_t rx_calls;      /* times that the switch woke us */
    uint64_t rx_dropped;    /* too short, or bad slots */
    uint64_t rx_offload;    /* dropped: offloads that the guest has not */
    uint64_t lost;          /* times that the switch went away */
} NetmapCounters;

typedef struct NetmapPort NetmapPort;

/*
 * A ring, and the bounds in it that we go by: what they were when it was opened
 * and checked. The switch can write to all of the ring's memory at any time.
 */
typedef struct NetmapRing {
    struct netmap_ring *ring;
    char *base;                 /* buffer 0 */
    uint32_t slots;
    uint32_t buf_size;          /* bytes */
    uint32_t buffers;           /* that lie in the port's memory */
} NetmapRing;

/* A ring pair, and the net client that it is. */
typedef struct NetmapQueue {
    NetClientState nc;
    NetmapPort *port;
    unsigned int index;
    NetmapRing tx;
    NetmapRing rx;
    bool tx_wait;               /* waiting for room */
    bool rx_stopped;            /* the NIC cannot receive */
    unsigned int rx_via;        /* then: which queue of it cannot */
} NetmapQueue;

/* What the queues of a netdev share. */
struct NetmapPort {
    struct vale_port *vale;     /* NULL: the switch is gone */
    struct vale_port *lost;     /* then: the port that may come back */
    const char *provider;       /* "kernel" or "user" */
    char ifname[NETMAP_REQ_IFNAMSIZ];
    char device[sizeof(((struct vale_port *)NULL)->device)];
    int64_t lost_ms;            /* since when */
    int64_t reconnect_ms;       /* 0: it shall not come back */
    bool link_taken;            /* and it was us who took the link down */

    bool has_vnet_hdr;          /* the switch knows such headers */
    bool vnet_hdr_failed;       /* but did not do as we asked */
    unsigned int vnet_hdr_len;  /* bytes before each frame: 0, 10 or 12 */
    unsigned int accepts;       /* VALE_ACCEPT_*: what the guest has */
    NetClientState *vnet_peer;  /* the NIC that asked for the header */

    uint32_t tx_largest;        /* slots of the largest frame */
    uint32_t tx_unkicked;       /* slots that wait for a kick */
    bool tx_kick_due;           /* the bottom half will kick */
    bool tx_watched;            /* some queue waits for room */
    bool rx_watched;            /* some queue can receive */
    QEMUBH *tx_bh;
    QEMUBH *rx_bh;
    QEMUTimer *info_timer;
    QEMUTimer *reconnect_timer;
    NetmapCounters count;
    Object *object;             /* the counters, for management */
    struct iovec iov[NETMAP_MAX_FRAGS];
    unsigned int queues;
    unsigned int clients;       /* queues that are still net clients */
    NetmapQueue *queue[];
};

static void netmap_rx_ready(void *opaque);
static void netmap_tx_ready(void *opaque);

static NetmapQueue *netmap_queue(NetClientState *nc)
{
    return DO_UPCAST(NetmapQueue, nc, nc);
}

static const char *netmap_id(const NetmapPort *port)
{
    return port->queue[0]->nc.name;
}

static const char *netmap_state(const NetmapPort *port)
{
    return port->vale ? "connected" : port->lost ? "lost" : "removed";
}

/* The short form of what the object says, for `info network`. */
static void netmap_info(void *opaque)
{
    NetmapPort *port = opaque;
    NetmapCounters *c = &port->count;

    qemu_set_info_str(&port->queue[0]->nc, "ifname=%s,provider=%s,state=%s"
                      ",tx_frames=%" PRIu64 ",rx_frames=%" PRIu64
                      ",tx_dropped=%" PRIu64 ",rx_dropped=%" PRIu64,
                      port->ifname, port->provider, netmap_state(port),
                      c->tx_frames, c->rx_frames,
                      c->tx_dropped + c->tx_gone,
                      c->rx_dropped + c->rx_offload);
}

/* Counters moved: renew the information soon, but not for every frame. */
static void netmap_counted(NetmapPort *port)
{
    if (!timer_pending(port->info_timer)) {
        timer_mod(port->info_timer,
                  qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + NETMAP_INFO_MS);
    }
}

/* The index of a slot, which the switch may have changed to nonsense. */
static uint32_t netmap_index(const NetmapRing *r, const uint32_t *index)
{
    uint32_t i = qatomic_read(index);

    return i < r->slots ? i : 0;
}

static uint32_t netmap_next(const NetmapRing *r, uint32_t i)
{
    return i + 1 == r->slots ? 0 : i + 1;
}

/* Slots from head to tail. netmap's own count begins at cur, maybe ahead. */
static uint32_t netmap_space(const NetmapRing *r)
{
    uint32_t head = netmap_index(r, &r->ring->head);
    uint32_t tail = netmap_index(r, &r->ring->tail);

    return tail >= head ? tail - head : tail + r->slots - head;
}

/* The buffer of a slot, or NULL when it is not in the port's memory. */
static char *netmap_buffer(const NetmapRing *r, const struct netmap_slot *slot)
{
    uint32_t i = qatomic_read(&slot->buf_idx);

    return i < r->buffers ? r->base + (size_t)i * r->buf_size : NULL;
}

/*
 * Tells the main loop what to wait for. /dev/netmap has one descriptor for both
 * directions, valed a readable call channel for each.
 */
static void netmap_set_handlers(NetmapPort *port)
{
    int rx_fd = vale_poll_fd(port->vale, VALE_RX);
    int tx_fd = vale_poll_fd(port->vale, VALE_TX);
    IOHandler *rx = port->rx_watched ? netmap_rx_ready : NULL;
    IOHandler *tx = port->tx_watched ? netmap_tx_ready : NULL;

    if (rx_fd == tx_fd) {
        qemu_set_fd_handler(rx_fd, rx, tx, port);
    } else {
        qemu_set_fd_handler(rx_fd, rx, NULL, port);
        qemu_set_fd_handler(tx_fd, tx, NULL, port);
    }
}

/* Waits for room if any queue does, and for frames if any can receive. */
static void netmap_watch(NetmapPort *port)
{
    bool tx = false, rx = false;
    unsigned int i;

    for (i = 0; i < port->queues; i++) {
        tx |= port->queue[i]->tx_wait;
        rx |= !port->queue[i]->rx_stopped;
    }
    if (tx != port->tx_watched || rx != port->rx_watched) {
        port->tx_watched = tx;
        port->rx_watched = rx;
        netmap_set_handlers(port);
    }
}

/* From here on the port is not used; it is still open. */
static struct vale_port *netmap_stop(NetmapPort *port)
{
    struct vale_port *vale = port->vale;
    unsigned int i;

    for (i = 0; i < port->queues; i++) {
        port->queue[i]->tx_wait = false;
        port->queue[i]->rx_stopped = true;
    }
    netmap_watch(port);
    qemu_set_fd_handler(vale->fd, NULL, NULL, NULL);
    port->tx_kick_due = false;
    qemu_bh_cancel(port->tx_bh);
    qemu_bh_cancel(port->rx_bh);
    port->vale = NULL;
    return vale;
}

static void netmap_retry_later(NetmapPort *port)
{
    timer_mod(port->reconnect_timer,
              qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + port->reconnect_ms);
}

static void netmap_take_link(NetmapPort *port)
{
    port->link_taken = !port->queue[0]->nc.link_down;
    qmp_set_link(netmap_id(port), false, NULL);
}

static void netmap_give_link(NetmapPort *port)
{
    if (port->link_taken) {
        port->link_taken = false;
        qmp_set_link(netmap_id(port), true, NULL);
    }
}

/* The port that was lost will not be had again. */
static void netmap_give_up(NetmapPort *port)
{
    vale_close(port->lost);
    port->lost = NULL;
    netmap_take_link(port);
    netmap_info(port);
}

/*
 * The switch is gone. Frames that waited for room are dropped by the flush, or
 * the NIC would wait for them for ever.
 */
static void netmap_down(NetmapPort *port)
{
    unsigned int i;

    warn_report("netdev %s: the switch of %s is gone",
                netmap_id(port), port->ifname);
    port->count.lost++;
    port->lost = netmap_stop(port);
    port->lost_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    for (i = 0; i < port->queues; i++) {
        qemu_flush_queued_packets(&port->queue[i]->nc);
    }
    if (port->reconnect_ms == 0) {
        netmap_give_up(port);
        return;
    }
    netmap_info(port);
    netmap_retry_later(port);
}

static void netmap_start(NetmapPort *port, struct vale_port *vale);

/* Looks whether the switch is back. libvale does not wait for it either. */
static void netmap_reconnect(void *opaque)
{
    NetmapPort *port = opaque;
    struct vale_port *vale = port->lost;
    int64_t gone_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME) - port->lost_ms;
    int rc = vale_reconnect(vale);

    if (rc == -EAGAIN) {
        if (gone_ms >= NETMAP_GRACE_MS && !port->link_taken &&
            !port->queue[0]->nc.link_down) {
            netmap_take_link(port);
        }
        netmap_retry_later(port);
        return;
    }
    if (rc < 0) {
        warn_report("netdev %s: %s was taken away, the link stays down",
                    netmap_id(port), port->ifname);
        netmap_give_up(port);
        return;
    }
    info_report("netdev %s: the switch of %s is back",
                netmap_id(port), port->ifname);
    port->lost = NULL;
    netmap_start(port, vale);
    netmap_give_link(port);
}

/* valed's connection carries nothing but its end. */
static void netmap_hangup(void *opaque)
{
    NetmapPort *port = opaque;

    if (vale_gone(port->vale)) {
        netmap_down(port);
    }
}

static void netmap_tx_kick(NetmapPort *port)
{
    port->tx_unkicked = 0;
    port->tx_kick_due = false;
    port->count.tx_kicks++;
    vale_tx_kick(port->vale);
}

static void netmap_tx_bh(void *opaque)
{
    NetmapPort *port = opaque;

    if (port->tx_kick_due) {
        netmap_tx_kick(port);
    }
}

/*
 * Makes room for @slots, or arms the wake-up for it and returns false. Room can
 * come while we arm; each turn of the loop has seen the switch take frames.
 */
static bool netmap_tx_make_room(NetmapQueue *q, uint32_t slots)
{
    NetmapPort *port = q->port;
    unsigned int i;

    if (q->tx_wait) {
        return false;
    }
    do {
        q->tx.ring->cur = q->tx.ring->head;
        if (vale_tx_publish(port->vale, q->index)) {
            netmap_tx_kick(port);
        }
        if (netmap_space(&q->tx) >= slots) {
            return true;
        }
        for (i = 0; i < port->queues; i++) {
            struct netmap_ring *ring = port->queue[i]->tx.ring;

            ring->cur = ring->tail;
        }
    } while (vale_wait_begin(port->vale, VALE_TX));
    port->count.tx_full++;
    q->tx_wait = true;
    netmap_watch(port);
    return false;
}

static bool netmap_can_receive(NetClientState *nc)
{
    NetmapQueue *q = netmap_queue(nc);
    NetmapPort *port = q->port;

    return !port->vale || netmap_space(&q->tx) >= port->tx_largest ||
           netmap_tx_make_room(q, port->tx_largest);
}

/* Room again, or the switch is gone. */
static void netmap_tx_ready(void *opaque)
{
    NetmapPort *port = opaque;
    unsigned int i;

    port->count.tx_calls++;
    if (!vale_wait_end(port->vale, VALE_TX) && vale_gone(port->vale)) {
        netmap_down(port);
        return;
    }
    for (i = 0; port->vale && i < port->queues; i++) {
        NetmapQueue *q = port->queue[i];

        if (q->tx_wait) {
            q->tx_wait = false;
            q->tx.ring->cur = q->tx.ring->head;
            qemu_flush_queued_packets(&q->nc);
        }
    }
    netmap_watch(port);
}

/*
 * Copies a frame into the slots at head, and moves head behind it; false when a
 * slot's buffer is not in the port's memory.
 */
static bool netmap_tx_copy(NetmapQueue *q, const struct iovec *iov, int iovcnt,
                           size_t size)
{
    NetmapRing *r = &q->tx;
    uint32_t i = netmap_index(r, &r->ring->head);
    size_t done = 0;

    while (done < size) {
        struct netmap_slot *slot = &r->ring->slot[i];
        char *buffer = netmap_buffer(r, slot);
        size_t len = MIN(size - done, r->buf_size);

        if (!buffer) {
            return false;
        }
        iov_to_buf(iov, iovcnt, done, buffer, len);
        done += len;
        slot->len = len;
        slot->flags = done < size ? NS_MOREFRAG : 0;
        i = netmap_next(r, i);
    }
    r->ring->head = r->ring->cur = i;
    return true;
}

/* Publishes up to head, and sees to the kick if the switch wants one. */
static void netmap_tx_publish(NetmapQueue *q, uint32_t slots)
{
    NetmapPort *port = q->port;

    if (!vale_tx_publish(port->vale, q->index)) {
        port->tx_unkicked = 0;
        return;
    }
    port->tx_unkicked += slots;
    if ((current_cpu && port->vale->provider == VALE_PROVIDER_USER) ||
        port->tx_unkicked >= q->tx.slots / 2) {
        netmap_tx_kick(port);
    } else if (!port->tx_kick_due) {
        /* Not for each frame: scheduling can be a system call, too. */
        port->tx_kick_due = true;
        qemu_bh_schedule(port->tx_bh);
    }
}

static void netmap_check_peer(NetmapPort *port);

static ssize_t netmap_receive_iov(NetClientState *nc, const struct iovec *iov,
                                  int iovcnt)
{
    NetmapQueue *q = netmap_queue(nc);
    NetmapPort *port = q->port;
    size_t size = iov_size(iov, iovcnt);
    uint32_t slots;

    netmap_counted(port);
    netmap_check_peer(port);
    if (!port->vale || port->vnet_hdr_failed) {
        port->count.tx_gone++;
        return size;
    }
    slots = DIV_ROUND_UP(size, q->tx.buf_size);
    if (slots && slots <= port->tx_largest && netmap_space(&q->tx) < slots &&
        !netmap_tx_make_room(q, slots)) {
        return 0;
    }
    if (!slots || slots > port->tx_largest ||
        !netmap_tx_copy(q, iov, iovcnt, size)) {
        port->count.tx_dropped++;
        return -EINVAL;
    }
    port->count.tx_frames++;
    port->count.tx_bytes += size - MIN(size, port->vnet_hdr_len);
    netmap_tx_publish(q, slots);
    return size;
}

static ssize_t netmap_receive(NetClientState *nc, const uint8_t *buf,
                              size_t size)
{
    struct iovec iov = { .iov_base = (void *)buf, .iov_len = size };

    return netmap_receive_iov(nc, &iov, 1);
}

/* Frames of QEMU itself, as after a migration, have no virtio-net header. */
static ssize_t G_GNUC_UNUSED netmap_receive_raw(NetClientState *nc,
                                                const uint8_t *buf,
                                                size_t size)
{
    struct virtio_net_hdr_mrg_rxbuf hdr = { };
    struct iovec iov[] = {
        { .iov_base = &hdr, .iov_len = netmap_queue(nc)->port->vnet_hdr_len },
        { .iov_base = (void *)buf, .iov_len = size },
    };

    return netmap_receive_iov(nc, iov, ARRAY_SIZE(iov));
}

/* The NIC model took the frame that it had to leave waiting. */
static void netmap_rx_resume(NetClientState *nc, ssize_t len)
{
    NetmapQueue *via = netmap_queue(nc);
    NetmapPort *port = via->port;
    unsigned int i;

    if (!port->vale) {
        return;
    }
    for (i = 0; i < port->queues; i++) {
        if (port->queue[i]->rx_via == via->index) {
            port->queue[i]->rx_stopped = false;
        }
    }
    netmap_watch(port);
    qemu_bh_schedule(port->rx_bh);
}

/* Hands port->iov to the NIC model, which shall not see short frames. */
static void netmap_rx_deliver(NetmapQueue *q, int iovcnt, size_t size)
{
    NetmapPort *port = q->port;
    NetmapQueue *via = q;
    uint8_t padded[sizeof(struct virtio_net_hdr_mrg_rxbuf) + ETH_ZLEN] = { 0 };
    size_t least = port->vnet_hdr_len + ETH_ZLEN;

    port->count.rx_frames++;
    port->count.rx_bytes += size - port->vnet_hdr_len;
    if (q->index && !qemu_can_send_packet(&q->nc)) {
        via = port->queue[0];
    }
    if (size < least && net_peer_needs_padding(&via->nc)) {
        iov_to_buf(port->iov, iovcnt, 0, padded, size);
        port->iov[0].iov_base = padded;
        port->iov[0].iov_len = least;
        iovcnt = 1;
    }
    if (!qemu_sendv_packet_async(&via->nc, port->iov, iovcnt,
                                 netmap_rx_resume)) {
        q->rx_via = via->index;
        q->rx_stopped = true;
    }
}

/* What has to be accepted of a frame with that header: VALE_ACCEPT_*. */
static unsigned int netmap_needs(const struct virtio_net_hdr *hdr)
{
    unsigned int needs =
        hdr->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM ? VALE_ACCEPT_CSUM : 0;

    needs |= hdr->gso_type & VIRTIO_NET_HDR_GSO_ECN ? VALE_ACCEPT_ECN : 0;
    switch (hdr->gso_type & ~VIRTIO_NET_HDR_GSO_ECN) {
    case VIRTIO_NET_HDR_GSO_NONE:
        return needs;
    case VIRTIO_NET_HDR_GSO_TCPV4:
        return needs | VALE_ACCEPT_TSO4;
    case VIRTIO_NET_HDR_GSO_TCPV6:
        return needs | VALE_ACCEPT_TSO6;
    default:
        return needs | VALE_ACCEPT_USO;
    }
}

/*
 * Does what the guest has not accepted, which the kernel's switch leaves to us:
 * a checksum in a frame of one slot. False when it is more than that.
 */
static bool netmap_rx_complete(NetmapPort *port, int iovcnt, size_t size)
{
    uint8_t *base = port->iov[0].iov_base;
    struct virtio_net_hdr hdr;
    unsigned int missing;
    size_t start, at;

    memcpy(&hdr, base, sizeof(hdr));
    missing = netmap_needs(&hdr) & ~port->accepts;
    if (missing == 0) {
        return true;
    }
    start = port->vnet_hdr_len + lduw_le_p(&hdr.csum_start);
    at = start + lduw_le_p(&hdr.csum_offset);
    if (missing != VALE_ACCEPT_CSUM || iovcnt > 1 || at + 2 > size) {
        return false;
    }
    /* The field holds the sum over the pseudo header: part of the data. */
    stw_be_p(base + at, net_checksum_finish_nozero(
                            net_checksum_add(size - start, base + start)));
    memset(base, 0, sizeof(hdr));
    return true;
}

/* False: the slot points out of the port's memory. */
static bool netmap_rx_slot(const NetmapRing *r, const struct netmap_slot *slot,
                           struct iovec *iov)
{
    uint16_t len = qatomic_read(&slot->len);

    iov->iov_base = netmap_buffer(r, slot);
    iov->iov_len = len;
    return iov->iov_base && len <= r->buf_size;
}

/* Gives slots back. With /dev/netmap the main loop's poll() does it. */
static void netmap_rx_release(NetmapPort *port)
{
    if (port->vale->provider == VALE_PROVIDER_USER) {
        vale_rxsync(port->vale);
    }
}

/* Delivers, or drops and counts, a complete frame in port->iov. */
static void netmap_rx_take(NetmapQueue *q, int iovcnt, size_t size, bool good)
{
    NetmapPort *port = q->port;
    unsigned int hdr_len = port->vnet_hdr_len;

    if (!good || size < hdr_len + ETH_HLEN || port->vnet_hdr_failed ||
        port->iov[0].iov_len < hdr_len) {
        port->count.rx_dropped++;
    } else if (hdr_len && port->vale->provider == VALE_PROVIDER_KERNEL &&
               !netmap_rx_complete(port, iovcnt, size)) {
        port->count.rx_offload++;
    } else {
        netmap_rx_deliver(q, iovcnt, size);
    }
}

/* Takes the frame at head; false when there is no complete one. */
static bool netmap_rx_frame(NetmapQueue *q)
{
    NetmapRing *r = &q->rx;
    struct iovec *iov = q->port->iov;
    uint32_t i = netmap_index(r, &r->ring->head);
    uint32_t tail = netmap_index(r, &r->ring->tail);
    bool more = true, good = true;
    size_t size = 0;
    int n;

    for (n = 0; more && n < NETMAP_MAX_FRAGS; n++) {
        struct netmap_slot *slot = &r->ring->slot[i];

        if (i == tail) {
            r->ring->cur = tail;
            return false;
        }
        more = qatomic_read(&slot->flags) & NS_MOREFRAG;
        good = good && netmap_rx_slot(r, slot, &iov[n]);
        size += iov[n].iov_len;
        i = netmap_next(r, i);
    }
    netmap_rx_take(q, n, size, good && !more);
    r->ring->head = r->ring->cur = i;
    return true;
}

/* Gives the NIC what is in one ring; true when there may be more. */
static bool netmap_rx_ring(NetmapQueue *q)
{
    int n;

    for (n = 0; n < NETMAP_RX_BURST && !q->rx_stopped; n++) {
        if (!netmap_rx_frame(q)) {
            break;
        }
        if (n % NETMAP_RX_RELEASE == NETMAP_RX_RELEASE - 1) {
            netmap_rx_release(q->port);
        }
    }
    if (q->rx_stopped) {
        q->rx.ring->cur = q->rx.ring->tail;
    }
    return n == NETMAP_RX_BURST;
}

/* Ends waiting for the next burst, stopped by the NIC, or to be continued. */
static void netmap_rx_burst(void *opaque)
{
    NetmapPort *port = opaque;
    bool more = false;
    unsigned int i;

    netmap_check_peer(port);
    for (i = 0; i < port->queues; i++) {
        more |= netmap_rx_ring(port->queue[i]);
    }
    netmap_counted(port);
    netmap_watch(port);
    if (!port->rx_watched) {
        netmap_rx_release(port);
    } else if (more || vale_wait_begin(port->vale, VALE_RX)) {
        qemu_bh_schedule(port->rx_bh);
    }
}

/* Frames, or the switch is gone. */
static void netmap_rx_ready(void *opaque)
{
    NetmapPort *port = opaque;

    port->count.rx_calls++;
    if (!vale_wait_end(port->vale, VALE_RX) && vale_gone(port->vale)) {
        netmap_down(port);
        return;
    }
    netmap_rx_burst(port);
}

/* Frames that wait in the rings have a header that nobody expects any more. */
static void netmap_rx_discard(NetmapPort *port)
{
    unsigned int i;

    vale_rxsync(port->vale);
    for (i = 0; i < port->queues; i++) {
        NetmapRing *r = &port->queue[i]->rx;
        uint32_t at = netmap_index(r, &r->ring->head);
        uint32_t left;

        for (left = netmap_space(r); left > 0; left--) {
            uint16_t flags = qatomic_read(&r->ring->slot[at].flags);

            port->count.rx_dropped += !(flags & NS_MOREFRAG);
            at = netmap_next(r, at);
        }
        r->ring->head = r->ring->cur = at;
        qemu_purge_queued_packets(&port->queue[i]->nc);
    }
    vale_rxsync(port->vale);
}

/* Has the switch know about header and offloads as they now are. */
static void netmap_send_vnet(NetmapPort *port)
{
    struct vale_error err;
    int rc = vale_set_vnet_hdr(port->vale, port->vnet_hdr_len, port->accepts,
                               &err);

    /* A switch that is gone will be told when it is back. */
    port->vnet_hdr_failed = rc < 0 && !vale_gone(port->vale);
    if (port->vnet_hdr_failed) {
        warn_report("netdev %s: frames are dropped: %s",
                    netmap_id(port), err.text);
    }
}

static void netmap_set_vnet(NetmapPort *port, unsigned int len,
                            unsigned int accepts)
{
    bool discard = len != port->vnet_hdr_len;

    port->accepts = accepts;
    port->vnet_hdr_len = len;
    if (port->vale) {
        netmap_send_vnet(port);
        if (discard) {
            netmap_rx_discard(port);
        }
    }
}

/* A NIC that took the other's place has not asked for its header. */
static void netmap_check_peer(NetmapPort *port)
{
    unsigned int i;

    if (port->vnet_hdr_len && port->queue[0]->nc.peer != port->vnet_peer) {
        netmap_set_vnet(port, 0, 0);
        for (i = 0; i < port->queues; i++) {
            port->queue[i]->nc.vnet_hdr_len = 0;
        }
    }
}

static bool netmap_has_vnet_hdr(NetClientState *nc)
{
    return netmap_queue(nc)->port->has_vnet_hdr;
}

static bool netmap_has_vnet_hdr_len(NetClientState *nc, int len)
{
    return netmap_has_vnet_hdr(nc) &&
           (len == 0 || len == sizeof(struct virtio_net_hdr) ||
            len == sizeof(struct virtio_net_hdr_mrg_rxbuf));
}

static void netmap_set_vnet_hdr_len(NetClientState *nc, int len)
{
    NetmapPort *port = netmap_queue(nc)->port;

    port->vnet_peer = port->queue[0]->nc.peer;
    if (len != port->vnet_hdr_len) {
        netmap_set_vnet(port, len, port->accepts);
    }
}

static bool G_GNUC_UNUSED netmap_has_uso(NetClientState *nc)
{
    NetmapPort *port = netmap_queue(nc)->port;

    return port->vale && port->vale->provider == VALE_PROVIDER_USER;
}

static void netmap_set_offload(NetClientState *nc,
                               const NetmapOffloads *offloads)
{
    NetmapPort *port = netmap_queue(nc)->port;
    unsigned int accepts = (offloads->csum ? VALE_ACCEPT_CSUM : 0) |
                           (offloads->tso4 ? VALE_ACCEPT_TSO4 : 0) |
                           (offloads->tso6 ? VALE_ACCEPT_TSO6 : 0) |
                           (offloads->ecn ? VALE_ACCEPT_ECN : 0) |
                           (offloads->uso4 && offloads->uso6 ?
                            VALE_ACCEPT_USO : 0);

    if (accepts != port->accepts) {
        netmap_set_vnet(port, port->vnet_hdr_len, accepts);
    }
}

NETMAP_COMPAT_SET_OFFLOAD(netmap_compat_set_offload, netmap_set_offload)

static ssize_t netmap_closed_receive(NetClientState *nc, const uint8_t *buf,
                                     size_t size)
{
    return size;
}

/* What is left for a NIC whose netdev was deleted: it has no port. */
static NetClientInfo net_netmap_closed_info = {
    .type = NET_CLIENT_DRIVER_NETMAP,
    .size = sizeof(NetmapQueue),
    .receive = netmap_closed_receive,
};

/*
 * The last queue to go takes the port along. QEMU keeps the net client, and
 * calls it, for as long as there is a NIC that had it.
 */
static void netmap_cleanup(NetClientState *nc)
{
    NetmapPort *port = netmap_queue(nc)->port;

    qemu_purge_queued_packets(nc);
    nc->info = &net_netmap_closed_info;
    if (port->vale) {
        vale_close(netmap_stop(port));
    }
    if (--port->clients > 0) {
        return;
    }
    vale_close(port->lost);
    timer_free(port->reconnect_timer);
    timer_free(port->info_timer);
    qemu_bh_delete(port->tx_bh);
    qemu_bh_delete(port->rx_bh);
    if (port->object) {
        object_unparent(port->object);
    }
    g_free(port);
}

static NetClientInfo net_netmap_info = {
    .type = NET_CLIENT_DRIVER_NETMAP,
    .size = sizeof(NetmapQueue),
    .receive = netmap_receive,
    .receive_iov = netmap_receive_iov,
    NETMAP_COMPAT_RECEIVE_RAW(netmap_receive_raw)
    .can_receive = netmap_can_receive,
    .has_vnet_hdr = netmap_has_vnet_hdr,
    .has_vnet_hdr_len = netmap_has_vnet_hdr_len,
    .set_vnet_hdr_len = netmap_set_vnet_hdr_len,
    NETMAP_COMPAT_HAS_USO(netmap_has_uso)
    .set_offload = netmap_compat_set_offload,
    .cleanup = netmap_cleanup,
};

/* Takes in the bounds of a ring; false when it is not within the memory. */
static bool netmap_ring_init(NetmapRing *r, const struct vale_port *vale,
                             struct netmap_ring *ring)
{
    char *mem = vale->mem, *end = mem + vale->memsize, *at = (char *)ring;

    if (at < mem || at > end - sizeof(*ring)) {
        return false;
    }
    r->ring = ring;
    r->slots = qatomic_read(&ring->num_slots);
    r->buf_size = qatomic_read(&ring->nr_buf_size);
    r->base = at + qatomic_read(&ring->buf_ofs);
    if (r->slots < 2 || r->buf_size < ETH_ZLEN || r->base < mem ||
        r->base > end || r->slots > (end - at - sizeof(*ring)) /
                                    sizeof(struct netmap_slot)) {
        return false;
    }
    r->buffers = (end - r->base) / r->buf_size;
    return true;
}

static bool netmap_rings_init(NetmapPort *port, const struct vale_port *vale)
{
    unsigned int i;

    for (i = 0; i < port->queues; i++) {
        NetmapQueue *q = port->queue[i];

        if (!netmap_ring_init(&q->tx, vale, vale_txring(vale, i)) ||
            !netmap_ring_init(&q->rx, vale, vale_rxring(vale, i))) {
            return false;
        }
        port->tx_largest = MIN(DIV_ROUND_UP(NET_BUFSIZE, q->tx.buf_size),
                               MIN(NETMAP_MAX_FRAGS, q->tx.slots - 1));
    }
    return true;
}

/* The port is open, its rings are taken in. */
static void netmap_start(NetmapPort *port, struct vale_port *vale)
{
    unsigned int i;

    port->vale = vale;
    port->tx_unkicked = 0;
    for (i = 0; i < port->queues; i++) {
        port->queue[i]->rx_stopped = false;
    }
    netmap_watch(port);
    if (vale->fd != vale_poll_fd(vale, VALE_RX)) {
        qemu_set_fd_handler(vale->fd, netmap_hangup, NULL, port);
    }
    if (port->vnet_hdr_len) {
        netmap_send_vnet(port);
    }
    qemu_bh_schedule(port->rx_bh);
    netmap_info(port);
}

typedef struct NetmapObject {
    Object parent_obj;
    NetmapPort *port;
} NetmapObject;

DECLARE_INSTANCE_CHECKER(NetmapObject, NETMAP_PORT, TYPE_NETMAP_PORT)

static char *netmap_get_ifname(Object *obj, Error **errp)
{
    return g_strdup(NETMAP_PORT(obj)->port->ifname);
}

static char *netmap_get_provider(Object *obj, Error **errp)
{
    return g_strdup(NETMAP_PORT(obj)->port->provider);
}

static char *netmap_get_device(Object *obj, Error **errp)
{
    return g_strdup(NETMAP_PORT(obj)->port->device);
}

static char *netmap_get_state(Object *obj, Error **errp)
{
    return g_strdup(netmap_state(NETMAP_PORT(obj)->port));
}

static void netmap_add_counters(Object *obj, NetmapPort *port)
{
    const struct {
        const char *name;
        const uint64_t *value;
    } counters[] = {
        { "tx-frames", &port->count.tx_frames },
        { "tx-bytes", &port->count.tx_bytes },
        { "tx-kicks", &port->count.tx_kicks },
        { "tx-full", &port->count.tx_full },
        { "tx-calls", &port->count.tx_calls },
        { "tx-dropped", &port->count.tx_dropped },
        { "tx-gone", &port->count.tx_gone },
        { "rx-frames", &port->count.rx_frames },
        { "rx-bytes", &port->count.rx_bytes },
        { "rx-calls", &port->count.rx_calls },
        { "rx-dropped", &port->count.rx_dropped },
        { "rx-offload", &port->count.rx_offload },
        { "lost", &port->count.lost },
    };
    int i;

    for (i = 0; i < ARRAY_SIZE(counters); i++) {
        object_property_add_uint64_ptr(obj, counters[i].name,
                                       counters[i].value, OBJ_PROP_FLAG_READ);
    }
    object_property_add_uint32_ptr(obj, "queues", &port->queues,
                                   OBJ_PROP_FLAG_READ);
    object_property_add_uint32_ptr(obj, "vnet-hdr-len", &port->vnet_hdr_len,
                                   OBJ_PROP_FLAG_READ);
}

/* State and counters, to be read with qom-get at /netmap/ID. */
static void netmap_make_object(NetmapPort *port)
{
    Object *root = object_get_root();
    Object *folder = object_resolve_path_component(root, NETMAP_QOM_FOLDER);
    Object *obj = object_new(TYPE_NETMAP_PORT);

    if (!folder) {
        folder = object_new("container");
        object_property_add_child(root, NETMAP_QOM_FOLDER, folder);
        object_unref(folder);
    }
    NETMAP_PORT(obj)->port = port;
    object_property_add_str(obj, "ifname", netmap_get_ifname, NULL);
    object_property_add_str(obj, "provider", netmap_get_provider, NULL);
    object_property_add_str(obj, "devname", netmap_get_device, NULL);
    object_property_add_str(obj, "state", netmap_get_state, NULL);
    netmap_add_counters(obj, port);
    /* A name that QEMU made up for -net can be one's id already. */
    if (object_property_try_add_child(folder, netmap_id(port), obj, NULL)) {
        port->object = obj;
    }
    object_unref(obj);
}

static NetmapPort *netmap_new(NetClientState *peer, const char *name,
                              unsigned int queues, int64_t reconnect_ms)
{
    NetmapPort *port =
        g_malloc0(sizeof(*port) + queues * sizeof(port->queue[0]));
    unsigned int i;

    for (i = 0; i < queues; i++) {
        NetClientState *nc = qemu_new_net_client(&net_netmap_info, peer,
                                                 "netmap", name);

        nc->queue_index = i;
        port->queue[i] = netmap_queue(nc);
        port->queue[i]->port = port;
        port->queue[i]->index = i;
        port->queue[i]->rx_stopped = true;
    }
    port->queues = port->clients = queues;
    port->reconnect_ms = reconnect_ms;
    port->tx_bh = qemu_bh_new(netmap_tx_bh, port);
    port->rx_bh = qemu_bh_new(netmap_rx_burst, port);
    port->info_timer = timer_new_ms(QEMU_CLOCK_REALTIME, netmap_info, port);
    port->reconnect_timer = timer_new_ms(QEMU_CLOCK_REALTIME, netmap_reconnect,
                                         port);
    return port;
}

/*
 * Whether the switch knows virtio-net headers: old netmap modules do not. No
 * length but 0 is tried, since the kernel's switch sends longer frames than
 * Ethernet's to a port that ever had another.
 */
static bool netmap_probe_vnet(struct vale_port *vale)
{
    return vale_set_vnet_hdr(vale, 0, 0, NULL) == 0;
}

static struct vale_port *netmap_open(const NetdevNetmapOptions *opts,
                                     unsigned int queues, Error **errp)
{
    struct vale_open_args args = {
        .name = opts->ifname,
        .device = opts->devname,
        .tx_rings = queues,
        .rx_rings = queues,
        .rx_slots = NETMAP_RX_SLOTS,
    };
    struct vale_port *vale;
    struct vale_error err;

    vale = vale_open(&args, &err);
    if (!vale) {
        error_setg(errp, "%s", err.text);
    } else if (vale->tx_rings < queues || vale->rx_rings < queues) {
        error_setg(errp, "%s: %u queues are too many for %s, which has %u",
                   vale->name, queues, vale->device,
                   MIN(vale->tx_rings, vale->rx_rings));
        vale_close(vale);
        vale = NULL;
    }
    return vale;
}

int net_init_netmap(const Netdev *netdev, const char *name,
                    NetClientState *peer, Error **errp)
{
    const NetdevNetmapOptions *opts = &netdev->u.netmap;
    unsigned int queues = opts->has_queues ? opts->queues : 1;
    struct vale_port *vale;
    NetmapPort *port;

    if (queues < 1 || queues > VALE_MAX_RINGS) {
        error_setg(errp, "queues=%u: use 1 to %d", queues, VALE_MAX_RINGS);
        return -1;
    }
    if (queues > 1 && peer) {
        error_setg(errp, "queues=%u: a hub knows only one queue, use -netdev",
                   queues);
        return -1;
    }
    vale = netmap_open(opts, queues, errp);
    if (!vale) {
        return -1;
    }
    port = netmap_new(peer, name, queues, opts->has_reconnect_ms ?
                      opts->reconnect_ms : NETMAP_RECONNECT_MS);
    if (!netmap_rings_init(port, vale)) {
        error_setg(errp, "%s: the memory of %s has no valid layout",
                   vale->name, vale->device);
        port->lost = vale;
        qemu_del_net_client(&port->queue[0]->nc);
        return -1;
    }
    port->has_vnet_hdr = netmap_probe_vnet(vale);
    port->provider = vale_provider_name(vale->provider);
    pstrcpy(port->ifname, sizeof(port->ifname), vale->name);
    pstrcpy(port->device, sizeof(port->device), vale->device);
    netmap_start(port, vale);
    netmap_make_object(port);
    return 0;
}

static const TypeInfo netmap_port_type = {
    .name = TYPE_NETMAP_PORT,
    .parent = TYPE_OBJECT,
    .instance_size = sizeof(NetmapObject),
};

static void netmap_register_types(void)
{
    type_register_static(&netmap_port_type);
}

type_init(netmap_register_types)
