/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * vale_proto.h - how a program attaches to valed, and the memory that they then share
 *
 * ATTACHING
 *
 * valed listens on `netmap.sock` in its runtime directory, an AF_UNIX socket of type SOCK_SEQPACKET. One connection is one
 * open of /dev/netmap: it binds at most one port, may be duplicated, inherited or passed on like any descriptor, and its
 * last close lets the port go.
 *
 * A request is one message of at most VALE_MSG_MAX bytes: the nmreq_header of netmap.h, its body and its options, in any
 * order behind the header. What is a pointer in netmap's ABI is here a byte offset from the start of the message; 0 stands
 * for absent. The message carries exactly one descriptor (SCM_RIGHTS): the end of a SOCK_SEQPACKET pair that the client made
 * for this one answer, so that processes sharing a connection cannot take each other's answers.
 *
 *        client                                                      valed
 *          | --- connection: [nmreq_header|body|options] + reply fd -->|
 *          |<-- reply fd: [vale_reply][the same message, written back] |   + 4 descriptors if a REGISTER succeeded
 *
 * The answer begins with struct vale_reply. `error` is 0 or the errno that the ioctl of the same request would have set; the
 * message follows in either case, as netmap writes results back in either case.
 *
 * What one user can hold is limited: EDQUOT is the error where ports or their memory are too many, a hang-up where connections
 * or answers that nobody reads are.
 *
 * REGISTER hands over, in this order (enum vale_fd):
 *
 *   VALE_FD_MEM      the port's region, a memfd of nr_memsize bytes that cannot change its size or its seals
 *   VALE_FD_KICK     an eventfd; the client writes to it when it has published and the provider asked for kicks
 *   VALE_FD_CALL_RX  the read end of a pipe; a byte arrives when frames do and the client asked to be called
 *   VALE_FD_CALL_TX  the same, for room in TX rings
 *
 * The pipes hang up when valed ends or takes the port away; so does the connection.
 *
 * MONITORS
 *
 * A REGISTER with NR_MONITOR_TX, NR_MONITOR_RX or both makes a monitor of the port of that name, which somebody else has open, or
 * of all ports of a switch ("vale1:"). RX rings get copies: of frames that the port sends (TX; their slots carry NS_TXMON), of
 * frames that were delivered to it (RX). There are as many as the port has, each with the asked number of slots; TX
 * rings have no room. NR_ZCOPY_MON changes nothing. Errors: EINVAL no such port or switch; EPERM the peer may not see others'
 * frames; ENOMEM 16 monitors on that switch. PORT_HDR_SET on this connection means the monitor. It hangs up with its port.
 *
 * OFFLOADS
 *
 * A port with a virtio-net header gets frames whose checksum or segmentation their sender left undone. Of what kinds, its
 * PORT_HDR_SET says in pad1, which netmap leaves unused: VALE_ACCEPT_GIVEN and a set of enum vale_accept. Of the others, and
 * of all without VALE_ACCEPT_CSUM, valed does the work. Without VALE_ACCEPT_GIVEN: all but USO, as netmap's kernel module has it.
 *
 * COMING BACK
 *
 * The region outlives valed, since the client has it mapped. When valed has been restarted, the client connects anew and sends
 * REGISTER for the same name with the option VALE_OPT_RESUME and two descriptors: the reply socket, and VALE_FD_MEM as it
 * got it. The body says what the first answer said: rings, slots, extra buffers. The answer is that of any REGISTER; the
 * region is the same one, kick and call channels are new, and the client puts them in the place of the old ones. From then on
 * traffic goes on where it stopped: what was published and not consumed is forwarded, what was received and not read is
 * still there.
 *
 *   - valed checks the memfd (seals, size) and believes the region nothing: it takes hwcur, hwtail and head over where they
 *     are indexes of the ring, and otherwise declares the ring empty.
 *   - hwcur moves when a batch has been forwarded. If valed was killed in the middle of one, its frames are forwarded again: at
 *     most bridge_batch frames of each ring may come twice. None is lost that was published before.
 *   - a client that published while nobody was there kicks once when it is back.
 *   - valed tells its incarnations apart by vale_region.incarnation, which the option carries. Its own comes back: it has taken
 *     that port away on purpose (port-del), and the answer is ENXIO.
 *   - processes that share a port each come back on a connection of their own. The first makes the port; the others are
 *     told apart from strangers by their memfd, so NR_EXCLUSIVE does not keep them out.
 *   - a monitor does not come back: it ended with what it watched. The answer is ENXIO, too.
 *   - a valed that does not know the option answers EOPNOTSUPP.
 *
 * THE REGION
 *
 *   0                      struct vale_region: the control block
 *   VALE_RING_CTL_OFS      struct vale_ring_ctl[tx_rings + rx_rings], TX first
 *   nr_offset              netmap_if, rings and buffers as netmap.h describes
 *
 * valed takes no word of netmap_ring for true and writes none: head and cur go from the ring into the control block, and
 * hwtail from there into the ring, by the client's own sync (libvale). In this way a stray store of a program to its rings
 * costs that program frames, and nobody else anything. Of the rings valed uses the slots: it reads those between hwcur and
 * head (TX), and fills those between hwtail and the slot before head (RX).
 *
 *            TX ring                                     RX ring
 *      hwcur        head        hwtail              head                hwtail
 *   ----+------------+-----------+----           ----+--------------------+---------------
 *       | published: | the       | one slot          | received: the      | free: valed's
 *       | valed's    | client's  | stays free        | client's           | to fill
 *
 * PUBLISHING AND SLEEPING, both sides alike
 *
 *   publish:  store slots; store-release head (client) or hwtail (valed); full fence; load the peer's wish: if it asks,
 *             kick or call.
 *   sleep:    store the wish; full fence; look once more at what the peer publishes: if there is something, do not sleep.
 *
 * need_kick is a flag. need_call is a number that the client changes each time it arms; valed calls at most once per number,
 * so an armed client costs one system call however many batches arrive before it runs. While both sides are busy there are
 * no system calls at all.
 *
 * Changes: version 1 is the first. Added compatibly: VALE_OPT_RESUME, vale_region.incarnation (0: it cannot be resumed),
 * VALE_ACCEPT_*.
 */
#ifndef VALE_PROTO_H
#define VALE_PROTO_H

#include <net/netmap.h>
#include <stdint.h>

#define VALE_PROTO_VERSION 1

#define VALE_SOCKET_NAME "netmap.sock"
#define VALE_QMP_NAME    "qmp.sock"

#define VALE_MSG_MAX     4096
#define VALE_REPLY_MAGIC 0x454c4156u /* "VALE" */

struct vale_reply {
    uint32_t magic;   /* VALE_REPLY_MAGIC */
    uint16_t version; /* VALE_PROTO_VERSION */
    uint16_t pad;
    int32_t error;   /* 0 or an errno, positive */
    uint32_t length; /* bytes of message behind this structure */
};
_Static_assert(sizeof(struct vale_reply) == 16, "wire format");

enum vale_fd { VALE_FD_MEM, VALE_FD_KICK, VALE_FD_CALL_RX, VALE_FD_CALL_TX, VALE_FD_COUNT };

/* What may be undone in frames for a port (see OFFLOADS above). */
enum vale_accept {
    VALE_ACCEPT_CSUM = 1, /* the TCP or UDP checksum */
    VALE_ACCEPT_TSO4 = 2, /* cutting into TCP segments over IPv4 */
    VALE_ACCEPT_TSO6 = 4,
    VALE_ACCEPT_ECN = 8,  /* the same, of a frame with CWR set */
    VALE_ACCEPT_USO = 16, /* cutting into UDP datagrams */
    VALE_ACCEPT_ALL = 31,
};
#define VALE_ACCEPT_GIVEN 0x80000000u

/* REGISTER: the port was the client's before valed was restarted. The memfd comes as the second descriptor. */
#define VALE_OPT_RESUME 0x56410001u

struct vale_opt_resume {
    struct nmreq_option nro; /* nro_reqtype VALE_OPT_RESUME */
    uint64_t incarnation;    /* of vale_region, as it was when the port was last registered */
    uint32_t hdr_len;        /* bytes of virtio-net header before each frame, as PORT_HDR_SET */
    uint32_t accepts;        /* as pad1 of PORT_HDR_SET */
};
_Static_assert(sizeof(struct vale_opt_resume) == 40, "wire format");

#define VALE_REGION_MAGIC 0x6e676572u /* "regn" */
#define VALE_RING_CTL_OFS 256

/* Limits of a native port. */
#define VALE_MAX_RINGS     16   /* each way */
#define VALE_MAX_SLOTS     4096 /* per ring */
#define VALE_MIN_SLOTS     64
#define VALE_DEFAULT_SLOTS 1024

/* What was agreed at REGISTER. Written by valed before the region is handed over, and not read by it again. */
struct vale_region {
    uint32_t magic;   /* VALE_REGION_MAGIC */
    uint32_t version; /* VALE_PROTO_VERSION */
    uint64_t memsize; /* bytes */
    uint64_t if_offset;
    uint16_t tx_rings;
    uint16_t rx_rings;
    uint32_t tx_slots;
    uint32_t rx_slots;
    uint32_t buf_size;  /* bytes, = nr_buf_size */
    uint32_t buf_count; /* indexes 2 .. buf_count - 1 are real buffers */
    uint64_t incarnation; /* of the valed that the port is registered with: a random number */
};
_Static_assert(sizeof(struct vale_region) <= VALE_RING_CTL_OFS, "control block layout");

/* Control of one ring. Each side writes only its own part, on cache lines of its own. */
struct vale_ring_ctl {
    struct {
        uint32_t head;      /* (u) */
        uint32_t cur;       /* (u) */
        uint32_t need_call; /* (u) 0: no call wanted; else changed at each arming */
        uint32_t pad[29];
    } client __attribute__((aligned(128)));
    struct {
        uint32_t hwcur;     /* (k) TX: consumed up to here; RX: released up to here, as last seen */
        uint32_t hwtail;    /* (k) */
        uint32_t need_kick; /* (k) 1: write to the kick fd after publishing */
        uint32_t pad[29];
    } valed __attribute__((aligned(128)));
};
_Static_assert(sizeof(struct vale_ring_ctl) == 256, "control block layout");
_Static_assert(offsetof(struct vale_ring_ctl, valed) == 128, "control block layout");

#endif /* VALE_PROTO_H */
