# SPDX-License-Identifier: BSD-2-Clause
"""YAML with places: 1.2 scalars, keys that are text, and input that would do harm."""

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from valemgr import yamlfile
from valemgr.errors import EnvironmentUnfitError, TopologyError, UsageError
from valemgr.yamlfile import parse

pytestmark = pytest.mark.unit


@pytest.fixture(params=["libyaml", "python"], autouse=True)
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML without libyaml is slower, and otherwise the same."""
    if request.param == "python":
        monkeypatch.setattr(yamlfile, "_LOADER", yaml.SafeLoader)


def mistakes(text: str, merge: bool = False) -> list[str]:
    with pytest.raises(TopologyError) as caught:
        parse(text, "f", merge)
    return [str(finding) for finding in caught.value.findings]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("52:54:00:12:34:56", "52:54:00:12:34:56"),
        ("12:34:56:78:90:12", "12:34:56:78:90:12"),
        ("1:30", "1:30"),
        ("on", "on"),
        ("No", "No"),
        ("yes", "yes"),
        ("y", "y"),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("nULL", "nULL"),
        ("1_000", "1_000"),
        ("2026-11-27", "2026-11-27"),
        ("12", 12),
        ("-7", -7),
        ("0644", 644),
        ("0o17", 15),
        ("0x1F", 31),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
        ("1.2.3.4", "1.2.3.4"),
        ("10.0.0.1/24", "10.0.0.1/24"),
        ("'12'", "12"),
        ('"true"', "true"),
        ("! 12", "12"),
        ("=", "="),
        ("9" * 31, "9" * 31),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    read = parse(f"- {text}\n", "f").data()[0]
    assert read == value
    assert isinstance(read, type(value))


def test_numbers_know_how_they_were_written() -> None:
    whole, fraction = parse("[0644, 1e3]", "f").data()
    assert (whole.text, fraction.text) == ("0644", "1e3")


def test_keys_are_text() -> None:
    data = parse("{1: a, on: b, null: c, true: d, 1e3: e, ~: f, 0x10: g}", "f").data()
    assert list(data) == ["1", "on", "null", "true", "1e3", "~", "0x10"]


def test_places() -> None:
    document = parse("a: 1\nlist:\n  - x\n  - {deep: é, more: [p, q]}\n", "f")
    assert document.place(()) == (1, 1)
    assert document.place(("a",)) == (1, 4)
    assert document.place(("a",), key=True) == (1, 1)
    assert document.place(("list", 1, "more", 1)) == (4, 25)
    assert document.place(("list", 1, "more"), key=True) == (4, 15)
    assert document.place(("list", 1, "nothing", 5)) == (4, 5)
    assert document.place(("list", 7)) == (3, 3)


def test_what_an_alias_repeats_is_where_the_anchor_is() -> None:
    document = parse("a: &x {k: v}\nb: *x\n", "f")
    assert document.data() == {"a": {"k": "v"}, "b": {"k": "v"}}
    assert document.place(("b", "k")) == (1, 11)


def test_merge_keys_where_they_are_wanted() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {<<: [*a, *b], z: 3}\nd: {y: 4, <<: *a}\n"
    data = parse(text, "f", merge=True).data()
    assert data["c"] == {"x": 1, "y": 1, "z": 3}
    assert data["d"] == {"x": 1, "y": 4}
    assert "<<" in parse(text, "f").data()["c"]
    assert mistakes("a: {<<: x}", merge=True) == ["f:1:9: << merges mappings: name one"]


def test_all_duplicate_keys_are_found() -> None:
    assert mistakes("a: 1\nb: {c: 1, c: 2}\na: 3\n") == [
        "f:2:11: key 'c' is here twice: the first is in line 2",
        "f:3:1: key 'a' is here twice: the first is in line 1",
    ]


def test_limits() -> None:
    deep = yamlfile.DEPTH_MAX
    parse("[" * deep + "]" * deep, "f")
    assert "nested deeper" in mistakes("[" * (deep + 2) + "]" * (deep + 2))[0]
    assert "nest" in mistakes("[" * 100_000)[0]
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for one, other in zip("bcdefg", "abcdef", strict=True):
        bomb += f"{one}: &{one} [{', '.join([f'*{other}'] * 10)}]\n"
    assert "aliases followed" in mistakes(bomb)[0]
    with pytest.raises(TopologyError, match="larger than 1 MiB"):
        yamlfile.decode(b"#" * (yamlfile.SIZE_MAX + 1), "f")


def test_an_alias_within_its_anchor() -> None:
    assert mistakes("a: &a [*a]") == ["f:1:8: alias *a is within its own anchor"]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"a: \xff", "f:1:4: not UTF-8: is this a text file?"),
        (b"a: 1\nb: \x00", "f:2:4: control character 0x00: is this a text file?"),
        (b"\x7fELF\x02\x01", "f:1:1: control character 0x7f: is this a text file?"),
        ("ä: \x1b".encode(), "f:1:4: control character 0x1b: is this a text file?"),
    ],
)
def test_what_is_no_text(raw: bytes, said: str) -> None:
    with pytest.raises(TopologyError) as caught:
        yamlfile.decode(raw, "f")
    assert str(caught.value) == said


def test_a_byte_order_mark_is_no_character() -> None:
    assert parse(yamlfile.decode(b"\xef\xbb\xbfa: 1", "f"), "f").place(("a",), key=True) == (1, 1)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file: name a topology file"):
        yamlfile.read(tmp_path / "none.lab.yml")
    with pytest.raises(UsageError, match="is a directory: name a topology file in it"):
        yamlfile.read(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="there is no such file"):
        yamlfile.read(tmp_path / "file" / "x.lab.yml")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(EnvironmentUnfitError, match="may not be read: see its permissions"):
        yamlfile.read(tmp_path / "x.lab.yml")


def test_text_changed_at_random_is_read_or_refused_with_a_place() -> None:
    text = "a: &x {b: [1, 'two', \"three\"], c: |\n  text\n}\nd: *x\n? e\n: f\n"
    characters = "{}[]:,-?&*!|>'\"%@`#\n\t \x00ab1"
    rng, places = random.Random(5), []
    for _ in range(2000):
        place = rng.randrange(len(text))
        changed = text[:place] + rng.choice(characters) + text[place + rng.randrange(3) :]
        try:
            parse(yamlfile.decode(changed.encode(), "f"), "f").data()
        except TopologyError as exc:
            lines = changed.count("\n") + 2
            places += [(finding.line, lines) for finding in exc.findings]
    assert all(1 <= line <= lines for line, lines in places)
