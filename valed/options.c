/* SPDX-License-Identifier: BSD-2-Clause */
/* The command line of valed. */
#include "options.h"

#include "batch.h"
#include "log.h"
#include "tuning.h"
#include "version.h"
#include "worker.h"

#include <errno.h>
#include <getopt.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct options options = {
    .group = NO_GROUP, .monitor_group = NO_GROUP, .workers = 1, .bridge_batch = 1024, .max_bridges = 1024, .busy_poll = -1,
    .uid_ports = 1024, .ready_fd = -1};

static const char usage[] =
    "usage: valed [options]\n"
    "\n"
    "VALE in user space: a software Ethernet switch for virtual machines. Switches and ports appear when a\n"
    "program opens them (vale1:a) and vanish when it closes them. Runs in the foreground.\n"
    "\n"
    "  --rundir DIR          where the sockets are made [$VALE_RUNDIR, $XDG_RUNTIME_DIR/vale, /run/vale, /tmp/vale-UID]\n"
    "  --group GROUP         may open ports too, and connect to the sockets of ports (all 0660, the directory 2750)\n"
    "  --monitor-group GROUP may watch other ports' frames, as root and valed's own user may\n"
    "  --workers N           forwarding threads [1]\n"
    "  --cpus LIST           CPUs to pin them to, as 0,2-5\n"
    "  --linger SECONDS      end when there was no port and no client for so long [0: never]\n"
    "  --bridge-batch N      most frames of one batch [1024]\n"
    "  --max-bridges N       most switches [1024]\n"
    "  --busy-poll US        poll a ring for so long after its last frames [auto: 50 with CPUs to spare, else 0]\n"
    "  --ports-per-uid N     most ports that the programs of one user may open [1024]\n"
    "  --memory-per-uid MIB  and most memory of these ports [half of the machine's]\n"
    "  --tap PORT=NAME       open the tap NAME and make it a port, such as vale1:t=tap0; may be repeated\n"
    "  --socket-dir DIR      ports may make sockets there too, not in the runtime directory only; may be repeated\n"
    "  --no-sandbox          keep all rights, to debug\n"
    "  --ready-fd FD         write a line there when the sockets listen\n"
    "  -v, --verbose         log ports that come and go; twice: more\n"
    "  -V, --version\n"
    "  -h, --help\n"
    "\n"
    "exit codes: 0 ended by SIGTERM, SIGINT, quit or --linger; 1 failure; 2 usage; 4 another valed runs there\n";

static unsigned int number(const char *option, const char *text, unsigned long lowest, unsigned long highest)
{
    char *end;
    unsigned long n = strtoul(text, &end, 10);

    if (end == text || *end != '\0' || text[0] == '-' || n < lowest || n > highest)
        fatal(2, "--%s %s: expected a number from %lu to %lu", option, text, lowest, highest);
    return (unsigned int)n;
}

static gid_t group(const char *option, const char *name)
{
    const struct group *gr = getgrnam(name);

    if (!gr)
        fatal(2, "--%s %s: no such group", option, name);
    return gr->gr_gid;
}

enum {
    OPT_RUNDIR = 256,
    OPT_GROUP,
    OPT_MONITOR_GROUP,
    OPT_WORKERS,
    OPT_CPUS,
    OPT_LINGER,
    OPT_BATCH,
    OPT_BRIDGES,
    OPT_BUSY,
    OPT_PORTS,
    OPT_MEMORY,
    OPT_TAP,
    OPT_DIR,
    OPT_SANDBOX,
    OPT_READY,
};

static const struct option long_options[] = {
    {"rundir", required_argument, NULL, OPT_RUNDIR},
    {"group", required_argument, NULL, OPT_GROUP},
    {"monitor-group", required_argument, NULL, OPT_MONITOR_GROUP},
    {"workers", required_argument, NULL, OPT_WORKERS},
    {"cpus", required_argument, NULL, OPT_CPUS},
    {"linger", required_argument, NULL, OPT_LINGER},
    {"bridge-batch", required_argument, NULL, OPT_BATCH},
    {"max-bridges", required_argument, NULL, OPT_BRIDGES},
    {"busy-poll", required_argument, NULL, OPT_BUSY},
    {"ports-per-uid", required_argument, NULL, OPT_PORTS},
    {"memory-per-uid", required_argument, NULL, OPT_MEMORY},
    {"tap", required_argument, NULL, OPT_TAP},
    {"socket-dir", required_argument, NULL, OPT_DIR},
    {"no-sandbox", no_argument, NULL, OPT_SANDBOX},
    {"ready-fd", required_argument, NULL, OPT_READY},
    {"verbose", no_argument, NULL, 'v'},
    {"version", no_argument, NULL, 'V'},
    {"help", no_argument, NULL, 'h'},
    {0},
};

/* PORT=NAME */
static void add_tap(char *arg)
{
    char *equals = strchr(arg, '=');

    if (!equals || equals == arg || equals[1] == '\0')
        fatal(2, "--tap %s: expected a port and a network interface, such as vale1:t=tap0", arg);
    if (options.taps == OPTION_LIST_MAX)
        fatal(2, "--tap %s: at most %d taps at the start; valectl adds more", arg, OPTION_LIST_MAX);
    *equals = '\0';
    options.tap[options.taps].port = arg;
    options.tap[options.taps++].ifname = equals + 1;
}

/* Made absolute: valed is about to change its directory. */
static void add_socket_dir(const char *arg)
{
    const char *path = realpath(arg, NULL);

    if (!path)
        fatal(2, "--socket-dir %s: %s", arg, strerror(errno));
    if (options.socket_dirs == OPTION_LIST_MAX)
        fatal(2, "--socket-dir %s: at most %d directories", arg, OPTION_LIST_MAX);
    options.socket_dir[options.socket_dirs++] = path;
}

static void apply(int opt, char *arg)
{
    switch (opt) {
    case OPT_RUNDIR: options.rundir = arg; break;
    case OPT_GROUP: options.group = group("group", arg); break;
    case OPT_MONITOR_GROUP: options.monitor_group = group("monitor-group", arg); break;
    case OPT_WORKERS: options.workers = number("workers", arg, 1, WORKERS_MAX); break;
    case OPT_CPUS: options.cpus = arg; break;
    case OPT_LINGER: options.linger = number("linger", arg, 0, 1000000); break;
    case OPT_BATCH: options.bridge_batch = number("bridge-batch", arg, 1, BATCH_MAX); break;
    case OPT_BRIDGES: options.max_bridges = number("max-bridges", arg, 1, 65536); break;
    case OPT_BUSY: options.busy_poll = strcmp(arg, "auto") ? (int)number("busy-poll", arg, 0, BUSY_POLL_MAX) : -1; break;
    case OPT_PORTS: options.uid_ports = number("ports-per-uid", arg, 1, 1000000); break;
    case OPT_MEMORY: options.uid_memory = number("memory-per-uid", arg, 1, 1u << 30); break;
    case OPT_TAP: add_tap(arg); break;
    case OPT_DIR: add_socket_dir(arg); break;
    case OPT_SANDBOX: options.no_sandbox = true; break;
    case OPT_READY: options.ready_fd = (int)number("ready-fd", arg, 0, 1 << 20); break;
    case 'v': options.verbose++; break;
    case 'V': puts("valed " VALE_VERSION); exit(0);
    case 'h': fputs(usage, stdout); exit(0);
    default: fatal(2, "try valed --help");
    }
}

void options_parse(int argc, char **argv)
{
    int opt;

    while ((opt = getopt_long(argc, argv, "vVh", long_options, NULL)) != -1)
        apply(opt, optarg);
    if (optind < argc)
        fatal(2, "%s: valed takes no arguments; try valed --help", argv[optind]);
}
