#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# deps.sh LIST...: installs the Debian packages of the lists that are missing. Asks nothing: where it would have to ask for a
# password it prints the line to run, and ends with 4. The system's package sources are used as they are.
set -euo pipefail
cd "$(dirname "$0")"

if ! command -v apt-get >/dev/null; then
    echo "deps: no apt-get here: this works on Debian and its relatives" >&2
    exit 4
fi

missing=()
while read -r package; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done < <(grep -hv '^#' "$@")
[ ${#missing[@]} -gt 0 ] || exit 0

install="apt-get install -y --no-install-recommends ${missing[*]}"
echo "deps: installing ${#missing[@]} Debian packages"
if [ "$(id -u)" = 0 ]; then
    sudo=()
elif sudo -n true 2>/dev/null; then
    sudo=(sudo -n)
else
    echo "deps: packages are missing; run: sudo $install" >&2
    exit 4
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q "$@" >"$log" 2>&1
}
# Package lists may be missing or out of date: then once more with fresh ones.
if ! apt install -y --no-install-recommends "${missing[@]}"; then
    apt update || true
    if ! apt install -y --no-install-recommends "${missing[@]}"; then
        tail -n 5 "$log" >&2
        echo "deps: apt-get failed (above); run: $install" >&2
        exit 4
    fi
fi
