# SPDX-License-Identifier: BSD-2-Clause
"""Every XML snippet in docs/libvirt.md is what libvirt's own schema allows, and what we write."""

import re
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from lib.libvirtd import find
from valemgr.names import parse_port
from valemgr.virt.domxml import DomainView
from valemgr.virt.portxml import interface
from valemgr.words import Backend

VALIDATE = find("virt-xml-validate")
PAGE = (Path(__file__).parents[2] / "docs" / "libvirt.md").read_text()
SNIPPETS = re.findall(r"^```xml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
IN_DEVICES = ("interface", "controller")

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(
        not VALIDATE, reason="no virt-xml-validate: apt-get install libvirt-clients"
    ),
]


def domain(snippet: str) -> str:
    """A snippet as a whole domain."""
    tag = ET.fromstring(snippet).tag
    if tag == "domain":
        return snippet
    beside, inside = ("", snippet) if tag in IN_DEVICES else (snippet, "")
    return (
        "<domain type='kvm'><name>web</name><memory unit='MiB'>512</memory>"
        f"{beside}<os><type>hvm</type></os><devices>{inside}</devices></domain>"
    )


def validate(text: str, file: Path) -> subprocess.CompletedProcess[str]:
    file.write_text(text)
    argv = [str(VALIDATE), str(file), "domain"]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_there_are_snippets() -> None:
    tags = [ET.fromstring(snippet).tag for snippet in SNIPPETS]
    assert tags == ["interface", "memoryBacking", "controller", "metadata", "domain", "domain"]


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet_validates(number: int, tmp_path: Path) -> None:
    done = validate(domain(SNIPPETS[number]), tmp_path / "domain.xml")
    assert done.returncode == 0, done.stderr


def test_what_is_wrong_does_not(tmp_path: Path) -> None:
    wrong = domain(SNIPPETS[0]).replace("mode='client'", "mode='customer'")
    done = validate(wrong, tmp_path / "domain.xml")
    assert done.returncode != 0


def test_snippets_are_what_we_write_and_read() -> None:
    ours = interface(parse_port("vale1:web"), "52:54:00:12:34:56", Path("/run/vale"))
    shown = ET.fromstring(SNIPPETS[0])
    assert ET.canonicalize(ET.tostring(ours, encoding="unicode"), strip_text=True) == (
        ET.canonicalize(ET.tostring(shown, encoding="unicode"), strip_text=True)
    )
    [mapped] = DomainView.parse(domain(SNIPPETS[3])).mapped
    assert (str(mapped.port), mapped.mac) == ("vale1:web", "52:54:00:12:34:56")
    assert DomainView.parse(domain(SNIPPETS[1])).shares_memory
    assert DomainView.parse(SNIPPETS[4]).has_no_vectors
    [native] = DomainView.parse(SNIPPETS[5]).plugged
    assert (str(native.port), native.backend) == ("vale1:native", Backend.NETMAP)
    assert native.mac == "52:54:00:12:34:57"
