"""The folder of a cohort's results: cases appear in it whole or not at all, and one run at a time writes to it.

``cases/<name>`` holds a case's results and its record; ``.cohort`` what is being written, and the lock. A case is
written under ``.cohort/unfinished`` and renamed to its place in one step, its record within it, so whatever ends the
process leaves either the whole case or none of it. What lies there unfinished is thrown away by the next run.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.cohort.finding import MARKER
from pipeline.cohort.rows import Row
from pipeline.errors import AR2UNetError
from pipeline.formats.atomic import atomic_write
from pipeline.formats.folders import make_folder

__all__ = ["CASES", "CohortFolder", "Record", "open_folder"]

CASES = "cases"
RECORD = "record.json"


@dataclass(frozen=True, slots=True)
class Record:
    """What a case that is done leaves behind for the next run.

    Attributes:
        key: The hash of all that the results depend on, as ``keys.case_key`` returns it.
        row: Of the table.
        files: Every file of the results relative to the cohort's folder, with its size in bytes.
    """

    key: str
    row: Row
    files: dict[str, int]


@dataclass(frozen=True, slots=True)
class CohortFolder:
    """The folder of a cohort's results, whose lock is held; ``open_folder`` makes it.

    Attributes:
        out: The folder itself.
    """

    out: Path

    def place(self, name: str) -> Path:
        """Return the folder of a case's results."""
        return self.out / CASES / name

    def workplace(self, name: str) -> Path:
        """Return a folder to write a case's results in, another one at each call; it does not exist yet."""
        return self.out / MARKER / "unfinished" / f"{name}.{uuid.uuid4().hex[:12]}"

    def read_record(self, name: str) -> Record | None:
        """Return the record of a case's results; None where there are none, or none of this version."""
        try:
            fields = json.loads((self.place(name) / RECORD).read_bytes())
            return Record(fields["key"], Row(**fields["row"]), dict(fields["files"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def find_done(self, name: str, key: str) -> Record | None:
        """Return the record of a case if its results are those of this key, and all there."""
        record = self.read_record(name)
        if record is None or record.key != key:
            return None
        return record if all(_size(self.out / file) == size for file, size in record.files.items()) else None

    def check_place(self, name: str) -> None:
        """Refuse a case whose place among the results is taken.

        Raises:
            AR2UNetError: If something else than a cohort's results is there.
        """
        place = self.place(name)
        if place.exists() and self.read_record(name) is None and any(place.iterdir()):
            raise AR2UNetError(f"{place} holds something else than a cohort's results; move it away")

    def commit(self, name: str, workplace: Path, key: str, row: Row, others: Sequence[Path] = ()) -> None:
        """Put finished results in their place, those of before thrown away.

        Args:
            name: Of the case.
            workplace: Where they were written.
            key: Of the results.
            row: Of the table.
            others: Files that belong to the results and lie elsewhere in the cohort's folder.

        Raises:
            AR2UNetError: If the place is taken by something else, or the disk does not take it.
        """
        self.check_place(name)
        place = self.place(name)
        files = {f"{CASES}/{name}/{path.name}": path.stat().st_size for path in workplace.iterdir()}
        files |= {path.relative_to(self.out).as_posix(): path.stat().st_size for path in others}
        record = Record(key, row, files)
        with atomic_write(workplace / RECORD) as file:
            file.write(json.dumps(asdict(record), indent=1).encode() + b"\n")
        try:
            self._throw_away(name)
            workplace.rename(place)
        except OSError as error:
            raise AR2UNetError(f"{place}: cannot be written: {error.strerror or error}") from error

    def discard(self, name: str, others: Sequence[Path] = ()) -> None:
        """Remove the results of a case, if there are any: they belong to inputs that are no more.

        Args:
            name: Of the case.
            others: Files of its results that lie elsewhere.

        Raises:
            AR2UNetError: If they cannot be removed.
        """
        try:
            for path in others:
                path.unlink(missing_ok=True)
            self._throw_away(name)
        except OSError as error:
            raise AR2UNetError(f"{self.place(name)}: cannot be removed: {error.strerror or error}") from error

    def _throw_away(self, name: str) -> None:
        if self.read_record(name) is not None:
            away = self.workplace(name)
            self.place(name).rename(away)
            shutil.rmtree(away, ignore_errors=True)


@contextmanager
def open_folder(out: Path) -> Iterator[CohortFolder]:
    """Make the folder where it is missing, and hold its lock for as long as the context lasts.

    The lock is the operating system's, so the death of the process, however sudden, frees it.

    Raises:
        AR2UNetError: If another run holds the lock, or the folder cannot be made.
    """
    for folder in (out / MARKER, out / CASES):
        make_folder(folder)
    try:
        lock = os.open(out / MARKER / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise AR2UNetError(f"{out}: cannot be written to: {error.strerror}; name another with -o") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AR2UNetError(f"{out}: another cohort run is writing there; wait for its end") from error
        shutil.rmtree(out / MARKER / "unfinished", ignore_errors=True)
        (out / MARKER / "unfinished").mkdir(exist_ok=True)
        yield CohortFolder(out)
    finally:
        os.close(lock)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
