#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# qemu_backports.sh FOLDER: unpacks QEMU of Debian's backports into FOLDER, for tests; nothing is installed. The libraries
# are those of the system. FOLDER/qemu-system-x86_64 runs it.
set -euo pipefail
mkdir -p "$1"
folder=$(cd "$1" && pwd)
# shellcheck source=/dev/null
. /etc/os-release
suite=$VERSION_CODENAME-backports

# Where this system has its own release from.
mirror=$(apt-get indextargets --format "\$(REPO_URI) \$(RELEASE)" "Created-By: Packages" |
    awk -v release="$VERSION_CODENAME" '$2 == release { print $1; exit }')
if [ -z "$mirror" ]; then
    echo "qemu_backports: no package source of $VERSION_CODENAME: apt-get update may help" >&2
    exit 4
fi

mkdir -p "$folder"/{lists/partial,cache/archives/partial,debs,root}
cat >"$folder/backports.sources" <<END
Types: deb
URIs: $mirror
Suites: $suite
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
apt() {
    apt-get -q -o Dir::Etc::sourcelist="$folder/backports.sources" -o Dir::Etc::sourceparts=- \
        -o Dir::State::lists="$folder/lists" -o Dir::Cache="$folder/cache" -o APT::Sandbox::User=root "$@"
}
apt update
cd "$folder/debs"
apt download {qemu-system-x86,qemu-system-common,qemu-system-data,seabios}"/$suite"
for deb in *.deb; do
    dpkg -x "$deb" "$folder/root"
done
cat >"$folder/qemu-system-x86_64" <<END
#!/bin/sh
exec "$folder/root/usr/bin/qemu-system-x86_64" -L "$folder/root/usr/share/qemu" -L "$folder/root/usr/share/seabios" "\$@"
END
chmod +x "$folder/qemu-system-x86_64"
"$folder/qemu-system-x86_64" --version
