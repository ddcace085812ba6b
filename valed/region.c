/* SPDX-License-Identifier: BSD-2-Clause */
/* The memory of one native port. */
#include "region.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define PAGE      4096u
#define RING_STEP 128u

/*
 * A cache line more than 2 KiB: at a distance of exactly 2 KiB the first lines of all buffers share 1/32 of the cache's
 * sets (docs/decisions.md, 6).
 */
#define BUF_SIZE (2048u + 64u)

#define EXTRA_BUFS_MAX 4096u

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

static unsigned int clamp(unsigned int n, unsigned int lowest, unsigned int highest)
{
    return n < lowest ? lowest : n > highest ? highest : n;
}

void region_clamp(struct region_config *c)
{
    c->tx_rings = clamp(c->tx_rings, 1, VALE_MAX_RINGS);
    c->rx_rings = clamp(c->rx_rings, 1, VALE_MAX_RINGS);
    c->tx_slots = c->tx_slots ? clamp(c->tx_slots, VALE_MIN_SLOTS, VALE_MAX_SLOTS) : VALE_DEFAULT_SLOTS;
    c->rx_slots = c->rx_slots ? clamp(c->rx_slots, VALE_MIN_SLOTS, VALE_MAX_SLOTS) : VALE_DEFAULT_SLOTS;
    c->extra_bufs = clamp(c->extra_bufs, 0, EXTRA_BUFS_MAX);
}

static unsigned int ring_total(const struct region *r)
{
    return r->config.tx_rings + r->config.rx_rings;
}

static size_t ring_bytes(unsigned int slots)
{
    return round_up(sizeof(struct netmap_ring) + slots * sizeof(struct netmap_slot), RING_STEP);
}

static size_t ring_offset(const struct region *r, unsigned int i)
{
    unsigned int tx = i < r->config.tx_rings ? i : r->config.tx_rings;

    /* One host ring each way is announced but not there, as on the kernel's switch: their offsets are 0. */
    return round_up(r->if_offset + sizeof(struct netmap_if) + (ring_total(r) + 2) * sizeof(int64_t), PAGE) +
           tx * ring_bytes(r->config.tx_slots) + (i - tx) * ring_bytes(r->config.rx_slots);
}

struct vale_ring_ctl *region_ctl(const struct region *r, unsigned int i)
{
    return (struct vale_ring_ctl *)(r->base + VALE_RING_CTL_OFS) + i;
}

struct netmap_ring *region_ring(const struct region *r, unsigned int i)
{
    return (struct netmap_ring *)(r->base + ring_offset(r, i));
}

/* The constant fields of netmap's structures are constant to everybody but their maker. */
#define SET32(field, value) (*(uint32_t *)(uintptr_t)&(field) = (value))
#define SET16(field, value) (*(uint16_t *)(uintptr_t)&(field) = (uint16_t)(value))
#define SET64(field, value) (*(int64_t *)(uintptr_t)&(field) = (int64_t)(value))

static void fill_if(struct region *r, const char *name)
{
    struct netmap_if *nifp = (struct netmap_if *)(r->base + r->if_offset);
    unsigned int tx = r->config.tx_rings, rx = r->config.rx_rings;

    snprintf(nifp->ni_name, sizeof(nifp->ni_name), "%.15s", name);
    SET32(nifp->ni_version, NETMAP_API);
    SET32(nifp->ni_flags, NI_PRIV_MEM);
    SET32(nifp->ni_tx_rings, tx);
    SET32(nifp->ni_rx_rings, rx);
    SET32(nifp->ni_host_tx_rings, 1);
    SET32(nifp->ni_host_rx_rings, 1);
    for (unsigned int i = 0; i < tx + rx; i++)
        SET64(nifp->ring_ofs[i < tx ? i : i + 1], ring_offset(r, i) - r->if_offset);
}

static void fill_ring(struct region *r, unsigned int i, uint32_t *next_buf)
{
    struct netmap_ring *ring = region_ring(r, i);
    struct vale_ring_ctl *ctl = region_ctl(r, i);
    bool is_tx = i < r->config.tx_rings;
    unsigned int slots = is_tx ? r->config.tx_slots : r->config.rx_slots;

    SET64(ring->buf_ofs, r->bufs - (uint8_t *)ring);
    SET32(ring->num_slots, slots);
    SET32(ring->nr_buf_size, r->buf_size);
    SET16(ring->ringid, is_tx ? i : i - r->config.tx_rings);
    SET16(ring->dir, is_tx);
    ring->tail = ctl->valed.hwtail = is_tx ? slots - 1 : 0;
    ctl->valed.need_kick = is_tx;
    for (unsigned int s = 0; s < slots; s++) {
        ring->slot[s].buf_idx = (*next_buf)++;
        ring->slot[s].len = (uint16_t)r->buf_size;
    }
}

/* The extra buffers as netmap hands them out: each one's first word is the next one's index. */
static void fill_extra(struct region *r, uint32_t first)
{
    struct netmap_if *nifp = (struct netmap_if *)(r->base + r->if_offset);

    nifp->ni_bufs_head = r->config.extra_bufs ? first : 0;
    for (uint32_t i = first; i < r->buf_count; i++)
        *(uint32_t *)(r->bufs + (size_t)i * r->buf_size) = i + 1 < r->buf_count ? i + 1 : 0;
}

uint64_t region_incarnation(void)
{
    static uint64_t incarnation;

    while (incarnation == 0)
        if (getrandom(&incarnation, sizeof(incarnation), 0) < 0)
            incarnation = 0;
    return incarnation;
}

static void fill_header(struct region *r)
{
    struct vale_region *head = (struct vale_region *)r->base;

    *head = (struct vale_region){
        .magic = VALE_REGION_MAGIC,
        .version = VALE_PROTO_VERSION,
        .memsize = r->size,
        .if_offset = r->if_offset,
        .tx_rings = r->config.tx_rings,
        .rx_rings = r->config.rx_rings,
        .tx_slots = r->config.tx_slots,
        .rx_slots = r->config.rx_slots,
        .buf_size = r->buf_size,
        .buf_count = r->buf_count,
        .incarnation = region_incarnation(),
    };
}

static void fill(struct region *r, const char *name)
{
    uint32_t next_buf = 2;

    fill_header(r);
    fill_if(r, name);
    for (unsigned int i = 0; i < ring_total(r); i++)
        fill_ring(r, i, &next_buf);
    fill_extra(r, next_buf);
}

/* Where everything lies; the offset of the buffers. */
static size_t lay_out(struct region *r, const struct region_config *config)
{
    size_t bufs_offset;

    *r = (struct region){.config = *config, .fd = -1, .base = MAP_FAILED, .buf_size = BUF_SIZE};
    r->buf_count = 2 + config->tx_rings * config->tx_slots + config->rx_rings * config->rx_slots + config->extra_bufs;
    r->if_offset = round_up(VALE_RING_CTL_OFS + ring_total(r) * sizeof(struct vale_ring_ctl), 64);
    bufs_offset = round_up(ring_offset(r, ring_total(r)), PAGE);
    r->size = round_up(bufs_offset + (size_t)r->buf_count * r->buf_size, PAGE);
    return bufs_offset;
}

int region_create(struct region *r, const struct region_config *config, const char *name)
{
    size_t bufs_offset = lay_out(r, config);
    int err;

    r->fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (r->fd < 0 || ftruncate(r->fd, (off_t)r->size) < 0 ||
        fcntl(r->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        goto fail;
    r->base = mmap(NULL, r->size, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
    if (r->base == MAP_FAILED)
        goto fail;
    r->bufs = r->base + bufs_offset;
    fill(r, name);
    return 0;

fail:
    err = -errno;
    region_destroy(r);
    return err;
}

/* Memory that cannot be taken away from under us: only a memfd has these seals, and huge pages can be missing at any time. */
static bool is_sound(int fd, size_t size)
{
    const int wanted = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    int seals = fcntl(fd, F_GET_SEALS);
    struct statfs fs;
    struct stat st;

    return seals >= 0 && (seals & wanted) == wanted && fstat(fd, &st) == 0 && st.st_size >= 0 && (size_t)st.st_size == size &&
           fstatfs(fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC;
}

static bool same_config(const struct region_config *a, const struct region_config *b)
{
    return a->tx_rings == b->tx_rings && a->rx_rings == b->rx_rings && a->tx_slots == b->tx_slots &&
           a->rx_slots == b->rx_slots && a->extra_bufs == b->extra_bufs;
}

int region_adopt(struct region *r, const struct region_config *config, int fd)
{
    struct region_config clamped = *config;
    size_t bufs_offset;

    region_clamp(&clamped);
    bufs_offset = lay_out(r, &clamped);
    r->fd = fd;
    if (same_config(&clamped, config) && is_sound(fd, r->size))
        r->base = mmap(NULL, r->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (r->base == MAP_FAILED) {
        region_destroy(r);
        return -EINVAL;
    }
    r->bufs = r->base + bufs_offset;
    fill_header(r);
    return 0;
}

void region_destroy(struct region *r)
{
    if (r->base != MAP_FAILED)
        munmap(r->base, r->size);
    if (r->fd >= 0)
        close(r->fd);
    r->base = MAP_FAILED;
    r->fd = -1;
}
