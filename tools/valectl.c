/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * valectl - list, add, remove, set and watch the ports of a valed
 *
 * Each command is one or two commands of qmp.sock (docs/qmp.md). What needs the caller's place is done here: relative paths
 * are made absolute, and a tap is opened here, in the caller's network namespace and with its rights, and handed over.
 */
#include "qmp_client.h"
#include "valectl.h"
#include "version.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <linux/if_tun.h>
#include <math.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { EXIT_USAGE = 2, EXIT_NO_VALED = 4 };

struct options {
    const char *kind; /* of the port to add */
    const char *place; /* its path, or the tap's name */
    bool connect;
    bool allow_file_memory;
    bool json;
    struct top_options top;
};

static const char help[] =
    "Usage: valectl [--rundir DIR] [--json] COMMAND [ARGUMENTS]\n"
    "List, add, remove, set and watch the ports of a valed.\n"
    "\n"
    "  list [SWITCH]                 switches and their ports\n"
    "  show PORT                     all that is known of a port\n"
    "  stats [SWITCH|PORT]           counters, drops with their reasons\n"
    "  top [SWITCH|PORT]             rates, busiest first; --count N tables, --interval SECONDS apart\n"
    "  add PORT KIND                 add a port:\n"
    "      --vhost-user PATH         for a virtio NIC of QEMU; --allow-file-memory\n"
    "      --stream PATH             for QEMU's stream netdev\n"
    "      --connect                 to a socket that is there, instead of making it\n"
    "      --tap NAME                a network interface of the host\n"
    "      --null                    takes all frames and keeps none\n"
    "  del PORT                      remove a port\n"
    "  set SWITCH|PORT KEY=VALUE...  change settings, such as p2p=on, or in.delay=10ms out.loss=1%\n"
    "  set workerN KEY=VALUE...      cpu=2 pins it, port=vale1:a gives it that port's rings\n"
    "  set KEY=VALUE...              parameters of valed: bridge_batch, max_bridges, verbose, busy_poll\n"
    "  fdb SWITCH                    stations and the ports they are on\n"
    "  fdb add PORT MAC              a station that stays there\n"
    "  fdb del SWITCH MAC            forget a station\n"
    "  fdb flush SWITCH              forget what was learned\n"
    "\n"
    "      --rundir DIR              where valed's sockets are [$VALE_RUNDIR, $XDG_RUNTIME_DIR/vale, /run/vale,\n"
    "                                /tmp/vale-UID]\n"
    "      --json                    print JSON\n"
    "  -h, --help                    print this help\n"
    "  -V, --version                 print the version\n"
    "\n"
    "Exit status: 0 done, 1 failure, 2 wrong usage, 4 no valed found.\n";

static void __attribute__((noreturn)) usage_error(const char *what, const char *value)
{
    fprintf(stderr, "valectl: %s%s%s: see valectl --help\n", what, value ? ": " : "", value ? value : "");
    exit(EXIT_USAGE);
}

static void __attribute__((noreturn)) fail(int code, const char *text)
{
    fprintf(stderr, "valectl: %s\n", text);
    exit(code);
}

/* ----------------------------------------------------------------------------------------------------- talking --- */

/* Takes the reference to arguments. Ends the program when the command fails. */
static json_t *execute(struct qmp_client *qmp, const char *command, json_t *arguments)
{
    struct vale_error err;
    json_t *result = qmp_execute(qmp, command, arguments, &err);

    if (result == NULL) {
        fail(EXIT_FAILURE, err.text);
    }
    return result;
}

/* A port's name in its one form. */
static struct vale_name port_name(const char *text)
{
    struct vale_name name;
    struct vale_error err;

    if (vale_name_parse(text, &name, &err) < 0) {
        fail(EXIT_USAGE, err.text);
    }
    return name;
}

/* The ports of a switch, the one port of that name (with a colon), or all. Never NULL. */
static json_t *query_ports(struct qmp_client *qmp, const char *which)
{
    struct vale_name name;
    json_t *ports, *port;
    size_t i;

    if (which == NULL || strchr(which, ':') == NULL) {
        return execute(qmp, "query-ports", which ? json_pack("{s:s}", "switch", which) : NULL);
    }
    name = port_name(which);
    ports = execute(qmp, "query-ports", NULL);
    json_array_foreach(ports, i, port) {
        if (strcmp(json_string_value(json_object_get(port, "name")), name.full) == 0) {
            json_t *one = json_pack("[O]", port);

            json_decref(ports);
            return one;
        }
    }
    fprintf(stderr, "valectl: %s: no such port; valectl list shows them\n", name.full);
    exit(EXIT_FAILURE);
}

/* ---------------------------------------------------------------------------------------------------------- adding --- */

/* As seen from here, for a valed that is elsewhere. */
static json_t *absolute_path(const char *path)
{
    char cwd[PATH_MAX];

    if (path[0] == '/') {
        return json_string(path);
    }
    if (getcwd(cwd, sizeof(cwd)) == NULL) {
        fail(EXIT_FAILURE, "the current directory is gone: give an absolute path");
    }
    return json_sprintf("%s/%s", cwd, path);
}

/* Opens the tap, makes it where it is not there, and hands it over. */
static void hand_tap_over(struct qmp_client *qmp, const char *ifname)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    struct vale_error err;
    int fd;

    if (strlen(ifname) == 0 || strlen(ifname) >= sizeof(request.ifr_name)) {
        usage_error("not the name of a network interface", ifname);
    }
    strcpy(request.ifr_name, ifname);
    fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &request) < 0) {
        fprintf(stderr, "valectl: %s: %s%s\n", ifname, strerror(errno),
                errno == EPERM || errno == EACCES ? ": ask root for 'ip tuntap add mode tap user YOU name NAME'"
                : errno == EINVAL ? ": there is an interface of that name that is not such a tap" : "");
        exit(EXIT_FAILURE);
    }
    if (qmp_hand_over(qmp, fd, ifname, &err) < 0) {
        fail(EXIT_FAILURE, err.text);
    }
    close(fd);
}

static void run_add(struct qmp_client *qmp, const struct options *o, char **args)
{
    struct vale_name name = port_name(args[0]);
    json_t *arguments = json_pack("{s:s, s:s}", "name", name.full, "kind", o->kind);
    json_t *port;

    if (strcmp(o->kind, "tap") == 0) {
        hand_tap_over(qmp, o->place);
        json_object_set_new(arguments, "fd", json_string(o->place));
    } else if (o->place != NULL) {
        json_object_set_new(arguments, "path", absolute_path(o->place));
        json_object_set_new(arguments, "connect", json_boolean(o->connect));
    }
    if (o->allow_file_memory) {
        json_object_set_new(arguments, "allow-file-memory", json_true());
    }
    port = execute(qmp, "port-add", arguments);
    if (o->json) {
        show_json(port);
    }
    json_decref(port);
}

/* -------------------------------------------------------------------------------------------------- other commands --- */

static void run_list(struct qmp_client *qmp, const struct options *o, char **args)
{
    json_t *switches = execute(qmp, "query-switches", NULL), *ports = query_ports(qmp, args[0]), *both;

    for (size_t i = json_array_size(switches); args[0] != NULL && i-- > 0;) {
        if (strcmp(json_string_value(json_object_get(json_array_get(switches, i), "name")), args[0]) != 0) {
            json_array_remove(switches, i);
        }
    }
    both = json_pack("{s:o, s:o}", "switches", switches, "ports", ports);
    if (o->json) {
        show_json(both);
    } else {
        show_list(switches, ports);
    }
    json_decref(both);
}

/* What watches this port: its own monitors, and those of its whole switch. */
static json_t *query_monitors(struct qmp_client *qmp, const struct vale_name *name)
{
    json_t *monitors = execute(qmp, "query-monitors", json_pack("{s:s}", "switch", name->sw));
    size_t whole = strlen(name->sw) + 1; /* with the colon */

    for (size_t i = json_array_size(monitors); i-- > 0;) {
        const char *of = json_string_value(json_object_get(json_array_get(monitors, i), "name"));

        if (strcmp(of, name->full) != 0 && of[whole] != '\0') {
            json_array_remove(monitors, i);
        }
    }
    return monitors;
}

static void run_show(struct qmp_client *qmp, const struct options *o, char **args)
{
    struct vale_name name = port_name(args[0]);
    json_t *ports = query_ports(qmp, name.full), *port = json_array_get(ports, 0);

    json_object_set_new(port, "monitors", query_monitors(qmp, &name));
    if (o->json) {
        show_json(port);
    } else {
        show_object(port);
    }
    json_decref(ports);
}

static void run_stats(struct qmp_client *qmp, const struct options *o, char **args)
{
    json_t *ports = query_ports(qmp, args[0]);

    if (o->json) {
        show_json(ports);
    } else {
        show_stats(ports);
    }
    json_decref(ports);
}

struct top_query {
    struct qmp_client *qmp;
    const char *which;
};

static json_t *query_for_top(void *arg)
{
    const struct top_query *q = arg;

    return query_ports(q->qmp, q->which);
}

static void run_top(struct qmp_client *qmp, const struct options *o, char **args)
{
    struct top_query query = {qmp, args[0]};
    struct top_options top = o->top;

    top.json = o->json;
    top_run(&top, query_for_top, &query);
}

static void run_del(struct qmp_client *qmp, const struct options *o, char **args)
{
    struct vale_name name = port_name(args[0]);

    (void)o;
    json_decref(execute(qmp, "port-del", json_pack("{s:s}", "name", name.full)));
}

/* on and off, numbers, or text. */
static json_t *parse_value(const char *text)
{
    char *end;
    json_int_t integer = strtoll(text, &end, 10);
    double real;

    if (strcmp(text, "on") == 0 || strcmp(text, "off") == 0) {
        return json_boolean(strcmp(text, "on") == 0);
    }
    if (end != text && *end == '\0') {
        return json_integer(integer);
    }
    real = strtod(text, &end);
    return end != text && *end == '\0' && isfinite(real) ? json_real(real) : json_string(text);
}

/* What a number may carry, in what port-set takes: microseconds, percent, bits per second, bytes. */
static const struct unit {
    const char *name;
    double factor;
    const char *keys; /* that it is for */
} units[] = {
    {"us", 1, " delay jitter "},   {"ms", 1e3, " delay jitter "},  {"s", 1e6, " delay jitter "},
    {"%", 1, " loss duplicate corrupt reorder "},
    {"bit", 1, " rate "},          {"kbit", 1e3, " rate "},        {"Mbit", 1e6, " rate "},       {"Gbit", 1e9, " rate "},
    {"KiB", 1024, " limit "},      {"MiB", 1 << 20, " limit "},
};

/* Of an impairment: a number with a unit, or none. */
static json_t *parse_impairment(const char *key, const char *text)
{
    char *end, word[32];
    double value = strtod(text, &end);

    if (strcmp(text, "none") == 0) {
        return json_integer(0);
    }
    snprintf(word, sizeof(word), " %s ", key);
    for (size_t i = 0; end != text && i < sizeof(units) / sizeof(units[0]); i++) {
        if (strcasecmp(end, units[i].name) == 0 && strstr(units[i].keys, word) != NULL && fabs(value) < 1e15) {
            value *= units[i].factor;
            return strcmp(units[i].name, "%") == 0 ? json_real(value) : json_integer(llround(value));
        }
    }
    return parse_value(text);
}

/* KEY=VALUE of a port: in.delay=10ms, or in=none. */
static void set_impairment(json_t *arguments, char *key, const char *value)
{
    char *dot = strchr(key, '.');
    json_t *direction;

    if (dot == NULL) {
        json_object_set_new(arguments, key, strcmp(value, "none") == 0 ? json_null() : parse_value(value));
        return;
    }
    *dot = '\0';
    direction = json_object_get(arguments, key);
    if (!json_is_object(direction)) {
        direction = json_object();
        json_object_set_new(arguments, key, direction);
    }
    json_object_set_new(direction, dot + 1, parse_impairment(dot + 1, value));
}

/* Whose settings are meant: the command for them; its arguments say so then. */
static const char *settings_of(const char *what, json_t *arguments)
{
    int worker, end = 0;

    if (strchr(what, '=') != NULL) {
        return "parameter-set";
    }
    if (sscanf(what, "worker%d%n", &worker, &end) == 1 && what[end] == '\0') {
        json_object_set_new(arguments, "worker", json_integer(worker));
        return "worker-set";
    }
    if (strchr(what, ':') != NULL) {
        json_object_set_new(arguments, "name", json_string(port_name(what).full));
        return "port-set";
    }
    json_object_set_new(arguments, "name", json_string(what));
    return "switch-set";
}

static void run_set(struct qmp_client *qmp, const struct options *o, char **args)
{
    json_t *arguments = json_object(), *result;
    const char *command = settings_of(args[0], arguments);

    for (char **arg = strchr(args[0], '=') ? args : args + 1; *arg != NULL; arg++) {
        char *equals = strchr(*arg, '=');

        if (equals == NULL || equals == *arg) {
            usage_error("not KEY=VALUE", *arg);
        }
        *equals = '\0';
        if (strcmp(command, "port-set") == 0) {
            set_impairment(arguments, *arg, equals + 1);
        } else {
            json_object_set_new(arguments, *arg, parse_value(equals + 1));
        }
    }
    result = execute(qmp, command, arguments);
    if (o->json) {
        show_json(result);
    }
    json_decref(result);
}

static void run_fdb(struct qmp_client *qmp, const struct options *o, char **args)
{
    static const struct {
        const char *verb, *command, *first;
        int arguments;
    } verbs[] = {{"add", "fdb-add", "port", 2}, {"del", "fdb-del", "switch", 2}, {"flush", "fdb-flush", "switch", 1}};
    int n = 0;
    json_t *result;

    while (args[n] != NULL) {
        n++;
    }
    for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++) {
        if (strcmp(args[0], verbs[i].verb) == 0) {
            if (n != 1 + verbs[i].arguments) {
                usage_error("wrong number of arguments", "fdb");
            }
            json_decref(execute(qmp, verbs[i].command, json_pack("{s:s, s:s*}", verbs[i].first, args[1], "mac", args[2])));
            return;
        }
    }
    if (n != 1) {
        usage_error("fdb takes a switch, or add, del or flush, not", args[0]);
    }
    result = execute(qmp, "query-fdb", json_pack("{s:s}", "switch", args[0]));
    if (o->json) {
        show_json(result);
    } else {
        show_stations(result);
    }
    json_decref(result);
}

/* ---------------------------------------------------------------------------------------------------- command line --- */

/* Options that only some commands take. */
enum { GIVEN_KIND = 1, GIVEN_PEER = 2, GIVEN_TOP = 4 };

static const struct command {
    const char *name;
    int least, most; /* arguments */
    int takes;
    void (*run)(struct qmp_client *qmp, const struct options *o, char **args);
} commands[] = {
    {"list", 0, 1, 0, run_list},      {"show", 1, 1, 0, run_show},
    {"stats", 0, 1, 0, run_stats},    {"top", 0, 1, GIVEN_TOP, run_top},
    {"del", 1, 1, 0, run_del},        {"add", 1, 1, GIVEN_KIND | GIVEN_PEER, run_add},
    {"set", 1, INT_MAX, 0, run_set},  {"fdb", 1, 3, 0, run_fdb},
};

enum {
    OPT_RUNDIR = 256, OPT_JSON, OPT_VHOST, OPT_STREAM, OPT_TAP, OPT_NULL, OPT_CONNECT, OPT_FILE, OPT_COUNT, OPT_INTERVAL
};

static const struct option long_options[] = {
    {"rundir", required_argument, NULL, OPT_RUNDIR},
    {"json", no_argument, NULL, OPT_JSON},
    {"vhost-user", required_argument, NULL, OPT_VHOST},
    {"stream", required_argument, NULL, OPT_STREAM},
    {"tap", required_argument, NULL, OPT_TAP},
    {"null", no_argument, NULL, OPT_NULL},
    {"connect", no_argument, NULL, OPT_CONNECT},
    {"allow-file-memory", no_argument, NULL, OPT_FILE},
    {"count", required_argument, NULL, OPT_COUNT},
    {"interval", required_argument, NULL, OPT_INTERVAL},
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, 'V'},
    {NULL, 0, NULL, 0},
};

static void set_kind(struct options *o, const char *kind, const char *place)
{
    if (o->kind != NULL) {
        usage_error("a port is of one kind, not of two", NULL);
    }
    o->kind = kind;
    o->place = place;
}

static double parse_positive(const char *text, double least, const char *what)
{
    char *end;
    double value = strtod(text, &end);

    if (end == text || *end != '\0' || !isfinite(value) || value < least || value > 1e9) {
        usage_error(what, text);
    }
    return value;
}

/* What of the options above has been given: GIVEN_*. */
static int parse_option(struct options *o, int c)
{
    switch (c) {
    case OPT_RUNDIR: setenv("VALE_RUNDIR", optarg, 1); return 0;
    case OPT_JSON: o->json = true; return 0;
    case OPT_VHOST: set_kind(o, "vhost-user", optarg); return GIVEN_KIND;
    case OPT_STREAM: set_kind(o, "stream", optarg); return GIVEN_KIND;
    case OPT_TAP: set_kind(o, "tap", optarg); return GIVEN_KIND;
    case OPT_NULL: set_kind(o, "null", NULL); return GIVEN_KIND;
    case OPT_CONNECT: o->connect = true; return GIVEN_PEER;
    case OPT_FILE: o->allow_file_memory = true; return GIVEN_PEER;
    case OPT_COUNT:
        o->top.count = (unsigned long)parse_positive(optarg, 1, "--count is a number of tables, not");
        return GIVEN_TOP;
    case OPT_INTERVAL:
        o->top.interval = parse_positive(optarg, 0.01, "--interval is a time in seconds, not");
        return GIVEN_TOP;
    case 'h': fputs(help, stdout); exit(0);
    case 'V': puts("valectl " VALE_VERSION); exit(0);
    default: exit(EXIT_USAGE); /* getopt has said why */
    }
}

static const struct command *find_command(const char *name)
{
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (strcmp(commands[i].name, name) == 0) {
            return &commands[i];
        }
    }
    usage_error("no such command", name);
}

static const struct command *parse_options(struct options *o, int argc, char **argv)
{
    const struct command *command;
    int c, given = 0;

    while ((c = getopt_long(argc, argv, "hV", long_options, NULL)) != -1) {
        given |= parse_option(o, c);
    }
    if (optind == argc) {
        usage_error("a command is needed", NULL);
    }
    command = find_command(argv[optind++]);
    if (argc - optind < command->least || argc - optind > command->most) {
        usage_error("wrong number of arguments", command->name);
    }
    if (given & ~command->takes) {
        usage_error("an option that is not for this command", command->name);
    }
    if ((command->takes & GIVEN_KIND) && o->kind == NULL) {
        usage_error("add needs a kind: --vhost-user, --stream, --tap or --null", NULL);
    }
    if ((o->connect && o->place == NULL) || (o->connect && strcmp(o->kind, "tap") == 0)) {
        usage_error("--connect is for --vhost-user and --stream", NULL);
    }
    if (o->allow_file_memory && strcmp(o->kind, "vhost-user") != 0) {
        usage_error("--allow-file-memory is for --vhost-user", NULL);
    }
    return command;
}

int main(int argc, char **argv)
{
    struct options o = {.top = {.interval = 1}};
    const struct command *command = parse_options(&o, argc, argv);
    struct vale_error err;
    struct qmp_client *qmp = qmp_connect(&err);

    if (qmp == NULL) {
        fail(EXIT_NO_VALED, err.text);
    }
    command->run(qmp, &o, argv + optind);
    qmp_disconnect(qmp);
    if (fflush(stdout) != 0) {
        fail(EXIT_FAILURE, "cannot write the output");
    }
    return EXIT_SUCCESS;
}
