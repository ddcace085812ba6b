# SPDX-License-Identifier: BSD-2-Clause
"""Topology files, good and bad: golden/labs holds what each comes to, word for word."""

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from valemgr import yamlfile
from valemgr.errors import EnvironmentUnfitError, TopologyError, UsageError
from valemgr.labfile import dump_lab, find_lab_file, load_lab, parse_lab
from valemgr.labschema import schema
from valemgr.topology import Lab, pair_lab
from valemgr.words import NicModel, Provider

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
GOOD = sorted((GOLDEN / "labs/good").glob("*.lab.yml"))
BAD = sorted((GOLDEN / "labs/bad").glob("*.lab.yml"))
EXAMPLES = sorted((ROOT / "examples").glob("*/*.lab.yml"))
SECTIONS = ("guests", "groups", "switches")
# What is wrong in these is wrong by itself, which is what a schema sees.
STRUCTURAL = (
    "booleans",
    "containerlab",
    "engines",
    "file-keys",
    "foreign-keys",
    "keys",
    "link-lengths",
    "list",
    "macs",
    "merge-key",
    "names",
    "numbers",
    "scalar",
    "switch-settings",
    "test-kinds",
    "types",
    "words",
)

Golden = Callable[[str, str], None]


def name(path: Path) -> str:
    return path.name.removesuffix(".lab.yml")


def lab(text: str) -> Lab:
    return parse_lab(text, "t.lab.yml", Path("/nowhere"))


def mistakes(text: str) -> list[str]:
    with pytest.raises(TopologyError) as caught:
        lab(text)
    return [str(finding).removeprefix("t.lab.yml:") for finding in caught.value.findings]


def validator() -> Any:
    made = schema()
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


def plain(path: Path) -> Any:
    return yamlfile.parse(yamlfile.read(path), path.name).data()


@pytest.mark.parametrize("path", GOOD, ids=name)
def test_good_files_come_to_these_labs(path: Path, golden: Golden) -> None:
    said = load_lab(path).model_dump(mode="json", exclude_defaults=True)
    text = json.dumps(said, indent=1, ensure_ascii=False) + "\n"
    golden(f"labs/good/{name(path)}.json", text.replace(str(path.parent), "FOLDER"))


@pytest.mark.parametrize("path", BAD, ids=name)
def test_bad_files_are_told_what_is_wrong_where(
    path: Path, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    with pytest.raises(TopologyError) as caught:
        load_lab(Path(path.name))
    assert [str(caught.value), *caught.value.detail] == list(map(str, caught.value.findings))
    assert all("\n" not in str(finding) for finding in caught.value.findings)
    golden(
        f"labs/bad/{name(path)}.txt", "".join(f"{finding}\n" for finding in caught.value.findings)
    )


@pytest.mark.parametrize("path", [*GOOD, *EXAMPLES], ids=name)
def test_what_is_written_is_read_as_the_same_lab(path: Path) -> None:
    loaded = load_lab(path)
    assert lab(dump_lab(loaded)) == loaded


@pytest.mark.parametrize("baseline", [False, True])
def test_a_pair_can_be_saved(baseline: bool) -> None:
    pair = pair_lab("vale7", NicModel.E1000, baseline=baseline)
    listed = pair.model_copy(update={"switches": tuple(pair.all_switches().values())})
    assert lab(dump_lab(pair)) == listed


@pytest.mark.parametrize("path", [*GOOD, *EXAMPLES], ids=name)
def test_the_schema_knows_good_files(path: Path) -> None:
    if name(path) == "nothing-said":
        pytest.skip("keys without a value are passed over, but an editor should mark them")
    validator().validate(plain(path))


@pytest.mark.parametrize("stem", STRUCTURAL)
def test_the_schema_refuses_what_is_wrong_by_itself(stem: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validator().validate(plain(GOLDEN / f"labs/bad/{stem}.lab.yml"))


def test_the_schema_says_what_every_key_is_for() -> None:
    def undescribed(part: Any, where: str) -> Iterator[str]:
        if isinstance(part, dict):
            for key, value in part.get("properties", {}).items():
                if "description" not in value:
                    yield f"{where}.{key}"
            for key, value in part.items():
                yield from undescribed(value, f"{where}.{key}")

    made = schema()
    assert list(undescribed(made, "")) == []
    assert made["$schema"].endswith("2020-12/schema")
    assert made["$id"]


def test_blocks_of_the_documentation_are_topologies(tmp_path: Path) -> None:
    page = (ROOT / "docs/topology.md").read_text()
    blocks = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) > 5
    for file in ("frr.conf", "motd"):
        (tmp_path / file).write_text("")
    for block in blocks:
        parse_lab(block, "page.lab.yml", tmp_path)
        validator().validate(yamlfile.parse(block, "page").data())


def test_every_key_is_in_the_documentation() -> None:
    page = (ROOT / "docs/topology.md").read_text()
    keys = {
        key
        for model in [schema(), *schema()["$defs"].values()]
        for key in model.get("properties", {})
    }
    assert [key for key in sorted(keys) if f"`{key}`" not in page] == []


def test_numbers_stay_when_something_is_appended() -> None:
    before = load_lab(GOLDEN / "labs/good/addresses.lab.yml")
    after = load_lab(GOLDEN / "labs/good/appended.lab.yml")
    addresses = {(guest.name, nic.name): nic.addresses for guest, nic in after.nics()}
    for guest, nic in before.nics():
        assert addresses[guest.name, nic.name] == nic.addresses


def test_a_file_names_its_lab(tmp_path: Path) -> None:
    path = tmp_path / "two-words.lab.yml"
    path.write_text("guests: {a: }\n")
    assert load_lab(path).name == "two-words"
    odd = tmp_path / "odd name.lab.yml"
    odd.write_text("guests: {a: }\n")
    with pytest.raises(TopologyError, match=r"name\.lab\.yml:1:1: 'odd name' is not a lab name"):
        load_lab(odd)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "conf").write_text("")
    path = tmp_path / "x.lab.yml"
    path.write_text(
        "defaults: {image: ./here, qemu: ../qemu}\n"
        "guests: {a: {files: [{from: conf, to: /etc/conf}]}, b: {image: micro}, "
        "c: {image: c.img}}\n"
    )
    one, other, disk = load_lab(path).guests
    assert one.files[0].source == str(tmp_path / "conf")
    assert one.image == str(tmp_path / "here")
    assert one.qemu == str(tmp_path.parent / "qemu")
    assert other.image == "micro"
    assert disk.image == str(tmp_path / "c.img")


def test_every_switch_is_listed_with_its_provider() -> None:
    rest = "guests: {a: {nics: [{switch: vale1}]}, b: }\nlinks: [{endpoints: [a, b]}]"
    made = lab(f"provider: kernel\n{rest}")
    assert [switch.provider for switch in made.switches] == [Provider.KERNEL] * 2
    assert not any(switch.p2p for switch in made.switches)
    made = lab("guests: {a: , b: }\nlinks: [{endpoints: [a, b]}]")
    assert [switch.p2p for switch in made.switches] == [True]
    assert {nic.port for _, nic in made.nics()} == {f"{made.links[0].switch}:{n}" for n in "01"}


def test_networks_run_out() -> None:
    guests = "".join(f"  g{n}: {{nics: [{{switch: vale{n}}}]}}\n" for n in range(257))
    assert mistakes(f"guests:\n{guests}") == [
        "258:17: 198.18.0.0/16 has no network left for g256:vale0: give it addresses"
    ]


def test_ports_run_out() -> None:
    guests = "".join(
        f"  g{n}: {{nics: [{{switch: vale1, addresses: none}}]}}\n" for n in range(255)
    )
    assert mistakes(f"guests:\n{guests}") == [
        "256:17: g254:vale0 is one port too many on vale1: it has 254"
    ]


def test_a_wrong_value_hides_no_wrong_reference() -> None:
    assert mistakes(
        "guests: {a: {memory: x, cpus: 0, nics: [{port: 'vale1:a', mtu: 1}], after: [b]}}"
    ) == [
        "1:22: 'x' is not a size, as 128M or 4MiB",
        "1:31: '0' is too small: at least 1",
        "1:64: '1' is too small: at least 68",
        "1:77: no guest 'b' to start after: there is a",
    ]


def test_a_key_that_was_misspelled_means_what_it_should() -> None:
    assert mistakes("gests: {a: {memroy: 1}}\nlinks: [{endpoints: [a, b]}]") == [
        "1:1: unknown key 'gests': did you mean 'guests'?",
        "1:13: unknown key 'memroy': did you mean 'memory'?",
        "1:21: memory of 1 is not between 32M and 1T",
        "2:25: link end: no guest 'b': there is a",
    ]


def test_the_file_that_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"^no \*\.lab\.yml here: name a topology file$"):
        find_lab_file()
    (tmp_path / "a.lab.yml").write_text("")
    assert find_lab_file() == Path("a.lab.yml")
    assert find_lab_file(str(tmp_path)) == tmp_path / "a.lab.yml"
    assert find_lab_file("a.lab.yml") == Path("a.lab.yml")
    (tmp_path / "b.lab.yml").write_text("")
    with pytest.raises(UsageError, match=r"name one: a\.lab\.yml, b\.lab\.yml$"):
        find_lab_file()
    with pytest.raises(UsageError, match=r"^c\.lab\.yml: there is no such file or directory"):
        find_lab_file("c.lab.yml")


def test_what_may_not_be_read_is_no_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.lab.yml"

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(EnvironmentUnfitError):
        load_lab(path)


WORDS = re.compile(r"[\w./:%-]+|[\[\]{},:'\"&*-]|\n")
OTHERS = (
    *("[]", "{}", "null", "1", "x", "'a:b'", "-1", "true", "1.5", "[x]", "{x: 1}", "a", "vale1"),
    *("eth1", "vale1:a", "10.0.0.1/24", "none", "&x", "*x", "<<", "?", "- ", "\n", "", "1e400"),
    *(".nan", ".inf", "0x10", "9" * 25, "1e300"),
)


def changed(text: str, rng: random.Random) -> str:
    """A text in which a few words are others."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        word = rng.choice(list(WORDS.finditer(text)))
        text = text[: word.start()] + rng.choice(OTHERS) + text[word.end() :]
    return text


def test_files_changed_at_random_load_or_are_refused_with_places() -> None:
    rng, known, loaded = random.Random(11), validator(), 0
    places: list[tuple[int, int]] = []
    files = [(path.read_text(), path.parent) for path in GOOD]
    for _ in range(400):
        original, folder = rng.choice(files)
        text = changed(original, rng)
        try:
            made = parse_lab(text, "f", folder)
        except TopologyError as exc:
            lines = text.count("\n") + 2
            places += [(finding.line, lines) for finding in exc.findings]
            continue
        loaded += 1
        assert lab(dump_lab(made)) == made
        data = yamlfile.parse(text, "f").data()
        known.validate(yamlfile.without_nulls(data, SECTIONS))
    assert loaded > 20
    assert all(line <= lines for line, lines in places)
