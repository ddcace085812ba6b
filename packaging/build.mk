# SPDX-License-Identifier: BSD-2-Clause
# make install, uninstall and deb (README.md here).

PREFIX  ?= /usr/local
DESTDIR ?=

install:              ## install what was built: PREFIX=/usr/local, DESTDIR=
	@B=$(B) PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' packaging/install.sh install

uninstall:            ## remove what make install has installed
	@B=$(B) PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' packaging/install.sh uninstall

deb: all              ## Debian packages in build/deb
	@./deps.sh packages-deb.txt
	@B=$(B) packaging/deb.sh

.PHONY: install uninstall deb
