/* SPDX-License-Identifier: BSD-2-Clause */
/* The version of everything in this tree. pyproject.toml repeats it; a test keeps them equal. */
#ifndef VALE_VERSION_H
#define VALE_VERSION_H

#define VALE_VERSION_MAJOR 0
#define VALE_VERSION_MINOR 1
#define VALE_VERSION_MICRO 0
#define VALE_VERSION       "0.1.0"

#endif
