# SPDX-License-Identifier: BSD-2-Clause
"""Archives of a hostile guest: whatever they hold, nothing is made outside the target."""

import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from valemgr import unpack
from valemgr.tally import Tally, human
from valemgr.unpack import CopyError, leads_outside

pytestmark = pytest.mark.unit

LIMIT = 1 << 20
Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, data: bytes = b"", **fields: object) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def folder(name: str, mode: int = 0o755) -> Member:
    return member(name, type=tarfile.DIRTYPE, mode=mode)


def link(name: str, to: str) -> Member:
    return member(name, type=tarfile.SYMTYPE, linkname=to)


def hard(name: str, to: str) -> Member:
    return member(name, type=tarfile.LNKTYPE, linkname=to)


def archive(*members: Member, **options: object) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as tar:  # type: ignore[call-overload]
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def extract(tmp_path: Path) -> Callable[..., Tally]:
    """Unpack as `home/got`; afterwards only that and what was there may exist."""
    (tmp_path / "home").mkdir()
    (tmp_path / "secret").write_text("secret")

    def run(*members: Member, raw: bytes | None = None, limit: int = LIMIT) -> Tally:
        tally = Tally("test")
        data = archive(*members) if raw is None else raw
        try:
            unpack.unpack(io.BytesIO(data), tmp_path / "home" / "got", limit, tally)
        finally:
            assert names(tmp_path) == ["home", "secret"]
            assert names(tmp_path / "home") in ([], ["got"])
            assert (tmp_path / "secret").read_text() == "secret"
            assert (tmp_path / "secret").stat().st_nlink == 1
            for path in (tmp_path / "home").rglob("*"):
                assert path.resolve().is_relative_to(tmp_path / "home" / "got")
        return tally

    return run


def test_a_folder_with_all_that_is_allowed(
    extract: Callable[..., Tally], tmp_path: Path
) -> None:
    tally = extract(
        folder("d", 0o700), folder("d/e", 0o555), member("d/e/f", b"text", mode=0o6751),
        link("d/e/up", "../g"), hard("d/h", "d/e/f"), member("./d//g", b"g", mode=0o640),
        folder("d/empty"),
    )
    got = tmp_path / "home" / "got"
    assert (got / "e/f").read_text() == "text"
    assert stat.S_IMODE((got / "e/f").stat().st_mode) == 0o751  # no setuid, no setgid
    assert stat.S_IMODE((got / "g").stat().st_mode) == 0o640
    assert stat.S_IMODE(got.stat().st_mode) == 0o700
    assert stat.S_IMODE((got / "e").stat().st_mode) == 0o755  # we must be able to write there
    assert (got / "e/up").readlink() == Path("../g")
    assert (got / "h").samefile(got / "e/f")
    assert (tally.files, tally.size, tally.omitted) == (2, 5, 0)


def test_a_single_file_replaces_and_is_whole_or_not_at_all(
    extract: Callable[..., Tally], tmp_path: Path
) -> None:
    got = tmp_path / "home" / "got"
    extract(member("whatever", b"one", mode=0o755))
    assert got.read_bytes() == b"one"
    assert stat.S_IMODE(got.stat().st_mode) == 0o755
    with pytest.raises(CopyError, match="broken"):
        extract(raw=archive(member("x", b"y" * 5000))[:3000])
    assert got.read_bytes() == b"one"
    with pytest.raises(CopyError, match="more than the file"):
        extract(member("x", b"two"), member("y", b"three"))


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ([member("d/../../evil", b"x")], "forbidden name"),
        ([member("/etc/evil", b"x")], "forbidden name"),
        ([member("../evil", b"x")], "forbidden name"),
        ([member("e/f", b"x")], "not what was asked for"),
        ([folder("d/" + "x/" * 200)], "forbidden name"),
        ([member("d/" + "x" * 300, b"x")], "too long"),
        ([hard("d/h", "../../secret")], "forbidden name"),
        ([hard("d/h", "/etc/passwd")], "forbidden name"),
        ([hard("d/h", "d/none")], "No such file"),
        ([link("d/l", "x"), hard("d/h", "d/l")], "hard link to what is no file"),
        ([member("d/e/f", b"x"), hard("d/e", "d/e/f")], "directory"),
        ([hard("d/h", "d")], "hard link to nothing"),
        ([member("d/f", b"x"), folder("d/f/g")], "Not a directory"),
        ([link("d/l", "e"), folder("d/e"), member("d/l/f", b"x")], "Not a directory"),
    ],
)
def test_members_that_are_refused(
    extract: Callable[..., Tally], bad: list[Member], said: str
) -> None:
    with pytest.raises(CopyError, match=said):
        extract(folder("d"), *bad)


def test_members_that_are_left_out(extract: Callable[..., Tally], tmp_path: Path) -> None:
    tally = extract(
        folder("d"),
        member("d/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("d/sda", type=tarfile.BLKTYPE, devmajor=8),
        member("d/fifo", type=tarfile.FIFOTYPE),
        member("d/odd", type=b"Z"),
        link("d/abs", "/etc/passwd"),
        link("d/up", "../../secret"),
        link("d/later", "x/../../.."),
        folder("d/x"), link("d/x/y", ".."), link("d/x/z", "../.."), link("d/none", ""),
        member("d/f", b"kept"),
    )
    got = tmp_path / "home" / "got"
    assert names(got) == ["f", "x"]
    assert names(got / "x") == ["y"]
    assert tally.omitted == 9
    assert tally.omissions[0] == "null: neither file, folder nor link"
    assert tally.omissions[5:] == ["and 4 more"]


def test_links_are_never_written_through(extract: Callable[..., Tally], tmp_path: Path) -> None:
    """Those that were there, and those that the archive makes: a file takes a link's place."""
    got = tmp_path / "home" / "got"
    extract(folder("d"), member("d/f", b"1"), link("d/l", "f"), member("d/l", b"2"))
    assert (got / "f").read_bytes() == b"1"
    assert (got / "l").read_bytes() == b"2"
    (got / "l").unlink()
    (got / "l").symlink_to(got / "f")
    extract(folder("d"), member("d/l", b"3"))
    assert (got / "f").read_bytes() == b"1"
    assert (got / "l").read_bytes() == b"3"


def test_a_folder_behind_a_link_of_ours_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "got").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "got/l").symlink_to(tmp_path / "other")
    data = archive(folder("d"), folder("d/l"), member("d/l/f", b"x"))
    with pytest.raises(CopyError, match="Not a directory"):
        unpack.unpack(io.BytesIO(data), tmp_path / "got", LIMIT, Tally("test"))
    assert names(tmp_path / "other") == []


def test_huge_ones_end_at_the_limit(extract: Callable[..., Tally], tmp_path: Path) -> None:
    with pytest.raises(CopyError, match=r"more than 1.0 KiB: --limit"):
        extract(folder("d"), member("d/a", b"x" * 600), member("d/b", b"x" * 600), limit=1024)
    liar = tarfile.TarInfo("d")
    liar.size = 1 << 60
    with pytest.raises(CopyError, match="--limit"):
        extract(raw=liar.tobuf(tarfile.GNU_FORMAT))


class Endless:
    """A header that announces more headers, for ever."""

    def __init__(self, *blocks: bytes) -> None:
        self.start = b"".join(blocks)
        self.sent = 0

    def read(self, size: int, /) -> bytes:
        data = self.start[self.sent : self.sent + size] or b"1" * size
        self.sent += len(data)
        assert self.sent < 4 << 20, "it reads on and on"
        return data


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_endless_headers_do_not_fill_our_memory(tmp_path: Path, kind: bytes) -> None:
    header = member("x", type=kind)[0]
    header.size = 1 << 40
    top = folder("d")[0].tobuf(tarfile.GNU_FORMAT)
    source = Endless(top, header.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(CopyError, match="too long"):
        unpack.unpack(source, tmp_path / "got", LIMIT, Tally("test"))


def test_nested_and_global_headers(extract: Callable[..., Tally]) -> None:
    nested = tarfile.TarInfo("x")
    nested.type = tarfile.XGLTYPE
    with pytest.raises(CopyError, match=r"broken|too long"):
        extract(raw=nested.tobuf(tarfile.USTAR_FORMAT) * 2000)
    with pytest.raises(CopyError, match="headers for all"):
        extract(raw=archive(
            folder("d"), member("d/f", b"x"), format=tarfile.PAX_FORMAT, pax_headers={"a": "b"}
        ))  # fmt: skip


def test_noise(extract: Callable[..., Tally]) -> None:
    for raw in (b"", b"x" * 10, b"x" * 100_000, b"\0" * 100_000, os.urandom(5000)):
        with pytest.raises(CopyError):
            extract(raw=raw)


@pytest.mark.parametrize(
    ("target", "depth", "outside"),
    [
        ("a", 0, False), ("a/b", 0, False), ("./a", 0, False), ("..", 0, True),
        ("..", 1, False), ("../..", 1, True), (".././..", 2, False), ("../a", 1, False),
        ("a/..", 5, True), ("../a/../..", 5, True), ("/a", 5, True), ("", 5, True),
        ("//a", 5, True), (".", 0, False),
    ],
)
def test_which_links_lead_outside(target: str, depth: int, outside: bool) -> None:
    assert leads_outside(target, depth) is outside


def test_sizes_for_people() -> None:
    assert [human(n) for n in (0, 1023, 1024, 1 << 20, 5 << 30, 1 << 50)] == [
        "0 B", "1023 B", "1.0 KiB", "1.0 MiB", "5.0 GiB", "1024.0 TiB",
    ]
