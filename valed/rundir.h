/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * rundir - the runtime directory as its owner sees it: the lock that keeps a second valed out, and the two sockets
 *
 * Ends the program with one line when something is wrong there: 1 failure, 4 another valed has the directory.
 */
#ifndef VALED_RUNDIR_H
#define VALED_RUNDIR_H

/*
 * Finds or makes the directory, takes the lock, enters it and shares it with options.group. From here on paths are relative, so
 * they always fit, and sockets that are made are 0660, or 0600 without a group.
 */
void rundir_enter(void);

/* Its path, for people. */
const char *rundir_path(void);

/* Binds a socket of the directory, replacing a stale one, or takes that which was handed over. */
int rundir_bind(const char *name, int type, unsigned int mode);

/* Removes the sockets that were bound. */
void rundir_leave(void);

#endif
