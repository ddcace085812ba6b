# SPDX-License-Identifier: BSD-2-Clause
"""The JSON Schema of topology files, for editors and other programs: 2020-12.

Made of the models in authoring.py. It knows the structure; references between parts of a file,
addresses and files of the host are what `valemgr validate` looks at. Descriptions are the texts
below fields, read from the source when a schema is asked for: pydantic would collect them at each
start, for a tenth of a second.
"""

import ast
import inspect
import json
from collections.abc import Iterator
from typing import Any

from valemgr import authoring

DIALECT = "https://json-schema.org/draft/2020-12/schema"
IDENTITY = "urn:vale:lab:1"


def schema() -> dict[str, Any]:
    """The schema as plain data."""
    made = _tidied(authoring.LabFile.model_json_schema())
    _describe(made)
    for section in ("groups", "switches", "guests"):
        _allow_no_settings(made["properties"][section])
    body = {key: value for key, value in made.items() if key != "$defs"}
    head = {"$schema": DIALECT, "$id": IDENTITY, "title": "VALE lab topology"}
    return {**head, **body, "$defs": made["$defs"]}


def schema_text() -> str:
    """The schema as JSON."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _describe(made: dict[str, Any]) -> None:
    texts = dict(_texts())
    for name, part in [("LabFile", made), *made["$defs"].items()]:
        for key, value in part.get("properties", {}).items():
            classes = getattr(authoring, name).__mro__
            value["description"] = next(
                text for kind in classes if (text := texts.get((kind.__name__, key)))
            )


def _texts() -> Iterator[tuple[tuple[str, str], str]]:
    """The text below each field, by its class and key."""
    for kind in ast.parse(inspect.getsource(authoring)).body:
        if not isinstance(kind, ast.ClassDef):
            continue
        for one, below in zip(kind.body, kind.body[1:], strict=False):
            match one, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    yield (kind.name, authoring.kebab(name)), text


def _allow_no_settings(section: dict[str, Any]) -> None:
    """`vale1:` is a switch like any other; no name may be one that the pattern does not know."""
    patterns = section["patternProperties"]
    for name, entry in patterns.items():
        patterns[name] = {"anyOf": [entry, {"type": "null"}]}
    section["additionalProperties"] = False


def _tidied(part: Any) -> Any:
    """Without what says nothing: generated titles, and null where a key is simply left out."""
    if isinstance(part, list):
        return [_tidied(item) for item in part]
    if not isinstance(part, dict):
        return part
    said = {key: _tidied_member(key, value) for key, value in part.items()}
    said = {key: value for key, value in said.items() if value is not None}
    options = [option for option in said.get("anyOf", ()) if option != {"type": "null"}]
    if len(options) == 1:
        del said["anyOf"]
        said = {**options[0], **said}
    elif options:
        said["anyOf"] = options
    return said


def _tidied_member(key: str, value: Any) -> Any:
    if key == "properties":
        return {name: _tidied(child) for name, child in value.items()}
    if key == "title" or (key == "default" and not isinstance(value, str)):
        return None
    return _tidied(value)
