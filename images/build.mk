# SPDX-License-Identifier: BSD-2-Clause
# Guest images. The micro guest is made of Debian packages as they are now; to take newer ones,
# remove its manifest and make it again.

MICRO := $(B)/images/micro
MICRO_PROGRAMS := $(addprefix $(B)/guest/,vale-udp-send vale-udp-recv micro-identity)

$(B)/guest/micro-identity: images/micro/identity.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -D_GNU_SOURCE -static -s -o $@ $< -ljansson

$(MICRO)/manifest.json: images/micro.py images/initramfs.py $(MICRO_PROGRAMS) \
		$(shell find images/micro -type f ! -name '*.c')
	nice $(PYTHON) images/micro.py $(MICRO) $(MICRO_PROGRAMS)

$(MICRO)/vmlinuz $(MICRO)/initrd.img: $(MICRO)/manifest.json ;
