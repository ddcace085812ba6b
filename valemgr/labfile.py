# SPDX-License-Identifier: BSD-2-Clause
"""Topology files: found, read, checked, written.

    text ──yamlfile──▶ Document ──authoring──▶ LabFile ──resolve──▶ topology.Lab

All mistakes of a file are reported at once. To get past the first kind, keys and values that are
wrong by themselves are set right or left out, so that references are looked at as well.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError

from valemgr import yamlfile
from valemgr.authoring import LabFile
from valemgr.errors import TopologyError, UsageError
from valemgr.findings import Finding, closest, explain, suggest
from valemgr.labdump import dump_lab
from valemgr.resolve import resolve
from valemgr.topology import Lab, canonical_switch
from valemgr.yamlfile import Document, KeyPath

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = ["SUFFIX", "dump_lab", "find_lab_file", "load_lab", "parse_lab"]

SUFFIX = ".lab.yml"
ROUNDS = 6
_BY_NAME = ("guests", "groups", "switches")
# Others refer to what is said there: without it, the rest makes no sense.
_REFERRED = {*_BY_NAME, "name", "port", "switch", "cable", "guest", "nic", "group", "nics", "links",
             "endpoints"}  # fmt: skip
# Words of other tools, and ours.
_SYNONYMS = {
    "nodes": "guests",
    "node": "guest",
    "interface": "nic",
    "interfaces": "nics",
    "ram": "memory",
    "kind": "image",
    "ipv4": "addresses",
    "ipv6": "addresses",
    "command": "exec",
    "cmd": "exec",
}
_HINTS = {
    "<<": "merge keys are not in YAML 1.2: use a group",
    "topology": "is this containerlab's? 'valemgr import containerlab FILE' converts it",
}


def load_lab(path: Path) -> Lab:
    """The lab of a topology file; TopologyError says all that is wrong with it."""
    return parse_lab(yamlfile.read(path), str(path), path.parent)


def parse_lab(text: str, file: str, folder: Path) -> Lab:
    """The lab of a text. `folder`: where relative paths start."""
    document = yamlfile.parse(text, file)
    findings: list[Finding] = []
    entry = _entry(document, findings)
    try:
        if entry is None:
            raise TopologyError(findings)
        name = Path(file).name.removesuffix(SUFFIX).removesuffix(".yml").removesuffix(".yaml")
        lab = resolve(entry, document, folder.absolute(), name)
    except TopologyError as exc:
        findings = sorted({*findings, *exc.findings})
    if findings:
        raise TopologyError(sorted(findings))
    return lab


def find_lab_file(where: str | None = None) -> Path:
    """The file meant: `where` itself, or the only one in it, or the only one here."""
    path = Path(where or ".")
    if not path.is_dir():
        if where and not path.exists():
            raise UsageError(f"{path}: there is no such file or directory: name a *{SUFFIX}")
        return path
    files = sorted(path.glob(f"*{SUFFIX}"))
    place = f"in {path}" if where else "here"
    if not files:
        raise UsageError(f"no *{SUFFIX} {place}: name a topology file")
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UsageError(f"several topology files {place}, name one: {names}")
    return files[0]


def _entry(document: Document, findings: list[Finding]) -> LabFile | None:
    """What the file says; None if what is wrong leaves too little to go on with."""
    data = document.data()
    if not isinstance(data, dict):
        what = "nothing" if data is None else "a list" if isinstance(data, list) else "a text"
        findings.append(document.finding((), f"{what} stands here", "a topology is a mapping"))
        return None
    data = yamlfile.without_nulls(data, _BY_NAME)
    _check_switch_names(document, data, findings)
    for _ in range(ROUNDS):  # a key that was set right may have a value that is wrong
        try:
            return LabFile.model_validate(data)
        except ValidationError as exc:
            if not _set_right(document, data, exc.errors(), findings):
                return None
    return None


def _check_switch_names(document: Document, data: Any, findings: list[Finding]) -> None:
    """Two names that are one: vale-1 and vale_1."""
    seen: dict[str, str] = {}
    names = data.get("switches")
    for key in names if isinstance(names, dict) else ():
        try:
            name = canonical_switch(key)
        except UsageError:
            continue
        if name in seen:
            message = f"switch '{key}' is '{seen[name]}', as `-` stands for `_`"
            findings.append(document.finding(("switches", key), message, "rename one", key=True))
        seen[name] = key


def _set_right(
    document: Document, data: Any, errors: "list[ErrorDetails]", findings: list[Finding]
) -> bool:
    """Report errors and take them out of the data; False if the rest makes no sense without.

    Unknown keys come first, alone: what they lack or break may be set right with them.
    """
    unknown = [error for error in errors if error["type"] == "extra_forbidden"]
    for error in unknown:
        findings.append(_unknown_key(document, data, list(error["loc"])))
    if unknown:
        return True
    places = [error["loc"] for error in errors]
    complete = True
    for error in errors:
        path, is_key = [step for step in error["loc"] if step != "[key]"], "[key]" in error["loc"]
        if error["type"] == "too_short" and any(_is_within(loc, error["loc"]) for loc in places):
            continue  # its items are wrong, which is said already
        at_key = is_key or error["type"] == "missing"
        findings.append(document.finding(path, *explain(error), key=at_key))
        complete = not is_key and _leave_out(data, path) and complete
    return complete


def _is_within(path: KeyPath, outer: KeyPath) -> bool:
    return len(path) > len(outer) and path[: len(outer)] == outer


def _unknown_key(document: Document, data: Any, path: list[str | int]) -> Finding:
    """Report a key, and set it right if it is clear which was meant."""
    parent, key = _at(data, path[:-1]), str(path[-1])
    known = _keys_at(path[:-1])
    meant = _SYNONYMS.get(key, "")
    meant = meant if meant in known else closest(key, known)
    advice = f"did you mean '{meant}'?" if meant else _HINTS.get(key) or suggest(key, known)
    finding = document.finding(path, f"unknown key '{key}'", advice, key=True)
    value = parent.pop(key)
    if meant and meant not in parent:
        parent[meant] = value
        document.rename(path, meant)
    return finding


def _leave_out(data: Any, path: list[str | int]) -> bool:
    """Take a wrong value out of the data, if nothing else refers to it."""
    while path and not isinstance(_at(data, path[:-1]), dict):
        path = path[:-1]
    parent = _at(data, path[:-1])
    if path and path[-1] not in parent:  # it is missing, or left out already
        return len(path) == 1 or _leave_out(data, path[:-1])
    if not path or path[-1] in _REFERRED:
        return False
    if len(path) == 2 and path[0] in _BY_NAME:
        parent[path[-1]] = {}
    else:
        del parent[path[-1]]
    return True


def _at(data: Any, path: Sequence[str | int]) -> Any:
    for step in path:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _keys_at(path: Sequence[str | int]) -> list[str]:
    """The keys that a mapping of the file may have."""
    model: type[BaseModel] = LabFile
    for step in path:
        field = next((f for f in model.model_fields.values() if f.alias == step), None)
        model = _model_in(field.annotation) or model if field else model
    return [str(field.alias) for field in model.model_fields.values()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model somewhere in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for part in get_args(annotation) if (m := _model_in(part))), None)
