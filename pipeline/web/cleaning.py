"""What is removed, and when: scans after their retention time, jobs when they are old or take too much room."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time

from pipeline.web.folders import Folders
from pipeline.web.index import ENDED, LIVE, JobIndex, JobRecord
from pipeline.web.models import JobState
from pipeline.web.settings import Settings

__all__ = ["ABANDONED_SECONDS", "Cleaner"]

logger = logging.getLogger(__name__)

PERIOD_SECONDS = 60.0
ABANDONED_SECONDS = 15 * 60.0  # without a byte for a job that is being uploaded
GRACE_SECONDS = 3600.0  # for which a job that has ended is safe, however little room there is


class Cleaner:
    """Removes what is old, in a thread of its own, and makes room when asked to.

    Args:
        settings: How long things are kept.
        index: Of all jobs.
        folders: Of all jobs.
    """

    def __init__(self, settings: Settings, index: JobIndex, folders: Folders) -> None:
        self.settings, self.index, self.folders = settings, index, folders
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="cleaner", daemon=True)

    def start(self) -> None:
        """Say of the jobs that an earlier server left behind that they were interrupted, and begin."""
        for record in self.index.in_states(LIVE):
            self.folders.of(record.id).discard(upload=True)
            self.index.forget_upload(record.id)
            error = ("interrupted", "the server was stopped before the job was finished")
            self.index.move(record.id, LIVE, JobState.FAILED, error=error)
        self.folders.remove_strangers({record.id for record in self.index.in_states(JobState)})
        self.clean()
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def clean(self, now: float | None = None) -> None:
        """Remove what is old.

        Args:
            now: Seconds since 1970; None takes the clock.
        """
        now = time.time() if now is None else now
        keep_uploads = self.settings.keep_uploads.total_seconds()
        keep_results = self.settings.keep_results.total_seconds()
        for record in self.index.in_states([JobState.UPLOADING]):
            if now - record.touched > ABANDONED_SECONDS:
                error = ("abandoned", "expected the upload to be finished, got nothing for 15 minutes")
                if self.index.move(record.id, [JobState.UPLOADING], JobState.FAILED, error=error):
                    self._remove_upload(record)
        for record in self.index.in_states(ENDED):
            ended = record.ended or now
            if now - ended > keep_results:
                self.remove(record.id)
            elif record.has_upload and (now - ended > keep_uploads or record.state is not JobState.FINISHED):
                self._remove_upload(record)

    def make_room(self, size: int, now: float | None = None) -> bool:
        """Remove the oldest jobs until so many bytes more may be stored; return whether they may.

        Jobs that ended within the last hour stay, whatever comes.
        """
        now = time.time() if now is None else now
        limit = self.settings.max_storage_bytes
        with self._lock:  # two that need room at once shall not each remove jobs for both
            if self.index.stored_bytes() + size > limit:
                for record in self.index.in_states(ENDED):
                    if self.index.stored_bytes() + size <= limit:
                        break
                    if now - (record.ended or now) > GRACE_SECONDS:
                        self.remove(record.id)
            return self.index.stored_bytes() + size <= limit and self.folders.has_room()

    def remove(self, job_id: str) -> None:
        """Remove a job with all its files."""
        # The index first: a folder that it does not know goes with the next start, files that it lacks would be missed.
        self.index.delete(job_id)
        self.folders.of(job_id).remove()

    def _remove_upload(self, record: JobRecord) -> None:
        self.folders.of(record.id).discard(upload=True)
        self.index.forget_upload(record.id)

    def _loop(self) -> None:
        while not self._stopping.wait(PERIOD_SECONDS):
            try:
                self.clean()
            except (OSError, sqlite3.Error):
                logger.error("old jobs cannot be removed; trying again")
