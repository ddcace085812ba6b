/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Tap ports: frames to and from a network interface of the host
 *
 * A tap gives and takes one frame per system call, without a header before it; checksums and segmentation are complete both
 * ways.
 *
 * INGRESS  The ring's worker reads frame behind frame into the port's own buffer, READS_MAX at most or until the next might
 * not fit, and views them there. The buffer is free again when all of them are consumed.
 *
 * EGRESS  One writev per frame, straight from the source's views. Workers need no turns: the kernel takes each frame whole
 * or not at all.
 *
 * The descriptor was opened by whoever manages valed, who is trusted: that it does not block is set once. A device that is
 * down refuses frames (DROP_DOWN) and comes back by itself. That one has been removed shows only when it is read: the worker
 * then tells the control thread, through an eventfd, to close the port.
 */
#include "port_tap.h"

#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#define READ_ROOM (FRAME_LEN_MAX + 1) /* one byte more shows a frame that is too long */
#define BUFFER    (4 * READ_ROOM)
#define READS_MAX 128
#define ALIGN     64

struct tap_port {
    struct port port;
    struct ring ring;
    int fd;
    struct port_watch *gone; /* readable when the device has been removed; lives as long as the port */

    /* The ring's worker. */
    uint8_t *buffer;
    struct segment staged[READS_MAX]; /* frames in the buffer */
    unsigned int first, count;        /* of these, those not consumed: first .. count - 1 */
    bool told_gone;
};

static inline struct tap_port *to_tap_port(const struct port *port)
{
    return (struct tap_port *)(uintptr_t)port;
}

/* ----------------------------------------------------------------------------------------------------------- ingress --- */

/* Takes in what was read, or counts why not. */
static void stage(struct tap_port *tp, const uint8_t *data, uint32_t len)
{
    struct port_counters *c = &tp->port.counters;

    if (len >= FRAME_LEN_MIN && len <= FRAME_LEN_MAX) {
        tp->staged[tp->count++] = (struct segment){.data = data, .len = len};
        return;
    }
    count(&c->rx_frames, 1);
    count(&c->rx_dropped[len < FRAME_LEN_MIN ? DROP_SHORT : DROP_TOO_LONG], 1);
}

static void tell_gone(struct tap_port *tp)
{
    uint64_t one = 1;

    tp->told_gone = tp->told_gone || write(tp->gone->watch.fd, &one, sizeof(one)) == sizeof(one);
}

/* Fills the empty buffer. False: there was nothing to read. */
static bool read_frames(struct tap_port *tp, unsigned int budget)
{
    unsigned int reads = 0;
    uint32_t at = 0;

    tp->first = tp->count = 0;
    while (reads < budget && reads < READS_MAX && at + READ_ROOM <= BUFFER) {
        ssize_t n = read(tp->fd, tp->buffer + at, READ_ROOM);

        if (n < 0 && errno == EBADFD)
            tell_gone(tp);
        if (n <= 0)
            break;
        stage(tp, tp->buffer + at, (uint32_t)n);
        at += ((uint32_t)n + ALIGN - 1) / ALIGN * ALIGN;
        reads++;
    }
    return reads != 0;
}

static unsigned int tap_ingress(struct ring *ring, struct batch *b, unsigned int budget, bool *seen)
{
    struct tap_port *tp = to_tap_port(ring->port);

    *seen = tp->first < tp->count || read_frames(tp, budget);
    for (unsigned int i = tp->first; i < tp->count && b->frames < budget; i++) {
        b->frame[b->frames++] = (struct frame){.first = b->segs, .segs = 1, .len = (uint16_t)tp->staged[i].len};
        b->seg[b->segs++] = tp->staged[i];
    }
    return b->frames;
}

static void tap_consumed(struct ring *ring, const struct batch *b, unsigned int n)
{
    (void)b;
    to_tap_port(ring->port)->first += n;
}

/* The tap is watched edge-triggered, and the last read found nothing: the next frame is an edge. */
static bool tap_want_kick(struct ring *ring, bool on)
{
    (void)ring, (void)on;
    return false;
}

/* ------------------------------------------------------------------------------------------------------------ egress --- */

/* Writes one frame. The reason why not, or DROP_REASONS. */
static unsigned int write_frame(int fd, const struct batch *b, const struct frame *f)
{
    struct iovec iov[FRAME_SEGS_MAX];

    for (unsigned int i = 0; i < f->segs; i++) {
        const struct segment *s = &b->seg[f->first + i];

        iov[i] = (struct iovec){(void *)(uintptr_t)s->data, s->len};
    }
    if (writev(fd, iov, f->segs) >= 0)
        return DROP_REASONS;
    switch (errno) {
    case EIO:
    case EBADFD: return DROP_DOWN;
    case EINVAL:
    case EMSGSIZE: return DROP_TOO_LARGE;
    case EFAULT: return DROP_PEER_MEMORY;
    default: return DROP_RING_FULL;
    }
}

static unsigned int tap_egress(struct port *port, unsigned int queue, const struct batch *b, const uint16_t *order,
                               unsigned int n)
{
    struct port_counters *c = &port->counters;
    unsigned int dropped[DROP_REASONS + 1] = {0}; /* the last: not dropped */
    unsigned int k = 0;
    uint64_t bytes = 0;

    (void)queue;
    for (; k < n; k++) {
        const struct frame *f = &b->frame[order[k]];
        unsigned int drop = write_frame(to_tap_port(port)->fd, b, f);

        if (drop == DROP_RING_FULL)
            break;
        dropped[drop]++;
        if (drop != DROP_REASONS)
            batch_undelivered(b, order[k]);
        bytes += drop == DROP_REASONS ? f->len : 0;
    }
    count(&c->tx_frames, dropped[DROP_REASONS]);
    count(&c->tx_bytes, bytes);
    for (unsigned int i = 0; i < DROP_REASONS; i++)
        count(&c->tx_dropped[i], dropped[i]);
    return k;
}

/* The device says so by itself once it is asked, also when it has room already. */
static bool tap_want_room(struct port *port, unsigned int queue, bool on)
{
    (void)queue;
    if (on)
        worker_want_room(&to_tap_port(port)->ring, true);
    return false;
}

/* ------------------------------------------------------------------------------------------------ making and ending --- */

void tap_gone(struct watch *w)
{
    uint64_t n;

    if (read(w->fd, &n, sizeof(n)) == sizeof(n))
        port_close(((struct port_watch *)w)->port, "its tap device was removed");
}

static int watch_device(struct tap_port *tp)
{
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), err;

    if (fd < 0)
        return -errno;
    tp->gone = calloc(1, sizeof(*tp->gone));
    err = tp->gone ? watch_add(&tp->gone->watch, WATCH_TAP, fd) : -ENOMEM;
    if (err) {
        free(tp->gone);
        tp->gone = NULL;
        close(fd);
        return err;
    }
    tp->gone->port = &tp->port;
    return 0;
}

static void tap_destroy(struct port *port)
{
    struct tap_port *tp = to_tap_port(port);

    if (tp->gone)
        watch_free(&tp->gone->watch);
    if (tp->fd >= 0)
        close(tp->fd);
    free(tp->buffer);
    free(tp);
}

static const struct port_ops tap_port_ops = {
    .kind = "tap",
    .ring = {.ingress = tap_ingress, .consumed = tap_consumed, .want_kick = tap_want_kick},
    .egress = tap_egress,
    .want_room = tap_want_room,
    .destroy = tap_destroy,
};

int tap_open(const char *ifname)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    int fd, err;

    if (strlen(ifname) >= sizeof(request.ifr_name))
        return -ENAMETOOLONG;
    strcpy(request.ifr_name, ifname);
    fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (ioctl(fd, TUNSETIFF, &request) < 0) {
        err = -errno;
        close(fd);
        return err;
    }
    return fd;
}

/* A tap whose frames are bare, and complete: 0. */
static int prepare(int fd)
{
    struct ifreq request = {0};

    if (ioctl(fd, TUNGETIFF, &request) < 0)
        return errno == EBADFD ? -ENODEV : -ENOTTY;
    if (!(request.ifr_flags & IFF_TAP))
        return -ENOTTY;
    if (!(request.ifr_flags & IFF_NO_PI) || (request.ifr_flags & IFF_VNET_HDR))
        return -EPROTOTYPE;
    if (ioctl(fd, TUNSETOFFLOAD, 0) < 0 || fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK) < 0)
        return -errno;
    return 0;
}

int tap_port_create(struct port **port, const struct vale_name *name, int fd)
{
    struct tap_port *tp;
    int err = prepare(fd);

    if (err)
        return err;
    tp = calloc(1, sizeof(*tp));
    if (!tp)
        return -ENOMEM;
    tp->port.ops = &tap_port_ops;
    tp->port.name = *name;
    tp->port.ring_count = 1;
    tp->port.ring[0] = &tp->ring;
    tp->ring.port = &tp->port;
    tp->fd = -1;
    tp->buffer = malloc(BUFFER);
    err = tp->buffer ? watch_device(tp) : -ENOMEM;
    if (err) {
        tap_destroy(&tp->port);
        return err;
    }
    tp->fd = tp->ring.kick_fd = fd;
    *port = &tp->port;
    return 0;
}
