# SPDX-License-Identifier: BSD-2-Clause
"""Labs as pytest fixtures: network software tested between real machines.

    vale_lab     the lab of a module: the *.lab.yml beside it, or the one that is named by
                 `pytestmark = pytest.mark.vale_lab("star.lab.yml")`
    vale_pair    two guests, `a` and `b`, on one switch; `pytest.mark.vale_pair(model="e1000")`

Both are a SyncLab (valemgr.lab), ready, shared by the tests of a module, ended after them; their
`lab` is the same for asyncio. Labs of tests live in directories of their own, with a switch daemon
of their own: what else runs on this machine is neither seen nor disturbed. When a test fails, its
report shows the end of each guest's console.
"""

import asyncio
import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # at run time only where a lab is asked for: every pytest loads this file
    from valemgr.lab import SyncLab
    from valemgr.topology import Lab as Topology

CONSOLE_LINES = 20
_LAB = pytest.StashKey["SyncLab"]()


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known."""
    config.addinivalue_line("markers", "vale_lab(file): the topology of the module's vale_lab")
    config.addinivalue_line(
        "markers", "vale_pair(model, backend, image): what the guests of vale_pair are made of"
    )


@pytest.fixture(scope="session")
def vale_place() -> Iterator[Path]:
    """A world of its own for the labs of this run; short, since sockets live in it."""
    with tempfile.TemporaryDirectory(prefix="vale-", ignore_cleanup_errors=True) as name:
        place = Path(name)
        with pytest.MonkeyPatch.context() as patch:
            for variable, folder in (
                ("XDG_RUNTIME_DIR", "r"),
                ("XDG_STATE_HOME", "s"),
                ("VALE_RUNDIR", "v"),
            ):
                (place / folder).mkdir(mode=0o700)
                patch.setenv(variable, str(place / folder))
            yield place
            from valemgr import switchd

            asyncio.run(switchd.quit_at(place / "v"))


@pytest.fixture(scope="module")
def vale_lab(request: pytest.FixtureRequest, vale_place: Path) -> "Iterator[SyncLab]":
    """The lab of this module's topology, up and ready."""
    marker = request.node.get_closest_marker("vale_lab")
    folder = request.path.parent
    yield from _running(request, folder / marker.args[0] if marker else folder)


@pytest.fixture(scope="module")
def vale_pair(request: pytest.FixtureRequest, vale_place: Path) -> "Iterator[SyncLab]":
    """Two guests on one switch, up and ready."""
    from valemgr.topology import pair_lab
    from valemgr.words import Backend, NicModel

    marker = request.node.get_closest_marker("vale_pair")
    wanted: dict[str, Any] = dict(marker.kwargs) if marker else {}
    yield from _running(
        request,
        pair_lab(
            f"valeT{os.getpid()}",
            model=NicModel(wanted.get("model", NicModel.VIRTIO)),
            backend=Backend(wanted.get("backend", Backend.AUTO)),
            image=wanted.get("image", "micro"),
        ),
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that failed shows what its guests said last."""
    report = yield
    module = item.getparent(pytest.Module)
    lab = module.stash.get(_LAB, None) if module else None
    if lab and report.failed:
        from valemgr.state import LabDir
        from valemgr.text import tail

        for guest in lab.topology.guests:
            lines = tail(LabDir(lab.name).guest_file(guest.name, "console.log"), CONSOLE_LINES)
            report.sections.append((f"console of guest {guest.name}", "\n".join(lines)))
    return report


def _running(request: pytest.FixtureRequest, source: "Path | Topology") -> "Iterator[SyncLab]":
    from valemgr.errors import ValeError
    from valemgr.lab import Lab

    try:
        lab = Lab(source, say=print).sync
        with lab:
            request.node.stash[_LAB] = lab
            yield lab
    except ValeError as exc:
        pytest.fail("\n".join([str(exc), *exc.detail]), pytrace=False)
