# SPDX-License-Identifier: BSD-2-Clause
"""The result store: what is written is read again, and a bad end leaves it intact."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from valemgr.errors import StoreError, UsageError
from valemgr.results import ResultStore, brief, headline

pytestmark = pytest.mark.unit

TRIAL = {"conserved": True, "received_pps": 12345.6}


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "deep" / "results.db")


def test_a_run_is_read_as_it_was_written(store: ResultStore) -> None:
    run = store.begin("pair", "vale1", {"frames": [64]})
    store.set_provenance(run, {"host": {"cpu": "x"}})
    store.add_trial(run, TRIAL)
    assert store.get(run).status == "running"
    store.finish(run, "done")
    stored = store.get(run)
    assert (stored.status, stored.valid, stored.trials) == ("done", True, (TRIAL,))
    assert (stored.request, stored.provenance) == ({"frames": [64]}, {"host": {"cpu": "x"}})
    assert brief(stored)["best_kpps"] == 12.3
    assert store.get(0).id == run


def test_trials_that_do_not_add_up_make_it_invalid(store: ResultStore) -> None:
    run = store.begin("pair", "vale1", {})
    store.add_trial(run, TRIAL | {"conserved": False})
    store.finish(run, "done")
    assert not store.get(run).valid


def test_newest_first_and_limited(store: ResultStore) -> None:
    runs = [store.begin("pair", f"vale{i}", {}) for i in range(5)]
    assert [result.id for result in store.list(3)] == runs[:1:-1]
    with pytest.raises(UsageError, match="no result 77"):
        store.get(77)


def test_a_killed_run_shows_as_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    code = (
        "import os, pathlib, sys; from valemgr.results import ResultStore;"
        "s = ResultStore(pathlib.Path(sys.argv[1])); r = s.begin('pair', 'vale1', {});"
        "s.add_trial(r, {'conserved': True, 'received_pps': 1.0}); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False, timeout=60)
    stored = ResultStore(path).get(0)
    assert (stored.status, stored.valid, len(stored.trials)) == ("interrupted", False, 1)
    assert headline(stored) == ["it ended before anything was measured"]


def test_a_full_disk_is_one_error_and_the_store_stays_intact(store: ResultStore) -> None:
    run = store.begin("pair", "vale1", {})
    store.add_trial(run, TRIAL)
    store._db.execute("PRAGMA max_page_count = 1")  # as far as SQLite knows, there is no more room
    with pytest.raises(StoreError, match=r"full.*set XDG_STATE_HOME"):
        store.add_trial(run, TRIAL | {"filler": "x" * 100_000})
    again = ResultStore(store.path)
    assert again._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert len(again.get(run).trials) == 1


@pytest.mark.parametrize("content", [b"not a database" * 100, None])
def test_a_store_that_cannot_be_one_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "results.db"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(StoreError, match=r"results\.db"):
        ResultStore(path)


def test_a_store_of_a_newer_valemgr_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.db"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="schema 99"):
        ResultStore(path)
