/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * netmap_user.h - what programs do with a mapped netmap port
 *
 * The first part needs only the mapping: formulae that turn offsets into pointers, and ring arithmetic. The second part
 * (define NETMAP_WITH_LIBS) is the small library that QEMU and libpcap compile against: nm_open(), nm_close(), nm_mmap(),
 * nm_inject(), nm_dispatch(), nm_nextpkt(). It speaks the legacy request, so it works on every netmap since 2013; on a
 * user-space switch it needs /dev/netmap to be provided by libvale-preload. New programs use libvale.
 */
#ifndef NET_NETMAP_USER_H
#define NET_NETMAP_USER_H

#include <net/netmap.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* -------------------------------------------------------------------------------------------- offsets to pointers --- */

#define _NETMAP_OFFSET(type, ptr, offset) ((type)(void *)((char *)(ptr) + (offset)))

#define NETMAP_IF(_base, _ofs) _NETMAP_OFFSET(struct netmap_if *, _base, _ofs)

/* The rings stand in the order NIC TX, host TX, NIC RX, host RX. */
#define NETMAP_TXRING(nifp, index) _NETMAP_OFFSET(struct netmap_ring *, nifp, (nifp)->ring_ofs[index])
#define NETMAP_RXRING(nifp, index)                                                                                     \
    _NETMAP_OFFSET(struct netmap_ring *, nifp,                                                                         \
                   (nifp)->ring_ofs[(index) + (nifp)->ni_tx_rings + (nifp)->ni_host_tx_rings])

#define NETMAP_BUF(ring, index) ((char *)(ring) + (ring)->buf_ofs + ((size_t)(index) * (ring)->nr_buf_size))
#define NETMAP_BUF_IDX(ring, buf) (((char *)(buf) - ((char *)(ring) + (ring)->buf_ofs)) / (ring)->nr_buf_size)

/* Where the frame of a slot starts in its buffer, when offsets are on. */
#define NETMAP_ROFFSET(ring, slot) ((slot)->ptr & (ring)->offset_mask)
#define NETMAP_BUF_OFFSET(ring, slot) (NETMAP_BUF(ring, (slot)->buf_idx) + NETMAP_ROFFSET(ring, slot))
#define NETMAP_WOFFSET(ring, slot, offset)                                                                             \
    do {                                                                                                               \
        (slot)->ptr = ((slot)->ptr & ~(ring)->offset_mask) | ((offset) & (ring)->offset_mask);                         \
    } while (0)

/* ---------------------------------------------------------------------------------------------- ring arithmetic --- */

static inline uint32_t nm_ring_next(struct netmap_ring *r, uint32_t i)
{
    return i + 1 == r->num_slots ? 0 : i + 1;
}

/* Slots between cur and tail: what can be filled (TX) or read (RX) now. */
static inline uint32_t nm_ring_space(struct netmap_ring *r)
{
    int space = (int)r->tail - (int)r->cur;

    return space < 0 ? (uint32_t)(space + (int)r->num_slots) : (uint32_t)space;
}

static inline int nm_ring_empty(struct netmap_ring *r)
{
    return r->head == r->tail;
}

/* TX: something published is not yet sent. Drained means that only the provider's own slot is left. */
static inline int nm_tx_pending(struct netmap_ring *r)
{
    return nm_ring_next(r, r->tail) != r->head;
}

/* Copies a frame between buffers. Both sides of a netmap buffer are readable up to a multiple of 64 bytes. */
static inline void nm_pkt_copy(const void *src, void *dst, int len)
{
    if (len > 0)
        memcpy(dst, src, (size_t)len);
}

#ifdef __cplusplus
}
#endif

#ifdef NETMAP_WITH_LIBS

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef NETMAP_DEVICE
#define NETMAP_DEVICE NETMAP_DEVICE_NAME
#endif

/* -------------------------------------------------------------------------------------- the library of old programs --- */

struct nm_pkthdr { /* same shape as libpcap's header, with more behind */
    struct timeval ts;
    uint32_t caplen;
    uint32_t len;
    uint64_t flags; /* NM_MORE_PKTS */
#define NM_MORE_PKTS 1
    struct nm_desc *d;
    struct netmap_slot *slot;
    uint8_t *buf;
};

struct nm_stat { /* same shape as libpcap's */
    unsigned int ps_recv;
    unsigned int ps_drop;
    unsigned int ps_ifdrop;
};

struct nm_desc {
    struct nm_desc *self; /* points to itself: proof that the pointer is one of ours */
    int fd;
    void *mem;
    size_t memsize;
    int done_mmap; /* this descriptor made the mapping */
    struct netmap_if *const nifp;
    uint16_t first_tx_ring, last_tx_ring, cur_tx_ring;
    uint16_t first_rx_ring, last_rx_ring, cur_rx_ring;
    struct nmreq req;
    struct nm_pkthdr hdr;
    struct netmap_ring *const some_ring; /* any ring: for buffer arithmetic */
    void *const buf_start;
    void *const buf_end;
    int snaplen;
    int promisc;
    int to_ms;
    char *errbuf;
    uint32_t if_flags;
    uint32_t if_reqcap;
    uint32_t if_curcap;
    struct nm_stat st;
    char msg[512];
};

#define P2NMD(p) ((const struct nm_desc *)(p))
#define IS_NETMAP_DESC(d) ((d) && P2NMD(d)->self == P2NMD(d))
#define NETMAP_FD(d) (P2NMD(d)->fd)

enum { /* flags of nm_open(), above the legacy ringid bits */
    NM_OPEN_NO_MMAP = 0x040000,    /* share the mapping of arg, or map later */
    NM_OPEN_IFNAME = 0x080000,     /* take the name from arg */
    NM_OPEN_ARG1 = 0x100000,       /* take nr_arg1 from arg */
    NM_OPEN_ARG2 = 0x200000,       /* nr_arg2 */
    NM_OPEN_ARG3 = 0x400000,       /* nr_arg3 */
    NM_OPEN_RING_CFG = 0x800000,   /* ring counts and sizes */
};

typedef void (*nm_cb_t)(unsigned char *user, const struct nm_pkthdr *hdr, const unsigned char *buf);

/* Ends a descriptor. 0, or an errno. */
static inline int nm_close(struct nm_desc *d)
{
    if (!IS_NETMAP_DESC(d))
        return EINVAL;
    if (d->done_mmap && d->mem)
        munmap(d->mem, d->memsize);
    if (d->fd != -1)
        close(d->fd);
    memset((void *)d, 0, sizeof(*d));
    free(d);
    return 0;
}

/*
 * Maps the region, or shares that of parent where both use the same allocator. 0 or an errno.
 */
static inline int nm_mmap(struct nm_desc *d, const struct nm_desc *parent)
{
    struct netmap_if *nifp;
    struct netmap_ring *ring;

    if (d->done_mmap)
        return 0;
    if (IS_NETMAP_DESC(parent) && parent->mem && parent->req.nr_arg2 == d->req.nr_arg2) {
        d->memsize = parent->memsize;
        d->mem = parent->mem;
    } else {
        d->memsize = d->req.nr_memsize;
        d->mem = mmap(NULL, d->memsize, PROT_READ | PROT_WRITE, MAP_SHARED, d->fd, 0);
        if (d->mem == MAP_FAILED) {
            d->mem = NULL;
            return errno ? errno : EINVAL;
        }
        d->done_mmap = 1;
    }
    nifp = NETMAP_IF(d->mem, d->req.nr_offset);
    if (d->first_tx_ring <= d->last_tx_ring && nifp->ring_ofs[d->first_tx_ring])
        ring = NETMAP_TXRING(nifp, d->first_tx_ring);
    else
        ring = NETMAP_RXRING(nifp, d->first_rx_ring);
    *(struct netmap_if **)(uintptr_t)&d->nifp = nifp;
    *(struct netmap_ring **)(uintptr_t)&d->some_ring = ring;
    *(void **)(uintptr_t)&d->buf_start = NETMAP_BUF(ring, 0);
    *(void **)(uintptr_t)&d->buf_end = (char *)d->mem + d->memsize;
    return 0;
}

/*
 * Splits "netmap:IF", "valeX:P" and the suffixes -N (one ring pair), ^ (host rings), * (both), {N }N (pipe) and /flags
 * (x z t r T R) into a legacy request. 0, or -1 with errno EINVAL.
 */
static inline int nm_parse_name(const char *name, struct nmreq *req)
{
    static const struct {
        char letter;
        uint32_t flag;
    } flags[] = {{'x', NR_EXCLUSIVE},  {'z', NR_ZCOPY_MON},     {'t', NR_MONITOR_TX},
                 {'r', NR_MONITOR_RX}, {'T', NR_TX_RINGS_ONLY}, {'R', NR_RX_RINGS_ONLY}};
    int vale = strncmp(name, NM_BDG_NAME, 4) == 0;
    const char *end, *p;
    size_t i, len;

    errno = EINVAL;
    if (!vale && strncmp(name, "netmap:", 7) != 0)
        return -1;
    p = vale ? name : name + 7;
    end = p + strcspn(p, "-*^{}/");
    len = (size_t)(end - p);
    if (len == 0 || len >= sizeof(req->nr_name))
        return -1;
    memcpy(req->nr_name, p, len);
    req->nr_name[len] = '\0';
    req->nr_flags = NR_REG_ALL_NIC;
    for (p = end; *p != '\0' && *p != '/';) {
        char kind = *p++;
        char *digits_end = (char *)(uintptr_t)p;

        if (kind == '^') {
            req->nr_flags = NR_REG_SW;
        } else if (kind == '*') {
            req->nr_flags = NR_REG_NIC_SW;
        } else {
            unsigned long n = isdigit((unsigned char)*p) ? strtoul(p, &digits_end, 10) : NETMAP_RING_MASK;

            if (n >= NETMAP_RING_MASK)
                return -1;
            req->nr_ringid = (uint16_t)n;
            req->nr_flags = kind == '-' ? NR_REG_ONE_NIC : kind == '{' ? NR_REG_PIPE_MASTER : NR_REG_PIPE_SLAVE;
        }
        p = digits_end;
    }
    for (p = *p == '/' ? p + 1 : p; *p != '\0'; p++) {
        for (i = 0; i < sizeof(flags) / sizeof(flags[0]) && flags[i].letter != *p; i++)
            ;
        if (i == sizeof(flags) / sizeof(flags[0]))
            return -1;
        req->nr_flags |= flags[i].flag;
    }
    errno = 0;
    return 0;
}

/* The range of rings that a binding covers. */
static inline void nm_bind_rings(struct nm_desc *d)
{
    uint32_t mode = d->req.nr_flags & NR_REG_MASK;

    d->first_tx_ring = d->first_rx_ring = 0;
    d->last_tx_ring = d->last_rx_ring = 0;
    if (mode == NR_REG_SW) {
        d->first_tx_ring = d->last_tx_ring = d->req.nr_tx_rings;
        d->first_rx_ring = d->last_rx_ring = d->req.nr_rx_rings;
    } else if (mode == NR_REG_ALL_NIC) {
        d->last_tx_ring = (uint16_t)(d->req.nr_tx_rings - 1);
        d->last_rx_ring = (uint16_t)(d->req.nr_rx_rings - 1);
    } else if (mode == NR_REG_NIC_SW) {
        d->last_tx_ring = d->req.nr_tx_rings;
        d->last_rx_ring = d->req.nr_rx_rings;
    } else if (mode == NR_REG_ONE_NIC) {
        d->first_tx_ring = d->last_tx_ring = d->first_rx_ring = d->last_rx_ring = d->req.nr_ringid & NETMAP_RING_MASK;
    }
    d->cur_tx_ring = d->first_tx_ring;
    d->cur_rx_ring = d->first_rx_ring;
}

/* What nm_open() takes over from the descriptor in arg. */
static inline void nm_take_arg(struct nm_desc *d, const struct nm_desc *arg, uint64_t flags)
{
    if (flags & NM_OPEN_ARG1)
        d->req.nr_arg1 = arg->req.nr_arg1;
    if (flags & (NM_OPEN_ARG2 | NM_OPEN_NO_MMAP))
        d->req.nr_arg2 = arg->req.nr_arg2;
    if (flags & NM_OPEN_ARG3)
        d->req.nr_arg3 = arg->req.nr_arg3;
    if (flags & NM_OPEN_RING_CFG) {
        d->req.nr_tx_slots = arg->req.nr_tx_slots;
        d->req.nr_rx_slots = arg->req.nr_rx_slots;
        d->req.nr_tx_rings = arg->req.nr_tx_rings;
        d->req.nr_rx_rings = arg->req.nr_rx_rings;
    }
}

/*
 * Opens a port. req gives defaults (may be NULL), flags are NM_OPEN_* and the high bits of the legacy ringid
 * (NETMAP_NO_TX_POLL, NETMAP_DO_RX_POLL), arg another descriptor to share with. NULL with errno on failure.
 */
static inline struct nm_desc *nm_open(const char *name, const struct nmreq *req, uint64_t flags, const struct nm_desc *arg)
{
    struct nm_desc *d = (struct nm_desc *)calloc(1, sizeof(*d));
    uint32_t asked_flags;
    int err;

    if (d == NULL)
        return NULL;
    d->self = d;
    d->fd = -1;
    if (req)
        d->req = *req;
    asked_flags = d->req.nr_flags & ~(uint32_t)NR_REG_MASK;
    if (flags & NM_OPEN_IFNAME && IS_NETMAP_DESC(arg))
        memcpy(d->req.nr_name, arg->req.nr_name, sizeof(d->req.nr_name));
    else if (nm_parse_name(name, &d->req) != 0)
        goto fail;
    d->req.nr_flags |= asked_flags;
    d->req.nr_version = NETMAP_API;
    d->req.nr_ringid |= (uint16_t)(flags & (NETMAP_NO_TX_POLL | NETMAP_DO_RX_POLL));
    if (IS_NETMAP_DESC(arg))
        nm_take_arg(d, arg, flags);
    d->fd = open(NETMAP_DEVICE, O_RDWR | O_CLOEXEC);
    if (d->fd < 0 || ioctl(d->fd, NIOCREGIF, &d->req) != 0)
        goto fail;
    nm_bind_rings(d);
    if ((!(flags & NM_OPEN_NO_MMAP) || IS_NETMAP_DESC(arg)) && (err = nm_mmap(d, arg)) != 0) {
        errno = err;
        goto fail;
    }
    return d;

fail:
    err = errno;
    nm_close(d);
    errno = err;
    return NULL;
}

/*
 * Puts one frame of size bytes into a TX ring, over several slots if need be. size, or 0 when no ring has room. The frame
 * leaves at the next NIOCTXSYNC or poll.
 */
static inline int nm_inject(struct nm_desc *d, const void *buf, size_t size)
{
    const char *from = (const char *)buf;
    unsigned int n = (unsigned int)(d->last_tx_ring - d->first_tx_ring) + 1, k;

    for (k = 0; k < n; k++) {
        unsigned int ri = d->first_tx_ring + (d->cur_tx_ring - d->first_tx_ring + k) % n;
        struct netmap_ring *ring = NETMAP_TXRING(d->nifp, ri);
        uint32_t i = ring->cur, space = nm_ring_space(ring);
        size_t left = size;

        if (size == 0 || (size + ring->nr_buf_size - 1) / ring->nr_buf_size > space)
            continue;
        do {
            struct netmap_slot *slot = &ring->slot[i];
            size_t part = left < ring->nr_buf_size ? left : ring->nr_buf_size;

            memcpy(NETMAP_BUF(ring, slot->buf_idx), from + (size - left), part);
            slot->len = (uint16_t)part;
            left -= part;
            slot->flags = left ? NS_MOREFRAG : 0;
            i = nm_ring_next(ring, i);
        } while (left);
        ring->head = ring->cur = i;
        d->cur_tx_ring = (uint16_t)ri;
        return (int)size;
    }
    return 0;
}

/* The next received frame (its first slot), NULL when there is none; it stays valid until the call after. */
static inline unsigned char *nm_nextpkt(struct nm_desc *d, struct nm_pkthdr *hdr)
{
    unsigned int n = (unsigned int)(d->last_rx_ring - d->first_rx_ring) + 1, k;

    for (k = 0; k < n; k++) {
        unsigned int ri = d->first_rx_ring + (d->cur_rx_ring - d->first_rx_ring + k) % n;
        struct netmap_ring *ring = NETMAP_RXRING(d->nifp, ri);
        uint32_t i = ring->cur;

        /* What was handed out before is given back only now, when the caller is done with it. */
        ring->head = i;
        if (nm_ring_empty(ring))
            continue;
        d->cur_rx_ring = (uint16_t)ri;
        hdr->ts = ring->ts;
        hdr->len = hdr->caplen = ring->slot[i].len;
        hdr->slot = &ring->slot[i];
        hdr->d = d;
        hdr->buf = (uint8_t *)NETMAP_BUF(ring, ring->slot[i].buf_idx);
        ring->cur = nm_ring_next(ring, i);
        hdr->flags = ring->cur != ring->tail ? NM_MORE_PKTS : 0;
        return hdr->buf;
    }
    return NULL;
}

/* Calls cb for up to cnt received frames (cnt <= 0: all that are there) and gives them back. How many. */
static inline int nm_dispatch(struct nm_desc *d, int cnt, nm_cb_t cb, unsigned char *arg)
{
    unsigned int n = (unsigned int)(d->last_rx_ring - d->first_rx_ring) + 1, k;
    int got = 0;

    for (k = 0; k < n && (cnt <= 0 || got < cnt); k++) {
        unsigned int ri = d->first_rx_ring + (d->cur_rx_ring - d->first_rx_ring + k) % n;
        struct netmap_ring *ring = NETMAP_RXRING(d->nifp, ri);

        while (!nm_ring_empty(ring) && (cnt <= 0 || got < cnt)) {
            struct netmap_slot *slot = &ring->slot[ring->cur];

            d->hdr.ts = ring->ts;
            d->hdr.len = d->hdr.caplen = slot->len;
            d->hdr.slot = slot;
            d->hdr.d = d;
            d->hdr.buf = (uint8_t *)NETMAP_BUF(ring, slot->buf_idx);
            cb(arg, &d->hdr, d->hdr.buf);
            ring->head = ring->cur = nm_ring_next(ring, ring->cur);
            got++;
        }
        d->cur_rx_ring = (uint16_t)ri;
    }
    return got;
}

#endif /* NETMAP_WITH_LIBS */

#endif /* NET_NETMAP_USER_H */
