#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Write a cpio archive that adds files to a guest image: overlay.sh OUT.img FILE=PATH_IN_GUEST...
# Shared libraries of the files are added too. Use it as: cat initrd.img OUT.img > my-initrd.img
set -euo pipefail
exec python3 "$(dirname "$0")/initramfs.py" "$@"
