# SPDX-License-Identifier: BSD-2-Clause
"""The result store: SQLite in the state directory, raw trials and provenance kept.

    result   one run: what was asked, on what machine, how it ended
    trial    one trial of it, as the programs and counters reported it

A row is written when a run begins and each trial as it ends, each in one transaction: a run that
is killed stays visible as `running` without a process, and is shown as interrupted.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from valemgr import proc, xdg
from valemgr.errors import StoreError, UsageError

STORE_SCHEMA = 1

_TABLES = """
CREATE TABLE result (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    lab TEXT NOT NULL,
    started TEXT NOT NULL,
    finished TEXT,
    status TEXT NOT NULL CHECK (status IN ('running', 'done', 'failed', 'interrupted')),
    message TEXT NOT NULL DEFAULT '',
    pid INTEGER NOT NULL,
    start_time INTEGER NOT NULL,
    request TEXT NOT NULL,
    provenance TEXT NOT NULL DEFAULT '{}'
);
CREATE TABLE trial (
    id INTEGER PRIMARY KEY,
    result INTEGER NOT NULL REFERENCES result (id) ON DELETE CASCADE,
    conserved INTEGER NOT NULL,
    data TEXT NOT NULL
);
CREATE INDEX trial_of_result ON trial (result);
PRAGMA user_version = 1;
"""


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A run as it was stored."""

    id: int
    kind: str
    lab: str
    started: str
    finished: str | None
    status: str
    message: str
    request: dict[str, Any]
    provenance: dict[str, Any]
    trials: tuple[dict[str, Any], ...]

    @property
    def valid(self) -> bool:
        """Finished, and the frames of every trial are accounted for."""
        return self.status == "done" and all(trial["conserved"] for trial in self.trials)


class ResultStore:
    """The store at `path`, made when first opened."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or xdg.state_dir() / "results.db"
        with self._guard():
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=10, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA foreign_keys = ON")
            self._prepare()

    def close(self) -> None:
        self._db.close()

    def begin(self, kind: str, lab: str, request: dict[str, Any]) -> int:
        """A new run; its id."""
        me = proc.myself()
        with self._guard(), self._transaction():
            cursor = self._db.execute(
                "INSERT INTO result (kind, lab, started, status, pid, start_time, request)"
                " VALUES (?, ?, ?, 'running', ?, ?, ?)",
                (kind, lab, _now(), me.pid, me.start_time, json.dumps(request)),
            )
            return int(cursor.lastrowid or 0)

    def set_provenance(self, result: int, provenance: dict[str, Any]) -> None:
        with self._guard(), self._transaction():
            self._db.execute(
                "UPDATE result SET provenance = ? WHERE id = ?", (json.dumps(provenance), result)
            )

    def add_trial(self, result: int, trial: dict[str, Any]) -> None:
        with self._guard(), self._transaction():
            self._db.execute(
                "INSERT INTO trial (result, conserved, data) VALUES (?, ?, ?)",
                (result, int(trial["conserved"]), json.dumps(trial)),
            )

    def finish(self, result: int, status: str, message: str = "") -> None:
        with self._guard(), self._transaction():
            self._db.execute(
                "UPDATE result SET status = ?, message = ?, finished = ? WHERE id = ?",
                (status, message, _now(), result),
            )

    def list(self, limit: int = 20) -> list[StoredResult]:
        """The newest runs, newest first."""
        with self._guard():
            rows = self._db.execute(
                "SELECT * FROM result ORDER BY id DESC LIMIT ?", (limit,)
            ).fetchall()
            return [self._stored(row) for row in rows]

    def get(self, result: int) -> StoredResult:
        """One run; id 0 is the newest."""
        with self._guard():
            row = self._db.execute(
                "SELECT * FROM result WHERE id = ? OR ? = 0 ORDER BY id DESC LIMIT 1",
                (result, result),
            ).fetchone()
            if row is None:
                raise UsageError(f"no result {result}: 'valemgr results list' shows what there is")
            return self._stored(row)

    def _stored(self, row: sqlite3.Row) -> StoredResult:
        trials = self._db.execute(
            "SELECT data FROM trial WHERE result = ? ORDER BY id", (row["id"],)
        ).fetchall()
        status = row["status"]
        if status == "running" and not proc.is_alive(proc.ProcessId(row["pid"], row["start_time"])):
            status = "interrupted"
        return StoredResult(
            id=row["id"],
            kind=row["kind"],
            lab=row["lab"],
            started=row["started"],
            finished=row["finished"],
            status=status,
            message=row["message"],
            request=json.loads(row["request"]),
            provenance=json.loads(row["provenance"]),
            trials=tuple(json.loads(trial["data"]) for trial in trials),
        )

    def _prepare(self) -> None:
        """Create the tables; two first runs may race, so look again under the lock."""
        if self._version() == 0:
            with self._transaction():
                if self._version() == 0:
                    for statement in _TABLES.split(";"):
                        self._db.execute(statement)
        if self._version() != STORE_SCHEMA:
            raise StoreError(
                f"result store {self.path} has schema {self._version()}, this valemgr knows "
                f"{STORE_SCHEMA}: use the valemgr that wrote it, or move it away"
            )

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise StoreError(
                f"result store {self.path}: {exc}: free some space or set XDG_STATE_HOME"
            ) from exc
        except OSError as exc:
            raise StoreError(
                f"result store {self.path}: {exc.strerror}: set XDG_STATE_HOME to a place with room"
            ) from exc


def brief(result: StoredResult) -> dict[str, Any]:
    """One line about a run."""
    rates = [trial["received_pps"] for trial in result.trials]
    return {
        "id": result.id,
        "kind": result.kind,
        "lab": result.lab,
        "started": result.started,
        "status": result.status,
        "valid": result.valid,
        "trials": len(result.trials),
        "best_kpps": round(max(rates) / 1e3, 1) if rates else None,
        "message": result.message.partition(";")[0],
    }


def headline(result: StoredResult) -> list[str]:
    """Where a run came from, in a few lines."""
    facts = result.provenance
    if not facts:
        return ["it ended before anything was measured"]
    host, versions = facts["host"], facts["versions"]
    return [
        f"command   {' '.join(facts['command'])}",
        f"host      {host['cpu']}, {host['cores']} cores, Linux {host['kernel']}",
        f"versions  valemgr {versions['valemgr']} {versions['commit']}, valed {versions['valed']}, "
        f"{versions['qemu']}",
        f"accel     {facts['accelerator']['name']} ({facts['accelerator']['reason']})",
        f"placement {facts['placement']}",
    ]


def trial_row(trial: dict[str, Any]) -> dict[str, Any]:
    """One trial as a line of a table."""
    spec = trial["spec"]
    return {
        "frame": spec["frame"],
        "path": spec["path"],
        "seconds": spec["seconds"],
        "sent_kpps": round(trial["sent_pps"] / 1e3, 1),
        "received_kpps": round(trial["received_pps"] / 1e3, 1),
        "mbit_s": round(trial["received_bps"] / 1e6, 1),
        "loss_percent": round(100 * trial["loss"], 2),
        "losses": trial["losses"],
        "conserved": trial["conserved"],
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
