# SPDX-License-Identifier: BSD-2-Clause
"""YAML with positions, as far as a topology needs it.

Scalars follow YAML 1.2's core schema: `on`, `yes` and `52:54:00:12:34:56` are strings, `true` is
not. Keys are text always, whatever they look like. Numbers remember how they were written, so
that where a string is meant `0644` stays `0644`. Refused: a key twice, tags, a second document,
an alias within its own anchor, input that is large, deep, or grows through aliases.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from valemgr.errors import EnvironmentUnfitError, TopologyError, UsageError
from valemgr.findings import Finding

SIZE_MAX = 1 << 20  # bytes
DEPTH_MAX = 32
NODES_MAX = 100_000  # with aliases followed

KeyPath = tuple[str | int, ...]
# libyaml reads a large topology in milliseconds; where PyYAML was built without it, its own does.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NULL = re.compile(r"|~|null|Null|NULL")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INF = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_UNPRINTABLE = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DIGITS_MAX = 30


class Int(int):
    """A whole number, and its text."""

    text: str


class Float(float):
    """A number, and its text."""

    text: str


Place = tuple[int, int]  # line and column, from 1


@dataclass(slots=True)
class Node:
    """A value and where it is; children are nodes, and keys have places too."""

    place: Place
    value: Any
    keys: dict[str, Place] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says, and where it says it."""

    file: str
    root: Node

    def data(self) -> Any:
        """Plain dictionaries, lists and scalars."""
        return _plain(self.root)

    def place(self, path: Sequence[str | int], key: bool = False) -> Place:
        """Where the value at a path is, or its key; where the path ends early, the last of it."""
        node, where = self.root, self.root.place
        for step in path:
            child = _child(node, step)
            if child is None:
                return where
            where = node.keys[str(step)] if key and node.keys else child.place
            node = child
        return where

    def rename(self, path: Sequence[str | int], key: str) -> None:
        """Let a key, the end of a path, be found under another name too."""
        *outer, old = path
        node: Node | None = self.root
        for step in outer:
            node = _child(node, step) if node else None
        if node and old in node.keys:
            node.value[key], node.keys[key] = node.value[old], node.keys[str(old)]

    def finding(
        self, path: Sequence[str | int], message: str, suggestion: str = "", key: bool = False
    ) -> Finding:
        """A mistake at a path."""
        return Finding(self.file, *self.place(path, key), message, suggestion)


def read(path: Path, what: str = "topology file") -> str:
    """A file's text; UsageError where there is none that could be meant."""
    try:
        with path.open("rb") as file:
            raw = file.read(SIZE_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{path}: there is no such file: name a {what}") from None
    except IsADirectoryError:
        raise UsageError(f"{path}: is a directory: name a {what} in it") from None
    except PermissionError:
        raise EnvironmentUnfitError(f"{path}: may not be read: see its permissions") from None
    except OSError as exc:
        raise EnvironmentUnfitError(f"{path}: cannot be read: {exc.strerror}") from exc
    return decode(raw, str(path))


def decode(raw: bytes, file: str) -> str:
    """Bytes as text; TopologyError for what is no text."""
    if len(raw) > SIZE_MAX:
        raise TopologyError([Finding(file, 0, 0, f"larger than {SIZE_MAX >> 20} MiB: no topology")])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        place = _place_in(raw[: exc.start].decode("utf-8", "replace"))
        raise TopologyError([Finding(file, *place, "not UTF-8", "is this a text file?")]) from None
    if bad := _UNPRINTABLE.search(text):
        code = f"control character 0x{ord(bad.group()):02x}"
        place = _place_in(text[: bad.start()])
        raise TopologyError([Finding(file, *place, code, "is this a text file?")])
    return text


def parse(text: str, file: str, merge: bool = False) -> Document:
    """The one document of a text. `merge`: `<<` merges mappings, as YAML 1.1 has it."""
    reader = _Reader(text, file, merge)
    try:
        document = reader.document()
    except yaml.MarkedYAMLError as exc:
        raise TopologyError([*reader.findings, _syntax(exc, text, file)]) from None
    if reader.findings:
        raise TopologyError(sorted(reader.findings))
    return document


class _Reader:
    """Makes nodes of the parser's events; collects what can be passed over."""

    def __init__(self, text: str, file: str, merge: bool) -> None:
        self.file = file
        self.merge = merge
        self.findings: list[Finding] = []
        self._events: Iterator[Event] = yaml.parse(text, Loader=_LOADER)
        self._anchors: dict[str, tuple[Node, int]] = {}
        self._open: set[str] = set()
        self._nodes = 0

    def document(self) -> Document:
        next(self._events)
        start = next(self._events)
        if isinstance(start, StreamEndEvent):
            raise TopologyError([Finding(self.file, 1, 1, "the file is empty")])
        root = self._node(next(self._events), 0)
        next(self._events)
        if isinstance(extra := next(self._events), DocumentStartEvent):
            self._note(extra, "a second document begins here", "one file is one topology")
        return Document(self.file, root)

    def _node(self, event: Event, depth: int) -> Node:
        if depth > DEPTH_MAX:
            raise self._refusal(event, f"nested deeper than {DEPTH_MAX} levels")
        if isinstance(event, AliasEvent):
            return self._alias(event)
        assert isinstance(event, (ScalarEvent, SequenceStartEvent, MappingStartEvent))
        if event.tag not in (None, "!"):
            self._note(event, f"tag {event.tag}", "tags mean nothing here: leave it out")
        before, anchor = self._nodes, event.anchor
        self._count(event, 1)
        if anchor:
            self._open.add(anchor)
        node = self._content(event, depth)
        if anchor:
            self._open.discard(anchor)
            self._anchors[anchor] = (node, self._nodes - before)
        return node

    def _content(self, event: CollectionStartEvent | ScalarEvent, depth: int) -> Node:
        place = _place(event)
        if isinstance(event, ScalarEvent):
            plain = event.implicit[0] and event.tag is None
            return Node(place, _resolve(event.value) if plain else event.value)
        if isinstance(event, SequenceStartEvent):
            return Node(place, list(self._items(depth + 1)))
        return self._mapping(Node(place, {}), depth + 1)

    def _items(self, depth: int) -> Iterator[Node]:
        while not isinstance(event := next(self._events), SequenceEndEvent):
            yield self._node(event, depth)

    def _mapping(self, node: Node, depth: int) -> Node:
        merged: list[Node] = []
        while not isinstance(event := next(self._events), MappingEndEvent):
            if not isinstance(event, ScalarEvent):
                raise self._refusal(event, "a key is a word, not a list, a mapping or an alias")
            key, value = str(event.value), self._node(next(self._events), depth)
            if key == "<<" and self.merge:
                merged += self._mergeable(value)
            elif key in node.value:
                line = node.keys[key][0]
                self._note(event, f"key '{key}' is here twice", f"the first is in line {line}")
            else:
                node.value[key], node.keys[key] = value, _place(event)
        for other in merged:
            node.value = {**other.value, **node.value}
            node.keys = {**other.keys, **node.keys}
        return node

    def _mergeable(self, node: Node) -> list[Node]:
        """The mappings that `<<` names."""
        nodes: list[Node] = node.value if isinstance(node.value, list) else [node]
        for other in nodes:
            if not isinstance(other.value, dict):
                finding = Finding(self.file, *other.place, "<< merges mappings", "name one")
                self.findings.append(finding)
        return [other for other in nodes if isinstance(other.value, dict)]

    def _alias(self, event: AliasEvent) -> Node:
        anchor = str(event.anchor)
        if anchor in self._open:
            raise self._refusal(event, f"alias *{anchor} is within its own anchor")
        if anchor not in self._anchors:
            raise self._refusal(event, f"alias *{anchor} has no anchor &{anchor} before it")
        node, nodes = self._anchors[anchor]
        self._count(event, nodes)
        return node

    def _count(self, event: Event, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > NODES_MAX:
            raise self._refusal(event, f"more than {NODES_MAX} values, aliases followed")

    def _note(self, event: Event, message: str, suggestion: str) -> None:
        self.findings.append(Finding(self.file, *_place(event), message, suggestion))

    def _refusal(self, event: Event, message: str) -> TopologyError:
        return TopologyError([*self.findings, Finding(self.file, *_place(event), message)])


def _resolve(text: str) -> Any:
    """A plain scalar's value by the core schema."""
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text):
        return True
    if _FALSE.fullmatch(text):
        return False
    if len(text) > _DIGITS_MAX:
        return text
    number: Int | Float
    if _INT.fullmatch(text):
        number = Int(int(text, 0 if text[:2] in ("0x", "0o") else 10))
    elif _FLOAT.fullmatch(text) or _INF.fullmatch(text):
        number = Float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    else:
        return text
    number.text = text
    return number


def without_nulls(data: Any, named: Collection[str]) -> Any:
    """A key without a value is one that is not there; but in `named` mappings, `a:` is an a."""
    if isinstance(data, list):
        return [without_nulls(item, named) for item in data]
    if not isinstance(data, dict):
        return data
    return {
        key: _with_names(value, named) if key in named else without_nulls(value, named)
        for key, value in data.items()
        if value is not None
    }


def _with_names(entries: Any, named: Collection[str]) -> Any:
    if not isinstance(entries, dict):
        return entries
    return {name: without_nulls(entry, named) for name, entry in entries.items()}


def _plain(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {key: _plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [_plain(child) for child in node.value]
    return node.value


def _child(node: Node, step: str | int) -> Node | None:
    if isinstance(node.value, dict):
        return node.value.get(str(step))
    if isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
        return node.value[step]  # type: ignore[no-any-return]
    return None


def _place(event: Event) -> Place:
    mark = event.start_mark
    assert mark  # the parser always says where
    return mark.line + 1, mark.column + 1


def _place_in(text: str) -> Place:
    """The place behind a text."""
    return text.count("\n") + 1, len(text) - (text.rfind("\n") + 1) + 1


_ADVICE = (
    ("mapping values are not allowed", "a colon too many", "quote a value that contains ': '"),
    ("cannot start any token", "this character cannot begin a value", "quote the value"),
    ("unexpected end of stream", "a quote is opened here and never closed", "close it"),
    ("unknown escape", "unknown escape in a double-quoted value", "use single quotes"),
    ("expected ',' or ']'", "a list that is opened here is not closed", "add a comma or ]"),
    ("expected ',' or '}'", "a mapping that is opened here is not closed", "add a comma or }"),
    ("expected key", "this is indented like nothing above it", "align it with its siblings"),
    ("expected '-'", "a list ends and something else begins in the same column", "indent the list"),
    ("could not find expected ':'", "a key without a colon", "write key: value"),
)


def _syntax(exc: yaml.MarkedYAMLError, text: str, file: str) -> Finding:
    """A syntax error in words that help."""
    mark = exc.problem_mark or exc.context_mark
    problem = exc.problem or "not YAML"
    if mark is None:
        return Finding(file, 1, 1, problem)
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        column = line.index("\t") + 1
        return Finding(file, mark.line + 1, column, "a tab indents this line", "use spaces")
    for phrase, message, advice in _ADVICE:
        if phrase in problem:
            if "opened here" in message and exc.context_mark:
                mark = exc.context_mark
            return Finding(file, mark.line + 1, mark.column + 1, message, advice)
    return Finding(file, mark.line + 1, mark.column + 1, problem)
