# SPDX-License-Identifier: BSD-2-Clause
# Programs that run inside guests, static so that any guest can run them.

GUEST_PROGRAMS := $(B)/guest/vale-udp-send $(B)/guest/vale-udp-recv

$(GUEST_PROGRAMS): $(B)/guest/%: guest-tests/%.c guest-tests/vale_udp.h
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -D_GNU_SOURCE -static -s -o $@ $< -lm
