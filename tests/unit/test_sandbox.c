/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_sandbox - what valed can still do once it has started (valed/sandbox.c), tried in children that do it
 *
 * They run in a directory `run` and may also make sockets in `given` beside it. Built without sanitizers, which valed/sandbox.h
 * excepts.
 */
#include "sandbox.h"

#include "check.h"
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE   4096
#define KILLED 1000

/* Each returns 0 or an errno. */

static int listen_at(const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    strncpy(addr.sun_path, path, sizeof(addr.sun_path) - 1);
    return bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 || unlink(path) < 0 ? errno : 0;
}

static int socket_here(void)
{
    return listen_at("here.sock");
}

static int socket_in_dir(void)
{
    return listen_at("../given/there.sock");
}

static int socket_elsewhere(void)
{
    return listen_at("../elsewhere.sock");
}

static int inet_socket(void)
{
    return socket(AF_INET, SOCK_STREAM, 0) < 0 ? errno : 0;
}

static int netlink_socket(void)
{
    return socket(AF_NETLINK, SOCK_RAW, 0) < 0 ? errno : 0;
}

static int run_program(void)
{
    char *argv[] = {"true", NULL};

    return execv("/bin/true", argv) < 0 ? errno : 0;
}

static int fork_self(void)
{
    return fork() < 0 ? errno : 0;
}

static int trace(void)
{
    return ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0 ? errno : 0;
}

static int open_file(void)
{
    return open("/etc/passwd", O_RDONLY) < 0 ? errno : 0;
}

static int kill_parent(void)
{
    return kill(getppid(), 0) < 0 ? errno : 0;
}

static int new_namespace(void)
{
    return unshare(CLONE_NEWUSER) < 0 ? errno : 0;
}

static int map(int prot, int flags)
{
    static char page[2 * PAGE] __attribute__((aligned(PAGE)));
    void *at = flags & MAP_FIXED ? page : NULL;

    return mmap(at, PAGE, prot, flags, -1, 0) == MAP_FAILED ? errno : 0;
}

static int map_memory(void)
{
    return map(PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
}

static int map_executable(void)
{
    return map(PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS);
}

static int map_as_guard(void)
{
    return map(PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE);
}

static int allocate_much(void)
{
    void *volatile memory = malloc(64 << 20);

    return memory ? 0 : ENOMEM;
}

static int new_memfd(void)
{
    return memfd_create("test", 0) < 0 ? errno : 0;
}

static int close_nothing(void)
{
    return close(-1) == 0 || errno != EBADF;
}

static int write_nothing(void)
{
    return write(-1, "", 0) == 0 || errno != EBADF;
}

/* Its errno, or KILLED. what: NULL, sandbox_worker or sandbox_control. */
static int in_sandbox(void (*what)(void), int (*act)(void))
{
    const char *given = "../given";
    pid_t child = fork();
    int act_errno, status;

    if (child == 0) {
        sandbox_enter(&given, 1);
        if (what)
            what();
        act_errno = act();
        if (what == sandbox_worker)
            syscall(SYS_exit, act_errno); /* a worker may end, and not all threads */
        _exit(act_errno);
    }
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status) == SIGSYS ? KILLED : -WTERMSIG(status);
}

#define CONTROL(act) in_sandbox(sandbox_control, act)
#define WORKER(act)  in_sandbox(sandbox_worker, act)

int main(void)
{
    char base[] = "/tmp/vale-XXXXXX";
    bool landlock = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION) > 0;

    CHECK(mkdtemp(base) && chdir(base) == 0 && mkdir("run", 0700) == 0 && mkdir("given", 0700) == 0 && chdir("run") == 0);
    if (landlock) {
        CHECK(in_sandbox(NULL, open_file) == EACCES);
        CHECK(in_sandbox(NULL, run_program) == EACCES);
        CHECK(CONTROL(socket_elsewhere) == EACCES);
    } else {
        puts("no Landlock in this kernel: not tested");
    }
    CHECK(CONTROL(socket_here) == 0);
    CHECK(CONTROL(socket_in_dir) == 0);
    CHECK(CONTROL(new_memfd) == 0);
    CHECK(CONTROL(allocate_much) == 0);
    CHECK(CONTROL(map_memory) == 0);
    CHECK(CONTROL(map_executable) == KILLED);
    CHECK(CONTROL(inet_socket) == KILLED);
    CHECK(CONTROL(netlink_socket) == KILLED);
    CHECK(CONTROL(run_program) == KILLED);
    CHECK(CONTROL(fork_self) == KILLED);
    CHECK(CONTROL(trace) == KILLED);
    CHECK(CONTROL(kill_parent) == KILLED);
    CHECK(CONTROL(new_namespace) == KILLED);

    CHECK(WORKER(write_nothing) == 0);
    CHECK(WORKER(map_as_guard) == 0);
    CHECK(WORKER(map_memory) == KILLED);
    CHECK(WORKER(allocate_much) == KILLED);
    CHECK(WORKER(new_memfd) == KILLED);
    CHECK(WORKER(close_nothing) == KILLED);
    CHECK(WORKER(socket_here) == KILLED);
    CHECK(WORKER(open_file) == KILLED);
    CHECK(WORKER(run_program) == KILLED);
    CHECK(WORKER(fork_self) == KILLED);
    CHECK(chdir(base) == 0 && rmdir("run") == 0 && rmdir("given") == 0 && rmdir(base) == 0);
    return failed != 0;
}
