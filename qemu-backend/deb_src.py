# SPDX-License-Identifier: BSD-2-Clause
"""Print deb-src entries for one Debian suite, derived from the system's own apt sources.

Usage: deb_src.py SOURCES_LIST SOURCES_PARTS SYSTEM_CODENAME SUITE

The system's configuration is only read. Every Debian archive entry for the running release is
printed again as ``Types: deb-src`` (deb822 format) for SUITE, with its mirror, its signing key and
its other options unchanged, so whatever reaches the system's mirror also reaches the sources.
"""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

Stanza = dict[str, str]

#: Options that choose what to download of a binary archive; they mean nothing for sources.
BINARY_ONLY = {"Arch", "Architectures", "Lang", "Languages", "Target", "Targets"}


def parse_deb822(text: str) -> Iterator[Stanza]:
    """Yield the stanzas of a ``.sources`` file; continuation lines stay in their field."""
    stanza: Stanza = {}
    field = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if stanza:
                yield stanza
            stanza = {}
        elif line[0].isspace():
            stanza[field] += "\n" + line
        else:
            name, _, value = line.partition(":")
            field = name.strip().title()
            stanza[field] = value.strip()


def parse_one_line(text: str) -> Iterator[Stanza]:
    """Yield the ``deb [options] uri suite component...`` entries of a ``.list`` file."""
    for line in text.splitlines():
        words = shlex.split(line.replace("[", " [ ").replace("]", " ] "), comments=True)
        if len(words) < 4 or words[0] not in ("deb", "deb-src"):
            continue
        stanza: Stanza = {"Types": words.pop(0)}
        if words[0] == "[":
            end = words.index("]")
            for option in words[1:end]:
                name, _, value = option.partition("=")
                stanza[name.title()] = value.replace(",", " ")
            words = words[end + 1 :]
        stanza |= {"Uris": words[0], "Suites": words[1], "Components": " ".join(words[2:])}
        yield stanza


def read_sources(main: Path, parts: Path) -> Iterator[Stanza]:
    """Yield every entry of the system, in apt's order."""
    files = [main, *sorted([*parts.glob("*.list"), *parts.glob("*.sources")])]
    for path in files:
        if path.is_file():
            parse = parse_deb822 if path.suffix == ".sources" else parse_one_line
            yield from parse(path.read_text(encoding="utf-8"))


def for_suite(stanza: Stanza, codename: str, suite: str) -> Stanza | None:
    """Turn one entry into a source entry of ``suite``; None when it is not Debian's archive."""
    pockets = {f"{codename}{tail}": tail for tail in ("", "-updates", "-security")}
    tails = [pockets[s] for s in stanza.get("Suites", "").split() if s in pockets]
    if suite == "sid":
        tails = [tail for tail in tails if not tail]
    disabled = stanza.get("Enabled", "yes").lower() in ("no", "false", "0", "off")
    if disabled or not tails or "main" not in stanza.get("Components", "").split():
        return None
    kept = {name: value for name, value in stanza.items() if name not in BINARY_ONLY}
    suites = " ".join(suite + tail for tail in tails)
    return kept | {"Types": "deb-src", "Suites": suites, "Components": "main"}


def main(argv: list[str]) -> int:
    """Print the entries; 1 when the system has no Debian archive to derive them from."""
    if len(argv) != 5:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    found: list[Stanza] = []
    for stanza in read_sources(Path(argv[1]), Path(argv[2])):
        entry = for_suite(stanza, argv[3], argv[4])
        if entry is not None and entry not in found:
            found.append(entry)
    for entry in found:
        sys.stdout.write("\n".join(f"{name}: {value}" for name, value in entry.items()) + "\n\n")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
