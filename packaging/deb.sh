#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Makes the Debian packages of packaging/debian/control in B/deb, of what make has built in B.
#
# Each stanza there is one package; its field Components says what of install.sh it holds. Added
# here: version, architecture, size, the libraries that its programs need, copyright, changelog.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."

B=$(realpath "${B:-build}")
out=$B/deb
maintainer="${DEBFULLNAME:-The authors of VALE for virtual machines} <${DEBEMAIL:-vale@debian.local}>"
version=$(sed -n 's/^#define VALE_VERSION  *"\(.*\)"/\1/p' include/version.h)
architecture=$(dpkg --print-architecture)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)
export SOURCE_DATE_EPOCH B

# stanza PACKAGE: its stanza in control.
stanza() {
    awk -v RS= -v name="Package: $1" 'index($0 "\n", name "\n") == 1' packaging/debian/control |
        sed "s/@PYTHON@/$python/; s/@PYTHON_NEXT@/$python_next/"
}

field() {
    stanza "$1" | sed -n "s/^$2: //p"
}

# What the BSD licence of ours does not cover.
others_rights() {
    case $1 in
    vale-qemu)
        echo "QEMU itself, and so this program, is under the GNU General Public License, version 2. Its source is the"
        echo "distribution's source package qemu with our net/netmap.c, libvale and patch. Of that package:"
        echo
        cat "$B/qemu/bookworm/src/debian/copyright"
        ;;
    vale-images)
        echo "The images are made of unmodified Debian packages, which manifest.json names with their versions; the rights of"
        echo "each are in Debian's package of that name, as is the source:"
        echo
        sed -n '/"packages"/,/}/p' "$B/images/micro-frr/manifest.json" # all of micro's, and more
        ;;
    valemgr)
        echo "The Python packages that come along have their own licences, in lib/python*/site-packages/*.dist-info."
        ;;
    esac
}

# documents PACKAGE TREE
documents() {
    local doc=$2/usr/share/doc/$1
    mkdir -p "$doc"
    { cat LICENSE; echo; others_rights "$1"; } >"$doc/copyright"
    printf '%s (%s) unstable; urgency=medium\n\n  * See CHANGELOG.md of VALE for virtual machines.\n\n -- %s  %s\n' \
        "$1" "$version" "$maintainer" "$(date -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$doc/changelog.gz"
    find "$2/usr/share/man" -type f -exec gzip -9n {} + 2>/dev/null || true
    mkdir -p "$2/usr/share/lintian/overrides"
    grep -E "^#|^$1: " packaging/debian/overrides >"$2/usr/share/lintian/overrides/$1"
}

# The ELF files of a tree that have libraries.
programs() {
    find "$1" -type f \( -perm -u+x -o -name '*.so*' \) -exec sh -c \
        'for f; do ! head -c 4 "$f" | grep -q ELF || echo "$f"; done' _ {} +
}

# Takes out what only debuggers, or the machine that it was built on, know.
strip_all() {
    find "$1" -name __pycache__ -prune -exec rm -r {} +
    find "$1" -name '*.a' -exec strip --strip-debug {} +
    programs "$1" | xargs -r strip --strip-unneeded
}

# libraries TREE: the packages that its programs need.
libraries() {
    local found work
    mapfile -t found < <(programs "$1")
    [ ${#found[@]} -gt 0 ] || return 0
    work=$(mktemp -d)
    mkdir "$work/debian"
    echo "Source: vale" >"$work/debian/control"
    (cd "$work" && dpkg-shlibdeps --ignore-missing-info -x"$2" -O "${found[@]}" >found 2>log) ||
        { cat "$work/log" >&2; exit 1; }
    sed 's/^shlibs:Depends=//' "$work/found"
    rm -r "$work"
}

# control PACKAGE TREE LIBRARIES
control() {
    local depends
    depends=$(field "$1" Depends)
    depends=${depends:+$depends${3:+, }}$3
    echo "Package: $1"
    echo "Source: vale"
    echo "Version: $version"
    echo "Architecture: $architecture"
    echo "Maintainer: $maintainer"
    echo "Installed-Size: $(du -sk --exclude=DEBIAN "$2" | cut -f1)"
    [ -z "$depends" ] || echo "Depends: $depends"
    echo "Priority: optional"
    stanza "$1" | sed '/^Package:/d; /^Depends:/d; /^Components:/d'
}

make_package() {
    local name=$1 tree=$out/tree/$1 script needed
    rm -rf "$tree"
    mkdir -p "$tree/DEBIAN"
    # shellcheck disable=SC2046 # words
    DESTDIR=$tree PREFIX=/usr packaging/install.sh install $(field "$name" Components) >/dev/null
    documents "$name" "$tree"
    strip_all "$tree"
    needed=$(libraries "$tree" "$name")
    [ "$name" != valed ] || needed="adduser, $needed"
    for script in postinst prerm postrm; do
        [ ! -f "packaging/debian/$name.$script" ] ||
            install -m 755 "packaging/debian/$name.$script" "$tree/DEBIAN/$script"
    done
    (cd "$tree" && find usr -type f -exec md5sum {} +) >"$tree/DEBIAN/md5sums"
    control "$name" "$tree" "$needed" >"$tree/DEBIAN/control"
    chmod -R u+rwX,go+rX,go-w "$tree"
    dpkg-deb --root-owner-group -Zxz --build "$tree" "$out/${name}_${version}_$architecture.deb" >/dev/null
    echo "deb: $out/${name}_${version}_$architecture.deb"
}

python=$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
python_next=$(/usr/bin/python3 -c 'import sys; print("%d.%d" % (sys.version_info[0], sys.version_info[1] + 1))')
mkdir -p "$out"
while read -r package; do
    make_package "$package" </dev/null
done < <(sed -n 's/^Package: //p' packaging/debian/control)
