# SPDX-License-Identifier: BSD-2-Clause
# Guest images. They are made of Debian packages as they are now; to take newer ones, remove a
# manifest and make it again. One run makes micro and micro-frr: they share packages and kernel.
# debian takes longer and is made by itself.

IMAGES := $(addprefix $(B)/images/,micro/manifest.json micro-frr/manifest.json)
MICRO_PROGRAMS := $(addprefix $(B)/guest/,vale-udp-send vale-udp-recv micro-identity)

$(B)/guest/micro-identity: images/micro/identity.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -D_GNU_SOURCE -static -s -o $@ $< -ljansson

$(IMAGES) &: images/micro.py images/initramfs.py $(MICRO_PROGRAMS) \
		$(shell find images/micro images/micro-frr -type f ! -name '*.c')
	nice $(PYTHON) images/micro.py $(B)/images $(MICRO_PROGRAMS)

image-debian:         ## build a Debian guest with a disk and cloud-init, as clouds have them
	@./deps.sh packages-image.txt
	@+$(MAKE) --no-print-directory -s $(B)/images/debian/manifest.json

$(B)/images/debian/manifest.json: images/debian.py
	nice $(PYTHON) images/debian.py $(@D)

.PHONY: image-debian
