/* SPDX-License-Identifier: BSD-2-Clause */
/* Parameters of the whole switch, and of its workers. */
#include "tuning.h"

#include "batch.h"
#include "log.h"
#include "options.h"
#include "port.h"
#include "refuse.h"
#include "worker.h"

#include <errno.h>
#include <sched.h>
#include <string.h>

#define MAX_BRIDGES_MAX 65536
#define BUSY_POLL_AUTO  50 /* microseconds, where CPUs are to spare */

/* What busy_poll stands for. Workers and the guests that they serve need a CPU each before one is to spare. */
static unsigned int busy_poll_now(void)
{
    cpu_set_t set;

    if (options.busy_poll >= 0)
        return (unsigned int)options.busy_poll;
    if (sched_getaffinity(0, sizeof(set), &set) < 0)
        return 0;
    return (unsigned int)CPU_COUNT(&set) >= 2 * options.workers + 2 ? BUSY_POLL_AUTO : 0;
}

static void apply(void)
{
    workers_set_batch(options.bridge_batch);
    workers_set_busy_poll(busy_poll_now());
    log_set_level(options.verbose > 1 ? LOG_DEBUG : options.verbose ? LOG_INFO : LOG_WARN);
}

void tuning_start(void)
{
    apply();
}

json_t *tuning_query(json_t *arguments, const char **error)
{
    if (arguments && json_object_size(arguments))
        return refuse(error, "query-parameters takes no arguments");
    return json_pack("{s:i, s:i, s:i, s:i}", "bridge_batch", (int)options.bridge_batch, "max_bridges",
                     (int)options.max_bridges, "verbose", options.verbose, "busy_poll", (int)busy_poll_now());
}

/* busy_poll: a number of microseconds, or "auto". -2: neither. */
static int busy_poll_of(const json_t *value)
{
    if (json_is_string(value) && strcmp(json_string_value(value), "auto") == 0)
        return -1;
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) > BUSY_POLL_MAX)
        return -2;
    return (int)json_integer_value(value);
}

json_t *tuning_set(json_t *arguments, const char **error)
{
    struct options new = options;
    int batch = (int)new.bridge_batch, bridges = (int)new.max_bridges;
    json_t *busy = NULL;

    if (!arguments || json_unpack(arguments, "{s?i, s?i, s?i, s?o !}", "bridge_batch", &batch, "max_bridges", &bridges,
                                  "verbose", &new.verbose, "busy_poll", &busy) != 0)
        return refuse(error, "parameter-set takes bridge_batch, max_bridges, verbose, busy_poll");
    if (busy)
        new.busy_poll = busy_poll_of(busy);
    if (batch < 1 || batch > BATCH_MAX)
        return refuse(error, "bridge_batch is a number of frames from 1 to 1024");
    if (bridges < 1 || bridges > MAX_BRIDGES_MAX)
        return refuse(error, "max_bridges is a number of switches from 1 to 65536");
    if (new.verbose < 0 || new.verbose > 2)
        return refuse(error, "verbose is 0, 1 or 2");
    if (new.busy_poll < -1)
        return refuse(error, "busy_poll is auto, or a number of microseconds up to 10000");
    new.bridge_batch = (unsigned int)batch;
    new.max_bridges = (unsigned int)bridges;
    options = new;
    apply();
    return tuning_query(NULL, error);
}

/* ------------------------------------------------------------------------------------------------------- workers --- */

/* Moves one ring of a port, or (ring -1) all of them. A line when that cannot be, else NULL. */
static const char *move_rings(const char *text, int ring, unsigned int worker)
{
    struct vale_name name;
    struct vale_error why;
    struct port *port = vale_name_parse(text, &name, &why) == 0 ? port_find(&name) : NULL;

    if (!port)
        return "no such port; query-ports lists them";
    if (ring >= (int)port->ring_count)
        return "the port has no such ring";
    for (unsigned int i = 0; i < port->ring_count; i++)
        if ((ring < 0 || (unsigned int)ring == i) && worker_move_ring(port->ring[i], worker) == -EBUSY)
            return "the port is closing, or its ring is moving already; try again";
    return NULL;
}

json_t *tuning_worker(json_t *arguments, const char **error)
{
    int worker, cpu = -2, ring = -1, err;
    const char *port = NULL;

    if (json_unpack(arguments, "{s:i, s?i, s?s, s?i !}", "worker", &worker, "cpu", &cpu, "port", &port, "ring", &ring) != 0)
        return refuse(error, "worker-set takes worker, and cpu (-1: any), or port and perhaps ring");
    if (worker < 0 || worker >= (int)options.workers)
        return refuse(error, "no such worker; query-workers lists them");
    if ((cpu < -1 && !port) || (ring >= 0 && !port))
        return refuse(error, "worker-set needs cpu (-1: any), or port and perhaps ring");
    err = cpu < -1 ? 0 : worker_pin((unsigned int)worker, cpu);
    if (err)
        return refuse(error, "no such CPU, or valed may not use it");
    *error = port ? move_rings(port, ring, (unsigned int)worker) : NULL;
    return *error ? NULL : json_object();
}
