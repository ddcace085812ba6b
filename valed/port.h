/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * port - what every kind of port has in common, and the operations that make a kind
 *
 * A port has rings. A ring is the unit of ingress: it belongs to one worker, which alone takes frames from it. Egress goes
 * the other way and may come from any worker; the kind serialises it.
 *
 * LIFE OF A PORT (control thread, except where said)
 *
 *   PORT_LIVE      in its switch, forwarding.
 *                  Leaves by port_close(): the client hung up, or a command.
 *   PORT_DRAINING  still in its switch and still holding its name. Each ring's worker forwards what was published before,
 *                  forgets the ring, and says so (RING_GONE); then its delay lines end likewise. Caveat: frames for this port
 *                  are still accepted.
 *   PORT_UNLINKED  out of its switch and out of the fdb, its name is free. Workers may still hold a pointer to it from the
 *                  batch at hand, so nothing is unmapped until each has passed a batch boundary (reclaim()).
 */
#ifndef VALED_PORT_H
#define VALED_PORT_H

#include "batch.h"

#include <libvale.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct worker;
struct vswitch;
struct port;
struct monitor;
struct line;
struct impairment;

/* From the port into the switch, and from the switch to the port. */
enum direction { DIRECTION_IN, DIRECTION_OUT };

/* Why a frame was dropped. The first group happens on the way in, the second on the way out. */
enum drop_reason {
    DROP_SHORT,     /* in: less than an Ethernet header */
    DROP_TOO_LONG,  /* in: more than 64 KiB or 64 slots */
    DROP_TRUNCATED, /* in: the last slot published says that more follow */
    DROP_BAD_SLOT,  /* in, out: buffer index or length out of range, or an indirect buffer */
    DROP_BAD_HEADER, /* in, out: a virtio-net header that the frame cannot have */
    DROP_SELF,      /* in: the destination is on the port that it came from */
    DROP_MAC_LOCKED, /* in: the source address is locked to another port */
    DROP_GONE,      /* in: the port of the destination has just been closed */
    DROP_PEER_MEMORY, /* in, out: the sender took away the memory that the frame lies in */
    DROP_RING_FULL, /* out: the receiver has no room */
    DROP_STALLED,   /* out: it had none for the wait-limit of a switch that waits, and has not moved since */
    DROP_TOO_LARGE, /* out: no buffer of the receiver can take it */
    DROP_DOWN,      /* out: nobody is connected, the guest's driver is not there, or the interface is down */
    DROP_LOSS,      /* in, out: an impairment (line.h) */
    DROP_DELAY_FULL, /* in, out: no room in the delay line */
    DROP_REASONS
};

extern const char *const drop_names[DROP_REASONS];

/* Counters of one direction. Written with relaxed atomics once per batch, by any worker. */
struct port_counters {
    /* From the port into the switch: rx_frames + duplicated = rx_dropped + held + unicast + flooded. */
    _Atomic uint64_t rx_frames;
    _Atomic uint64_t rx_bytes;
    _Atomic uint64_t unicast;
    _Atomic uint64_t flooded;
    _Atomic uint64_t rx_dropped[DROP_REASONS];
    /* From the switch to the port: tx_offered + duplicated - tx_segmented + tx_segments = tx_frames + held + tx_dropped. */
    _Atomic uint64_t tx_offered;
    _Atomic uint64_t tx_frames;
    _Atomic uint64_t tx_bytes;
    _Atomic uint64_t tx_dropped[DROP_REASONS];
    _Atomic uint64_t tx_segmented; /* frames that were cut into segments for this port */
    _Atomic uint64_t tx_segments;  /* into how many, and how long together */
    _Atomic uint64_t tx_segment_bytes;
    struct {
        _Atomic uint64_t held; /* now */
        _Atomic uint64_t duplicated;
        _Atomic uint64_t corrupted;
    } line[2]; /* by enum direction */
    _Atomic uint64_t bad_head; /* times that a client published an impossible head */
    _Atomic uint64_t kicks;    /* times that the port woke its worker */
    _Atomic uint64_t calls;    /* times that the switch woke the client */
};

static inline void count(_Atomic uint64_t *counter, uint64_t n)
{
    if (n)
        atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

enum ring_state {
    RING_LIVE,
    RING_DRAINING, /* set by the control thread: forward what is published, then let go */
    RING_GONE,     /* set by the worker: it will not touch this ring again */
    RING_LEAVING,  /* set by the control thread: let go, another worker gets it */
    RING_AWAY,     /* set by the worker: done so. LIVE again, or DRAINING, when the other has it */
};

struct ring;

/* Where the frames of a ring come from: the client of a kind of port, or a delay line. They run in the ring's worker. */
struct ring_ops {
    /*
     * Adds up to `budget` frames to the empty batch, as views of the ring's memory that stay valid until consumed() or
     * release(). Frames that are bad in themselves are counted and left out; they may lie before the first frame of the
     * batch, and end it elsewhere. Returns the frames added; *seen is set when anything at all was found on the ring.
     */
    unsigned int (*ingress)(struct ring *ring, struct batch *batch, unsigned int budget, bool *seen);

    /*
     * The first n frames of the batch are forwarded: gives their memory, and that of bad frames before them, back to the
     * client. The rest, if any, comes again with the next ingress().
     */
    void (*consumed)(struct ring *ring, const struct batch *batch, unsigned int n);

    /* Asks for kicks (on), or for none (off). True when frames are there already: then kicks stay off, do not sleep. */
    bool (*want_kick)(struct ring *ring, bool on);
};

/* Frames of a client are counted as they come; those of a line were. A line on the way out has one destination: its port. */
enum ring_role { RING_OF_CLIENT, RING_OF_LINE_IN, RING_OF_LINE_OUT };

/* Ingress of one ring. Everything but state and mail_next belongs to its worker. */
struct ring {
    const struct ring_ops *ops;
    enum ring_role role;
    struct port *port;
    struct worker *worker; /* NULL until it first gets a kick_fd */
    unsigned int index; /* among the port's rings; of a line: where the frames at hand came from */
    unsigned int id;    /* in the table of all rings; what epoll carries */
    int kick_fd;        /* readable, edge-triggered, when the client kicks */
    int room_fd;        /* the same, when it has made room; -1: kick_fd says that too */
    bool room_wanted;   /* kick_fd is also watched for being writable */
    _Atomic int state;
    struct ring *mail_next; /* while in the worker's mailbox */
    struct ring *next_moving; /* while LEAVING or AWAY: */
    struct worker *moves_to;
    _Atomic bool mailed;

    bool active;               /* on the worker's active list */
    bool draining;             /* the worker knows of RING_DRAINING */
    bool parked;               /* on its list of rings that wait for room; position: */
    unsigned int parked_at;
    uint64_t empty_since; /* microseconds; 0: it had frames in the last round */
    bool bulk;            /* the last batch was a large one */
    uint64_t answers;     /* frames that had gone to the port when the last ones came from it */
    uint64_t streak;      /* frames that came since that changed */
    unsigned int drain_rounds; /* rounds since it was asked to drain */

    /* On a switch that waits. */
    unsigned int blocked_on;  /* index of the port whose lack of room holds the first frame, or BLOCKED_NONE */
    uint64_t blocked_since;   /* microseconds */
    uint16_t segments_passed; /* of that frame, where it is cut on its way: these are delivered already */

    /* Lookup cache: valid while fdb generation and time are those noted. */
    uint64_t last_src;
    bool src_refused;
    uint64_t last_dst;
    unsigned int last_out;
    uint32_t cache_generation;
    uint32_t cache_time;
};

#define BLOCKED_NONE 255

enum port_state { PORT_LIVE, PORT_DRAINING, PORT_UNLINKED };

/*
 * What a kind of port provides. The ring's operations, egress() and want_room() run in a worker and must not allocate, lock
 * for long or block; the others run in the control thread.
 */
struct port_ops {
    const char *kind;
    struct ring_ops ring;

    /*
     * Copies frames to the port: those of the batch that `order` lists, `n` of them, in this order. `queue` is the sender's
     * ring, to be mapped onto the port's own. Wakes the client once. Returns how many it is done with, from the first on:
     * it counts them as delivered or as dropped (then it says batch_undelivered()), and has no room for the rest, which it
     * does not count.
     */
    unsigned int (*egress)(struct port *port, unsigned int queue, const struct batch *batch, const uint16_t *order,
                           unsigned int n);

    /*
     * Asks the client for a kick as soon as there is room again (on), or for none any more (off: of all queues). True when
     * room has come since egress() last looked: try again. NULL where room never lacks.
     */
    bool (*want_room)(struct port *port, unsigned int queue, bool on);

    /* The port begins to end: no new peer may come. May be NULL. */
    void (*close)(struct port *port);

    /* Frees the kind's part. No worker knows the port any more; half-built ports are accepted. */
    void (*destroy)(struct port *port);
};

struct port {
    const struct port_ops *ops;
    _Atomic uint8_t accepts; /* OFFLOAD_*: what may be undone in frames for it; nothing without OFFLOAD_CSUM */
    struct vswitch *sw;
    struct vale_name name;
    unsigned int index; /* in the switch */
    enum port_state state;
    const char *reason; /* why it was closed */

    uid_t uid; /* of the peer that opened it, or is connected */
    pid_t pid; /* 0: nobody is */
    unsigned int users; /* descriptors that hold it open */
    bool exclusive;
    struct monitor *monitor; /* whose rings these are, in no switch (monitor.h); NULL: a port of a switch */

    unsigned int ring_count;
    struct ring *ring[VALE_RINGS_MAX];
    struct port_counters counters;

    /* On a switch that waits. Workers. */
    _Atomic uint64_t waiting; /* workers, by their bits, that have a ring blocked on this port */
    _Atomic bool stalled;     /* it had no room for the wait-limit: nobody waits for it until it moves */
    _Atomic uint64_t moved;   /* when it last took a frame, in microseconds */

    /* By enum direction, mostly NULL: line.h. */
    _Atomic(struct line *) line[2];
    const struct impairment *impairment[2]; /* their settings; control thread */
    unsigned int lines;                     /* that name this port, those that end included; control thread */

    struct port *next_draining;
};

/*
 * Puts a complete port of the kind into the switch of its name (created if need be) and deals its rings to workers. Takes
 * ownership: a port that it refuses is destroyed. 0, -EBUSY (name taken), -ENOMEM (switch full, too many switches), -errno.
 */
int port_add(struct port *port);

/* Begins the end of a port, PORT_LIVE to PORT_DRAINING. Idempotent. reason is a string constant. */
void port_close(struct port *port, const char *reason);

/* The same for every port there is. */
void port_close_all(const char *reason);

/* Unlinks the ports that are drained. True while some are still draining. */
bool port_reap(void);

/* The live or draining port of that name, or NULL. */
struct port *port_find(const struct vale_name *name);

#endif
