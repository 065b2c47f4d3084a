"""Where the files of the jobs lie.

FOLDER/index.sqlite           the index of all jobs
FOLDER/lock                   held by the server that uses the folder
FOLDER/jobs/<id>/input/       uploaded files, under names of our own
FOLDER/jobs/<id>/unfinished/  results in the making
FOLDER/jobs/<id>/results/     results; complete as soon as the folder has this name
FOLDER/jobs/<id>/corrections/ corrected masks, each with its provenance
"""

from __future__ import annotations

import fcntl
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.errors import AR2UNetError

__all__ = ["FREE_RESERVE", "Folders", "JobFolder"]

FREE_RESERVE = 64 * 2**20  # bytes of the disk that are left for the index and the log
VIEW = "scan_view.nii"


@dataclass(frozen=True)
class JobFolder:
    """The folder of one job."""

    path: Path

    @property
    def input(self) -> Path:
        """Uploaded files."""
        return self.path / "input"

    @property
    def unfinished(self) -> Path:
        """Results in the making."""
        return self.path / "unfinished"

    @property
    def results(self) -> Path:
        """Complete results."""
        return self.path / "results"

    @property
    def corrections(self) -> Path:
        """Corrected masks."""
        return self.path / "corrections"

    @property
    def view(self) -> Path:
        """Where a scan that browsers cannot show is put."""
        return self.input / VIEW

    def make(self) -> None:
        """Make it, with what an upload needs."""
        self.input.mkdir(parents=True)

    def publish(self) -> None:
        """Give finished work the name of results."""
        self.unfinished.rename(self.results)

    def discard(self, *, upload: bool) -> None:
        """Remove work without results, and the uploaded files if asked to."""
        shutil.rmtree(self.unfinished, ignore_errors=True)
        if upload:
            shutil.rmtree(self.input, ignore_errors=True)

    def remove(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.path, ignore_errors=True)

    @staticmethod
    def find(folder: Path, name: str) -> Path | None:
        """Return the regular file of this very name in a folder; None for everything else, links included."""
        if not folder.is_dir():
            return None
        return next((file for file in folder.iterdir() if file.name == name and _is_plain(file)), None)


class Folders:
    """The folder of all jobs, held by one server at a time.

    Args:
        root: Made where missing, for the user alone.

    Raises:
        AR2UNetError: If it cannot be made or another server holds it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.jobs = root / "jobs"
        try:
            self.jobs.mkdir(parents=True, exist_ok=True)
            root.chmod(0o700)
            self._lock: IO[bytes] = (root / "lock").open("wb")
        except OSError as error:
            raise AR2UNetError(f"{root}: expected a folder that can be written, got: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise AR2UNetError(f"{root}: another server uses this folder; name another with --folder") from error

    @property
    def index(self) -> Path:
        """The database."""
        return self.root / "index.sqlite"

    def of(self, job_id: str) -> JobFolder:
        """Return the folder of a job, whose id the index knows."""
        return JobFolder(self.jobs / job_id)

    def has_room(self) -> bool:
        """Return whether the disk has more left than the reserve."""
        return shutil.disk_usage(self.root).free > FREE_RESERVE

    def remove_strangers(self, known: set[str]) -> None:
        """Remove the folders of jobs that the index does not know."""
        for path in self.jobs.iterdir():
            if path.name not in known:
                JobFolder(path).remove()

    def close(self) -> None:
        """Let another server have it."""
        self._lock.close()


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and not path.name.startswith(".")
