/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What differs between the QEMUs that netmap.c is built for, 7.2 to 10.2
 *
 * Everything that netmap.c takes from QEMU beside this is the same in all of
 * them. If it shall stay so, netmap.c has to keep away from sysemu/ (system/
 * since 10.0), qapi/qmp/ (qobject/ since 10.0), hw/qdev-*.h, NetClientInfo's
 * using_vnet_hdr, container_get() and class_init functions of types, whose
 * data is const since 10.1. What net/meson.build calls softmmu_ss until 8.0 and
 * system_ss since 8.1 is the business of the patches.
 */
#ifndef QEMU_NET_NETMAP_COMPAT_H
#define QEMU_NET_NETMAP_COMPAT_H

#include "net/net.h"

/* 7.2 is 702, 10.0 is 1000. meson.build of all versions gives us these two. */
#define NETMAP_QEMU_VERSION (QEMU_VERSION_MAJOR * 100 + QEMU_VERSION_MINOR)

/*
 * NETMAP_COMPAT_SET_OFFLOAD(name, impl): defines name() of the type that
 * NetClientInfo.set_offload has, which calls
 *
 *     void impl(NetClientState *nc, const NetmapOffloads *offloads)
 *
 * 7.2: five ints. 8.2: two more, for UDP segmentation. 10.2: NetOffloads, with
 * two more, for UDP tunnels, which nobody sets for a backend that does not
 * have has_tunnel.
 */
#if NETMAP_QEMU_VERSION >= 1002
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

/*
 * NETMAP_COMPAT_RECEIVE_RAW(fn): the member of NetClientInfo, until 9.0. Later
 * the core itself puts a header before what QEMU sends in a guest's name.
 */
#if NETMAP_QEMU_VERSION >= 901
#define NETMAP_COMPAT_RECEIVE_RAW(fn)
#else
#define NETMAP_COMPAT_RECEIVE_RAW(fn) .receive_raw = fn,
#endif

#endif /* QEMU_NET_NETMAP_COMPAT_H */
