#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
#
# matrix.sh BUILD_DIR SUITE[-VARIANT]...: builds each, runs the tests of the backend on it, and
# prints a table. What fails does not keep the others from being tried; the exit code is 1 then.
set -uo pipefail

cd "$(dirname "$0")/.." || exit
build=$1
shift
failed=0
table=$(printf '%-18s %-9s %s' build QEMU tests)

binary_of() {
    case $1 in
    bookworm) echo "$build/bin/qemu-system-x86_64-vale" ;;
    *) echo "$build/qemu/$1/qemu-system-x86_64-vale" ;;
    esac
}

# Without a guest, and guests with several queues and offloads, which take a sanitizer too long.
tests_of() {
    ls tests/blackbox/test_qemu_*.py
    [[ $1 == *-asan ]] || ls tests/guests/test_netmap_vnet.py
}

# The log's last line says how many passed.
run_tests() {
    local log=$build/qemu/$1/tests.log
    mapfile -t tests < <(tests_of "$1")
    VALE_QEMU=$(realpath "$2") "$build/venv/bin/pytest" -q "${tests[@]}" >"$log" 2>&1 || {
        grep -E '^(FAILED|ERROR)' "$log" | sed 's/^/qemu: /'
        failed=1
    }
    result=$(tail -n 1 "$log")
}

for name; do
    binary=$(binary_of "$name")
    version=-
    if make -s B="$build" "$binary"; then
        version=$("$binary" --version 2>/dev/null | sed -n '1s/.*version \([^ ]*\).*/\1/p')
        echo "qemu: testing $name, $version"
        run_tests "$name" "$binary"
    else
        failed=1
        result='does not build'
    fi
    table+=$(printf '\n%-18s %-9s %s' "$name" "$version" "$result")
done
echo "$table"
exit $failed
