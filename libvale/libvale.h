/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * libvale - open a VALE port by name, on the kernel's switch or on valed
 *
 * A port is opened, its rings are used as net/netmap.h describes, and a sync moves what was filled and what was consumed:
 *
 *     struct vale_open_args args = {.name = "vale1:a", .flags = VALE_OPEN_START};
 *     struct vale_error err;
 *     struct vale_port *port = vale_open(&args, &err);            // on failure: fprintf(stderr, "%s\n", err.text)
 *
 *     while (vale_wait(port, VALE_RX, -1) > 0) {
 *         struct netmap_ring *ring = vale_rxring(port, 0);
 *
 *         while (!nm_ring_empty(ring)) {
 *             struct netmap_slot *slot = &ring->slot[ring->head];
 *
 *             consume(NETMAP_BUF(ring, slot->buf_idx), slot->len);
 *             ring->head = ring->cur = nm_ring_next(ring, ring->head);
 *         }
 *         vale_rxsync(port);
 *     }
 *     vale_close(port);
 *
 * Differences between the providers that a program can see: TXSYNC of the kernel has sent when it returns, that of valed has
 * published (a TX ring can stay full for a while); valed lets a port go as soon as the last descriptor is closed, and frames
 * published before are still forwarded.
 *
 * Threads: one thread at a time may use the TX half of a port (txsync, tx_publish, tx_kick, waiting for VALE_TX), another
 * the RX half. One half never syncs the other: waiting for VALE_RX alone does not send.
 *
 * A provider that is gone is noticed by whoever waits, at once, and by vale_gone(); a sync is no system call and notices
 * it after some rounds without news.
 *
 * A valed that is restarted gets its ports back: vale_wait() and the syncs reconnect by themselves, for up to 10 seconds.
 * Meanwhile TX rings fill and RX rings stay empty; then they fail with -ENXIO. Rings, mapping and the numbers of all
 * descriptors stay what they were, but the descriptors are new ones: who watches them with epoll adds them again. Frames
 * that were published are forwarded; of those that valed was about to forward when it was killed some may come twice. A port
 * that management took away does not come back.
 */
#ifndef LIBVALE_H
#define LIBVALE_H

#include <net/netmap.h>
#include <net/netmap_user.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vale_proto.h>

/* ------------------------------------------------------------------------------------------------------- names --- */

/*
 * One line for a person: what is wrong, with what, and what to do. `code` is an errno, for programs: EINVAL a name or
 * argument; EBUSY the port is taken; ENOMEM the switch is full or a limit is reached; ENOENT no provider; EACCES not
 * permitted; ENODEV nothing there to monitor; EPROTO the socket is not valed's; ENXIO the provider is gone; or what the provider answered.
 */
struct vale_error {
    int code;
    char text[512];
};

#define VALE_SWITCH_MAX 16 /* bytes of a switch's name, with "vale" and NUL */
#define VALE_PORT_MAX   16 /* bytes of a port's name, with NUL */

/* A port's name in its one form, `vale` SSS `:` PPP. */
struct vale_name {
    char sw[VALE_SWITCH_MAX];
    char port[VALE_PORT_MAX];
    char full[VALE_SWITCH_MAX + VALE_PORT_MAX];
};

/*
 * Brings a name into its one form. `vale1:a` stands for itself. Names of netmap's first releases: without a colon
 * (`vale0`, `vale-foo`) it is a port with the whole name on switch `vale`; `-` in a switch name becomes `_`. 0, or -EINVAL
 * with err filled in. The vectors are in tests/vectors/names.json.
 */
int vale_name_parse(const char *text, struct vale_name *name, struct vale_error *err);

/* The same, or a whole switch, `vale1:`, whose port is then empty: what can be monitored. */
int vale_name_parse_monitored(const char *text, struct vale_name *name, struct vale_error *err);

/* --------------------------------------------------------------------------------------------------- open, close --- */

enum vale_provider { VALE_PROVIDER_KERNEL, VALE_PROVIDER_USER };

/* "kernel" or "user". */
const char *vale_provider_name(enum vale_provider provider);

enum {
    VALE_OPEN_SHARED = 1, /* let other programs of the same user open the port too (else: NR_EXCLUSIVE) */
    VALE_OPEN_START = 2,  /* start valed when no provider is found */

    /*
     * Do not open the port: watch it, by a monitor. RX shows copies of what is delivered to it, TX of what it sends, in
     * slots marked NS_TXMON. The same as /r, /t or /rt behind the name. `vale1:` watches every port of a switch (valed
     * only). A monitor sends nothing, its TX rings have no room; it is gone when its port is. valed permits it to root, its own
     * user and --monitor-group. Frames come as their sender gave them, checksums and segmentation that it left to others
     * undone; with vnet_hdr_len (valed only) it is told.
     */
    VALE_OPEN_MONITOR_RX = 4,
    VALE_OPEN_MONITOR_TX = 8,
    VALE_OPEN_MONITOR = VALE_OPEN_MONITOR_RX | VALE_OPEN_MONITOR_TX,
};

struct vale_open_args {
    const char *name;   /* as vale_name_parse() takes it; for a monitor perhaps with /r, /t or /rt */
    const char *device; /* "/dev/netmap", a valed's netmap.sock; NULL: search */
    uint16_t tx_rings;  /* 0: one */
    uint16_t rx_rings;
    uint32_t tx_slots; /* per ring; 0: the provider's default, 1024 */
    uint32_t rx_slots;
    unsigned int flags; /* VALE_OPEN_* */

    /*
     * Bytes of virtio-net header before each frame, both ways: 0, 10 or 12. With one, frames may be sent and come with
     * their checksum and segmentation left undone (virtio 1.2, 5.1.6).
     */
    unsigned int vnet_hdr_len;
};

struct vale_port {
    enum vale_provider provider;
    char name[NETMAP_REQ_IFNAMSIZ]; /* canonical */
    char device[108];               /* what was opened */
    int fd;                         /* /dev/netmap or the connection; readable or hung up when valed is gone */
    void *mem;
    size_t memsize;
    struct netmap_if *nifp;
    unsigned int tx_rings;
    unsigned int rx_rings;
    unsigned int vnet_hdr_len;
    bool monitor; /* of the port of that name */
    struct vale_port_priv *priv;
};

/*
 * Opens a port. Without a device the search is: $VALE_DEV; a valed that answers in the runtime directory ($VALE_RUNDIR,
 * $XDG_RUNTIME_DIR/vale, /run/vale, /tmp/vale-UID); /dev/netmap; with VALE_OPEN_START, a valed started on demand. NULL on
 * failure; err then names everything that was tried.
 */
struct vale_port *vale_open(const struct vale_open_args *args, struct vale_error *err);

/*
 * Changes the virtio-net header of an open port: len as vnet_hdr_len above, and what may be undone in frames that come, a set
 * of enum vale_accept (vale_proto.h). valed does the rest of the work itself; the kernel's switch knows no difference and hands everything on.
 * Frames that wait in the rings keep the header they have. 0, or -errno with err filled in; a port that comes back has the
 * new header even when valed was gone.
 */
int vale_set_vnet_hdr(struct vale_port *port, unsigned int len, unsigned int accepts, struct vale_error *err);

/* Closes; what was published by txsync before is still forwarded. NULL is allowed. */
void vale_close(struct vale_port *port);

static inline struct netmap_ring *vale_txring(const struct vale_port *port, unsigned int i)
{
    return NETMAP_TXRING(port->nifp, i);
}

static inline struct netmap_ring *vale_rxring(const struct vale_port *port, unsigned int i)
{
    return NETMAP_RXRING(port->nifp, i);
}

/* ---------------------------------------------------------------------------------------------------------- sync --- */

/*
 * Sends: publishes all TX rings up to their head, kicks where the provider sleeps, refreshes their tails. 0, or -ENXIO when
 * the provider is gone for good. An illegal head or cur re-initialises the ring as netmap does; that is not an error.
 */
int vale_txsync(struct vale_port *port);

/* Gives back what was consumed up to head of all RX rings, and refreshes their tails. 0 or -ENXIO. */
int vale_rxsync(struct vale_port *port);

/*
 * The two halves of a txsync, for who sends frame by frame and kicks once per burst. vale_tx_publish() makes ring i visible
 * up to its head and refreshes its tail: with valed two stores and a fence, no system call. It returns true when
 * vale_tx_kick() must follow soon; true is sticky until the kick. On the kernel, frames leave only at the kick.
 */
bool vale_tx_publish(struct vale_port *port, unsigned int i);
void vale_tx_kick(struct vale_port *port);

/* ------------------------------------------------------------------------------------------------------- waiting --- */

enum { VALE_RX = 1, VALE_TX = 2 };

/*
 * For event loops: wait for vale_poll_events() (POLLIN or POLLOUT) on vale_poll_fd(). On the kernel both directions have the
 * same descriptor, on valed each its own. direction is one of VALE_RX, VALE_TX.
 */
int vale_poll_fd(const struct vale_port *port, int direction);
short vale_poll_events(const struct vale_port *port, int direction);

/*
 * Before sleeping: asks the provider to be called. True when there is something already (cur != tail in some ring, tails
 * refreshed): then do not sleep; nothing is armed.
 */
bool vale_wait_begin(struct vale_port *port, int direction);

/* After waking: disarms, empties the call channel, refreshes tails (RX: as vale_rxsync). True when some ring is ready. */
bool vale_wait_end(struct vale_port *port, int direction);

/*
 * For programs without an event loop: waits until some ring of the directions given (VALE_RX | VALE_TX) has cur != tail.
 * With VALE_TX, pending TX is sent first. timeout_ms < 0: for ever. The directions that are ready, 0 on timeout, -EINTR
 * after a signal, -ENXIO.
 */
int vale_wait(struct vale_port *port, int directions, int timeout_ms);

/* The provider is gone (valed ended, or took the port away). One system call. */
bool vale_gone(const struct vale_port *port);

/*
 * For event loops, which do not stand still while a valed is restarted: when vale_gone(), stop waiting for the descriptors
 * and call this now and then. It never waits. 0: the port is usable (again, or it never was gone); -EAGAIN: not yet; -ENXIO:
 * it will not come back, close it.
 */
int vale_reconnect(struct vale_port *port);

/* ----------------------------------------------------------------------------------------------------- where valed is --- */

/*
 * The runtime directory to search (create false: the first of the list above that holds a valed's socket, else the one that
 * would be created) or to create (create true: the first of the list; /run/vale only by root). $VALE_RUNDIR, where set, is
 * the whole list. Writes the path. 0 or -errno; a directory to create that exists and is a link, belongs to somebody else,
 * or is writable by others is refused, one to search is passed over.
 */
int vale_rundir(char *path, size_t size, bool create, struct vale_error *err);

/*
 * Starts valed in the runtime directory, detached, with `--linger 30`, and returns when it answers. Racing callers make one.
 * The program is $VALED, else `valed` beside the calling executable, else in PATH. 0 or -errno.
 */
int vale_start_valed(const char *rundir, struct vale_error *err);

#endif /* LIBVALE_H */
