/* SPDX-License-Identifier: BSD-2-Clause */
/* What management sets of impairments: checked, kept, and handed to delay lines. */
#include "impair.h"

#include "line.h"
#include "refuse.h"
#include "state.h"
#include "worker.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define TIME_MAX      60000000 /* microseconds */
#define RATE_MAX      INT64_C(1000000000000)
#define LIMIT_MIN     64
#define LIMIT_MAX     (1 << 30)
#define LIMIT_DEFAULT (4 << 20)

static const char *const direction_names[] = {[DIRECTION_IN] = "in", [DIRECTION_OUT] = "out"};

/* ----------------------------------------------------------------------------------------------------------- settings --- */

/* Whether a line is needed. Reordering is nothing without a delay. */
static bool impairs(const struct impairment *im)
{
    return im->delay || im->jitter || im->rate || im->loss > 0 || im->duplicate > 0 || im->corrupt > 0;
}

static struct impairment defaults(void)
{
    struct impairment im = {.limit = LIMIT_DEFAULT};

    if (getrandom(&im.seed, sizeof(im.seed), 0) != sizeof(im.seed))
        im.seed = 1;
    im.seed >>= 1; /* JSON's integers are signed */
    return im;
}

static bool is_percent(double value)
{
    return value >= 0 && value <= 100;
}

/* What is wrong with them, or NULL. */
static const char *check(json_int_t delay, json_int_t jitter, json_int_t rate, json_int_t limit, json_int_t seed)
{
    if (delay < 0 || delay > TIME_MAX || jitter < 0 || jitter > TIME_MAX)
        return "delay and jitter are microseconds, up to 60000000";
    if (rate < 0 || rate > RATE_MAX)
        return "rate is a number of bits per second, up to 1000000000000";
    if (limit < LIMIT_MIN || limit > LIMIT_MAX)
        return "limit is a number of bytes from 64 to 1073741824";
    return seed < 0 ? "seed is a number from 0 to 9223372036854775807" : NULL;
}

/* Writes what is given over *im. What is wrong, or NULL. */
static const char *unpack(json_t *given, struct impairment *im)
{
    json_int_t delay = im->delay, jitter = im->jitter, rate = (json_int_t)im->rate, limit = im->limit;
    json_int_t seed = (json_int_t)im->seed;
    const char *wrong;

    if (json_is_null(given)) {
        *im = defaults();
        return NULL;
    }
    if (json_unpack(given, "{s?I, s?I, s?F, s?F, s?F, s?F, s?I, s?I, s?I !}", "delay", &delay, "jitter", &jitter, "loss",
                    &im->loss, "duplicate", &im->duplicate, "corrupt", &im->corrupt, "reorder", &im->reorder, "rate", &rate,
                    "limit", &limit, "seed", &seed) != 0)
        return "takes numbers: delay, jitter, loss, duplicate, corrupt, reorder, rate, limit, seed; or null: none of them";
    wrong = check(delay, jitter, rate, limit, seed);
    if (wrong)
        return wrong;
    if (!is_percent(im->loss) || !is_percent(im->duplicate) || !is_percent(im->corrupt) || !is_percent(im->reorder))
        return "loss, duplicate, corrupt and reorder are percentages, from 0 to 100";
    im->delay = (uint32_t)delay;
    im->jitter = (uint32_t)jitter;
    im->rate = (uint64_t)rate;
    im->limit = (uint32_t)limit;
    im->seed = (uint64_t)seed;
    im->sown += json_object_get(given, "seed") != NULL;
    if (im->reorder > 0 && !im->delay && !im->jitter)
        return "reorder needs a delay or a jitter: the frames that it picks are sent before those that wait";
    if (!impairs(im) && json_object_size(given) && (json_object_get(given, "seed") || json_object_get(given, "limit")))
        return "seed and limit need an impairment";
    return NULL;
}

static json_t *describe(const struct impairment *im)
{
    return json_pack("{s:I, s:I, s:f, s:f, s:f, s:f, s:I, s:I, s:I}", "delay", (json_int_t)im->delay, "jitter",
                     (json_int_t)im->jitter, "loss", im->loss, "duplicate", im->duplicate, "corrupt", im->corrupt, "reorder",
                     im->reorder, "rate", (json_int_t)im->rate, "limit", (json_int_t)im->limit, "seed",
                     (json_int_t)im->seed);
}

json_t *impair_settings(const struct port *port)
{
    json_t *object = json_object();

    for (int i = DIRECTION_IN; i <= DIRECTION_OUT; i++)
        if (port->impairment[i])
            json_object_set_new(object, direction_names[i], describe(port->impairment[i]));
    return object;
}

/* ----------------------------------------------------------------------------------------------------------- applying --- */

static void free_settings(void *settings)
{
    free(settings);
}

/* Puts a line, or none, and its settings in the place of those of before. */
static void replace(struct port *port, enum direction direction, struct line *line, const struct impairment *settings)
{
    struct line *old = atomic_load(&port->line[direction]);

    if (old != line) {
        atomic_store(&port->line[direction], line);
        if (old)
            line_end(old);
    }
    if (port->impairment[direction])
        reclaim(free_settings, (void *)(uintptr_t)port->impairment[direction]);
    port->impairment[direction] = settings;
}

/* 0 or -errno; then all is as before. */
static int apply(struct port *port, enum direction direction, const struct impairment *im)
{
    struct line *line = atomic_load(&port->line[direction]);
    struct impairment *settings;
    int err = 0;

    if (!impairs(im)) {
        replace(port, direction, NULL, NULL);
        return 0;
    }
    settings = malloc(sizeof(*settings));
    if (!settings)
        return -ENOMEM;
    *settings = *im;
    if (line && im->limit == port->impairment[direction]->limit)
        line_set(line, settings);
    else
        err = line_create(&line, port, direction, settings);
    if (err)
        free(settings);
    else
        replace(port, direction, line, settings);
    return err;
}

bool impair_end(struct port *port)
{
    replace(port, DIRECTION_IN, NULL, NULL);
    replace(port, DIRECTION_OUT, NULL, NULL);
    return port->lines == 0;
}

json_t *impair_port_set(json_t *arguments, const char **error)
{
    struct impairment im[2];
    json_t *given[2] = {NULL, NULL};
    const char *text, *wrong;
    struct vale_name name;
    struct vale_error why;
    struct port *port;
    int err = 0;

    if (json_unpack(arguments, "{s:s, s?o, s?o !}", "name", &text, "in", &given[DIRECTION_IN], "out", &given[DIRECTION_OUT]))
        return refuse(error, "port-set takes name, and perhaps in and out: impairments of that direction");
    if (vale_name_parse(text, &name, &why) < 0)
        return refuse(error, "%s", why.text);
    port = port_find(&name);
    if (!port || port->state != PORT_LIVE)
        return refuse(error, "%s: no such port; query-ports lists them", name.full);
    for (int i = DIRECTION_IN; i <= DIRECTION_OUT; i++) {
        im[i] = port->impairment[i] ? *port->impairment[i] : defaults();
        wrong = given[i] ? unpack(given[i], &im[i]) : NULL;
        if (wrong)
            return refuse(error, "%s: %s: %s", name.full, direction_names[i], wrong);
    }
    for (int i = DIRECTION_IN; i <= DIRECTION_OUT && err == 0; i++)
        err = given[i] ? apply(port, (enum direction)i, &im[i]) : 0;
    state_port_set(name.full, impair_settings(port));
    return err ? refuse(error, "%s: no delay line: %s", name.full, strerror(-err)) : json_object();
}
