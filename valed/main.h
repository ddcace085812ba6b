/* SPDX-License-Identifier: BSD-2-Clause */
/* What other files ask of the main loop. */
#ifndef VALED_MAIN_H
#define VALED_MAIN_H

/* Ends valed after the events at hand. why goes to the log. */
void main_quit(const char *why);

#endif
