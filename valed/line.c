/* SPDX-License-Identifier: BSD-2-Clause */
/* Delay lines. */
#include "line.h"

#include "copy.h"
#include "offload.h"
#include "worker.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define BLOCK   64          /* frames that are taken in under one lock */
#define POLL_NS 50000       /* what is due sooner is polled for: a busy worker looks at its timers no oftener */
#define NEVER   UINT64_MAX
#define AWAKE   0

/* In the pool, before each frame. */
struct entry {
    uint32_t size; /* of the entry, frame included */
    uint16_t len;  /* of the frame */
    uint8_t queue;
    uint8_t needs;
    struct offload offload;
    bool gone; /* its space is free as soon as that of all before it is */
};

_Static_assert(sizeof(struct entry) <= LINE_ENTRY, "an entry's head");

/* A frame that waits for its time. Places in the pool grow for ever: they are also the order in which frames came. */
struct held {
    uint64_t due; /* nanoseconds */
    uint64_t at;
};

struct line {
    struct ring ring;
    enum direction direction;
    _Atomic(const struct impairment *) settings;
    int timer;
    uint32_t limit;
    uint64_t wrap;   /* the pool's length: the limit, rounded up to a multiple of LINE_ENTRY */
    uint8_t *pool;   /* and one more frame: none is cut at the end */
    struct held *heap;

    pthread_mutex_t lock;
    uint64_t head, tail; /* places of the next entry, and of the oldest */
    unsigned int heap_count;
    uint64_t armed;      /* when the timer goes off, NEVER, or AWAKE: the worker looks by itself */
    uint64_t number;     /* of the next frame */
    unsigned int sown;
    uint64_t busy_until; /* when all that came before has passed, at the rate */

    /* Taken from the heap, not yet consumed; the ring's worker. */
    unsigned int due_count;
    uint64_t due[BATCH_MAX];

    struct line *next; /* among those that end; control thread */
};

static struct line *ending;

static inline struct line *to_line(struct ring *ring)
{
    return (struct line *)ring;
}

static inline struct entry *entry_at(const struct line *line, uint64_t at)
{
    return (struct entry *)(void *)(line->pool + at % line->wrap);
}

static inline uint8_t *frame_of(struct entry *e)
{
    return (uint8_t *)e + LINE_ENTRY;
}

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* --------------------------------------------------------------------------------------------------------------- heap --- */

static inline bool earlier(struct held a, struct held b)
{
    return a.due < b.due || (a.due == b.due && a.at < b.at);
}

static void heap_push(struct line *line, struct held h)
{
    struct held *heap = line->heap;
    unsigned int i = line->heap_count++;

    for (; i && earlier(h, heap[(i - 1) / 2]); i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = h;
}

static struct held heap_pop(struct line *line)
{
    struct held *heap = line->heap, first = heap[0], last = heap[--line->heap_count];
    unsigned int n = line->heap_count, i = 0, child;

    while ((child = 2 * i + 1) < n) {
        if (child + 1 < n && earlier(heap[child + 1], heap[child]))
            child++;
        if (!earlier(heap[child], last))
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    return first;
}

/* --------------------------------------------------------------------------------------------------------------- fate --- */

enum draw { DRAW_LOSS, DRAW_DUPLICATE, DRAW_CORRUPT, DRAW_BIT, DRAW_REORDER, DRAW_JITTER };

/* A frame, or its duplicate, as it enters. */
struct dice {
    uint64_t seed;
    uint64_t number;
    unsigned int copy;
};

static uint64_t draw(struct dice d, enum draw kind)
{
    uint64_t k = (d.number * 2 + d.copy) * 8 + kind, z = d.seed + (k + 1) * 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static inline bool hits(struct dice d, enum draw kind, double percent)
{
    return percent > 0 && (double)(draw(d, kind) >> 11) * 0x1p-53 * 100 < percent;
}

/* When a frame that comes now may leave. */
static uint64_t due_time(struct line *line, const struct impairment *im, struct dice d, uint16_t len, uint64_t now)
{
    uint64_t due = line->busy_until > now ? line->busy_until : now;
    int64_t delay = im->delay * INT64_C(1000), jitter = im->jitter * INT64_C(1000);

    if (im->rate)
        due = line->busy_until = due + (len * UINT64_C(8000000000) + im->rate - 1) / im->rate;
    else
        due = now;
    if (hits(d, DRAW_REORDER, im->reorder))
        return due;
    if (jitter)
        delay += (int64_t)(draw(d, DRAW_JITTER) % (2 * (uint64_t)jitter + 1)) - jitter;
    return due + (uint64_t)(delay > 0 ? delay : 0);
}

/* ---------------------------------------------------------------------------------------------------------- taking in --- */

/* Frames on their way in: at most BLOCK and as many duplicates. */
struct intake {
    const struct batch *b;
    uint64_t now;
    uint8_t queue;
    unsigned int n;
    struct held held[2 * BLOCK];
    uint16_t frame[2 * BLOCK]; /* in the batch */
    uint32_t flip[2 * BLOCK];  /* the bit to be flipped, from 1; 0: none */
    unsigned int lost, duplicated, corrupted, full, spoiled;
};

/* Reserves the place of a frame, or of its duplicate. */
static void admit(struct line *line, const struct impairment *im, struct intake *in, unsigned int frame, struct dice d)
{
    const struct frame *f = &in->b->frame[frame];
    uint32_t size = (LINE_ENTRY + f->len + LINE_ENTRY - 1u) / LINE_ENTRY * LINE_ENTRY;
    struct entry *e = entry_at(line, line->head);

    if (line->head - line->tail + size > line->limit) {
        in->full++;
        return;
    }
    *e = (struct entry){.size = size, .len = f->len, .queue = in->queue, .needs = f->needs};
    if (f->needs)
        e->offload = in->b->offload[frame];
    in->held[in->n] = (struct held){.due = due_time(line, im, d, f->len, in->now), .at = line->head};
    in->frame[in->n] = (uint16_t)frame;
    in->flip[in->n] = hits(d, DRAW_CORRUPT, im->corrupt) ? 1 + (uint32_t)(draw(d, DRAW_BIT) % (f->len * 8u)) : 0;
    in->corrupted += in->flip[in->n] != 0;
    in->n++;
    line->head += size;
}

static void settle(struct line *line, const struct impairment *im, struct intake *in, unsigned int frame)
{
    struct dice d = {.seed = im->seed, .number = line->number++};

    if (hits(d, DRAW_LOSS, im->loss)) {
        in->lost++;
        return;
    }
    admit(line, im, in, frame, d);
    if (hits(d, DRAW_DUPLICATE, im->duplicate)) {
        in->duplicated++;
        d.copy = 1;
        admit(line, im, in, frame, d);
    }
}

static void copy_frame(struct line *line, const struct intake *in, unsigned int k)
{
    const struct frame *f = &in->b->frame[in->frame[k]];
    struct entry *e = entry_at(line, in->held[k].at);
    uint8_t *to = frame_of(e);

    for (unsigned int i = 0; i < f->segs; i++) {
        const struct segment *s = &in->b->seg[f->first + i];

        copy_bytes(to, s->data, s->len);
        to += s->len;
    }
    if (!in->flip[k])
        return;
    /* A checksum that is filled in behind the error would hide it. */
    if (e->needs == OFFLOAD_CSUM) {
        offload_fill_checksum(frame_of(e), e->len, &e->offload);
        e->needs = 0;
    }
    frame_of(e)[(in->flip[k] - 1) / 8] ^= (uint8_t)(1 << (in->flip[k] - 1) % 8);
}

static void arm(struct line *line, uint64_t due)
{
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)(due / 1000000000), .tv_nsec = (long)(due % 1000000000)}};

    line->armed = due;
    timerfd_settime(line->timer, TFD_TIMER_ABSTIME, &when, NULL);
}

/* Under the lock: the oldest entries that are gone make room. */
static void free_gone(struct line *line)
{
    while (line->tail != line->head && entry_at(line, line->tail)->gone)
        line->tail += entry_at(line, line->tail)->size;
}

/* Under the lock: what was copied may be zeros, its memory was taken away meanwhile. */
static void spoil(struct line *line, struct intake *in)
{
    for (unsigned int k = 0; k < in->n; k++)
        entry_at(line, in->held[k].at)->gone = true;
    free_gone(line);
    atomic_fetch_sub_explicit(&line->ring.port->counters.line[line->direction].held, in->n, memory_order_relaxed);
    in->spoiled += in->n;
    in->n = 0;
}

static void take_block(struct line *line, struct intake *in, const uint16_t *order, unsigned int first, unsigned int n)
{
    const struct impairment *im = atomic_load_explicit(&line->settings, memory_order_acquire);

    in->n = 0;
    pthread_mutex_lock(&line->lock);
    if (line->sown != im->sown) {
        line->sown = im->sown;
        line->number = 0;
    }
    for (unsigned int i = first; i < first + n; i++)
        settle(line, im, in, order ? order[i] : i);
    pthread_mutex_unlock(&line->lock);
    count(&line->ring.port->counters.line[line->direction].held, in->n);
    for (unsigned int k = 0; k < in->n; k++)
        copy_frame(line, in, k);
    pthread_mutex_lock(&line->lock);
    if (batch_is_dead(in->b))
        spoil(line, in);
    for (unsigned int k = 0; k < in->n; k++)
        heap_push(line, in->held[k]);
    if (line->heap_count && line->heap[0].due < line->armed)
        arm(line, line->heap[0].due);
    pthread_mutex_unlock(&line->lock);
}

void line_take(struct line *line, unsigned int queue, const struct batch *b, const uint16_t *order, unsigned int n)
{
    struct port_counters *c = &line->ring.port->counters;
    _Atomic uint64_t *dropped = line->direction == DIRECTION_IN ? c->rx_dropped : c->tx_dropped;
    struct intake in;

    in.b = b;
    in.queue = (uint8_t)queue;
    in.now = now_ns();
    in.lost = in.duplicated = in.corrupted = in.full = in.spoiled = 0;
    for (unsigned int i = 0; i < n; i += BLOCK)
        take_block(line, &in, order, i, n - i < BLOCK ? n - i : BLOCK);
    count(&c->line[line->direction].duplicated, in.duplicated);
    count(&c->line[line->direction].corrupted, in.corrupted);
    count(&dropped[DROP_LOSS], in.lost);
    count(&dropped[DROP_DELAY_FULL], in.full);
    count(&dropped[DROP_PEER_MEMORY], in.spoiled);
}

/* ------------------------------------------------------------------------------------------------------------ its ring --- */

/* Takes up to `most` frames whose time has come off the heap; when the line ends, it has come for all. */
static void take_due(struct line *line, unsigned int most)
{
    uint64_t now = line->ring.draining ? NEVER : now_ns();

    pthread_mutex_lock(&line->lock);
    while (line->due_count < most && line->heap_count && line->heap[0].due <= now)
        line->due[line->due_count++] = heap_pop(line).at;
    pthread_mutex_unlock(&line->lock);
}

/* Views frames from one ring of the sender: the batch has one. */
static unsigned int line_ingress(struct ring *ring, struct batch *b, unsigned int budget, bool *seen)
{
    struct line *line = to_line(ring);
    unsigned int weight = 0;

    take_due(line, budget);
    *seen = line->due_count != 0;
    for (unsigned int i = 0; i < line->due_count && weight < budget; i++) {
        struct entry *e = entry_at(line, line->due[i]);

        if (i == 0)
            ring->index = e->queue;
        else if (ring->index != e->queue)
            break;
        b->frame[i] = (struct frame){.first = i, .segs = 1, .needs = e->needs, .len = e->len};
        b->seg[i] = (struct segment){.data = frame_of(e), .len = e->len};
        b->needs |= e->needs;
        if (e->needs)
            b->offload[i] = e->offload;
        b->frames = b->segs = i + 1;
        weight += offload_weight(b, i);
    }
    return b->frames;
}

static void line_consumed(struct ring *ring, const struct batch *b, unsigned int n)
{
    struct line *line = to_line(ring);

    (void)b;
    pthread_mutex_lock(&line->lock);
    for (unsigned int i = 0; i < n; i++)
        entry_at(line, line->due[i])->gone = true;
    free_gone(line);
    pthread_mutex_unlock(&line->lock);
    line->due_count -= n;
    memmove(line->due, line->due + n, line->due_count * sizeof(line->due[0]));
    atomic_fetch_sub_explicit(&ring->port->counters.line[line->direction].held, n, memory_order_relaxed);
}

static bool line_want_kick(struct ring *ring, bool on)
{
    struct line *line = to_line(ring);
    uint64_t next;
    bool soon;

    pthread_mutex_lock(&line->lock);
    next = line->due_count ? 0 : line->heap_count ? line->heap[0].due : NEVER;
    soon = next != NEVER && next <= now_ns() + POLL_NS;
    if (!on || soon)
        line->armed = AWAKE;
    else if (next == NEVER)
        line->armed = NEVER;
    else
        arm(line, next);
    pthread_mutex_unlock(&line->lock);
    return on && soon;
}

static const struct ring_ops line_ops = {
    .ingress = line_ingress, .consumed = line_consumed, .want_kick = line_want_kick};

/* ---------------------------------------------------------------------------------------------------- making and ending --- */

static void line_free(void *arg)
{
    struct line *line = arg;

    if (line->timer >= 0)
        close(line->timer);
    free(line->pool);
    free(line->heap);
    free(line);
}

int line_create(struct line **created, struct port *port, enum direction direction, const struct impairment *settings)
{
    struct line *line = calloc(1, sizeof(*line));
    int err = 0;

    if (!line)
        return -ENOMEM;
    line->direction = direction;
    line->settings = settings;
    line->limit = settings->limit;
    line->wrap = (settings->limit + LINE_ENTRY - 1ull) / LINE_ENTRY * LINE_ENTRY;
    line->armed = NEVER;
    line->sown = settings->sown;
    pthread_mutex_init(&line->lock, NULL);
    line->ring.role = direction == DIRECTION_IN ? RING_OF_LINE_IN : RING_OF_LINE_OUT;
    line->ring.port = port;
    /* Of both only what is used is touched; the shortest frame takes two times LINE_ENTRY. */
    line->pool = aligned_alloc(LINE_ENTRY, line->wrap + 2 * LINE_ENTRY + FRAME_LEN_MAX / LINE_ENTRY * LINE_ENTRY);
    line->heap = malloc((line->limit / (2 * LINE_ENTRY) + 1) * sizeof(*line->heap));
    line->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    line->ring.kick_fd = line->timer;
    if (line->timer < 0)
        err = -errno;
    else if (!line->pool || !line->heap)
        err = -ENOMEM;
    else
        err = worker_add_ring(&line->ring, &line_ops);
    if (err) {
        line_free(line);
        return err;
    }
    port->lines++;
    *created = line;
    return 0;
}

void line_set(struct line *line, const struct impairment *settings)
{
    atomic_store_explicit(&line->settings, settings, memory_order_release);
}

static void begin_end(void *arg)
{
    worker_drain_ring(&((struct line *)arg)->ring);
}

void line_end(struct line *line)
{
    line->next = ending;
    ending = line;
    reclaim(begin_end, line);
}

void line_reap(void)
{
    struct line **link = &ending;

    while (*link) {
        struct line *line = *link;

        if (atomic_load(&line->ring.state) != RING_GONE) {
            link = &line->next;
            continue;
        }
        *link = line->next;
        worker_forget_ring(&line->ring);
        line->ring.port->lines--;
        reclaim(line_free, line);
    }
}
