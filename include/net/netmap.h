/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * netmap.h - the netmap ABI, version 14, as VALE ports speak it
 *
 * Written from the documented facts of the interface (names, numbers, sizes, offsets), so that programs made for netmap
 * compile against it unchanged and run on the kernel module as well as on valed. Every size and offset is asserted at
 * the end of each structure: this header is a specification first, and a header second.
 *
 * One open port is one memory region that the program maps (REGISTER says where and how large):
 *
 *   region                        netmap_if                       netmap_ring                  buffers
 *   +--------------------+        +-------------------+           +------------------+         +----------+
 *   |                    |  +---->| ni_name, counts   |     +---->| header, 256 B    |   +---->| frame    |
 *   | offset ------------+--+     +-------------------+     |     +------------------+   |     +----------+
 *   |                    |        | ring_ofs[0]  TX 0 +-----+     | slot[0] buf_idx  +---+     | frame    |
 *   | (memsize bytes)    |        | ring_ofs[1]  ...  |           | slot[1]          |         +----------+
 *   +--------------------+        +-------------------+           +------------------+         | ...      |
 *
 *   netmap_if   = region + offset
 *   netmap_ring = (char *)netmap_if   + ring_ofs[i]              i: NIC TX, host TX, NIC RX, host RX
 *   buffer      = (char *)netmap_ring + buf_ofs + buf_idx * nr_buf_size
 *
 * Nothing else about the layout may be assumed: the kernel and valed place things differently.
 *
 * Who writes what is marked at each field: (u) the user of the port, (k) its provider (the kernel or valed), (c) constant
 * after REGISTER.
 *
 * Rings are circular; a range is half open and wraps. On both kinds of ring the slots [head .. tail-1] belong to the user,
 * the others to the provider, and at least one slot always stays with the provider, so that head == tail means "none":
 *
 *   TX:  slots in [head .. tail-1] are free to be filled. The user fills them, then moves head (and cur) past them; the next
 *        sync sends them. The provider moves tail as slots become free again.
 *   RX:  slots in [head .. tail-1] hold received frames. The user moves head past those that it has consumed; the next sync
 *        gives them back. The provider moves tail as frames arrive.
 *
 *   cur is the wake-up point: waiting ends when cur != tail. Who finds too few slots sets cur = tail and waits for more.
 *   Legal: TX hwcur <= head <= cur <= tail, RX hwcur <= head <= cur <= tail (circular; hwcur is the provider's own). The
 *   provider answers a violation by re-initialising the ring (head = cur = hwcur), silently except for POLLERR.
 */
#ifndef NET_NETMAP_H
#define NET_NETMAP_H

#include <net/if.h> /* IFNAMSIZ */
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/time.h>
#include <sys/types.h>

#define NETMAP_API     14 /* this header */
#define NETMAP_MIN_API 14 /* the oldest that a provider accepts */
#define NETMAP_MAX_API 15 /* the newest that a provider accepts */

#define NETMAP_DEVICE_NAME "/dev/netmap"

/* Most bytes of request body and options together. */
#define NETMAP_REQ_MAXSIZE 4096
/* Longest name in nmreq_header, with its NUL. */
#define NETMAP_REQ_IFNAMSIZ 64
/* What the name of a switch begins with. */
#define NM_BDG_NAME "vale"

#ifdef __cplusplus
extern "C" {
#define NM_ASSERT(cond) static_assert(cond, #cond)
#else
#define NM_ASSERT(cond) _Static_assert(cond, #cond)
#endif

/* ---------------------------------------------------------------------------------------------- shared memory --- */

/*
 * One slot of a ring: a buffer and what it holds.
 *
 * A frame longer than a buffer takes several slots in a row; all but the last have NS_MOREFRAG. On RX the upper byte of the
 * flags holds the number of slots of the frame. The user may exchange buffers between slots that it owns (zero copy within
 * a region) and says so by NS_BUF_CHANGED. Index 0 and 1 are reserved.
 */
struct netmap_slot {
    uint32_t buf_idx; /* (u) buffer index */
    uint16_t len;     /* TX (u), RX (k): bytes in this buffer */
    uint16_t flags;   /* NS_* (u, k) */
    uint64_t ptr;     /* (u) offset of the frame in the buffer where offsets are on; else unused */
};
NM_ASSERT(sizeof(struct netmap_slot) == 16);
NM_ASSERT(offsetof(struct netmap_slot, len) == 4);
NM_ASSERT(offsetof(struct netmap_slot, flags) == 6);
NM_ASSERT(offsetof(struct netmap_slot, ptr) == 8);

#define NS_BUF_CHANGED 0x0001 /* (u) buf_idx was exchanged */
#define NS_REPORT      0x0002 /* (u) ask for an interrupt when sent (NICs) */
#define NS_FORWARD     0x0004 /* (u) pass to the other side of the NIC (host rings) */
#define NS_NO_LEARN    0x0008 /* (u) do not learn the source address (named in the ABI, honoured by nobody) */
#define NS_INDIRECT    0x0010 /* (u) ptr is a user address: kernel VALE only, refused by valed */
#define NS_MOREFRAG    0x0020 /* (u, k) the frame goes on in the next slot */
#define NS_TXMON       0x0040 /* (k) monitors: this frame was sent by the port, not received */
#define NS_PORT_SHIFT  8
#define NS_PORT_MASK   (0xff << NS_PORT_SHIFT)
#define NS_RFRAGS(_slot) (((_slot)->flags >> NS_PORT_SHIFT) & 0xff) /* RX: slots of this frame */

/* Most slots of one frame. */
#define NETMAP_MAX_FRAGS 64

/* A ring: a header of 256 bytes, then num_slots slots. Aligned to 128 bytes. */
struct netmap_ring {
    const int64_t buf_ofs;      /* (c) from this ring to buffer 0, bytes */
    const uint32_t num_slots;   /* (c) */
    const uint32_t nr_buf_size; /* (c) bytes from one buffer to the next, and the most a slot may hold */
    const uint16_t ringid;      /* (c) index among the rings of its direction */
    const uint16_t dir;         /* (c) 1: TX, 0: RX (as the kernel module sets it; its documentation has it reversed) */
    uint32_t head;              /* (u) first slot owned by the user */
    uint32_t cur;               /* (u) wake-up point */
    uint32_t tail;              /* (k) first slot owned by the provider */
    uint32_t flags;             /* (u) NR_TIMESTAMP, NR_FORWARD */
    struct timeval ts;          /* (k) time of the last sync */
    uint64_t offset_mask;       /* (c) offsets: frame starts at ptr & offset_mask; 0: off */
    uint64_t buf_align;         /* (c) offsets: alignment of the frame's start */
    uint8_t reserved[56];
    uint8_t sem[128] __attribute__((aligned(128))); /* (u) at the user's disposal, for locks */
    struct netmap_slot slot[0];
};
NM_ASSERT(sizeof(struct netmap_ring) == 256);
NM_ASSERT(_Alignof(struct netmap_ring) == 128);
NM_ASSERT(offsetof(struct netmap_ring, num_slots) == 8);
NM_ASSERT(offsetof(struct netmap_ring, nr_buf_size) == 12);
NM_ASSERT(offsetof(struct netmap_ring, ringid) == 16);
NM_ASSERT(offsetof(struct netmap_ring, dir) == 18);
NM_ASSERT(offsetof(struct netmap_ring, head) == 20);
NM_ASSERT(offsetof(struct netmap_ring, cur) == 24);
NM_ASSERT(offsetof(struct netmap_ring, tail) == 28);
NM_ASSERT(offsetof(struct netmap_ring, flags) == 32);
NM_ASSERT(offsetof(struct netmap_ring, ts) == 40);
NM_ASSERT(offsetof(struct netmap_ring, offset_mask) == 56);
NM_ASSERT(offsetof(struct netmap_ring, buf_align) == 64);
NM_ASSERT(offsetof(struct netmap_ring, sem) == 128);
NM_ASSERT(offsetof(struct netmap_ring, slot) == 256);

#define NR_TIMESTAMP 0x0002 /* (u) write ts at each sync */
#define NR_FORWARD   0x0004 /* (u) honour NS_FORWARD */

/* An open port: its counts, and where its rings are. */
struct netmap_if {
    char ni_name[IFNAMSIZ];        /* (c) name, cut to 15 characters */
    const uint32_t ni_version;     /* (c) NETMAP_API on valed; the kernel leaves 0 */
    const uint32_t ni_flags;       /* (c) NI_* */
    const uint32_t ni_tx_rings;    /* (c) NIC TX rings */
    const uint32_t ni_rx_rings;    /* (c) NIC RX rings */
    uint32_t ni_bufs_head;         /* (u) first extra buffer; each one's first u32 is the next, 0 ends the list */
    const uint32_t ni_host_tx_rings; /* (c) */
    const uint32_t ni_host_rx_rings; /* (c) */
    uint32_t ni_spare1[3];
    const int64_t ring_ofs[0]; /* (c) from this struct to each ring; 0: not bound by this descriptor */
};
NM_ASSERT(sizeof(struct netmap_if) == 56);
NM_ASSERT(offsetof(struct netmap_if, ni_version) == 16);
NM_ASSERT(offsetof(struct netmap_if, ni_flags) == 20);
NM_ASSERT(offsetof(struct netmap_if, ni_tx_rings) == 24);
NM_ASSERT(offsetof(struct netmap_if, ni_rx_rings) == 28);
NM_ASSERT(offsetof(struct netmap_if, ni_bufs_head) == 32);
NM_ASSERT(offsetof(struct netmap_if, ni_host_tx_rings) == 36);
NM_ASSERT(offsetof(struct netmap_if, ni_host_rx_rings) == 40);
NM_ASSERT(offsetof(struct netmap_if, ring_ofs) == 56);

#define NI_PRIV_MEM 0x1 /* the region belongs to this port alone */

/* ------------------------------------------------------------------------------------- control: the new request --- */

/*
 * One ioctl, NIOCCTRL, one header; what is asked stands in reqtype, its arguments in the body, refinements in a list of
 * options. The body pointer is given exactly when the type has a body (REQ_VALE_DELIF, SYNC_KLOOP_STOP and CSB_ENABLE have
 * none). Answers are written back into body and options, also when the request fails.
 */
struct nmreq_header {
    uint16_t nr_version;  /* NETMAP_API */
    uint16_t nr_reqtype;  /* NETMAP_REQ_* */
    uint32_t nr_reserved; /* 0 */
    char nr_name[NETMAP_REQ_IFNAMSIZ];
    uint64_t nr_options; /* first struct nmreq_option, 0: none */
    uint64_t nr_body;    /* the type's structure */
};
NM_ASSERT(sizeof(struct nmreq_header) == 88);
NM_ASSERT(offsetof(struct nmreq_header, nr_reqtype) == 2);
NM_ASSERT(offsetof(struct nmreq_header, nr_reserved) == 4);
NM_ASSERT(offsetof(struct nmreq_header, nr_name) == 8);
NM_ASSERT(offsetof(struct nmreq_header, nr_options) == 72);
NM_ASSERT(offsetof(struct nmreq_header, nr_body) == 80);

enum {
    NETMAP_REQ_REGISTER = 1,             /* struct nmreq_register */
    NETMAP_REQ_PORT_INFO_GET = 2,        /* struct nmreq_port_info_get */
    NETMAP_REQ_VALE_ATTACH = 3,          /* struct nmreq_vale_attach */
    NETMAP_REQ_VALE_DETACH = 4,          /* struct nmreq_vale_detach */
    NETMAP_REQ_VALE_LIST = 5,            /* struct nmreq_vale_list */
    NETMAP_REQ_PORT_HDR_SET = 6,         /* struct nmreq_port_hdr */
    NETMAP_REQ_PORT_HDR_GET = 7,         /* struct nmreq_port_hdr */
    NETMAP_REQ_VALE_NEWIF = 8,           /* struct nmreq_vale_newif */
    NETMAP_REQ_VALE_DELIF = 9,           /* no body */
    NETMAP_REQ_VALE_POLLING_ENABLE = 10, /* struct nmreq_vale_polling */
    NETMAP_REQ_VALE_POLLING_DISABLE = 11,
    NETMAP_REQ_POOLS_INFO_GET = 12,   /* struct nmreq_pools_info */
    NETMAP_REQ_SYNC_KLOOP_START = 13, /* struct nmreq_sync_kloop_start */
    NETMAP_REQ_SYNC_KLOOP_STOP = 14,  /* no body */
    NETMAP_REQ_CSB_ENABLE = 15,       /* no body */
};

/* One option; the specific structures begin with it. */
struct nmreq_option {
    uint64_t nro_next;    /* next option, 0: last */
    uint32_t nro_reqtype; /* NETMAP_REQ_OPT_* */
    uint32_t nro_status;  /* answer: 0 or an errno */
    uint64_t nro_size;    /* bytes of the variable part, where there is one */
};
NM_ASSERT(sizeof(struct nmreq_option) == 24);
NM_ASSERT(offsetof(struct nmreq_option, nro_reqtype) == 8);
NM_ASSERT(offsetof(struct nmreq_option, nro_status) == 12);
NM_ASSERT(offsetof(struct nmreq_option, nro_size) == 16);

enum {
    NETMAP_REQ_OPT_EXTMEM = 1,
    NETMAP_REQ_OPT_SYNC_KLOOP_EVENTFDS = 2,
    NETMAP_REQ_OPT_CSB = 3,
    NETMAP_REQ_OPT_SYNC_KLOOP_MODE = 4,
    NETMAP_REQ_OPT_OFFSETS = 5,
    NETMAP_REQ_OPT_MAX,
};

/* REGISTER: bind the descriptor to (a part of) a port; a switch port is created by its first binding. */
struct nmreq_register {
    uint64_t nr_offset;  /* answer: netmap_if, bytes from the region's start */
    uint64_t nr_memsize; /* answer: bytes of the region */
    uint32_t nr_tx_slots; /* asked and answered; 0: default */
    uint32_t nr_rx_slots;
    uint16_t nr_tx_rings; /* asked and answered; 0: default */
    uint16_t nr_rx_rings;
    uint16_t nr_host_tx_rings;
    uint16_t nr_host_rx_rings;
    uint16_t nr_mem_id; /* asked and answered: the allocator; 0: any, 1: the kernel's global one */
    uint16_t nr_ringid; /* ring pair, with NR_REG_ONE_NIC and the pipe modes */
    uint32_t nr_mode;   /* NR_REG_* */
    uint32_t nr_extra_bufs; /* asked and answered */
    uint64_t nr_flags;      /* NR_* */
};
NM_ASSERT(sizeof(struct nmreq_register) == 56);
NM_ASSERT(offsetof(struct nmreq_register, nr_memsize) == 8);
NM_ASSERT(offsetof(struct nmreq_register, nr_tx_slots) == 16);
NM_ASSERT(offsetof(struct nmreq_register, nr_tx_rings) == 24);
NM_ASSERT(offsetof(struct nmreq_register, nr_host_tx_rings) == 28);
NM_ASSERT(offsetof(struct nmreq_register, nr_mem_id) == 32);
NM_ASSERT(offsetof(struct nmreq_register, nr_ringid) == 34);
NM_ASSERT(offsetof(struct nmreq_register, nr_mode) == 36);
NM_ASSERT(offsetof(struct nmreq_register, nr_extra_bufs) == 40);
NM_ASSERT(offsetof(struct nmreq_register, nr_flags) == 48);

enum {
    NR_REG_DEFAULT = 0, /* legacy requests only */
    NR_REG_ALL_NIC = 1,
    NR_REG_SW = 2,
    NR_REG_NIC_SW = 3,
    NR_REG_ONE_NIC = 4,
    NR_REG_PIPE_MASTER = 5, /* legacy; the new request names pipes */
    NR_REG_PIPE_SLAVE = 6,
    NR_REG_NULL = 7,
    NR_REG_ONE_SW = 8,
};

#define NR_MONITOR_TX      0x0100
#define NR_MONITOR_RX      0x0200
#define NR_ZCOPY_MON       0x0400
#define NR_EXCLUSIVE       0x0800
#define NR_RX_RINGS_ONLY   0x2000
#define NR_TX_RINGS_ONLY   0x4000
#define NR_ACCEPT_VNET_HDR 0x8000
#define NR_DO_RX_POLL      0x10000
#define NR_NO_TX_POLL      0x20000

struct nmreq_port_info_get {
    uint64_t nr_memsize;
    uint32_t nr_tx_slots;
    uint32_t nr_rx_slots;
    uint16_t nr_tx_rings;
    uint16_t nr_rx_rings;
    uint16_t nr_host_tx_rings;
    uint16_t nr_host_rx_rings;
    uint16_t nr_mem_id;
    uint16_t pad[3];
};
NM_ASSERT(sizeof(struct nmreq_port_info_get) == 32);
NM_ASSERT(offsetof(struct nmreq_port_info_get, nr_tx_slots) == 8);
NM_ASSERT(offsetof(struct nmreq_port_info_get, nr_tx_rings) == 16);
NM_ASSERT(offsetof(struct nmreq_port_info_get, nr_host_tx_rings) == 20);
NM_ASSERT(offsetof(struct nmreq_port_info_get, nr_mem_id) == 24);

struct nmreq_vale_attach {
    struct nmreq_register reg;
    uint32_t port_index; /* answer */
    uint32_t pad1;
};
NM_ASSERT(sizeof(struct nmreq_vale_attach) == 64);
NM_ASSERT(offsetof(struct nmreq_vale_attach, port_index) == 56);

struct nmreq_vale_detach {
    uint32_t port_index; /* answer */
    uint32_t pad1;
};
NM_ASSERT(sizeof(struct nmreq_vale_detach) == 8);

/* With a name: its indexes. With an empty name: the first port at or after the indexes; ENOENT ends the walk. */
struct nmreq_vale_list {
    uint16_t nr_bridge_idx;
    uint16_t pad1;
    uint32_t nr_port_idx;
};
NM_ASSERT(sizeof(struct nmreq_vale_list) == 8);
NM_ASSERT(offsetof(struct nmreq_vale_list, nr_port_idx) == 4);

struct nmreq_port_hdr {
    uint32_t nr_hdr_len; /* bytes of virtio-net header before each frame: 0, 10 or 12 */
    uint32_t pad1;
};
NM_ASSERT(sizeof(struct nmreq_port_hdr) == 8);

struct nmreq_vale_newif {
    uint32_t nr_tx_slots;
    uint32_t nr_rx_slots;
    uint16_t nr_tx_rings;
    uint16_t nr_rx_rings;
    uint16_t nr_mem_id;
    uint16_t pad1;
};
NM_ASSERT(sizeof(struct nmreq_vale_newif) == 16);

struct nmreq_vale_polling {
    uint32_t nr_mode;
    uint32_t nr_first_cpu_id;
    uint32_t nr_num_polling_cpus;
    uint32_t pad1;
};
NM_ASSERT(sizeof(struct nmreq_vale_polling) == 16);

struct nmreq_pools_info {
    uint64_t nr_memsize;
    uint16_t nr_mem_id; /* asked and answered */
    uint16_t pad1[3];
    uint64_t nr_if_pool_offset;
    uint32_t nr_if_pool_objtotal;
    uint32_t nr_if_pool_objsize;
    uint64_t nr_ring_pool_offset;
    uint32_t nr_ring_pool_objtotal;
    uint32_t nr_ring_pool_objsize;
    uint64_t nr_buf_pool_offset;
    uint32_t nr_buf_pool_objtotal;
    uint32_t nr_buf_pool_objsize;
};
NM_ASSERT(sizeof(struct nmreq_pools_info) == 64);
NM_ASSERT(offsetof(struct nmreq_pools_info, nr_if_pool_offset) == 16);
NM_ASSERT(offsetof(struct nmreq_pools_info, nr_ring_pool_offset) == 32);
NM_ASSERT(offsetof(struct nmreq_pools_info, nr_buf_pool_offset) == 48);

struct nmreq_sync_kloop_start {
    uint32_t sleep_us;
    uint32_t pad1;
};
NM_ASSERT(sizeof(struct nmreq_sync_kloop_start) == 8);

/* ---------------------------------------------------------------------------------------- control: legacy request --- */

/*
 * The request of API versions below 14, still what nm_open() and QEMU speak. NIOCREGIF with nr_cmd 0 binds; other commands
 * manage switches. The provider translates it into the new request.
 */
struct nmreq {
    char nr_name[IFNAMSIZ]; /* at most 15 characters */
    uint32_t nr_version;    /* >= NETMAP_MIN_API */
    uint32_t nr_offset;
    uint32_t nr_memsize;
    uint32_t nr_tx_slots;
    uint32_t nr_rx_slots;
    uint16_t nr_tx_rings;
    uint16_t nr_rx_rings;
    uint16_t nr_ringid; /* NETMAP_RING_MASK and the bits above it */
    uint16_t nr_cmd;    /* NETMAP_BDG_* */
    uint16_t nr_arg1;   /* attach: 1 also host rings; vnet_hdr: length; list: switch index */
    uint16_t nr_arg2;   /* memory id; list: port index */
    uint32_t nr_arg3;   /* extra buffers */
    uint32_t nr_flags;  /* low bits NR_REG_MASK: mode; above: NR_* */
    uint32_t spare2[1];
};
NM_ASSERT(sizeof(struct nmreq) == 60);
NM_ASSERT(_Alignof(struct nmreq) == 4);
NM_ASSERT(offsetof(struct nmreq, nr_version) == 16);
NM_ASSERT(offsetof(struct nmreq, nr_offset) == 20);
NM_ASSERT(offsetof(struct nmreq, nr_memsize) == 24);
NM_ASSERT(offsetof(struct nmreq, nr_tx_slots) == 28);
NM_ASSERT(offsetof(struct nmreq, nr_rx_slots) == 32);
NM_ASSERT(offsetof(struct nmreq, nr_tx_rings) == 36);
NM_ASSERT(offsetof(struct nmreq, nr_rx_rings) == 38);
NM_ASSERT(offsetof(struct nmreq, nr_ringid) == 40);
NM_ASSERT(offsetof(struct nmreq, nr_cmd) == 42);
NM_ASSERT(offsetof(struct nmreq, nr_arg1) == 44);
NM_ASSERT(offsetof(struct nmreq, nr_arg2) == 46);
NM_ASSERT(offsetof(struct nmreq, nr_arg3) == 48);
NM_ASSERT(offsetof(struct nmreq, nr_flags) == 52);

#define NETMAP_RING_MASK  0x0fff
#define NETMAP_NO_TX_POLL 0x1000 /* poll() for input does not send */
#define NETMAP_SW_RING    0x2000
#define NETMAP_HW_RING    0x4000 /* only the ring named */
#define NETMAP_DO_RX_POLL 0x8000

#define NETMAP_BDG_ATTACH       1
#define NETMAP_BDG_DETACH       2
#define NETMAP_BDG_REGOPS       3
#define NETMAP_BDG_LIST         4
#define NETMAP_BDG_VNET_HDR     5
#define NETMAP_BDG_OFFSET       NETMAP_BDG_VNET_HDR
#define NETMAP_BDG_NEWIF        6
#define NETMAP_BDG_DELIF        7
#define NETMAP_PT_HOST_CREATE   8
#define NETMAP_PT_HOST_DELETE   9
#define NETMAP_BDG_POLLING_ON   10
#define NETMAP_BDG_POLLING_OFF  11
#define NETMAP_VNET_HDR_GET     12
#define NETMAP_BDG_HOST         1 /* nr_arg1 of ATTACH */
#define NR_REG_MASK             0xf

/* --------------------------------------------------------------------------------------------------------- ioctls --- */

/* For NIOCCONFIG: opaque arguments of a switch's own lookup function. */
struct nm_ifreq {
    char nifr_name[IFNAMSIZ];
    char data[256];
};
NM_ASSERT(sizeof(struct nm_ifreq) == 272);

#define NIOCGINFO  _IOWR('i', 145, struct nmreq)
#define NIOCREGIF  _IOWR('i', 146, struct nmreq)
#define NIOCTXSYNC _IO('i', 148)
#define NIOCRXSYNC _IO('i', 149)
#define NIOCCONFIG _IOWR('i', 150, struct nm_ifreq)
#define NIOCCTRL   _IOWR('i', 151, struct nmreq_header)

NM_ASSERT(NIOCGINFO == 0xc03c6991);
NM_ASSERT(NIOCREGIF == 0xc03c6992);
NM_ASSERT(NIOCTXSYNC == 0x6994);
NM_ASSERT(NIOCRXSYNC == 0x6995);
NM_ASSERT(NIOCCONFIG == 0xc1106996);
NM_ASSERT(NIOCCTRL == 0xc0586997);

#ifdef __cplusplus
}
#endif

#endif /* NET_NETMAP_H */
