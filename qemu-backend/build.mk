# SPDX-License-Identifier: BSD-2-Clause
# QEMU with our netmap backend (see README.md here). QEMU_SUITE chooses the Debian release, QEMU_VARIANT a build of
# another kind: asan, or upstream, which has QEMU's own backend.

QEMU_SUITE ?= bookworm
QEMU_VARIANT ?=

QEMU_SOURCES := qemu-backend/build.sh qemu-backend/deb_src.py qemu-backend/meson.build \
	qemu-backend/netmap.c qemu-backend/netmap-compat.h \
	$(wildcard libvale/*.[ch] include/*.h include/net/*.h)

# Where build.sh puts SUITE[-VARIANT].
qemu_binary = $(B)/$(if $(filter bookworm,$1),bin,qemu/$1)/qemu-system-x86_64-vale

QEMU_CHOSEN := $(QEMU_SUITE)$(addprefix -,$(QEMU_VARIANT))
QEMU_MATRIX := bookworm trixie sid bookworm-asan

define QEMU_RULE
$(call qemu_binary,$1): $(QEMU_SOURCES) $(wildcard qemu-backend/patches/$(firstword $(subst -, ,$1)).patch)
	QEMU_SUITE=$(word 1,$(subst -, ,$1)) QEMU_VARIANT=$(word 2,$(subst -, ,$1)) qemu-backend/build.sh $(B)
endef
$(foreach build,$(sort $(QEMU_MATRIX) bookworm-upstream $(QEMU_CHOSEN)),$(eval $(call QEMU_RULE,$(build))))
