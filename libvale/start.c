/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * start.c - start valed on demand
 *
 * Racing callers make one valed: each takes the start lock of the runtime directory (flock), and looks, once it has it,
 * whether valed answers by now. valed reports that it serves by a byte on its --ready-fd; a closed descriptor without one
 * means that it failed, and the last line of its log says why.
 *
 * The daemon must keep nothing of its starter: it is forked twice (nobody has to reap it), in a session of its own, in /,
 * with signals as by default and all descriptors closed except 0, 1 (/dev/null), 2 (valed.log) and 3 (ready). Between fork
 * and exec only async-signal-safe functions are called, as the starter may have threads.
 */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LINGER_SECONDS "30"
#define READY_FD 3

/* Paths in the runtime directory, and the program. */
struct plan {
    char rundir[VALE_PATH_MAX];
    char program[VALE_PATH_MAX];
    char log[VALE_PATH_MAX];
    char lock[VALE_PATH_MAX];
    char socket[VALE_PATH_MAX];
};

static bool answers(const struct plan *plan)
{
    int fd = vale_attach_connect(plan->socket);

    if (fd >= 0) {
        close(fd);
    }
    return fd >= 0;
}

/* ------------------------------------------------------------------------------------------------ which program --- */

static bool join(char *to, const char *dir, size_t dir_length, const char *file)
{
    int length = snprintf(to, VALE_PATH_MAX, "%.*s/%s", (int)dir_length, dir, file);

    return length > 0 && length < VALE_PATH_MAX;
}

static bool beside_us(char *program)
{
    char self[VALE_PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);

    if (length <= 0) {
        return false;
    }
    self[length] = '\0';
    return join(program, self, (size_t)(strrchr(self, '/') - self), "valed") && access(program, X_OK) == 0;
}

static bool in_path(char *program)
{
    const char *dir = getenv("PATH");

    while (dir != NULL && *dir != '\0') {
        size_t length = strcspn(dir, ":");

        if (length > 0 && join(program, dir, length, "valed") && access(program, X_OK) == 0) {
            return true;
        }
        dir += length + (dir[length] == ':');
    }
    return false;
}

static int find_program(char *program, struct vale_error *err)
{
    const char *env = getenv("VALED");

    if (env != NULL && env[0] != '\0') {
        if (realpath(env, program) == NULL || access(program, X_OK) < 0) {
            return vale_fail(err, ENOENT, "%s: cannot be run (%s): correct VALED", env, strerror(errno));
        }
        return 0;
    }
    if (beside_us(program) || in_path(program)) {
        return 0;
    }
    return vale_fail(err, ENOENT, "valed: not found beside this program nor in PATH: install it, or set VALED to its path");
}

/* ---------------------------------------------------------------------------------------------------- the child --- */

static void close_from(unsigned int first)
{
    unsigned int fd;

    if (syscall(SYS_close_range, first, ~0U, 0) < 0) {
        for (fd = first; fd < 65536; fd++) {
            close((int)fd);
        }
    }
}

/* Moves the descriptors to their places. Sources are all above READY_FD, so no step destroys a later one's source. */
static bool place_fds(int null_fd, int log_fd, int ready_fd)
{
    return dup2(null_fd, 0) >= 0 && dup2(null_fd, 1) >= 0 && dup2(log_fd, 2) >= 0 && dup2(ready_fd, READY_FD) >= 0;
}

static void default_signals(void)
{
    sigset_t none;
    int sig;

    for (sig = 1; sig < NSIG; sig++) {
        signal(sig, SIG_DFL);
    }
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static void __attribute__((noreturn)) become_valed(char *const argv[], int null_fd, int log_fd, int ready_fd)
{
    setsid();
    if (fork() != 0) {
        _exit(0);
    }
    default_signals();
    if (place_fds(null_fd, log_fd, ready_fd) && chdir("/") == 0) {
        close_from(READY_FD + 1);
        execv(argv[0], argv);
    }
    _exit(127);
}

/* Opens at or above the places that place_fds() fills. */
static int open_above(const char *path, int flags)
{
    int low = open(path, flags | O_CLOEXEC, 0600);
    int fd = low < 0 ? -1 : fcntl(low, F_DUPFD_CLOEXEC, READY_FD + 1);

    if (low >= 0) {
        close(low);
    }
    return fd;
}

/* Starts the program. The read end of its ready pipe, or -errno. */
static int spawn(struct plan *plan)
{
    char ready[] = "3", linger[] = LINGER_SECONDS;
    char opt_rundir[] = "--rundir", opt_linger[] = "--linger", opt_ready[] = "--ready-fd";
    char *argv[] = {plan->program, opt_rundir, plan->rundir, opt_linger, linger, opt_ready, ready, NULL};
    int null_fd = open_above("/dev/null", O_RDWR);
    int log_fd = open_above(plan->log, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW);
    int pipe_fds[2] = {-1, -1}, ready_fd = -1, rc = 0;
    pid_t pid;

    if (null_fd < 0 || log_fd < 0 || pipe2(pipe_fds, O_CLOEXEC) < 0 ||
        (ready_fd = fcntl(pipe_fds[1], F_DUPFD_CLOEXEC, READY_FD + 1)) < 0) {
        rc = -errno;
    } else if ((pid = fork()) < 0) {
        rc = -errno;
    } else if (pid == 0) {
        become_valed(argv, null_fd, log_fd, ready_fd);
    } else {
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
        }
    }
    close(null_fd);
    close(log_fd);
    close(ready_fd);
    close(pipe_fds[1]);
    if (rc < 0) {
        close(pipe_fds[0]);
    }
    return rc < 0 ? rc : pipe_fds[0];
}

/* --------------------------------------------------------------------------------------------------- the parent --- */

/* The last line of the log, which says why valed ended. */
static void last_line(const char *path, char *line, size_t size)
{
    char *end;
    ssize_t length = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    off_t all = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);

    if (fd >= 0) {
        length = pread(fd, line, size - 1, all > (off_t)size - 1 ? all - (off_t)size + 1 : 0);
        close(fd);
    }
    line[length > 0 ? length : 0] = '\0';
    while (length > 0 && line[length - 1] == '\n') {
        line[--length] = '\0';
    }
    end = strrchr(line, '\n');
    if (end != NULL) {
        memmove(line, end + 1, strlen(end + 1) + 1);
    }
}

static int await_ready(const struct plan *plan, int ready_fd, struct vale_error *err)
{
    struct pollfd pfd = {.fd = ready_fd, .events = POLLIN};
    char byte, line[200];
    int rc;

    do {
        rc = poll(&pfd, 1, VALE_START_MS);
    } while (rc < 0 && errno == EINTR);
    if (rc == 0) {
        return vale_fail(err, ETIMEDOUT, "%s: valed is not ready after %d s: see %s", plan->rundir, VALE_START_MS / 1000,
                         plan->log);
    }
    if (read(ready_fd, &byte, 1) == 1) {
        return 0;
    }
    last_line(plan->log, line, sizeof(line));
    return vale_fail(err, ENOENT, "%s did not start (log: %s): %s", plan->program, plan->log,
                     line[0] != '\0' ? line : "it said nothing");
}

/* Takes the start lock. Its descriptor, or -errno; -ETIMEDOUT when another starter holds it beyond its own deadline. */
static int take_lock(const struct plan *plan)
{
    struct timespec pause = {.tv_nsec = 20 * 1000 * 1000};
    int fd = open(plan->lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    int tries;

    if (fd < 0) {
        return -errno;
    }
    for (tries = 0; flock(fd, LOCK_EX | LOCK_NB) < 0; tries++) {
        if (tries == (VALE_START_MS + 2000) / 20) {
            close(fd);
            return -ETIMEDOUT;
        }
        nanosleep(&pause, NULL);
    }
    return fd;
}

static int make_plan(struct plan *plan, const char *rundir, struct vale_error *err)
{
    size_t length;

    if (realpath(rundir, plan->rundir) == NULL) {
        return vale_fail(err, errno, "%s: %s", rundir, strerror(errno));
    }
    length = strlen(plan->rundir);
    if (!join(plan->log, plan->rundir, length, "valed.log") || !join(plan->lock, plan->rundir, length, "start.lock") ||
        !join(plan->socket, plan->rundir, length, VALE_SOCKET_NAME)) {
        return vale_fail(err, ENAMETOOLONG, "%s: too long a path", rundir);
    }
    return find_program(plan->program, err);
}

int vale_start_valed(const char *rundir, struct vale_error *err)
{
    struct plan plan;
    int lock, ready, rc;

    rc = make_plan(&plan, rundir, err);
    if (rc < 0) {
        return rc;
    }
    lock = take_lock(&plan);
    if (lock < 0) {
        return vale_fail(err, -lock, "%s: cannot be locked: %s", plan.lock, strerror(-lock));
    }
    if (!answers(&plan)) {
        ready = spawn(&plan);
        if (ready < 0) {
            rc = vale_fail(err, -ready, "%s: cannot be started: %s", plan.program, strerror(-ready));
        } else {
            rc = await_ready(&plan, ready, err);
            close(ready);
        }
    }
    close(lock);
    return rc;
}
