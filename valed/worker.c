/* SPDX-License-Identifier: BSD-2-Clause */
/* The threads that forward: active lists, budgets, sleeping, and grace periods. */
#include "worker.h"

#include "call.h"
#include "forward.h"
#include "log.h"
#include "options.h"
#include "sandbox.h"

#include <vale_proto.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define RINGS_MAX      65536
#define BULK           64 /* frames in a batch: more will come soon */
#define PATIENCE_BULK  50 /* microseconds that a ring is polled after its last frames: bulk */
#define PATIENCE       4  /* and others: a guest needs the CPU more than we do. busy_poll raises both */
#define STREAM         16 /* frames in a row, and none the other way: nobody waits for them */
#define NAP            100 /* microseconds for which they may wait */
#define AWAKE          2   /* frames that must come after a nap in vain before the next one */
#define EPOLL_INTERVAL 50 /* microseconds */
#define EVENTS_MAX     64
#define WAKE_ID        UINT64_MAX

struct worker {
    pthread_t thread;
    unsigned int index;
    int epoll_fd;
    int wake_fd;
    int cpu; /* -1: not pinned */
    _Atomic bool stop;
    _Atomic(struct ring *) mailbox;
    unsigned int rings; /* dealt to it; control thread */

    struct ring **active;
    unsigned int active_count;
    unsigned int napping; /* of these: rings that can wait until the end of a nap */
    struct ring **parked; /* rings that wait for room; at their position parked_at */
    unsigned int parked_count;
    _Atomic bool retry; /* somebody has made room */
    struct batch *batch;

    /* Even: asleep. Odd: awake; goes up by two at each moment without references. */
    _Atomic uint64_t phase __attribute__((aligned(64)));
    _Atomic uint64_t rounds;
    _Atomic uint64_t sleeps;
};

static struct worker workers[WORKERS_MAX];
static unsigned int worker_count;
static _Atomic unsigned int budget = BATCH_MAX;
static _Atomic unsigned int busy_poll;
static struct ring *moving;
static int notice_fd = -1;
static pthread_barrier_t all_started; /* and in the sandbox: nothing of a peer may be touched before */
static _Atomic(struct ring *) ring_table[RINGS_MAX];

/* ------------------------------------------------------------------------------------------------ the worker's side --- */

void worker_notice(void)
{
    uint64_t one = 1;

    /* An eventfd of our own: full only after 2^64 notices. */
    if (write(notice_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
        log_warn("cannot wake the control thread: %s", strerror(errno));
}

static void park(struct worker *w, struct ring *ring)
{
    ring->parked = true;
    ring->parked_at = w->parked_count;
    w->parked[w->parked_count++] = ring;
}

static void unpark(struct worker *w, struct ring *ring)
{
    struct ring *last = w->parked[--w->parked_count];

    ring->parked = false;
    w->parked[ring->parked_at] = last;
    last->parked_at = ring->parked_at;
}

static void activate(struct worker *w, struct ring *ring)
{
    int state = atomic_load_explicit(&ring->state, memory_order_relaxed);

    /* A kick may come after the ring has gone: its client holds the descriptor still. */
    if (ring->active || state == RING_GONE || state == RING_AWAY)
        return;
    if (ring->parked)
        unpark(w, ring);
    ring->active = true;
    ring->empty_since = 0;
    ring->ops->want_kick(ring, false);
    w->active[w->active_count++] = ring;
}

/* Takes the ring at position i off the active list. */
static void deactivate(struct worker *w, unsigned int i)
{
    w->active[i]->active = false;
    w->active[i] = w->active[--w->active_count];
}

/* Lets go of a ring that another worker gets. False: it is to be drained instead. */
static bool let_go(struct worker *w, struct ring *ring)
{
    int leaving = RING_LEAVING;

    if (ring->parked)
        unpark(w, ring);
    for (unsigned int i = 0; i < w->active_count; i++)
        if (w->active[i] == ring)
            deactivate(w, i);
    if (!atomic_compare_exchange_strong(&ring->state, &leaving, RING_AWAY))
        return false;
    worker_notice();
    return true;
}

static void read_mailbox(struct worker *w)
{
    struct ring *ring = atomic_exchange(&w->mailbox, NULL);

    while (ring) {
        struct ring *next = ring->mail_next;

        atomic_store(&ring->mailed, false);
        if (atomic_load(&ring->state) != RING_LEAVING || !let_go(w, ring)) {
            /* Not before its mail is here: after RING_GONE no ring may lie in a mailbox. */
            ring->draining = atomic_load(&ring->state) == RING_DRAINING;
            activate(w, ring);
        }
        ring = next;
    }
}

/*
 * The state before the owner: a ring that is away may have become another worker's, or ours, since its event was fetched.
 * Who gets it is told so by mail.
 */
static bool is_ours(const struct worker *w, const struct ring *ring)
{
    return atomic_load(&ring->state) != RING_AWAY && __atomic_load_n(&ring->worker, __ATOMIC_RELAXED) == w;
}

/* timeout: microseconds, or -1. */
static void read_events(struct worker *w, int64_t timeout)
{
    struct timespec ts = {.tv_sec = timeout / 1000000, .tv_nsec = timeout % 1000000 * 1000};
    struct epoll_event events[EVENTS_MAX];
    int n = epoll_pwait2(w->epoll_fd, events, EVENTS_MAX, timeout < 0 ? NULL : &ts, NULL);

    if (timeout != 0) {
        /* Awake: from here on the control thread waits for us. The fence orders this before every look at a port. */
        atomic_fetch_add(&w->phase, 1);
        atomic_thread_fence(memory_order_seq_cst);
    }
    for (int i = 0; i < n; i++) {
        struct ring *ring = events[i].data.u64 == WAKE_ID ? NULL : atomic_load(&ring_table[events[i].data.u64]);

        if (!ring || !is_ours(w, ring))
            continue;
        activate(w, ring);
        if (ring->role != RING_OF_CLIENT)
            continue; /* a line's timer */
        count(&ring->port->counters.kicks, 1);
        forward_room(ring->port);
    }
}

/* One budget of frames from one ring. False when it had none. */
static bool serve(struct worker *w, struct ring *ring, uint64_t now)
{
    unsigned int done = 0;
    bool seen = false;

    w->batch->frames = 0;
    w->batch->segs = 0;
    w->batch->needs = 0;
    w->batch->dead = NULL;
    if (ring->ops->ingress(ring, w->batch, atomic_load_explicit(&budget, memory_order_relaxed), &seen))
        done = forward_batch(ring, w->batch, now);
    if (seen)
        ring->ops->consumed(ring, w->batch, done);
    return seen;
}

/* Counts the frames that came since anything last went the other way: who waits for answers has few. */
static void note_frames(struct ring *ring, unsigned int frames)
{
    uint64_t answers = atomic_load_explicit(&ring->port->counters.tx_frames, memory_order_relaxed);

    ring->streak = answers == ring->answers ? ring->streak + frames : 0;
    ring->answers = answers;
    ring->bulk = frames >= BULK;
    ring->empty_since = 0;
}

/* What comes in a stream, though slowly, is better fetched now and then than kicked for: no kicks until it ends. */
static bool may_nap(struct ring *ring, uint64_t now)
{
    if (ring->role != RING_OF_CLIENT || ring->bulk || ring->streak < STREAM)
        return false;
    if (now - ring->empty_since < NAP)
        return true;
    ring->streak = STREAM - AWAKE;
    return false;
}

/* A ring that has had nothing for a while goes to sleep. now: microseconds. */
static void rest(struct worker *w, unsigned int i, uint64_t now)
{
    struct ring *ring = w->active[i];
    unsigned int busy = atomic_load_explicit(&busy_poll, memory_order_relaxed), patience = busy;

    if (patience < (ring->bulk ? PATIENCE_BULK : PATIENCE))
        patience = ring->bulk ? PATIENCE_BULK : PATIENCE;
    if (ring->empty_since == 0)
        ring->empty_since = now;
    if (!busy && may_nap(ring, now)) {
        w->napping++;
        return;
    }
    if (now - ring->empty_since < patience)
        return;
    if (ring->ops->want_kick(ring, true))
        ring->empty_since = 0;
    else
        deactivate(w, i);
}

/*
 * A ring on its way out is gone when it is empty, or when all that it can hold has been forwarded: its client may still be
 * there and publish for ever. Into a line on its way out nothing is put any more.
 */
static void drain(struct worker *w, unsigned int i, bool empty)
{
    struct ring *ring = w->active[i];

    if (!empty && (ring->role != RING_OF_CLIENT || ++ring->drain_rounds * budget <= VALE_MAX_SLOTS))
        return;
    deactivate(w, i);
    atomic_store(&ring->state, RING_GONE);
    worker_notice();
}

/* A ring that is held up goes aside, unless room has come meanwhile. */
static void wait_for_room(struct worker *w, unsigned int i)
{
    struct ring *ring = w->active[i];

    if (forward_want_room(ring))
        return;
    deactivate(w, i);
    park(w, ring);
}

/* How long the worker may sleep: microseconds, at least 1; -1 for ever. */
static int64_t patience(const struct worker *w, uint64_t now)
{
    uint64_t first = w->napping ? now + NAP : UINT64_MAX;

    for (unsigned int i = 0; i < w->parked_count; i++) {
        uint64_t deadline = forward_deadline(w->parked[i]);

        first = deadline < first ? deadline : first;
    }
    if (first == UINT64_MAX)
        return -1;
    return first <= now ? 1 : (int64_t)(first - now);
}

/* Tries those again that have waited for long enough, or all when there may be room. */
static void end_waits(struct worker *w, uint64_t now)
{
    bool all = atomic_load_explicit(&w->retry, memory_order_relaxed) && atomic_exchange(&w->retry, false);

    for (unsigned int i = w->parked_count; i-- > 0;)
        if (all || forward_deadline(w->parked[i]) <= now)
            activate(w, w->parked[i]);
}

static void serve_all(struct worker *w, uint64_t now)
{
    w->napping = 0;
    for (unsigned int i = w->active_count; i-- > 0;) {
        struct ring *ring = w->active[i];
        bool seen = serve(w, ring, now);

        if (seen)
            note_frames(ring, w->batch->frames);
        if (ring->draining)
            drain(w, i, !seen);
        else if (!seen)
            rest(w, i, now);
        else if (forward_is_blocked(ring))
            wait_for_room(w, i);
    }
}

static uint64_t now_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    uint64_t last_epoll = 0;

    call_enter_thread(w->index);
    prctl(PR_SET_TIMERSLACK, 1000ul); /* nanoseconds: a nap is no longer than it should be */
    if (!options.no_sandbox)
        sandbox_worker();
    pthread_barrier_wait(&all_started);
    while (!atomic_load_explicit(&w->stop, memory_order_relaxed)) {
        uint64_t now = now_us();

        if (w->active_count == w->napping) {
            int64_t timeout = patience(w, now); /* it still looks at ports */

            atomic_fetch_add(&w->phase, 1); /* asleep: holding nothing */
            atomic_fetch_add_explicit(&w->sleeps, 1, memory_order_relaxed);
            read_events(w, timeout);
            last_epoll = now = now_us();
            end_waits(w, now);
        } else if (now - last_epoll >= EPOLL_INTERVAL) {
            read_events(w, 0);
            last_epoll = now;
            end_waits(w, now);
        }
        if (atomic_load_explicit(&w->mailbox, memory_order_relaxed))
            read_mailbox(w);
        serve_all(w, now);
        atomic_fetch_add(&w->phase, 2);
        atomic_fetch_add_explicit(&w->rounds, 1, memory_order_relaxed);
    }
    return NULL;
}

/* ----------------------------------------------------------------------------------------- the control thread's side --- */

static void wake(struct worker *w)
{
    uint64_t one = 1;

    if (write(w->wake_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
        log_warn("cannot wake worker %u: %s", w->index, strerror(errno));
}

static void post(struct worker *w, struct ring *ring)
{
    struct ring *head = atomic_load(&w->mailbox);

    if (atomic_exchange(&ring->mailed, true))
        return; /* it lies there already, and will be seen after this */
    do
        ring->mail_next = head;
    while (!atomic_compare_exchange_weak(&w->mailbox, &head, ring));
    wake(w);
}

/* A list of rings: reserved, not touched; a page is used per 512 of them. */
static struct ring **reserve_list(void)
{
    return mmap(NULL, RINGS_MAX * sizeof(struct ring *), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static int worker_init(struct worker *w, unsigned int index)
{
    struct epoll_event ev = {.events = EPOLLIN | EPOLLET, .data.u64 = WAKE_ID};

    w->index = index;
    w->cpu = -1;
    w->phase = 1;
    w->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    w->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    w->batch = calloc(1, sizeof(*w->batch));
    w->active = reserve_list();
    w->parked = reserve_list();
    if (w->epoll_fd < 0 || w->wake_fd < 0 || !w->batch || w->active == MAP_FAILED || w->parked == MAP_FAILED)
        return -ENOMEM;
    if (epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD, w->wake_fd, &ev) < 0)
        return -errno;
    return 0;
}

/* Pins worker i to the i-th CPU of a list such as "0,2-5". */
static int pin(struct worker *w, const char *cpus)
{
    cpu_set_t set;
    unsigned int nth = 0;

    CPU_ZERO(&set);
    for (const char *p = cpus; *p;) {
        char *end;
        unsigned long first = strtoul(p, &end, 10), last = first;

        if (end != p && *end == '-')
            last = strtoul(end + 1, &end, 10);
        if (end == p || first > last || last >= CPU_SETSIZE || (*end != ',' && *end != '\0'))
            return -EINVAL;
        for (; first <= last; first++)
            CPU_SET(first, &set);
        p = *end ? end + 1 : end;
    }
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, &set) && nth++ == w->index % (unsigned int)CPU_COUNT(&set))
            return worker_pin(w->index, cpu);
    }
    return -EINVAL;
}

int worker_pin(unsigned int worker, int cpu)
{
    cpu_set_t set;
    int err;

    if (worker >= worker_count)
        return -ENOENT;
    if (cpu >= CPU_SETSIZE)
        return -EINVAL;
    CPU_ZERO(&set);
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (cpu < 0 || i == cpu)
            CPU_SET(i, &set);
    err = -pthread_setaffinity_np(workers[worker].thread, sizeof(set), &set);
    if (err == 0)
        workers[worker].cpu = cpu < 0 ? -1 : cpu;
    return err;
}

void workers_set_batch(unsigned int frames)
{
    atomic_store(&budget, frames);
}

void workers_set_busy_poll(unsigned int us)
{
    atomic_store(&busy_poll, us);
}

int workers_start(unsigned int n, const char *cpus)
{
    notice_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (notice_fd < 0)
        return -errno;
    pthread_barrier_init(&all_started, NULL, n + 1);
    for (unsigned int i = 0; i < n; i++) {
        struct worker *w = &workers[i];
        int err = worker_init(w, i);

        if (err == 0)
            err = -pthread_create(&w->thread, NULL, worker_main, w);
        if (err == 0)
            worker_count++;
        if (err == 0 && cpus)
            err = pin(w, cpus);
        if (err)
            return err;
    }
    pthread_barrier_wait(&all_started);
    return 0;
}

void workers_stop(void)
{
    for (unsigned int i = 0; i < worker_count; i++) {
        atomic_store(&workers[i].stop, true);
        wake(&workers[i]);
        pthread_join(workers[i].thread, NULL);
        close(workers[i].epoll_fd);
        close(workers[i].wake_fd);
        free(workers[i].batch);
        munmap(workers[i].active, RINGS_MAX * sizeof(*workers[i].active));
        munmap(workers[i].parked, RINGS_MAX * sizeof(*workers[i].parked));
    }
    worker_count = 0;
    close(notice_fd);
}

int workers_notice_fd(void)
{
    return notice_fd;
}

static struct worker *least_loaded(void)
{
    struct worker *w = &workers[0];

    for (unsigned int i = 1; i < worker_count; i++)
        if (workers[i].rings < w->rings)
            w = &workers[i];
    return w;
}

int worker_add_ring(struct ring *ring, const struct ring_ops *ops)
{
    unsigned int id = 0;
    int fd = ring->kick_fd, err;

    while (id < RINGS_MAX && ring_table[id])
        id++;
    if (id == RINGS_MAX)
        return -ENOMEM;
    ring->id = id;
    ring->ops = ops;
    ring->worker = NULL;
    ring->last_src = ring->last_dst = UINT64_MAX;
    ring->blocked_on = BLOCKED_NONE;
    atomic_store(&ring->state, RING_LIVE);
    atomic_store(&ring_table[id], ring);
    ring->kick_fd = ring->room_fd = -1;
    err = worker_set_kick(ring, fd);
    if (err) {
        ring->kick_fd = fd;
        atomic_store(&ring_table[id], NULL);
        ring->worker->rings--; /* only a ring that has been dealt can fail */
        ring->worker = NULL;
        return err;
    }
    return 0;
}

void worker_set_room_kick(struct ring *ring, int fd)
{
    struct epoll_event ev = {.events = EPOLLIN | EPOLLET, .data.u64 = ring->id};

    if (ring->room_fd >= 0 && ring->worker)
        epoll_ctl(ring->worker->epoll_fd, EPOLL_CTL_DEL, ring->room_fd, NULL);
    ring->room_fd = fd;
    if (fd >= 0 && ring->worker && epoll_ctl(ring->worker->epoll_fd, EPOLL_CTL_ADD, fd, &ev) < 0)
        log_debug("%s: cannot watch for room: %s", ring->port->name.full, strerror(errno));
}

uint64_t worker_bit(const struct ring *ring)
{
    return 1ull << ring->worker->index;
}

void workers_retry(uint64_t set)
{
    for (unsigned int i = 0; i < worker_count; i++) {
        if (set & 1ull << i) {
            atomic_store(&workers[i].retry, true);
            wake(&workers[i]);
        }
    }
}

/* A descriptor of the ring, if it has it, wakes another worker from now on. */
static void rewatch(struct ring *ring, int fd, struct worker *from, struct worker *to)
{
    struct epoll_event ev = {.events = EPOLLIN | EPOLLET, .data.u64 = ring->id};

    if (fd < 0)
        return;
    atomic_thread_fence(memory_order_seq_cst); /* between the new owner and the wish: see worker_want_room() */
    if (fd == ring->kick_fd && __atomic_load_n(&ring->room_wanted, __ATOMIC_RELAXED))
        ev.events |= EPOLLOUT;
    epoll_ctl(from->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
    if (epoll_ctl(to->epoll_fd, EPOLL_CTL_ADD, fd, &ev) < 0)
        log_warn("%s: cannot watch for kicks: %s", ring->port->name.full, strerror(errno));
}

int worker_set_kick(struct ring *ring, int fd)
{
    struct epoll_event ev = {.events = EPOLLIN | EPOLLET, .data.u64 = ring->id};

    if (ring->kick_fd >= 0 && ring->worker)
        epoll_ctl(ring->worker->epoll_fd, EPOLL_CTL_DEL, ring->kick_fd, NULL);
    __atomic_store_n(&ring->kick_fd, fd, __ATOMIC_RELAXED);
    if (fd >= 0 && !ring->worker) {
        struct worker *w = least_loaded();

        __atomic_store_n(&ring->worker, w, __ATOMIC_RELAXED);
        w->rings++;
        worker_set_room_kick(ring, ring->room_fd);
    }
    if (fd >= 0 && epoll_ctl(ring->worker->epoll_fd, EPOLL_CTL_ADD, fd, &ev) < 0)
        return -errno;
    return 0;
}

void worker_want_room(struct ring *ring, bool on)
{
    struct epoll_event ev = {.events = EPOLLIN | EPOLLET | (on ? EPOLLOUT : 0), .data.u64 = ring->id};
    struct worker *w;
    int err;

    __atomic_store_n(&ring->room_wanted, on, __ATOMIC_RELAXED);
    /* The ring may be on its way out: then there is no room to wait for. Or it moves: then rewatch() sees the wish, or we
     * see the new owner. */
    do {
        atomic_thread_fence(memory_order_seq_cst);
        w = __atomic_load_n(&ring->worker, __ATOMIC_RELAXED);
        err = w ? epoll_ctl(w->epoll_fd, EPOLL_CTL_MOD, __atomic_load_n(&ring->kick_fd, __ATOMIC_RELAXED), &ev) : 0;
    } while (err < 0 && errno == ENOENT && w != __atomic_load_n(&ring->worker, __ATOMIC_RELAXED));
}

void worker_poke_ring(struct ring *ring)
{
    if (ring->worker && atomic_load(&ring->state) == RING_LIVE)
        post(ring->worker, ring);
}

/* -- moving a ring: LIVE, LEAVING, (its worker) AWAY, LIVE -- */

unsigned int worker_of(const struct ring *ring)
{
    return ring->worker ? ring->worker->index : 0;
}

int worker_move_ring(struct ring *ring, unsigned int worker)
{
    int live = RING_LIVE;

    if (worker >= worker_count)
        return -ENOENT;
    if (!ring->worker || &workers[worker] == ring->worker)
        return 0;
    if (!atomic_compare_exchange_strong(&ring->state, &live, RING_LEAVING))
        return -EBUSY;
    ring->moves_to = &workers[worker];
    ring->next_moving = moving;
    moving = ring;
    post(ring->worker, ring);
    return 0;
}

/* The ring is nobody's: it becomes the other worker's, which looks at it at once. */
static void arrive(struct ring *ring, int state)
{
    struct worker *from = ring->worker, *to = ring->moves_to;

    __atomic_store_n(&ring->worker, to, __ATOMIC_RELAXED);
    from->rings--;
    to->rings++;
    atomic_store(&ring->state, state);
    rewatch(ring, ring->kick_fd, from, to);
    rewatch(ring, ring->room_fd, from, to);
    post(to, ring);
}

void workers_finish_moves(void)
{
    struct ring **link = &moving;

    while (*link) {
        struct ring *ring = *link;
        int state = atomic_load(&ring->state);

        if (state == RING_LEAVING) {
            link = &ring->next_moving;
            continue;
        }
        *link = ring->next_moving;
        if (state == RING_AWAY)
            arrive(ring, RING_LIVE);
    }
}

void worker_drain_ring(struct ring *ring)
{
    int before = atomic_exchange(&ring->state, RING_DRAINING);

    if (before == RING_LEAVING || before == RING_AWAY)
        workers_finish_moves(); /* does not move it any more */
    if (before == RING_AWAY)
        arrive(ring, RING_DRAINING);
    else
        post(ring->worker, ring);
}

void worker_forget_ring(struct ring *ring)
{
    if (ring_table[ring->id] != ring)
        return; /* it was never added */
    atomic_store(&ring_table[ring->id], NULL);
    if (!ring->worker)
        return; /* nor used */
    if (ring->kick_fd >= 0)
        epoll_ctl(ring->worker->epoll_fd, EPOLL_CTL_DEL, ring->kick_fd, NULL);
    if (ring->room_fd >= 0)
        epoll_ctl(ring->worker->epoll_fd, EPOLL_CTL_DEL, ring->room_fd, NULL);
    ring->worker->rings--;
    __atomic_store_n(&ring->worker, NULL, __ATOMIC_RELAXED);
}

/* ---------------------------------------------------------------------------------------------- reclaiming memory --- */

/*
 * Objects wait in the order in which they were unlinked. One grace period at a time runs; it serves those that were there
 * when it began, and the next begins when it is over.
 */
struct garbage {
    void (*fn)(void *arg);
    void *arg;
    struct garbage *next;
};

static struct garbage *waiting, **waiting_end = &waiting; /* for the next period */
static struct garbage *served;                            /* by the period that runs */
static uint64_t noted_phase[WORKERS_MAX];

void reclaim(void (*fn)(void *arg), void *arg)
{
    struct garbage *g = malloc(sizeof(*g));

    if (!g) {
        log_warn("out of memory: an object is leaked");
        return;
    }
    *g = (struct garbage){.fn = fn, .arg = arg};
    *waiting_end = g;
    waiting_end = &g->next;
}

static void begin_period(void)
{
    served = waiting;
    waiting = NULL;
    waiting_end = &waiting;
    atomic_thread_fence(memory_order_seq_cst);
    for (unsigned int i = 0; i < worker_count; i++)
        noted_phase[i] = atomic_load(&workers[i].phase);
}

static bool period_over(void)
{
    for (unsigned int i = 0; i < worker_count; i++)
        if ((noted_phase[i] & 1) && atomic_load(&workers[i].phase) == noted_phase[i])
            return false;
    return true;
}

bool reclaim_run(void)
{
    while (served || waiting) {
        if (!served)
            begin_period();
        if (!period_over())
            return true;
        while (served) {
            struct garbage *g = served;

            served = g->next;
            g->fn(g->arg);
            free(g);
        }
    }
    return false;
}

json_t *workers_describe(void)
{
    json_t *list = json_array();

    for (unsigned int i = 0; i < worker_count; i++) {
        struct worker *w = &workers[i];

        json_array_append_new(list, json_pack("{s:i, s:i, s:i, s:I, s:I}", "worker", (int)i, "cpu", w->cpu, "rings",
                                              (int)w->rings, "rounds", (json_int_t)w->rounds, "sleeps",
                                              (json_int_t)w->sleeps));
    }
    return list;
}
