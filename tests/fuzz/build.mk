# SPDX-License-Identifier: BSD-2-Clause
# libFuzzer targets: `make fuzz MINUTES=n [TARGET=name]`. Made by clang from the same sources as the switch.

FUZZ_TARGETS := attach chain name offload qmp ring stream vhost
MINUTES      := 1
TARGET       :=

FUZZ_CORE := $(filter-out %/main.o %/worker.o,$(VALED_OBJ)) \
	$(patsubst %,$(B)/obj/tests/fuzz/%.o,fuzz_main fuzz_worker fuzz_guard front)
FUZZ_WRAP := -Wl$(shell printf ',--wrap=%s' mmap munmap bind connect open unlink getrandom log_set_level)

fuzz: fuzz-targets venv  ## look for inputs that break the switch: make fuzz MINUTES=n [TARGET=attach]
	@$(PYTHON) tests/fuzz/run.py --minutes $(MINUTES) $(TARGET)

fuzz-targets: deps-test
	@+$(MAKE) --no-print-directory -s B=$(B)/fuzz CC=clang fuzz-programs CFLAGS='$(CFLAGS) -O1 \
		-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer'

fuzz-programs: $(FUZZ_TARGETS:%=$(B)/bin/fuzz_%)

$(B)/obj/tests/fuzz/%.o: tests/fuzz/%.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -D_GNU_SOURCE -pthread -Iinclude -Ilibvale -Ivaled -MMD -MP -c -o $@ $<

$(B)/bin/fuzz_%: $(B)/obj/tests/fuzz/fuzz_%.o $(FUZZ_CORE) $(B)/lib/libvale.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -fsanitize=fuzzer $(FUZZ_WRAP) -pthread -o $@ $^ -ljansson

-include $(wildcard $(B)/obj/tests/fuzz/*.d)

.SECONDARY: $(FUZZ_TARGETS:%=$(B)/obj/tests/fuzz/fuzz_%.o)
.PHONY: fuzz fuzz-targets fuzz-programs
