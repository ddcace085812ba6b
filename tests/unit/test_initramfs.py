# SPDX-License-Identifier: BSD-2-Clause
"""The cpio writer of images/: deterministic, right for a merged /usr, with clear errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

IMAGES = Path(__file__).parents[2] / "images"
sys.path.insert(0, str(IMAGES))

import initramfs  # noqa: E402
import micro  # noqa: E402

pytestmark = pytest.mark.unit


def members(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Read an archive back: name -> (mode, content)."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert archive[at:at + 6] == b"070701"
        words = [int(archive[at + 6 + 8 * n:at + 14 + 8 * n], 16) for n in range(13)]
        name_end = at + 110 + words[11] - 1
        name = archive[at + 110:name_end].decode()
        data = (name_end + 1 + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert not archive[data:].strip(b"\0")
            return found
        found[name] = (words[1], archive[data:data + words[6]])
        at = (data + words[6] + 3) // 4 * 4


def test_members_have_their_parents_before_them() -> None:
    tree = initramfs.Tree()
    tree.file("/opt/x/run", b"hello", 0o755)
    tree.link("opt/y", "x")
    assert list(members(tree.cpio()).items()) == [
        ("opt", (0o40755, b"")), ("opt/x", (0o40755, b"")), ("opt/x/run", (0o100755, b"hello")),
        ("opt/y", (0o120777, b"x")),
    ]


def test_the_order_of_adding_does_not_show_and_archives_concatenate() -> None:
    one, other = initramfs.Tree(), initramfs.Tree()
    for tree, names in ((one, "ab"), (other, "ba")):
        for name in names:
            tree.file(name, name.encode())
    assert one.cpio() == other.cpio()
    assert len(one.cpio()) % 512 == 0


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/bin/ls", "usr/bin/ls"),
        ("/lib64/ld.so", "usr/lib64/ld.so"),
        ("/usr/lib/x", "usr/lib/x"),
        ("/lib", "lib"),
        ("opt//a", "opt/a"),
    ],
)
def test_paths_follow_the_merged_usr(path: str, name: str) -> None:
    assert initramfs.guest_path(path) == name


@pytest.mark.parametrize("path", ["/", "", "/opt/../x"])
def test_paths_that_lead_nowhere(path: str) -> None:
    with pytest.raises(initramfs.ImageError, match="is not a path in the guest"):
        initramfs.guest_path(path)


def test_overlay_takes_the_libraries_along(tmp_path: Path) -> None:
    out = tmp_path / "overlay.img"
    subprocess.run([IMAGES / "overlay.sh", out, "/bin/ls=/opt/ls"], check=True)
    found = members(out.read_bytes())
    assert found["opt/ls"] == (0o100755, Path("/bin/ls").read_bytes())
    assert any(name.endswith("/libc.so.6") for name in found)
    assert any("/ld-linux" in name for name in found)


def test_a_program_says_where_its_libraries_are(tmp_path: Path) -> None:
    program = tmp_path / "program"
    subprocess.run(["gcc", "-x", "c", "-", "-o", program, "-Wl,-rpath,/opt/a:/opt/b"],
                   input=b"int main(void) { return 0; }", check=True)
    assert initramfs.elf_runpath(program) == ["/opt/a", "/opt/b"]
    assert initramfs.elf_needs(program) == ["/lib64/ld-linux-x86-64.so.2", "libc.so.6"]
    assert initramfs.elf_runpath(Path(__file__)) == initramfs.elf_needs(Path(__file__)) == []


def test_our_files_come_in_layers_with_links(tmp_path: Path) -> None:
    busybox = tmp_path / "bin/busybox"
    busybox.parent.mkdir()
    busybox.write_bytes(b"busybox")
    tree = initramfs.Tree()
    micro.add_system(tree, tmp_path, micro.MICRO_FRR)
    found = members(tree.cpio())
    assert found["usr/sbin/modprobe"] == (0o120777, b"../bin/busybox")
    assert found["etc/passwd"][1] == (IMAGES / "micro-frr/etc/passwd").read_bytes()
    assert found["init"] == (0o100755, (IMAGES / "micro/init").read_bytes())
    assert "identity.c" not in found


def test_micro_frr_has_all_that_micro_has() -> None:
    for part in ("packages", "files", "modules"):
        assert set(getattr(micro.MICRO, part)) < set(getattr(micro.MICRO_FRR, part))


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        ([], 2, "usage: overlay.sh"),
        (["{}/o.img"], 2, "usage: overlay.sh"),
        (["{}/o.img", "/bin/ls"], 1, "overlay: '/bin/ls' is not FILE=PATH_IN_GUEST"),
        (["{}/o.img", "{}/none=/x"], 1, "none: no such file"),
        (["{}/no/o.img", "/bin/ls=/x"], 1, "No such file or directory"),
    ],
)
def test_bad_use_is_one_clear_line(tmp_path: Path, arguments: list[str], status: int,
                                   complaint: str) -> None:
    done = subprocess.run(
        [IMAGES / "overlay.sh", *(text.format(tmp_path) for text in arguments)],
        capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
