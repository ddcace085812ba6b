/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * port_kernel.c - a port of the kernel's switch, through /dev/netmap
 *
 * The kernel checks and publishes; a sync is a system call. A poll() for input would also send: NR_NO_TX_POLL keeps the two
 * halves apart, so that each may have its thread.
 */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

struct kernel_priv {
    struct vale_port_priv common;
    bool kick_wanted;
};

static struct kernel_priv *priv_of(const struct vale_port *port)
{
    return (struct kernel_priv *)port->priv;
}

static int kernel_find(const char *device)
{
    int fd = open(device, O_RDWR | O_CLOEXEC);

    return fd < 0 ? -errno : fd;
}

static int kernel_bind(struct vale_port *port, const struct vale_open_args *args, struct vale_error *err)
{
    struct nmreq_header hdr = {.nr_version = NETMAP_API, .nr_reqtype = NETMAP_REQ_REGISTER};
    struct nmreq_register reg;
    void *mem;

    if (port->monitor && (port->name[strlen(port->name) - 1] == ':' || port->vnet_hdr_len != 0)) {
        return vale_fail(err, EINVAL, "%s: on %s a monitor is of one port, and without a virtio-net header", port->name,
                         port->device);
    }
    vale_fill_register(&reg, args);
    reg.nr_flags |= NR_NO_TX_POLL;
    snprintf(hdr.nr_name, sizeof(hdr.nr_name), "%s", port->name);
    hdr.nr_body = (uintptr_t)&reg;
    if (ioctl(port->fd, NIOCCTRL, &hdr) < 0) {
        if (errno == ENOTTY || errno == EOPNOTSUPP) {
            return vale_fail(err, errno, "%s: not a netmap device of API %d: update netmap, or use valed", port->device,
                             NETMAP_API);
        }
        return vale_fail_register(err, errno, port->name, port->device, port->monitor);
    }
    mem = mmap(NULL, reg.nr_memsize, PROT_READ | PROT_WRITE, MAP_SHARED, port->fd, 0);
    if (mem == MAP_FAILED) {
        return vale_fail(err, errno, "%s: its %llu bytes cannot be mapped: %s", port->name,
                         (unsigned long long)reg.nr_memsize, strerror(errno));
    }
    port->mem = mem;
    port->memsize = reg.nr_memsize;
    port->nifp = NETMAP_IF(mem, reg.nr_offset);
    port->tx_rings = port->nifp->ni_tx_rings;
    port->rx_rings = port->nifp->ni_rx_rings;
    return 0;
}

static int kernel_set_vnet_hdr(struct vale_port *port, const struct nmreq_port_hdr *wanted, struct vale_error *err)
{
    struct nmreq_header hdr = {.nr_version = NETMAP_API, .nr_reqtype = NETMAP_REQ_PORT_HDR_SET};
    struct nmreq_port_hdr body = {.nr_hdr_len = wanted->nr_hdr_len};

    snprintf(hdr.nr_name, sizeof(hdr.nr_name), "%s", port->name);
    hdr.nr_body = (uintptr_t)&body;
    if (ioctl(port->fd, NIOCCTRL, &hdr) < 0) {
        return vale_fail_vnet_hdr(err, errno, port->name, port->device, body.nr_hdr_len);
    }
    return 0;
}

static void kernel_close(struct vale_port *port)
{
    if (port->mem != NULL) {
        if (priv_of(port)->kick_wanted) {
            ioctl(port->fd, NIOCTXSYNC);
        }
        munmap(port->mem, port->memsize);
    }
    close(port->fd);
}

static int sync_error(int rc)
{
    return rc < 0 && (errno == ENXIO || errno == EIO) ? -ENXIO : 0;
}

static int kernel_txsync(struct vale_port *port)
{
    priv_of(port)->kick_wanted = false;
    return sync_error(ioctl(port->fd, NIOCTXSYNC));
}

static int kernel_rxsync(struct vale_port *port)
{
    return sync_error(ioctl(port->fd, NIOCRXSYNC));
}

static bool kernel_tx_publish(struct vale_port *port, unsigned int i)
{
    (void)i;
    priv_of(port)->kick_wanted = true;
    return true;
}

static int kernel_tx_kick(struct vale_port *port)
{
    return priv_of(port)->kick_wanted ? kernel_txsync(port) : 0;
}

static int kernel_poll_fd(const struct vale_port *port, int direction)
{
    (void)direction;
    return port->fd;
}

static short kernel_poll_events(int direction)
{
    return direction == VALE_TX ? POLLOUT : POLLIN;
}

/* The kernel's poll() itself syncs and arms, so before and after sleeping there is only a look at the rings to take. */
static bool kernel_look(struct vale_port *port, int direction)
{
    unsigned int count = direction == VALE_TX ? port->tx_rings : port->rx_rings;
    unsigned int i;

    ioctl(port->fd, direction == VALE_TX ? NIOCTXSYNC : NIOCRXSYNC);
    if (direction == VALE_TX) {
        priv_of(port)->kick_wanted = false;
    }
    for (i = 0; i < count; i++) {
        struct netmap_ring *ring = direction == VALE_TX ? vale_txring(port, i) : vale_rxring(port, i);

        if (nm_ring_space(ring) > 0) {
            return true;
        }
    }
    return false;
}

static bool kernel_gone(const struct vale_port *port)
{
    /* To a monitor every TXSYNC is an error. */
    return ioctl(port->fd, port->monitor ? NIOCRXSYNC : NIOCTXSYNC) < 0 && (errno == ENXIO || errno == EIO);
}

/* A kernel module that was unloaded takes its ports with it. */
static int kernel_reconnect(struct vale_port *port)
{
    return kernel_gone(port) ? -ENXIO : 0;
}

const struct vale_ops vale_kernel_ops = {
    .provider = VALE_PROVIDER_KERNEL,
    .priv_size = sizeof(struct kernel_priv),
    .find = kernel_find,
    .bind = kernel_bind,
    .set_vnet_hdr = kernel_set_vnet_hdr,
    .close = kernel_close,
    .tx_publish = kernel_tx_publish,
    .tx_kick = kernel_tx_kick,
    .txsync = kernel_txsync,
    .rxsync = kernel_rxsync,
    .poll_fd = kernel_poll_fd,
    .poll_events = kernel_poll_events,
    .wait_begin = kernel_look,
    .wait_end = kernel_look,
    .gone = kernel_gone,
    .reconnect = kernel_reconnect,
    .retry = kernel_reconnect,
};
