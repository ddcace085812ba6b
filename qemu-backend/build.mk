# SPDX-License-Identifier: BSD-2-Clause
# QEMU with our netmap backend (see README.md here). QEMU_SUITE chooses the Debian release.

QEMU_SUITE ?= bookworm

$(B)/bin/qemu-system-x86_64-vale: qemu-backend/build.sh qemu-backend/deb_src.py \
		qemu-backend/netmap.c qemu-backend/meson.build \
		qemu-backend/patches/$(QEMU_SUITE).patch \
		$(wildcard libvale/*.[ch] include/*.h include/net/*.h)
	QEMU_SUITE=$(QEMU_SUITE) qemu-backend/build.sh $(B)
