/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * sandbox - what valed gives up once it has started: all that it will not need
 *
 * Whoever gets hold of valed through a bug gets a process that can forward frames and little else. In this order:
 *
 *   sandbox_enter()    before the workers start, who inherit it: no_new_privs, no capabilities, and Landlock where the kernel
 *                      has it: no file can be opened, sockets are made and removed in the directories given and nowhere else
 *   sandbox_worker()   in each worker: seccomp with the calls that moving frames needs; no memory is allocated, no descriptor
 *                      opened, and mmap is what the SIGBUS handler does and nothing else
 *   sandbox_control()  in the control thread, at the end of the start: seccomp with the calls that serving clients needs; sockets
 *                      of AF_UNIX only, nothing executable, no new thread or program
 *
 * A system call that is not on the list ends the process (SIGSYS): it is a bug, or worse. Who adds a call to valed adds it
 * there. Each ends the program with one line where it fails. Builds with sanitizers keep only no_new_privs and capabilities:
 * at run time sanitizers open files, trace and allocate.
 */
#ifndef VALED_SANDBOX_H
#define VALED_SANDBOX_H

/* rundir and dirs[0..n-1]: where sockets may be made. rundir is the current directory. */
void sandbox_enter(const char *const *dirs, unsigned int n);
void sandbox_worker(void);
void sandbox_control(void);

#endif
