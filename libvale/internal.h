/* SPDX-License-Identifier: BSD-2-Clause */
/* internal.h - what libvale's files share; programs include libvale.h */
#ifndef LIBVALE_INTERNAL_H
#define LIBVALE_INTERNAL_H

#include "libvale.h"

#include <limits.h>
#include <stdint.h>
#include <sys/un.h>
#include <vale_proto.h>

#define VALE_PATH_MAX PATH_MAX
/* Longest path of a socket, with NUL. */
#define VALE_SUN_PATH ((int)sizeof(((struct sockaddr_un *)0)->sun_path))

/* How long a provider may take to answer a request, and valed to start. */
#define VALE_ANSWER_MS 5000
#define VALE_START_MS  10000

/* How often a port tries to come back to a valed that is gone, and for how long a program waits for that. */
#define VALE_RETRY_MS 20
#define VALE_BACK_MS  10000

/* ------------------------------------------------------------------------------------------------------- name.c --- */

/* A name that may end in a monitor's suffix. The suffix's flags, VALE_OPEN_MONITOR_* (0: there is none), or -EINVAL. */
int vale_name_parse_monitor(const char *text, struct vale_name *name, struct vale_error *err);

/* ------------------------------------------------------------------------------------------------------ error.c --- */

/* Fills in err (NULL is allowed), as one line. Returns -code. */
int vale_fail(struct vale_error *err, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The same for a REGISTER that the provider refused. */
int vale_fail_register(struct vale_error *err, int code, const char *name, const char *device, bool monitor);

/* The same for a virtio-net header. */
int vale_fail_vnet_hdr(struct vale_error *err, int code, const char *name, const char *device, unsigned int len);

/* ----------------------------------------------------------------------------------------------------- rundir.c --- */

/*
 * The candidates for a runtime directory in order of search: 1 and the path, or 0 after the last. next counts calls,
 * beginning with 0.
 */
int vale_rundir_candidate(unsigned int *next, char *path, size_t size);

/* 0 when the directory exists and nobody else can put a socket into it; else -errno. */
int vale_rundir_check(const char *path, struct vale_error *err);

/* ----------------------------------------------------------------------------------------------------- attach.c --- */

/* Connects to a valed's socket. The descriptor, or -errno. */
int vale_attach_connect(const char *path);

/* What a REGISTER's answer brings. */
struct vale_attachment {
    struct nmreq_register reg;
    int fds[VALE_FD_COUNT];
};

/*
 * Registers a port over the connection. 0 and the attachment, whose descriptors are of the right kind; or -errno with err
 * filled in: what valed answered, or EPROTO or ETIMEDOUT where the peer is not valed.
 */
int vale_attach_register(int conn, const char *path, const char *name, const struct nmreq_register *reg,
                         struct vale_attachment *got, struct vale_error *err);

/* A port that is to be had again from a valed that was restarted. */
struct vale_resume {
    struct nmreq_register reg; /* as it was answered */
    unsigned int vnet_hdr_len;
    uint32_t accepts; /* as pad1 of PORT_HDR_SET */
    uint64_t incarnation;
    int mem_fd;
};

/*
 * Asks for it, without waiting for anything. 0 and the connection and the socket of the answer, or -errno.
 */
int vale_attach_resume_begin(const char *path, const char *name, const struct vale_resume *what, int socks[2]);

/* The answer. 0 and the attachment; -EAGAIN: not yet; another -errno: there will be none; positive: the errno of a refusal. */
int vale_attach_resume_end(const int socks[2], const struct vale_resume *what, struct vale_attachment *got);

/* Sends a PORT_HDR_SET for a port that the connection has registered. 0 or -errno. */
int vale_attach_vnet_hdr(int conn, const char *path, const char *name, const struct nmreq_port_hdr *body,
                         struct vale_error *err);

/* ------------------------------------------------------------------------------------------------------- sync.c --- */

/* One ring of a valed port: the program's side, the control block, and private copies of what bounds them. */
struct vale_ring {
    struct netmap_ring *ring;
    struct vale_ring_ctl *ctl;
    uint32_t num_slots;
    uint32_t buf_size;
    uint32_t buf_count;
    uint32_t call_number; /* the last one that was armed */
};

/* Publishes head and cur, refreshes tail. True when valed wants to be kicked for it. */
bool vale_ring_sync(struct vale_ring *r);

/* Waiting would end: the ring's cur is not at its tail. */
bool vale_ring_ready(const struct vale_ring *r);

/* Asks to be called. False when hwtail has moved on meanwhile; the ring is armed in either case. */
bool vale_ring_arm(struct vale_ring *r);
void vale_ring_disarm(struct vale_ring *r);

/* --------------------------------------------------------------------------------- port_user.c, port_kernel.c --- */

/*
 * A provider. In find, bind and close the port is half built: priv is the provider's, zeroed, of priv_size bytes, and close
 * accepts whatever bind left. Directions are VALE_RX or VALE_TX, one of them.
 */
struct vale_ops {
    enum vale_provider provider;
    size_t priv_size;

    /* Opens the device. The descriptor, or -errno: not here, try elsewhere. */
    int (*find)(const char *device);
    /* Registers port->name on port->fd and maps it. 0, or -errno with err filled in: nowhere else is tried. */
    int (*bind)(struct vale_port *port, const struct vale_open_args *args, struct vale_error *err);
    /* Sends that for a port that is bound. 0, or -errno with err filled in. */
    int (*set_vnet_hdr)(struct vale_port *port, const struct nmreq_port_hdr *body, struct vale_error *err);
    void (*close)(struct vale_port *port);

    /* As in libvale.h. */
    bool (*tx_publish)(struct vale_port *port, unsigned int i);
    int (*tx_kick)(struct vale_port *port);
    int (*txsync)(struct vale_port *port);
    int (*rxsync)(struct vale_port *port);
    int (*poll_fd)(const struct vale_port *port, int direction);
    short (*poll_events)(int direction);
    bool (*wait_begin)(struct vale_port *port, int direction);
    bool (*wait_end)(struct vale_port *port, int direction);
    bool (*gone)(const struct vale_port *port);
    int (*reconnect)(struct vale_port *port);
    /* The same, at most every VALE_RETRY_MS and for VALE_BACK_MS: 0 it is back or may still come, or -ENXIO. */
    int (*retry)(struct vale_port *port);
};

/* Milliseconds of the monotonic clock. */
int64_t vale_now_ms(void);

/* What priv begins with, at either provider. */
struct vale_port_priv {
    const struct vale_ops *ops;
};

extern const struct vale_ops vale_user_ops;
extern const struct vale_ops vale_kernel_ops;

/* The request that both providers are sent. */
void vale_fill_register(struct nmreq_register *reg, const struct vale_open_args *args);

#endif /* LIBVALE_INTERNAL_H */
