#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
#
# Builds the distribution's QEMU with our netmap backend.
#
#   qemu-backend/build.sh [BUILD_DIR]
#
#   QEMU_SUITE      the Debian release whose QEMU it is: bookworm (default), trixie, sid
#   QEMU_VARIANT    nothing; asan: with AddressSanitizer and UBSan; upstream: with QEMU's own
#                   net/netmap.c, unmodified but for our headers: what benchmarks compare with
#
# The result is BUILD_DIR/bin/qemu-system-x86_64-vale for bookworm without a variant, else
# BUILD_DIR/qemu/SUITE[-VARIANT]/qemu-system-x86_64-vale.
#
# Every stage looks at its own result and does nothing when it stands: the source package is
# fetched once, the patch is applied when it changed, only files that differ are copied into the
# tree, so that ninja rebuilds what an edit touched. The system's apt configuration is only read.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
build=$(realpath -m "${1:-$root/build}")
suite=${QEMU_SUITE:-bookworm}
variant=${QEMU_VARIANT:-}
package=$build/qemu/$suite                      # what variants of a suite share
work=$package${variant:+-$variant}
src=$package/src
[ "$variant" != upstream ] || src=$work/src     # its netmap.c is another
obj=$work/obj
binary=$work/qemu-system-x86_64-vale
[ "$suite$variant" != bookworm ] || binary=$build/bin/qemu-system-x86_64-vale

packages=(gcc make patch xz-utils dpkg-dev ninja-build meson pkg-config flex bison python3
          python3-venv libc6-dev libglib2.0-dev libpixman-1-dev libfdt-dev libslirp-dev
          seabios ipxe-qemu qemu-system-data)

# The prefix is relocatable: QEMU looks for its own data beside the binary. The firmware is where
# the distribution's packages put it, so that no -L is needed from any directory.
configure_args=(
    --prefix=/usr/local --docdir=doc
    --firmwarepath=/usr/share/qemu:/usr/share/seabios:/usr/lib/ipxe/qemu
    --target-list=x86_64-softmmu --without-default-features
    --enable-tcg --enable-kvm --enable-netmap
    --enable-vhost-user --enable-vhost-net --enable-vhost-kernel
    --enable-slirp --enable-fdt=system
    --disable-debug-info --disable-docs --disable-install-blobs)

say() { echo "qemu: $*"; }
die() { echo "qemu: $2" >&2; exit "$1"; }

# run CODE LOG WHAT COMMAND...: the command's output goes to LOG; a failure shows its first error.
run() {
    local code=$1 log=$work/$2.log what=$3
    shift 3
    "$@" >"$log" 2>&1 || die "$code" "$what failed: $(grep -m 1 -E '^E:|ERROR|[Ee]rror:' "$log"); see $log"
}

check_environment() {
    [ -f "$here/patches/$suite.patch" ] ||
        die 2 "QEMU_SUITE=$suite is not known; one of: $(cd "$here/patches" && echo *.patch | sed 's/\.patch//g')"
    command -v dpkg-query >/dev/null || die 4 "this build needs Debian's packages (no dpkg-query here)"
    [[ $variant =~ ^(|asan|upstream)$ ]] ||
        die 2 "QEMU_VARIANT=$variant is not known; one of: asan upstream"
    local name missing=()
    for name in "${packages[@]}"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] ||
            missing+=("$name")
    done
    [ ${#missing[@]} -eq 0 ] ||
        die 4 "packages are missing: run 'make deps' or 'apt-get install ${missing[*]}'"
}

# Who builds in one tree at the same time waits here for the other.
lock() {
    exec 9>"$1.lock"
    flock 9
}

# A private apt: its own sources, lists and cache, the system's proxies, keys and mirrors.
write_apt_config() {
    local list='' parts='' codename
    eval "$(apt-config shell list Dir::Etc::sourcelist/f parts Dir::Etc::sourceparts/d)"
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-sid}")
    mkdir -p "$package/apt/lists/partial" "$package/apt/cache/archives/partial"
    python3 "$here/deb_src.py" "$list" "$parts" "$codename" "$suite" >"$package/apt/deb-src.sources" ||
        die 4 "apt has no Debian $codename archive configured; add one to $list"
    cat >"$package/apt/apt.conf" <<CONF
Dir::Etc::sourcelist "$package/apt/deb-src.sources";
Dir::Etc::sourceparts "-";
Dir::State::lists "$package/apt/lists/";
Dir::Cache "$package/apt/cache/";
APT::Sandbox::User "$(id -un)";
#clear APT::Update;
APT::Update::Error-Mode "any";
CONF
}

# The versions that the index names, newest first.
versions() {
    apt-cache -c "$package/apt/apt.conf" showsrc --only-source qemu |
        sed -n 's/^Version: //p' | sort -u -V -r
}

download() {
    rm -f "$package"/qemu_*
    (cd "$package" && apt-get -q -c "$package/apt/apt.conf" --download-only source "qemu=$1") \
        >"$work/apt-source.log" 2>&1
}

# sid's index can be newer, or older, than what the mirror holds: then the next older version.
fetch_package() {
    compgen -G "$package/qemu_*.dsc" >/dev/null && return
    write_apt_config
    say "fetching the source package of QEMU ($suite)"
    run 4 apt-update "reading the source index" apt-get -q -c "$package/apt/apt.conf" update
    local version
    for version in $(versions); do
        download "$version" && return
        say "the mirror does not have $version"
    done
    die 4 "no source package of QEMU could be fetched; see $work/apt-source.log"
}

unpack() {
    [ -d "$src" ] && return
    fetch_package
    say "unpacking $(cd "$package" && echo qemu_*.dsc)"
    rm -rf "$src.new"
    run 1 unpack "unpacking" dpkg-source --no-copy -x "$package"/qemu_*.dsc "$src.new"
    mv "$src.new" "$src"
}

# The patch that is in the tree is kept there: a new one replaces it without a new tree.
apply_patch() {
    local wanted=$here/patches/$suite.patch applied=$src/applied-vale.patch
    cmp -s "$wanted" "$applied" && return
    say "patching"
    if [ -f "$applied" ]; then
        run 1 patch "taking the old patch out" patch -d "$src" -p1 -R -i "$applied"
        rm "$applied"
    fi
    run 1 patch "patching" patch -d "$src" -p1 -N -i "$wanted"
    cp "$wanted" "$applied"
}

# copy FILE... DIRECTORY: only what differs, so that time stamps tell ninja the truth.
copy() {
    local file directory=${*: -1}
    mkdir -p "$directory"
    for file in "${@:1:$#-1}"; do
        cmp -s "$file" "$directory/${file##*/}" || cp "$file" "$directory/"
    done
}

copy_sources() {
    [ "$variant" = upstream ] || copy "$here/netmap.c" "$here/netmap-compat.h" "$src/net"
    copy "$here/meson.build" "$root"/libvale/*.[ch] "$src/net/vale"
    copy "$root"/include/*.h "$src/net/vale/include"
    copy "$root"/include/net/*.h "$src/net/vale/include/net"
}

# Newer QEMUs want a newer meson than the system may have. Their own script knows which, and
# takes the system's if that will do.
make_venv() {
    [ -x "$work/venv/bin/meson" ] && return
    say "installing meson into $work/venv"
    rm -rf "$work/venv"
    run 4 venv "python3 -m venv" python3 -m venv --system-site-packages "$work/venv"
    run 4 venv "installing meson" "$work/venv/bin/python3" "$src/python/scripts/mkvenv.py" \
        ensuregroup --online "$src/pythondeps.toml" meson
}

# The option became two in 9.2. The program by which 7.2 looks for UBSan makes gcc warn, which
# it takes for a no; the warning is often wrong with sanitizers anyway. Stacks of allocations need
# frame pointers.
sanitize_args() {
    if grep -q "^option('asan'" "$src/meson_options.txt"; then
        echo --enable-asan --enable-ubsan
    else
        echo --enable-sanitizers
    fi
    echo --extra-cflags=-Wno-maybe-uninitialized --extra-cflags=-fno-omit-frame-pointer
}

configure() {
    local args=("${configure_args[@]}") stamp=$work/configured
    # shellcheck disable=SC2207 # words are what it prints
    [ "$variant" != asan ] || args+=($(sanitize_args))
    if [ -f "$src/pythondeps.toml" ]; then
        make_venv
        args+=("--python=$work/venv/bin/python3")
    fi
    command -v ccache >/dev/null && args+=("--cc=ccache gcc")
    [ -f "$obj/build.ninja" ] && [ "${args[*]}" = "$(cat "$stamp" 2>/dev/null)" ] && return
    say "configuring"
    rm -rf "$obj"
    mkdir -p "$obj"
    (cd "$obj" && run 1 configure "configuring" "$src/configure" "${args[@]}") || exit
    [ "$variant" != asan ] || grep -q fsanitize=undefined "$obj/build.ninja" ||
        die 1 "configure did not find UBSan; see $work/configure.log"
    echo "${args[*]}" >"$stamp"
}

# On a terminal ninja's counter is shown as it is, elsewhere once for every tenth of the work.
compile() {
    say "compiling (the first time takes some minutes)"
    cd "$obj"
    if [ -t 1 ]; then
        ninja qemu-system-x86_64 || die 1 "compiling failed"
        return
    fi
    ninja qemu-system-x86_64 | awk '
        match($0, /^\[[0-9]+\/[0-9]+\] /) {
            split(substr($0, 2, RLENGTH - 3), count, "/")
            step = int(10 * count[1] / count[2])
            if (step != last) { print "qemu: " count[1] "/" count[2]; fflush() }
            last = step
            next
        }
        { print }' || die 1 "compiling failed"
}

install_binary() {
    mkdir -p "${binary%/*}"
    if ! cmp -s "$obj/qemu-system-x86_64" "$binary"; then
        cp "$obj/qemu-system-x86_64" "$binary.new"
        mv "$binary.new" "$binary"
    fi
    touch "$binary"
    say "$binary is $("$binary" --version 2>/dev/null | head -n 1)"
}

# All is read before it runs, so that an edit meanwhile does no harm.
main() {
    check_environment
    mkdir -p "$work"
    # Paths below it are relative for ccache: one tree's objects serve another's.
    export CCACHE_BASEDIR=$build/qemu
    lock "$package"
    unpack
    apply_patch
    copy_sources
    lock "$obj"
    configure
    compile
    install_binary
}

main
exit
