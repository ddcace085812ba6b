/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * vhost - what the files of the vhost-user port share
 *
 *   vhost_user.c  the protocol: messages of the front end (QEMU), one handler each            control thread
 *   vhost_dev.c   the device: sockets, and starting and stopping queues                       control thread
 *   port_vhost.c  the kind of port: frames between guest buffers and batches                  workers
 *
 * QUEUES  2i is the guest's RX (frames go there), 2i+1 its TX (a ring: frames come from there). A queue runs while its map
 * is set, which is when it has memory, addresses and a kick descriptor, and is enabled. The control thread builds a new map
 * for every change and takes the old one away; when no worker can use that any more (reclaim()), what had to wait for it
 * goes on: the answer to GET_VRING_BASE, the acknowledgement of a new memory table, the end of a connection. Until then
 * the device reads no further message. A queue always resumes from the used index in its ring: frames complete in order,
 * so that is the truth even after valed was killed, whatever SET_VRING_BASE says.
 */
#ifndef VALED_VHOST_H
#define VALED_VHOST_H

#include "endpoint.h"
#include "port.h"
#include "virtq.h"
#include "watch.h"
#include "worker.h"

#include <pthread.h>

#define VHOST_PAIRS_MAX VALE_RINGS_MAX
#define VHOST_FDS_MAX   8
#define RARP_LEN        60

/* A run of used elements that a worker is filling: see port_ring.c, which does the same with slots. */
struct vhost_lease {
    uint16_t end;
    bool complete;
};

struct vhost_queue {
    _Atomic(struct virtq_map *) map;

    /* As the front end has set it up. Control thread. */
    uint16_t size;
    uint64_t desc_uva, avail_uva, used_uva;
    int kick_fd, call_fd;
    bool has_kick; /* a kick message came: the queue is started */
    bool enabled;

    /* Progress. TX: its worker's. RX: under the lock. */
    uint16_t next_avail;
    uint16_t used;
};

struct vhost_tx {
    struct ring ring;
    struct vhost_queue q;
    _Atomic bool greet;          /* a queue of the pair has started: the worker shall call the guest once */
    atomic_bool announce;        /* rarp is the worker's, to be forwarded; else the control thread's */
    bool announcing;             /* the batch at hand begins with it */
    uint8_t rarp[RARP_LEN];
    struct virtq_map *batch_map; /* of the batch at hand */
    uint16_t taken;              /* its chains */
    uint16_t begin;              /* chains before its first frame: bad ones */
    struct virtq_used_elem chain[BATCH_MAX]; /* these, as they go onto the used ring */
};

struct vhost_rx {
    pthread_mutex_t lock;
    struct vhost_queue q;
    uint16_t reserved; /* used elements reserved; q.used counts those published */
    uint16_t looked_at; /* the guest's index when a worker looked for room last */
    struct vhost_lease lease[VIRTQ_SIZE_MAX]; /* by the first element of its run; touched as far as the queue is long */
};

/* A message as it lies in the buffer. */
struct vhost_message {
    uint32_t request;
    uint32_t flags;
    uint32_t size;
    union {
        uint64_t u64;
        struct {
            uint32_t index, num;
        } state;
        struct {
            uint32_t index, flags;
            uint64_t desc, used, avail, log;
        } addr;
        struct {
            uint32_t count, padding;
            struct {
                uint64_t gpa, size, uva, offset;
            } region[8];
        } memory;
        struct {
            uint64_t padding;
            struct {
                uint64_t gpa, size, uva, offset;
            } region;
        } one_region;
        struct {
            uint64_t size, offset;
        } log;
        uint8_t bytes[512];
    };
} __attribute__((packed));

#define VHOST_HEADER 12

struct vhost_port;

struct vhost_port {
    struct port port;
    bool allow_file; /* accept memory that lies in ordinary files */

    struct endpoint *endpoint;
    struct port_watch *connection; /* NULL: nobody is there */
    bool stopping;                  /* the connection is going away */

    struct vhost_message msg;
    size_t received;
    int fds[VHOST_FDS_MAX];
    unsigned int fd_count;
    void (*later)(struct vhost_port *vp); /* goes on when the grace period is over; NULL: nothing waits */
    uint64_t later_value;
    unsigned int periods; /* reclaim() periods that it waits for */

    uint64_t features, protocol_features;
    struct guest_mem *mem;
    atomic_bool memory_died; /* set by the SIGBUS handler */
    atomic_bool call_stuck;  /* set by the worker that it kept waiting */
    struct guest_mem *log; /* the dirty bitmap: its only region */

    struct vhost_port *next; /* all of them */
    unsigned int pairs;
    struct vhost_rx rx[VHOST_PAIRS_MAX];
    struct vhost_tx tx[VHOST_PAIRS_MAX];
};

static inline struct vhost_port *to_vhost_port(const struct port *port)
{
    return (struct vhost_port *)(uintptr_t)port;
}

extern const struct port_ops vhost_port_ops;

/* ------------------------------------------------------------------------------------------------- vhost_user.c --- */

/*
 * Reads the next message and acts on it when it is complete: only one, so that others get their turn. False: the front end has
 * gone or broken the protocol.
 */
bool vhost_user_receive(struct vhost_port *vp);

/* Bits of features and protocol features that matter elsewhere. */
#define VIRTIO_NET_F_MRG_RXBUF       (1ull << 15)
#define VIRTIO_F_VERSION_1           (1ull << 32)
#define VIRTIO_RING_F_INDIRECT_DESC  (1ull << 28)
#define VIRTIO_RING_F_EVENT_IDX      (1ull << 29)
#define VHOST_USER_F_PROTOCOL        (1ull << 30)
#define VHOST_F_LOG_ALL              (1ull << 26)

/* -------------------------------------------------------------------------------------------------- vhost_dev.c --- */

/* The queue with the index of the protocol, or NULL when there is none. */
struct vhost_queue *vhost_queue(struct vhost_port *vp, uint32_t index);

/*
 * Makes the maps follow from what the front end has set up, and returns at once; `later` (or NULL) is called when no worker
 * uses what was there before. 0, or -EINVAL: a ring lies outside of memory; it is stopped.
 */
int vhost_dev_update(struct vhost_port *vp, void (*later)(struct vhost_port *vp));

/* Replaces the memory table; maps are rebuilt. Same return. */
int vhost_dev_set_memory(struct vhost_port *vp, struct guest_mem *mem, void (*later)(struct vhost_port *vp));

/* Makes a vhost-user port, not yet in a switch, and its socket, which listens or connects. 0 or -errno. */
int vhost_port_create(struct port **port, const struct vale_name *name, const char *path, bool connects, bool allow_file);

/* port_ops.close, port_ops.destroy */
void vhost_port_close(struct port *port);
void vhost_port_destroy(struct port *port);

/* A front end whose memory has died loses its connection; one that kept a worker waiting in a call loses its port. */
void vhost_check_ports(void);

void vhost_ready(struct watch *w, uint32_t events);

#endif
