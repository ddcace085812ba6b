# SPDX-License-Identifier: BSD-2-Clause
# valed: the switch. What stands here is its table of contents.

VALED_SRC := $(addprefix valed/,main.c options.c rundir.c state.c activation.c sandbox.c log.c \
	attach.c quota.c qmp.c query.c control.c switch_commands.c tuning.c refuse.c \
	vswitch.c fdb.c port.c endpoint.c port_ring.c region.c \
	port_stream.c port_tap.c port_null.c handed_fds.c \
	port_vhost.c vhost_dev.c vhost_user.c virtq.c guest_mem.c guard.c \
	worker.c call.c forward.c offload.c line.c impair.c monitor.c)
VALED_OBJ := $(VALED_SRC:%.c=$(B)/obj/%.o)

$(B)/obj/valed/%.o: valed/%.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -D_GNU_SOURCE -pthread -Iinclude -Ilibvale -MMD -MP -c -o $@ $<

$(B)/bin/valed: $(VALED_OBJ) $(B)/lib/libvale.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -pthread -o $@ $^ -ljansson $(LDFLAGS)

-include $(VALED_OBJ:.o=.d)
