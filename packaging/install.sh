#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Installs what was built, and removes it again.
#
#   packaging/install.sh install|uninstall [COMPONENT...]       without one: all that were built
#
#   B        what make has built (build)
#   PREFIX   where programs will look for each other (/usr/local)
#   DESTDIR  a folder to put it all into instead of the root of the file system
#
# Components: switch (valed, tools, man pages, systemd units), dev (libvale), qemu, valemgr (with a
# Python environment of its own), images. One list, files(), is what both commands go by.
set -euo pipefail
cd "$(dirname "$0")/.."

B=${B:-build}
PREFIX=${PREFIX:-/usr/local}
base=$(realpath -m "${DESTDIR:-/}")
root=$(realpath -m "$base/$PREFIX")
venv=lib/valemgr
staged=$B/packaging

die() { echo "install: $2" >&2; exit "$1"; }

[[ $PREFIX = /* ]] || die 2 "PREFIX=$PREFIX: begin it with a /"

# manuals PAGE...
manuals() {
    local page
    for page in "$@"; do
        echo "644 docs/man/$page share/man/man${page##*.}/$page"
    done
}

# Where zsh looks: Debian's has a folder of its own for packages.
zsh_folder() {
    case $PREFIX in
    /usr) echo share/zsh/vendor-completions ;;
    *) echo share/zsh/site-functions ;;
    esac
}

# files COMPONENT: mode, source and place below PREFIX of each file.
files() {
    local name
    case $1 in
    switch)
        for name in valed valectl vale-pktgen; do
            echo "755 $B/bin/$name bin/$name"
        done
        manuals valed.8 valectl.1 vale-pktgen.1
        for name in valed.service valed.socket valed-qmp.socket; do
            echo "644 $staged/$name lib/systemd/system/$name"
        done
        echo "644 contrib/systemd/vale.sysusers lib/sysusers.d/vale.conf"
        ;;
    dev)
        echo "644 $B/lib/libvale.a lib/libvale.a"
        echo "644 $staged/vale.pc lib/pkgconfig/vale.pc"
        for name in libvale/libvale.h include/vale_proto.h include/net/netmap.h include/net/netmap_user.h; do
            echo "644 $name include/vale/${name#*/}"
        done
        ;;
    qemu)
        echo "755 $B/bin/qemu-system-x86_64-vale bin/qemu-system-x86_64-vale"
        manuals qemu-system-x86_64-vale.1
        ;;
    valemgr)
        manuals valemgr.1 vale-udp-send.1 vale-udp-recv.1
        echo "644 $staged/valemgr.bash share/bash-completion/completions/valemgr"
        echo "644 $staged/valemgr.zsh $(zsh_folder)/_valemgr"
        echo "644 $staged/valemgr.fish share/fish/vendor_completions.d/valemgr.fish"
        ;;
    images)
        for name in micro/{vmlinuz,initrd.img,manifest.json} micro-frr/{initrd.img,manifest.json}; do
            echo "644 $B/images/$name lib/vale/images/$name"
        done
        ;;
    *) die 2 "$1 is no component: switch, dev, qemu, valemgr, images" ;;
    esac
}

# The file without which a component has not been built.
needs() {
    case $1 in
    switch) echo "$B/bin/valed" ;;
    dev) echo "$B/lib/libvale.a" ;;
    qemu) echo "$B/bin/qemu-system-x86_64-vale" ;;
    valemgr) echo "$B/bin/valemgr" ;;
    images) echo "$B/images/micro/manifest.json" ;;
    esac
}

# What is not installed as it lies in the tree: paths in it depend on PREFIX.
stage() {
    local unit shell
    mkdir -p "$staged"
    case $1 in
    switch)
        for unit in valed.service valed.socket valed-qmp.socket; do
            sed "s|/usr/bin/|$PREFIX/bin/|" "contrib/systemd/$unit" >"$staged/$unit"
        done
        ;;
    dev)
        cat >"$staged/vale.pc" <<PC
prefix=$PREFIX
Name: libvale
Description: Ports of VALE switches, on valed or on the netmap kernel module
Version: $(sed -n 's/^#define VALE_VERSION  *"\(.*\)"/\1/p' include/version.h)
Cflags: -I\${prefix}/include/vale
Libs: -L\${prefix}/lib -lvale
PC
        ;;
    valemgr)
        for shell in bash zsh fish; do
            _VALEMGR_COMPLETE=source_$shell "$B/bin/valemgr" >"$staged/valemgr.$shell"
        done
        ;;
    esac
}

# A Python environment that runs below PREFIX, made below DESTDIR.
install_venv() {
    local here=$root/$venv source=$staged/source
    rm -rf "$here" "$source"
    mkdir -p "$source"
    cp -r valemgr pyproject.toml README.md "$source" # setuptools builds in the tree, in its build/
    ${PYTHON:-/usr/bin/python3} -m venv "$here"
    "$here/bin/pip" install -q --disable-pip-version-check --no-compile "$source"
    "$here/bin/pip" uninstall -q -y pip setuptools
    rm -f "$here"/bin/[Aa]ctivate* "$here"/lib/python*/site-packages/valemgr-*/direct_url.json
    find "$here" -name __pycache__ -prune -exec rm -rf {} +
    # Scripts and the environment itself name the place where they were made.
    grep -rlIF "$here" "$here" | while read -r file; do
        sed -i "s|$here|$PREFIX/$venv|g" "$file"
    done
    # Who runs it may not write here: without bytecode every start would compile everything.
    "$here/bin/python3" -m compileall -q -s "$root" -p "$PREFIX" "$here/lib"
    mkdir -p "$root/bin"
    ln -sfn "../$venv/bin/valemgr" "$root/bin/valemgr"
}

install_component() {
    local mode source target list
    list=$(files "$1") || exit
    stage "$1"
    while read -r mode source target; do
        [ -f "$source" ] || die 4 "$source is missing: run 'make all'"
        install -D -m "$mode" "$source" "$root/$target"
    done <<<"$list"
    [ "$1" != valemgr ] || install_venv
}

# Folders that every system has: they stay there, also empty.
of_the_system() {
    [ "$base" = / ] && [[ $1 =~ ^(opt|usr|usr/local)(/(bin|include|lib|share|share/man))?$ ]]
}

# prune FOLDER: removes it and those above it, up to DESTDIR, that are empty now.
prune() {
    local folder=${PREFIX#/}/$1
    while [ "$folder" != . ] && ! of_the_system "$folder"; do
        rmdir "$base/$folder" 2>/dev/null || break
        folder=$(dirname "$folder")
    done
}

uninstall_component() {
    local target list
    list=$(files "$1") || exit
    if [ "$1" = valemgr ]; then
        rm -rf "${root:?}/$venv"
        list+=$'\n'"- - $venv"$'\n'"- - bin/valemgr"
    fi
    while read -r _ _ target; do
        rm -f "$root/$target"
        prune "$(dirname "$target")"
    done <<<"$list"
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
install)
    chosen=("$@")
    if [ $# -eq 0 ]; then
        for component in switch dev qemu valemgr images; do
            [ ! -f "$(needs $component)" ] || chosen+=("$component")
        done
        [ ${#chosen[@]} -gt 0 ] || die 4 "nothing has been built: run 'make all', or 'make tools'"
    fi
    for component in "${chosen[@]}"; do
        install_component "$component"
    done
    echo "install: ${chosen[*]} in $root"
    ;;
uninstall)
    [ $# -gt 0 ] || set -- switch dev qemu valemgr images
    for component in "$@"; do
        uninstall_component "$component"
    done
    echo "uninstall: $* removed from $root"
    ;;
*) die 2 "usage: install.sh install|uninstall [COMPONENT...]" ;;
esac
