"""The index of all jobs, in SQLite: what a restart finds again."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import AR2UNetError
from pipeline.web.models import JobState

__all__ = ["ENDED", "LIVE", "CorrectionRecord", "JobIndex", "JobRecord"]

LIVE = (JobState.UPLOADING, JobState.QUEUED, JobState.RUNNING)
ENDED = (JobState.FINISHED, JobState.FAILED, JobState.CANCELLED)
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    sample INTEGER NOT NULL,
    state TEXT NOT NULL,
    created REAL NOT NULL,
    touched REAL NOT NULL,
    started REAL,
    ended REAL,
    format TEXT,
    files INTEGER NOT NULL DEFAULT 0,
    roles TEXT NOT NULL DEFAULT '{}',
    upload_bytes INTEGER NOT NULL DEFAULT 0,
    has_upload INTEGER NOT NULL DEFAULT 1,
    result_bytes INTEGER NOT NULL DEFAULT 0,
    results TEXT NOT NULL DEFAULT '[]',
    scan TEXT,
    error_code TEXT,
    error_message TEXT
);
CREATE INDEX jobs_by_state ON jobs (state, number);
CREATE TABLE corrections (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    saved REAL NOT NULL,
    lesion_voxels INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    PRIMARY KEY (job, number)
);
"""


@dataclass(frozen=True)
class JobRecord:
    """A job as the index knows it; times are seconds since 1970.

    Attributes:
        number: Counts the jobs.
        roles: By role, the name of the uploaded file or folder.
        has_upload: Whether the uploaded files are still there.
        results: A dictionary ``name``, ``role``, ``bytes`` for each file.
        scan: Name of the file to look the scan up in.
    """

    number: int
    id: str
    kind: str
    sample: bool
    state: JobState
    created: float
    touched: float
    started: float | None
    ended: float | None
    format: str | None
    files: int
    roles: dict[str, str]
    upload_bytes: int
    has_upload: bool
    result_bytes: int
    results: list[dict[str, Any]]
    scan: str | None
    error_code: str | None
    error_message: str | None


@dataclass(frozen=True)
class CorrectionRecord:
    """A corrected mask as the index knows it."""

    job: str
    number: int
    saved: float
    lesion_voxels: int
    bytes: int


class JobIndex:
    """The index; its methods may be called from any thread.

    Args:
        path: The database, made where missing.

    Raises:
        AR2UNetError: If the file cannot be opened, or is of another version.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        try:
            # One connection behind one lock: statements take microseconds, and a writer never meets another.
            self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._database.row_factory = sqlite3.Row
            # WAL would be a second file to fill; FULL: what was said to be finished survives a loss of power.
            for pragma in ("journal_mode = TRUNCATE", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
                self._database.execute(f"PRAGMA {pragma}").close()
            self._make_schema(path)
        except sqlite3.Error as error:
            raise AR2UNetError(f"{path}: expected an index of jobs that can be written, got: {error}") from error

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Let nobody else change the index meanwhile; what was changed is undone if an exception comes."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE").close()
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK").close()
                raise
            self._database.execute("COMMIT").close()

    def add(self, job_id: str, kind: str, *, sample: bool, limit: int, now: float | None = None) -> bool:
        """Enter a new job, in state uploading; False where ``limit`` jobs are not at their end."""
        now = time.time() if now is None else now
        with self.exclusive():
            if self.count(LIVE) >= limit:
                return False
            self._execute(
                "INSERT INTO jobs (id, kind, sample, state, created, touched) VALUES (?, ?, ?, ?, ?, ?)",
                (job_id, kind, sample, JobState.UPLOADING, now, now),
            )
        return True

    def get(self, job_id: str) -> JobRecord | None:
        """Return a job; None where there is none."""
        return next(iter(self._select("WHERE id = ?", (job_id,))), None)

    def newest(self, limit: int, offset: int = 0) -> list[JobRecord]:
        """Return jobs, the newest first."""
        return self._select("ORDER BY number DESC LIMIT ? OFFSET ?", (limit, offset))

    def in_states(self, states: Iterable[JobState]) -> list[JobRecord]:
        """Return the jobs in some states, the oldest first."""
        states = tuple(states)
        return self._select(f"WHERE state IN ({_marks(states)}) ORDER BY number", states)

    def next_queued(self) -> JobRecord | None:
        """Return the job that has waited longest; None where none waits."""
        return next(iter(self._select("WHERE state = ? ORDER BY touched, number LIMIT 1", (JobState.QUEUED,))), None)

    def ahead_of(self, record: JobRecord) -> int:
        """Return how many jobs are in work or come before a waiting one."""
        query = "SELECT count(*) FROM jobs WHERE state = ? OR (state = ? AND (touched, number) < (?, ?))"
        return self._number(query, (JobState.RUNNING, JobState.QUEUED, record.touched, record.number))

    def count(self, states: Iterable[JobState] | None = None) -> int:
        """Return the number of jobs, in some states or in all."""
        if states is None:
            return self._number("SELECT count(*) FROM jobs")
        states = tuple(states)
        return self._number(f"SELECT count(*) FROM jobs WHERE state IN ({_marks(states)})", states)

    def stored_bytes(self) -> int:
        """Return what all jobs take on the disk."""
        jobs = self._number("SELECT total(upload_bytes * has_upload + result_bytes) FROM jobs")
        return jobs + self._number("SELECT total(bytes) FROM corrections")

    def move(
        self, job_id: str, before: Iterable[JobState], after: JobState, *, error: tuple[str, str] | None = None
    ) -> bool:
        """Bring a job from one of some states into another; False where it was in none of them."""
        before, now = tuple(before), time.time()
        code, message = error or (None, None)
        times = {JobState.RUNNING: ", started = :now"} | dict.fromkeys(ENDED, ", ended = :now")
        marks = ", ".join(f":state{n}" for n in range(len(before)))
        cursor = self._execute(
            f"UPDATE jobs SET state = :after, touched = :now, error_code = :code, error_message = :message"
            f"{times.get(after, '')} WHERE id = :id AND state IN ({marks})",
            {
                "after": after, "now": now, "code": code, "message": message, "id": job_id,
                **{f"state{n}": state for n, state in enumerate(before)},
            },
        )  # fmt: skip
        return cursor == 1

    def add_upload(self, record: JobRecord, role: str, name: str, file_format: str, size: int) -> None:
        """Enter an uploaded file of a job that was read within ``exclusive``."""
        self._execute(
            "UPDATE jobs SET files = files + 1, upload_bytes = upload_bytes + ?, roles = ?, format = ?, touched = ? "
            "WHERE id = ?",
            (size, json.dumps({**record.roles, role: name}), file_format, time.time(), record.id),
        )

    def touch(self, job_id: str) -> None:
        """Note that somebody works at a job."""
        self._execute("UPDATE jobs SET touched = ? WHERE id = ?", (time.time(), job_id))

    def finish(self, job_id: str, results: list[dict[str, Any]], scan: str | None) -> bool:
        """Enter the results of a job in work and bring it to its end, in one step; False where it was not in work."""
        now, size = time.time(), sum(int(result["bytes"]) for result in results)
        return (
            self._execute(
                "UPDATE jobs SET state = ?, touched = ?, ended = ?, results = ?, result_bytes = ?, scan = ? "
                "WHERE id = ? AND state = ?",
                (JobState.FINISHED, now, now, json.dumps(results), size, scan, job_id, JobState.RUNNING),
            )
            == 1
        )

    def forget_upload(self, job_id: str) -> None:
        """Note that a job's uploaded files are gone."""
        self._execute("UPDATE jobs SET has_upload = 0 WHERE id = ?", (job_id,))

    def delete(self, job_id: str) -> bool:
        """Remove a job; False where there is none."""
        return self._execute("DELETE FROM jobs WHERE id = ?", (job_id,)) == 1

    def add_correction(self, job_id: str, lesion_voxels: int, size: int, number: int) -> CorrectionRecord:
        """Enter a corrected mask."""
        record = CorrectionRecord(job_id, number, time.time(), lesion_voxels, size)
        values = (record.job, record.number, record.saved, record.lesion_voxels, record.bytes)
        self._execute("INSERT INTO corrections VALUES (?, ?, ?, ?, ?)", values)
        return record

    def corrections(self, job_id: str) -> list[CorrectionRecord]:
        """Return a job's corrected masks, the oldest first."""
        rows = self._rows("SELECT * FROM corrections WHERE job = ? ORDER BY number", (job_id,))
        return [CorrectionRecord(**dict(row)) for row in rows]

    def _make_schema(self, path: Path) -> None:
        with self._lock:
            found = self._number("PRAGMA user_version")
            if found == 0:
                self._database.executescript(f"BEGIN;{SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;").close()
            elif found != SCHEMA_VERSION:
                raise AR2UNetError(f"{path}: expected an index of version {SCHEMA_VERSION}, got version {found}")

    def _execute(self, query: str, values: Any = ()) -> int:
        """Return how many rows were changed."""
        with self._lock, closing(self._database.execute(query, values)) as cursor:
            return cursor.rowcount

    def _rows(self, query: str, values: Any = ()) -> list[sqlite3.Row]:
        with self._lock, closing(self._database.execute(query, values)) as cursor:
            return cursor.fetchall()

    def _number(self, query: str, values: Any = ()) -> int:
        return int(self._rows(query, values)[0][0])

    def _select(self, clause: str, values: Any = ()) -> list[JobRecord]:
        return [_as_record(row) for row in self._rows(f"SELECT * FROM jobs {clause}", values)]


def _marks(values: tuple[object, ...]) -> str:
    return ", ".join("?" * len(values))


def _as_record(row: sqlite3.Row) -> JobRecord:
    values = dict(row)
    return JobRecord(
        **{
            **values,
            "sample": bool(values["sample"]),
            "state": JobState(values["state"]),
            "roles": json.loads(values["roles"]),
            "has_upload": bool(values["has_upload"]),
            "results": json.loads(values["results"]),
        }
    )
