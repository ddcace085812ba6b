/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What differs between the QEMUs that netmap.c is built for, 7.2 and later
 */
#ifndef QEMU_NET_NETMAP_COMPAT_H
#define QEMU_NET_NETMAP_COMPAT_H

#include "net/net.h"

#define NETMAP_QEMU_VERSION (QEMU_VERSION_MAJOR * 100 + QEMU_VERSION_MINOR)

/*
 * NETMAP_COMPAT_SET_OFFLOAD(name, impl): defines name() of the type that
 * NetClientInfo.set_offload has, which calls
 *
 *     void impl(NetClientState *nc, const NetmapOffloads *offloads)
 *
 * 7.2: five ints. 8.2: two more, for UDP segmentation. 10.1: NetOffloads.
 */
#if NETMAP_QEMU_VERSION >= 1001
typedef NetOffloads NetmapOffloads;
#define NETMAP_COMPAT_SET_OFFLOAD(name, impl)                               \
    static void name(NetClientState *nc, const NetOffloads *offloads)       \
    {                                                                       \
        impl(nc, offloads);                                                 \
    }
#else
typedef struct NetmapOffloads {
    bool csum, tso4, tso6, ecn, ufo, uso4, uso6;
} NetmapOffloads;
#if NETMAP_QEMU_VERSION >= 802
#define NETMAP_COMPAT_SET_OFFLOAD(name, impl)                               \
    static void name(NetClientState *nc, int csum, int tso4, int tso6,      \
                     int ecn, int ufo, int uso4, int uso6)                  \
    {                                                                       \
        impl(nc, &(NetmapOffloads) { csum, tso4, tso6, ecn, ufo,            \
                                     uso4, uso6 });                         \
    }
#else
#define NETMAP_COMPAT_SET_OFFLOAD(name, impl)                               \
    static void name(NetClientState *nc, int csum, int tso4, int tso6,      \
                     int ecn, int ufo)                                      \
    {                                                                       \
        impl(nc, &(NetmapOffloads) { csum, tso4, tso6, ecn, ufo });         \
    }
#endif
#endif

/* NETMAP_COMPAT_HAS_USO(fn): the member of NetClientInfo, since 8.2. */
#if NETMAP_QEMU_VERSION >= 802
#define NETMAP_COMPAT_HAS_USO(fn) .has_uso = fn,
#else
#define NETMAP_COMPAT_HAS_USO(fn)
#endif

#endif /* QEMU_NET_NETMAP_COMPAT_H */
