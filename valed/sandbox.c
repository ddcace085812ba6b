/* SPDX-License-Identifier: BSD-2-Clause */
/* What valed gives up once it has started. */
#include "sandbox.h"

#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/if_tun.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <linux/sockios.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef __has_feature
#define HAS_FEATURE(x) __has_feature(x)
#else
#define HAS_FEATURE(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || HAS_FEATURE(address_sanitizer) || \
    HAS_FEATURE(thread_sanitizer)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#else
#error "sandbox.c: which AUDIT_ARCH_* is this?"
#endif

static int landlock_abi; /* 0: none */

/* ---------------------------------------------------------------------------------- privileges and the file system --- */

static void drop_capabilities(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {0};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || syscall(SYS_capset, &header, none) < 0)
        fatal(1, "sandbox: cannot drop privileges: %s", strerror(errno));
}

#ifndef LANDLOCK_ACCESS_FS_TRUNCATE /* headers of Linux before 6.2 */
#define LANDLOCK_ACCESS_FS_TRUNCATE (1ULL << 14)
#endif

#define SOCKETS (LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_REMOVE_FILE)
#define FILES                                                                                                          \
    (LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE |                       \
     LANDLOCK_ACCESS_FS_TRUNCATE)

/* These rights hold below dir. */
static void allow(int ruleset, const char *dir, uint64_t rights)
{
    struct landlock_path_beneath_attr rule = {
        .allowed_access = rights,
        .parent_fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC),
    };

    if (rule.parent_fd < 0 || syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) < 0)
        fatal(1, "--socket-dir %s: %s", dir, strerror(errno));
    close(rule.parent_fd);
}

static void restrict_files(const char *const *dirs, unsigned int n)
{
    static const unsigned int rights_of_abi[] = {0, 13, 14, 15, 15, 16}; /* number of rights: they are bits from 0 on */
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    struct landlock_ruleset_attr attr = {0};
    int ruleset;

    if (abi <= 0)
        return;
    attr.handled_access_fs = (1ull << rights_of_abi[abi < 5 ? abi : 5]) - 1;
    ruleset = (int)syscall(SYS_landlock_create_ruleset, &attr, sizeof(attr.handled_access_fs), 0);
    if (ruleset < 0)
        fatal(1, "sandbox: Landlock: %s", strerror(errno));
    allow(ruleset, ".", (SOCKETS | FILES) & attr.handled_access_fs); /* state.c keeps a file there */
    for (unsigned int i = 0; i < n; i++)
        allow(ruleset, dirs[i], SOCKETS);
    if (syscall(SYS_landlock_restrict_self, ruleset, 0) < 0)
        fatal(1, "sandbox: Landlock: %s", strerror(errno));
    close(ruleset);
    landlock_abi = (int)abi;
}

void sandbox_enter(const char *const *dirs, unsigned int n)
{
    drop_capabilities();
    if (!SANITIZED)
        restrict_files(dirs, n);
}

/* ------------------------------------------------------------------------------------------------------ system calls --- */

/* A call that is allowed: always, or when (argument & mask) == value. */
struct rule {
    int call;
    bool checked;
    unsigned int argument;
    uint32_t mask, value;
};

#define ANY(name)                         {.call = SYS_##name}
#define ONLY(name, arg, bits, want)       {.call = SYS_##name, .checked = true, .argument = arg, .mask = bits, .value = want}
#define EXACTLY(name, arg, want)          ONLY(name, arg, 0xffffffff, want)
#define GUARD_MMAP                        (MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE) /* guard.c */

/* The most frequent first, for kernels that do not cache the answers (before 5.11). */
static const struct rule worker_rules[] = {
    ANY(write), ANY(read), ANY(writev), ANY(recvfrom), ANY(sendmsg), ANY(sendto), ANY(futex),
    ANY(epoll_pwait2), ANY(epoll_ctl), ANY(clock_gettime), ANY(shutdown),
    /* call.c; SIGBUS: guard.c. */
    ANY(timerfd_settime),
    EXACTLY(mmap, 3, GUARD_MMAP), ANY(rt_sigaction), ANY(rt_sigreturn), ANY(restart_syscall),
    /* The end of a thread. */
    ANY(rt_sigprocmask), ANY(madvise), ANY(exit),
};

static const struct rule control_rules[] = {
    ANY(write), ANY(read), ANY(recvmsg), ANY(sendmsg), ANY(recvfrom), ANY(sendto), ANY(close), ANY(fcntl), ANY(futex),
#ifdef SYS_epoll_wait
    ANY(epoll_wait),
#endif
    ANY(epoll_pwait), ANY(epoll_ctl), ANY(clock_gettime),
    /* Sockets of clients, and of ports. */
    EXACTLY(socket, 0, AF_UNIX), ANY(bind), ANY(listen), ANY(connect), ANY(accept4), ANY(getsockopt), ANY(shutdown),
    /* Descriptors of ports. */
    ANY(eventfd2), ANY(pipe2), ANY(memfd_create), ANY(ftruncate), ANY(fstatfs), ANY(fstat), ANY(newfstatat), ANY(readlinkat),
    ANY(unlinkat),
    /* The state file. */
    ANY(openat), ANY(renameat),
#ifdef SYS_open /* an architecture of the first generation */
    ANY(lstat), ANY(readlink), ANY(unlink), ANY(rename),
#endif
    EXACTLY(ioctl, 1, SIOCOUTQ), EXACTLY(ioctl, 1, SIOCGIFINDEX), EXACTLY(ioctl, 1, TUNGETIFF), EXACTLY(ioctl, 1, TUNSETOFFLOAD),
    /* Memory: nothing executable. */
    ONLY(mmap, 2, PROT_EXEC, 0), ONLY(mprotect, 2, PROT_EXEC, 0), ANY(munmap), ANY(mremap), ANY(brk), ANY(madvise),
    /* Workers, signals, the end. */
    ANY(timerfd_create), ANY(timerfd_settime), ANY(tgkill), ANY(getpid), ANY(gettid), ANY(geteuid), ANY(rt_sigprocmask),
    ANY(rt_sigaction), ANY(rt_sigreturn), ANY(restart_syscall), ANY(getrandom), ANY(sched_getaffinity),
    ANY(sched_setaffinity), ANY(exit_group),
};

#define RULE_LENGTH   6 /* instructions, at most */
#define FILTER_LENGTH (5 + RULE_LENGTH * sizeof(control_rules) / sizeof(control_rules[0]))
#define LOAD(field)   BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)(field))
#define RETURN(what)  BPF_STMT(BPF_RET | BPF_K, what)
#define UNLESS(want, skip) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(want), 0, skip)

/* Appends one rule: the accumulator holds the call's number before and behind it. */
static unsigned int add_rule(struct sock_filter *f, const struct rule *r)
{
    const size_t low = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? 0 : 4;
    const struct sock_filter plain[] = {UNLESS(r->call, 1), RETURN(SECCOMP_RET_ALLOW)};
    const struct sock_filter checked[RULE_LENGTH] = {
        UNLESS(r->call, 5),
        LOAD(offsetof(struct seccomp_data, args) + 8 * r->argument + low),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, r->mask),
        UNLESS(r->value, 1),
        RETURN(SECCOMP_RET_ALLOW),
        LOAD(offsetof(struct seccomp_data, nr)),
    };

    memcpy(f, r->checked ? checked : plain, r->checked ? sizeof(checked) : sizeof(plain));
    return (r->checked ? sizeof(checked) : sizeof(plain)) / sizeof(*f);
}

/* Allows the calling thread the calls of the rules, and no others. */
static void filter_calls(const struct rule *rules, size_t count)
{
    const struct sock_filter start[] = {
        LOAD(offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0),
        RETURN(SECCOMP_RET_KILL_PROCESS),
        LOAD(offsetof(struct seccomp_data, nr)),
    };
    struct sock_filter filter[FILTER_LENGTH];
    struct sock_fprog program = {.filter = filter};
    unsigned int n = sizeof(start) / sizeof(start[0]);

    if (SANITIZED)
        return;
    memcpy(filter, start, sizeof(start));
    for (size_t i = 0; i < count; i++)
        n += add_rule(filter + n, &rules[i]);
    filter[n++] = (struct sock_filter)RETURN(SECCOMP_RET_KILL_PROCESS);
    program.len = (unsigned short)n;
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) < 0)
        fatal(1, "sandbox: seccomp: %s; --no-sandbox does without", strerror(errno));
}

void sandbox_worker(void)
{
    filter_calls(worker_rules, sizeof(worker_rules) / sizeof(worker_rules[0]));
}

void sandbox_control(void)
{
    filter_calls(control_rules, sizeof(control_rules) / sizeof(control_rules[0]));
    if (SANITIZED)
        log_info("sandbox: no capabilities; a build with sanitizers has no more");
    else if (landlock_abi)
        log_info("sandbox: seccomp, Landlock ABI %d, no capabilities", landlock_abi);
    else
        log_info("sandbox: seccomp, no capabilities; this kernel has no Landlock");
}
