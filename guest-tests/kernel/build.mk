# SPDX-License-Identifier: BSD-2-Clause
# Programs that try the kernel module inside a guest (run.py).

KERNEL_TESTS := $(addprefix $(B)/guest/,netmap-abi-test netmap-window qemu-vnet-test)

$(B)/guest/netmap-abi-test: guest-tests/kernel/abi_test.c $(wildcard include/net/*.h)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -Iinclude -static -s -o $@ $<

$(B)/guest/netmap-window: guest-tests/kernel/window.c $(B)/lib/libvale.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -Iinclude -Ilibvale -static -s -o $@ $^

$(B)/guest/qemu-vnet-test: guest-tests/kernel/vnet_test.c $(B)/lib/libvale.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -Iinclude -Ilibvale -static -s -o $@ $^
