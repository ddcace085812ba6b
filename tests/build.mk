# SPDX-License-Identifier: BSD-2-Clause
# The switch under sanitizers: VALED=build/asan/bin/valed makes the black-box tests use it.

SANITIZED := $(B)/asan/bin/valed $(B)/tsan/bin/valed

sanitized: deps
	@+$(MAKE) --no-print-directory -s B=$(B)/asan $(B)/asan/bin/valed \
		CFLAGS='$(CFLAGS) -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer'
	@+$(MAKE) --no-print-directory -s B=$(B)/tsan $(B)/tsan/bin/valed \
		CFLAGS='$(CFLAGS) -O1 -fsanitize=thread -Wno-tsan -fno-optimize-sibling-calls -fno-omit-frame-pointer'
.PHONY: sanitized

$(B)/qemu-backports/qemu-system-x86_64: tests/qemu_backports.sh
	$< $(@D)
