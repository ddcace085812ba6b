# SPDX-License-Identifier: BSD-2-Clause
"""The grammar of names, on the vectors that the C test reads too."""

import json
from pathlib import Path
from typing import Any

import pytest

from valemgr.errors import UsageError
from valemgr.names import check_label, parse_port, parse_switch

pytestmark = pytest.mark.unit

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "names.json").read_text())["vectors"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: repr(v["text"]))
def test_shared_vectors(vector: dict[str, Any]) -> None:
    if vector.get("ok", True):
        name = parse_port(vector["text"])
        assert (name.switch, name.port, str(name)) == (
            vector["switch"], vector["port"], vector["full"],
        )
    else:
        with pytest.raises(UsageError) as caught:
            parse_port(vector["text"])
        assert caught.value.exit_code == 2


@pytest.mark.parametrize(("text", "switch"), [("vale1", "vale1"), ("vale-x", "vale_x")])
def test_switch(text: str, switch: str) -> None:
    assert parse_switch(text) == switch


@pytest.mark.parametrize(
    "text", ["", "vale", "vale1:a", "eth0", "vale1/..", "vale1\n", "vale123456789012", "valeé"]
)
def test_switch_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_switch(text)


@pytest.mark.parametrize("text", ["", "..", "a/b", "-a", "a b", "x" * 33, "a\n", "."])
def test_label_cannot_leave_its_directory(text: str) -> None:
    with pytest.raises(UsageError):
        check_label("lab", text)
