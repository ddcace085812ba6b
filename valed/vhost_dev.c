/* SPDX-License-Identifier: BSD-2-Clause */
/* The device behind a vhost-user port: its sockets, and starting and stopping its queues. */
#include "forward.h"
#include "log.h"
#include "qmp.h"
#include "vhost.h"
#include "vswitch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static struct vhost_port *ports;

/* -------------------------------------------------------------------------------------------------------- maps --- */

struct vhost_queue *vhost_queue(struct vhost_port *vp, uint32_t index)
{
    if (index / 2 >= vp->pairs)
        return NULL;
    return index % 2 ? &vp->tx[index / 2].q : &vp->rx[index / 2].q;
}

static bool is_ready(const struct vhost_port *vp, const struct vhost_queue *q)
{
    return vp->mem && q->enabled && q->has_kick && q->size && q->desc_uva && !vp->stopping;
}

/* The three areas of a ring, each whole inside one region and aligned as virtio demands. */
static bool find_rings(const struct vhost_port *vp, const struct vhost_queue *q, struct virtq_map *m)
{
    uint64_t size = q->size, gpa;

    m->desc = (struct virtq_desc *)guest_mem_at_uva(vp->mem, q->desc_uva, size * sizeof(struct virtq_desc), &gpa);
    m->avail = (uint16_t *)guest_mem_at_uva(vp->mem, q->avail_uva, 6 + 2 * size, &gpa);
    m->used = (uint16_t *)guest_mem_at_uva(vp->mem, q->used_uva, 6 + size * sizeof(struct virtq_used_elem), &m->used_gpa);
    return m->desc && m->avail && m->used && (uintptr_t)m->desc % 16 == 0 && (uintptr_t)m->avail % 2 == 0 &&
           (uintptr_t)m->used % 4 == 0;
}

static struct virtq_map *make_map(const struct vhost_port *vp, const struct vhost_queue *q)
{
    struct virtq_map *m = calloc(1, sizeof(*m));

    if (!m)
        return NULL;
    m->mem = vp->mem;
    m->size = q->size;
    m->event_idx = vp->features & VIRTIO_RING_F_EVENT_IDX;
    m->mergeable = vp->features & VIRTIO_NET_F_MRG_RXBUF;
    m->header = vp->features & (VIRTIO_NET_F_MRG_RXBUF | VIRTIO_F_VERSION_1) ? 12 : 10;
    m->call_fd = q->call_fd < 0 ? -1 : fcntl(q->call_fd, F_DUPFD_CLOEXEC, 0);
    if ((vp->features & VHOST_F_LOG_ALL) && vp->log) {
        m->log = vp->log->base[0];
        m->log_size = vp->log->region[0].size;
    }
    if (!find_rings(vp, q, m)) {
        if (m->call_fd >= 0)
            close(m->call_fd);
        free(m);
        return NULL;
    }
    return m;
}

static void free_map(void *arg)
{
    struct virtq_map *m = arg;

    if (m->call_fd >= 0)
        close(m->call_fd);
    free(m);
}

/* A queue starts, or starts again: goes on where its used ring says. */
static void resume(struct vhost_queue *q, const struct virtq_map *m)
{
    q->used = q->next_avail = virtq_used_index(m);
}

/*
 * Wakes the worker once, and has it wake the guest: what was published while nobody was here must not wait for the next kick.
 * The control thread calls no guest: nobody would free it.
 */
static void prod(struct vhost_tx *tx)
{
    atomic_store(&tx->greet, true);
    /* A ring that has no worker yet is poked when its own queue starts. */
    if (tx->ring.worker)
        worker_poke_ring(&tx->ring);
}

/* Gives one queue the map that its settings ask for. */
static int update_queue(struct vhost_port *vp, unsigned int index)
{
    struct vhost_queue *q = vhost_queue(vp, index);
    struct vhost_tx *tx = index % 2 ? &vp->tx[index / 2] : NULL;
    struct virtq_map *old = atomic_load(&q->map), *new = NULL;
    int err = 0;

    if (is_ready(vp, q)) {
        new = make_map(vp, q);
        err = new ? 0 : -EINVAL;
    }
    if (new && !old) {
        resume(q, new);
        if (!tx) {
            vp->rx[index / 2].reserved = q->used;
            virtq_want_kick(new, 0, false);
        }
    }
    atomic_store(&q->map, new);
    if (old)
        reclaim(free_map, old);
    if (new && !old)
        prod(&vp->tx[index / 2]);
    return err;
}

static void run_later(void *arg)
{
    struct vhost_port *vp = arg;
    void (*later)(struct vhost_port *) = vp->later;

    /* A hang-up may have come in between: then only its own period counts. */
    if (--vp->periods > 0)
        return;
    vp->later = NULL;
    later(vp);
    if (vp->connection && !vp->later && !vp->stopping)
        watch_events(&vp->connection->watch, EPOLLIN);
}

int vhost_dev_update(struct vhost_port *vp, void (*later)(struct vhost_port *vp))
{
    int err = 0;

    for (unsigned int i = 0; i < 2 * vp->pairs; i++) {
        int e = update_queue(vp, i);

        err = err ? err : e;
    }
    if (later) {
        vp->later = later;
        vp->periods++;
        if (vp->connection)
            watch_events(&vp->connection->watch, 0);
        reclaim(run_later, vp);
    }
    return err;
}

int vhost_dev_set_memory(struct vhost_port *vp, struct guest_mem *mem, void (*later)(struct vhost_port *vp))
{
    struct guest_mem *old = vp->mem;
    int err;

    vp->mem = mem;
    err = vhost_dev_update(vp, NULL);
    if (old)
        reclaim(guest_mem_free, old);
    if (err == 0 && later)
        err = vhost_dev_update(vp, later);
    return err;
}

/* --------------------------------------------------------------------------------------------------- connection --- */

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void reset_queue(struct vhost_port *vp, unsigned int index)
{
    struct vhost_queue *q = vhost_queue(vp, index);

    if (index % 2)
        worker_set_kick(&vp->tx[index / 2].ring, -1);
    else
        worker_set_room_kick(&vp->tx[index / 2].ring, -1);
    close_fd(&q->kick_fd);
    close_fd(&q->call_fd);
    q->size = 0;
    q->desc_uva = q->avail_uva = q->used_uva = 0;
    q->has_kick = q->enabled = false;
}

/* No worker uses anything of the front end's any more: forget it, and be ready for the next. */
static void finish_stop(struct vhost_port *vp)
{
    for (unsigned int i = 0; i < 2 * vp->pairs; i++)
        reset_queue(vp, i);
    while (vp->fd_count)
        close(vp->fds[--vp->fd_count]);
    guest_mem_free(vp->mem);
    vp->mem = NULL;
    guest_mem_free(vp->log);
    vp->log = NULL;
    atomic_store(&vp->memory_died, false);
    vp->features = vp->protocol_features = 0;
    vp->received = 0;
    vp->stopping = false;
    if (vp->endpoint)
        endpoint_resume(vp->endpoint);
}

static void hang_up(struct vhost_port *vp, const char *reason)
{
    watch_free(&vp->connection->watch);
    vp->connection = NULL;
    vp->stopping = true;
    log_info("%s: front end gone: %s", vp->port.name.full, reason);
    if (vp->port.sw) {
        fdb_flush_port(&vp->port.sw->fdb, vp->port.index, false);
        qmp_event_port("PORT_DOWN", &vp->port, reason);
    }
    vp->port.uid = 0; /* nobody is there: pid 0 says so */
    vp->port.pid = 0;
    vhost_dev_update(vp, finish_stop);
    forward_room(&vp->port); /* frames for it are dropped now */
}

static struct port_watch *new_watch(struct vhost_port *vp, int fd)
{
    struct port_watch *w = calloc(1, sizeof(*w));

    if (!w)
        return NULL;
    w->port = &vp->port;
    if (watch_add(&w->watch, WATCH_VHOST, fd) < 0) {
        free(w);
        return NULL;
    }
    return w;
}

/* A front end is there. */
static bool connected(void *arg, int fd)
{
    struct vhost_port *vp = arg;
    socklen_t len = sizeof(struct ucred);
    struct ucred peer;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0 || !(vp->connection = new_watch(vp, fd))) {
        log_warn("%s: cannot take a front end: %s", vp->port.name.full, strerror(errno));
        return false;
    }
    vp->port.uid = peer.uid;
    vp->port.pid = peer.pid;
    qmp_event_port("PORT_UP", &vp->port, NULL);
    return true;
}

void vhost_ready(struct watch *w, uint32_t events)
{
    struct vhost_port *vp = to_vhost_port(((struct port_watch *)w)->port);

    if (!vp->later && (events & EPOLLIN) && !vhost_user_receive(vp))
        hang_up(vp, "closed, or protocol broken");
    else if ((events & (EPOLLHUP | EPOLLERR)) && !(events & EPOLLIN))
        hang_up(vp, "closed");
}

/* ------------------------------------------------------------------------------------------------ making and ending --- */

static void init_queues(struct vhost_port *vp)
{
    for (unsigned int i = 0; i < VHOST_PAIRS_MAX; i++) {
        pthread_mutex_init(&vp->rx[i].lock, NULL);
        vp->rx[i].q.kick_fd = vp->rx[i].q.call_fd = -1;
        vp->tx[i].q.kick_fd = vp->tx[i].q.call_fd = -1;
        vp->tx[i].ring.port = &vp->port;
        vp->tx[i].ring.index = i;
        vp->tx[i].ring.kick_fd = -1;
        vp->port.ring[i] = &vp->tx[i].ring;
    }
    vp->pairs = vp->port.ring_count = VHOST_PAIRS_MAX;
}

int vhost_port_create(struct port **port, const struct vale_name *name, const char *path, bool connects, bool allow_file)
{
    struct vhost_port *vp;
    int err;

    vp = calloc(1, sizeof(*vp));
    if (!vp)
        return -ENOMEM;
    vp->port.ops = &vhost_port_ops;
    vp->port.name = *name;
    vp->allow_file = allow_file;
    init_queues(vp);
    err = endpoint_open(&vp->endpoint, path, connects, connected, vp);
    if (err) {
        vhost_port_destroy(&vp->port);
        return err;
    }
    vp->next = ports;
    ports = vp;
    *port = &vp->port;
    return 0;
}

void vhost_check_ports(void)
{
    for (struct vhost_port *vp = ports; vp; vp = vp->next) {
        if (atomic_load(&vp->memory_died) && vp->connection)
            hang_up(vp, "its memory was taken away");
        if (atomic_load(&vp->call_stuck))
            port_close(&vp->port, "its front end blocked a call");
    }
}

void vhost_port_close(struct port *port)
{
    struct vhost_port *vp = to_vhost_port(port);

    endpoint_close(vp->endpoint);
    vp->endpoint = NULL;
    if (vp->connection)
        hang_up(vp, port->reason);
}

/* Nobody forwards to this port any more, and its rings are forgotten. */
void vhost_port_destroy(struct port *port)
{
    struct vhost_port *vp = to_vhost_port(port);

    struct vhost_port **link = &ports;

    while (*link && *link != vp)
        link = &(*link)->next;
    if (*link)
        *link = vp->next;
    endpoint_close(vp->endpoint);
    vp->endpoint = NULL;
    for (unsigned int i = 0; i < 2 * vp->pairs; i++) {
        struct virtq_map *m = atomic_load(&vhost_queue(vp, i)->map);

        if (m)
            free_map(m);
    }
    finish_stop(vp);
    free(vp);
}
