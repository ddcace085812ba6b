# SPDX-License-Identifier: BSD-2-Clause
# VALE for virtual machines: the switch, the QEMU backend, the manager.
# Each folder says in its build.mk what it makes; everything made lies in build/.

B      := build
CC     := gcc
CFLAGS := -std=gnu17 -O2 -g -Wall -Wextra
PYTHON := /usr/bin/python3
PYTEST := $(B)/venv/bin/pytest --durations=10

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

include libvale/build.mk
include valed/build.mk
include tools/build.mk
include guest-tests/build.mk
include images/build.mk
include qemu-backend/build.mk
include guest-tests/kernel/build.mk
include packaging/build.mk
include tests/build.mk
include tests/fuzz/build.mk

help:                 ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' $(filter-out %.d,$(MAKEFILE_LIST)) | expand -t 18

demo: all             ## two guests on one switch, measured: a table in the end
	@$(B)/bin/valemgr pair vale1

all: tools qemu image venv  ## build everything

tools: deps           ## build the switch and the small programs
	@+$(MAKE) --no-print-directory -s $(TOOLS)

qemu: deps            ## build QEMU with our netmap backend, from the distribution's source
	@+$(MAKE) --no-print-directory -s $(QEMU)

qemu-matrix: deps-test venv tools image  ## build it from each Debian release, and with sanitizers; test all of them
	@qemu-backend/matrix.sh $(B) $(QEMU_MATRIX)

image: deps           ## build the guest images: micro, micro-frr
	@+$(MAKE) --no-print-directory -s $(IMAGES)

venv: deps            ## install valemgr and what tests need into build/venv
	@+$(MAKE) --no-print-directory -s $(VENV)

libvirt: deps-test venv  ## libvirt-python, built against libvirt-dev, into build/venv
	@+$(MAKE) --no-print-directory -s $(LIBVIRT)

test: deps-test all libvirt  ## all tests of the three tiers (unit, black-box, guests)
	$(PYTEST) tests

test-all: deps-test all libvirt sanitized qemu-matrix image-debian $(B)/qemu-backports/qemu-system-x86_64  ## make test, longer forms of some tests, a newer QEMU, DPDK
	@./deps.sh packages-bench.txt
	$(PYTEST) tests
	@./deps.sh packages-deb.txt
	@+$(MAKE) --no-print-directory -s deb
	VALE_PACKAGES=1 $(PYTEST) tests/packages
	VALE_KILLS=1000 VALE_SIEGE_SECONDS=30 VALE_LAPS=300 $(PYTEST) tests/blackbox/test_valed_kills.py \
		tests/blackbox/test_valed_siege.py tests/blackbox/test_valed_floods.py
	VALE_EVERY_STEP=1 $(PYTEST) tests/unit/test_runner.py tests/guests/test_lab_hard.py
	VALE_LONG=1 $(PYTEST) tests/guests/test_hotplug.py tests/guests/test_examples.py
	QEMU=$(B)/qemu-backports/qemu-system-x86_64 $(PYTEST) tests/guests/test_offload.py tests/guests/test_migration.py

check: deps-test tools venv sanitized lint  ## unit and black-box tests, also under sanitizers, and linters (no QEMU needed)
	$(PYTEST) tests/unit tests/blackbox

test-kernel: $(if $(NETMAP_KO),all $(KERNEL_TESTS))  ## the real netmap module in a guest: make test-kernel NETMAP_KO=FILE
	@guest-tests/kernel/run.py $(if $(NETMAP_KO),'$(NETMAP_KO)')

bench: tools venv     ## the switch on this host: throughput, scale, latency; tables, and JSON in build/bench
	@$(B)/venv/bin/python bench/host.py
	@$(B)/venv/bin/python bench/scale.py

bench-guest: all      ## guest to guest, our backend, vhost-user and QEMU's stream netdev; our backend on a hub
	@$(B)/bin/valemgr pair vale1 --baseline stream --trials 5 --seconds 2
	@$(B)/venv/bin/python bench/guests.py
	@$(B)/venv/bin/python bench/guests.py --netdev netmap
	@$(B)/venv/bin/python bench/guests.py --netdev netmap --model e1000
	@$(B)/venv/bin/python bench/hub.py

bench-labs: all       ## labs: until they are ready, what an apply does to others, what commands take
	@$(B)/venv/bin/python bench/labs.py

bench-kernel: all     ## our backend and QEMU's own on the real module in a guest: make bench-kernel NETMAP_KO=FILE
	@+$(MAKE) --no-print-directory -s QEMU_VARIANT=upstream qemu
	@guest-tests/kernel/run.py --bench $(if $(NETMAP_KO),'$(NETMAP_KO)')

bench-peers: tools venv  ## vhost-user to vhost-user beside OVS-DPDK and DPDK's own driver (root; installs packages-bench.txt)
	@./deps.sh packages-bench.txt
	@$(B)/venv/bin/python bench/vhost.py

lint: deps-test venv  ## ruff, mypy, shellcheck, and all C with clang
	$(B)/venv/bin/ruff check .
	$(B)/venv/bin/mypy
	shellcheck $$(git ls-files '*.sh')
	@+$(MAKE) --no-print-directory -s B=$(B)/clang CC=clang CFLAGS='$(CFLAGS) -Werror' tools

deps:                 ## install missing Debian packages
	@./deps.sh packages.txt

deps-test:
	@./deps.sh packages.txt packages-test.txt

clean:                ## remove everything that was made
	rm -rf $(B)

TOOLS := $(B)/bin/valed $(B)/bin/vale-pktgen $(B)/bin/valectl $(GUEST_PROGRAMS)
QEMU  := $(call qemu_binary,$(QEMU_CHOSEN))
VENV  := $(B)/bin/valemgr
LIBVIRT := $(B)/venv/libvirt

$(B)/bin/valemgr: pyproject.toml
	@mkdir -p $(@D)
	@echo "valemgr: installing into $(B)/venv"
	@test -x $(B)/venv/bin/pip || $(PYTHON) -m venv $(B)/venv
	@$(B)/venv/bin/pip install -q --disable-pip-version-check -e '.[dev]'
	@ln -sf ../venv/bin/valemgr $@
	@touch $@

$(LIBVIRT): $(VENV)
	@echo "valemgr: installing libvirt-python"
	@$(B)/venv/bin/pip install -q --disable-pip-version-check -e '.[libvirt]'
	@touch $@

.PHONY: help demo all tools qemu qemu-matrix image venv libvirt test test-all check test-kernel bench bench-guest bench-labs bench-kernel bench-peers lint deps deps-test clean
