/* SPDX-License-Identifier: BSD-2-Clause */
/* What valed was started with. */
#ifndef VALED_OPTIONS_H
#define VALED_OPTIONS_H

#include <stdbool.h>
#include <sys/types.h>

#define NO_GROUP ((gid_t)-1)

#define OPTION_LIST_MAX 64 /* options of one kind that may be given again and again */

struct options {
    const char *rundir;        /* NULL: the first place of the list in libvale.h */
    gid_t group;               /* may use netmap.sock and the sockets of ports, besides the user; or NO_GROUP */
    gid_t monitor_group;       /* may see other ports' frames, besides root and the user; or NO_GROUP */
    const char *cpus;          /* for the workers; NULL: not pinned */
    unsigned int workers;      /* threads */
    unsigned int linger;       /* seconds without ports and clients before valed ends; 0: never */
    unsigned int bridge_batch; /* frames of one batch */
    unsigned int max_bridges;  /* switches */
    int busy_poll;             /* microseconds; -1: as the machine has CPUs to spare */
    unsigned int uid_ports;    /* native ports of one user */
    unsigned int uid_memory;   /* MiB of their memory; 0: half of the machine's */
    int ready_fd;              /* gets a line when the sockets listen; -1: nobody waits */
    int verbose;
    bool no_sandbox;
    const char *socket_dir[OPTION_LIST_MAX]; /* absolute: ports may make sockets there too */
    unsigned int socket_dirs;
    struct {
        const char *port, *ifname;
    } tap[OPTION_LIST_MAX]; /* opened and added at the start */
    unsigned int taps;
};

extern struct options options;

/* Fills options; --help and --version end the program, a mistake ends it with exit code 2. */
void options_parse(int argc, char **argv);

#endif
