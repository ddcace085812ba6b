# SPDX-License-Identifier: BSD-2-Clause
"""Topology files: found, read, checked, written.

    text ──yamlfile──▶ Document ──authoring──▶ LabFile ──resolve──▶ topology.Lab

All mistakes of a file are reported at once. To get past the first kind, keys and values that are
wrong by themselves are set right or left out, so that references are looked at as well.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from valemgr import yamlfile
from valemgr.authoring import LabFile
from valemgr.errors import TopologyError, UsageError
from valemgr.findings import Finding, closest, explain, suggest
from valemgr.labdump import dump_lab
from valemgr.names import parse_switch
from valemgr.resolve import resolve
from valemgr.topology import Lab
from valemgr.yamlfile import Document

__all__ = ["SUFFIX", "dump_lab", "find_lab_file", "load_lab", "parse_lab"]

SUFFIX = ".lab.yml"
# Others refer to what is said there: without it, the rest makes no sense.
_REFERRED = {"name", "port", "switch", "cable", "guest", "nic", "group", "endpoints", "from"}
_BY_NAME = ("guests", "groups", "switches")


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
            raise TopologyError(sorted(findings))
        name = Path(file).name.removesuffix(SUFFIX).removesuffix(".yml").removesuffix(".yaml")
        lab = resolve(entry, document, folder.absolute(), name)
    except TopologyError as exc:
        findings = sorted({*findings, *exc.findings})
    if findings:
        raise TopologyError(findings)
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
    data = _without_nulls(data)
    _check_switch_names(document, data, findings)
    for _ in range(3):  # a key that was set right may have a value that is wrong
        try:
            entry = LabFile.model_validate(data)
        except ValidationError as exc:
            rights = [_set_right(document, data, error, findings) for error in exc.errors()]
            if not all(rights):
                return None
        else:
            return entry
    return None


def _without_nulls(data: dict[str, Any]) -> dict[str, Any]:
    """A key without a value is one that is not there; but a guest without settings is a guest."""

    def clean(value: Any, named: bool) -> Any:
        if isinstance(value, dict):
            return {k: clean(v, False) for k, v in value.items() if v is not None or named}
        return [clean(item, False) for item in value] if isinstance(value, list) else value

    return {k: clean(v, k in _BY_NAME) for k, v in data.items() if v is not None}


def _check_switch_names(document: Document, data: Any, findings: list[Finding]) -> None:
    """Two names that are one: vale-1 and vale_1."""
    seen: dict[str, str] = {}
    names = data.get("switches")
    for key in names if isinstance(names, dict) else ():
        try:
            name = parse_switch(key)
        except UsageError:
            continue
        if name in seen:
            message = f"switch '{key}' is '{seen[name]}', as `-` stands for `_`"
            findings.append(document.finding(("switches", key), message, "rename one", key=True))
        seen[name] = key


def _set_right(document: Document, data: Any, error: Any, findings: list[Finding]) -> bool:
    """Report an error and take it out of the data; False if the rest makes no sense without."""
    path = [step for step in error["loc"] if step != "[key]"]
    if error["type"] == "extra_forbidden":
        return _unknown_key(document, data, path, findings)
    is_key = "[key]" in error["loc"]
    at_key = is_key or error["type"] == "missing"
    findings.append(document.finding(path, *explain(error), key=at_key))
    parent, key = _at(data, path[:-1]), path[-1] if path else None
    if is_key or key in _REFERRED or not isinstance(parent, dict) or key not in parent:
        return False
    if len(path) < 2 or isinstance(parent[key], (dict, list)):
        return False
    del parent[key]
    return True


def _unknown_key(
    document: Document, data: Any, path: list[str | int], findings: list[Finding]
) -> bool:
    parent, key = _at(data, path[:-1]), str(path[-1])
    known = _keys_at(path[:-1])
    findings.append(document.finding(path, f"unknown key '{key}'", suggest(key, known), key=True))
    value = parent.pop(key)
    if (meant := closest(key, known)) and meant not in parent:
        parent[meant] = value
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
