# SPDX-License-Identifier: BSD-2-Clause
# libvale: open, sync and close a port on either provider.

LIBVALE_SRC := $(wildcard libvale/*.c)
LIBVALE_OBJ := $(LIBVALE_SRC:%.c=$(B)/obj/%.o)

$(B)/obj/libvale/%.o: libvale/%.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -D_GNU_SOURCE -fPIC -Iinclude -MMD -MP -c -o $@ $<

$(B)/lib/libvale.a: $(LIBVALE_OBJ)
	@mkdir -p $(@D)
	rm -f $@
	$(AR) rcs $@ $^

-include $(LIBVALE_OBJ:.o=.d)
