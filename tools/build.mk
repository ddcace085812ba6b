# SPDX-License-Identifier: BSD-2-Clause
# Small programs on libvale.

PKTGEN_OBJ := $(B)/obj/tools/vale-pktgen.o $(B)/obj/tools/frame.o $(B)/obj/tools/histogram.o

VALECTL_OBJ := $(addprefix $(B)/obj/tools/,valectl.o valectl_show.o valectl_top.o qmp_client.o)

$(B)/obj/tools/%.o: tools/%.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -D_GNU_SOURCE -Iinclude -Ilibvale -MMD -MP -c -o $@ $<

$(B)/bin/vale-pktgen: $(PKTGEN_OBJ) $(B)/lib/libvale.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^

$(B)/bin/valectl: $(VALECTL_OBJ) $(B)/lib/libvale.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -ljansson -lm

-include $(PKTGEN_OBJ:.o=.d) $(VALECTL_OBJ:.o=.d)
