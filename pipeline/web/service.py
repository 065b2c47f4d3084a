"""What can be done with jobs; the routes say it in HTTP."""

from __future__ import annotations

import math
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from pipeline.web.cleaning import Cleaner
from pipeline.web.corrections import model_of, read_correction, save_correction
from pipeline.web.file_formats import detect_format, stored_name
from pipeline.web.folders import Folders
from pipeline.web.index import LIVE, CorrectionRecord, JobIndex, JobRecord
from pipeline.web.kinds import KINDS, WorkerOptions
from pipeline.web.metrics import Metrics
from pipeline.web.models import JobState, Uploaded
from pipeline.web.refusals import Refusal
from pipeline.web.scheduler import Scheduler
from pipeline.web.settings import Settings
from pipeline.web.watching import Watchers
from pipeline.web.worker_process import Worker, WorkerProcess

__all__ = ["MASK_OVERHEAD", "Service"]

DELETE_SECONDS = 10.0  # for the worker to let go of a job that is deleted
MAX_FILES = 20_000  # of one job: more than any study has slices
MASK_OVERHEAD = 2**20  # bytes that a mask's file may be larger than its voxels
USUAL_JOB_SECONDS = 5.0  # until the first job has shown what is usual


class Service:
    """The jobs, and the threads behind them.

    Args:
        settings: What the server was told.
        worker: Who does the work; None starts the worker process.

    Raises:
        AR2UNetError: If the folder cannot be used.
    """

    def __init__(self, settings: Settings, worker: Worker | None = None) -> None:
        self.settings = settings
        self.watchers, self.metrics = Watchers(), Metrics()
        self._correcting = threading.Lock()
        self.folders = Folders(settings.folder)
        try:
            self.index = JobIndex(self.folders.index)
        except BaseException:
            self.folders.close()
            raise
        self.cleaner = Cleaner(settings, self.index, self.folders)
        bundle = None if settings.bundle is None else str(settings.bundle.resolve())
        self.scheduler = Scheduler(
            self.index,
            self.folders,
            worker or WorkerProcess(WorkerOptions(bundle, settings.device, settings.engine)),
            job_seconds=settings.job_seconds,
            make_room=self.cleaner.make_room,
            metrics=self.metrics,
            on_change=self.watchers.announce,
        )

    def start(self) -> None:
        """Start the worker and wait until it is ready.

        Raises:
            AR2UNetError: If it cannot serve.
        """
        try:
            self.cleaner.start()
            self.scheduler.start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the worker and the threads; jobs that are not at their end are said to be interrupted."""
        self.scheduler.stop()
        self.cleaner.stop()
        self.index.close()
        self.folders.close()

    def job(self, job_id: str) -> JobRecord:
        """Return a job.

        Raises:
            Refusal: If there is none.
        """
        record = self.index.get(job_id)
        if record is None:
            raise Refusal("no_job", "there is no such job")
        return record

    def begin(self, kind: str, *, sample: bool) -> JobRecord:
        """Begin a job; one of the sample is queued at once.

        Raises:
            Refusal: If there is no such kind, or no room.
        """
        described = KINDS.get(kind)
        if described is None:
            raise Refusal("invalid", f"kind must be {' or '.join(KINDS)}, got {kind!r}")
        if sample and described.sample is None:
            raise Refusal("invalid", f"there is no sample of the kind {kind}")
        self._check_room()
        job_id = secrets.token_hex(16)
        try:
            if not self.index.add(job_id, kind, sample=sample, limit=self.settings.queue_size):
                seconds = math.ceil(self.scheduler.pace.job_seconds or USUAL_JOB_SECONDS)
                message = f"expected fewer than {self.settings.queue_size} jobs at a time, got as many"
                raise Refusal("queue_full", message, {"Retry-After": str(seconds)})
            self.folders.of(job_id).make()
            if sample and described.sample is not None:
                self._add_sample(job_id, described.sample())
                return self.enqueue(job_id)
        except (OSError, sqlite3.Error) as error:
            self.cleaner.remove(job_id)
            raise Refusal("storage_full", "there is no space left for another job") from error
        return self.job(job_id)

    def expect_file(self, job_id: str, role: str | None) -> tuple[str, int]:
        """Return the role of the file that comes next and how many bytes it may have.

        Args:
            job_id: Of the job.
            role: None takes the first of the job's kind.

        Raises:
            Refusal: If the job takes no more files, or none of this role.
        """
        record = self.job(job_id)
        roles = KINDS[record.kind].roles
        role = roles[0] if role is None else role
        if role not in roles:
            raise Refusal("invalid", f"role must be {', '.join(roles)}, got {role!r}")
        if record.state is not JobState.UPLOADING:
            raise Refusal("wrong_state", f"expected a job that is uploading, got one that is {record.state.value}")
        if record.files >= MAX_FILES:
            raise Refusal("too_large", f"expected at most {MAX_FILES:,} files, got more")
        self._check_room()
        self.index.touch(job_id)
        free = self.settings.max_storage_bytes - self.index.stored_bytes()
        return role, max(0, min(self.settings.max_upload_bytes - record.upload_bytes, free))

    def add_file(self, job_id: str, role: str, path: Path, size: int) -> Uploaded:
        """Take a file that has arrived into a job.

        Args:
            job_id: Of the job.
            role: What the file is.
            path: In the job's folder; it is renamed.
            size: In bytes.

        Raises:
            Refusal: If it is not what the job takes.
        """
        try:
            file_format = detect_format(path)
            with self.index.exclusive():
                record = self.job(job_id)
                name = stored_name(record, KINDS[record.kind], file_format, role)
                if record.upload_bytes + size > self.settings.max_upload_bytes:
                    limit = self.settings.max_upload_bytes
                    raise Refusal("too_large", f"expected at most {limit:,} bytes in a job, got more")
                target = self.folders.of(job_id).input / name
                if file_format.several:
                    target = target / f"{record.files + 1:05d}{file_format.ending}"
                    target.parent.mkdir(exist_ok=True)
                self.index.add_upload(record, role, name, file_format.name, size)
                path.rename(target)
        except FileNotFoundError as error:  # cancelled or deleted meanwhile
            raise Refusal("wrong_state", "the job takes no more files") from error
        except OSError as error:
            raise Refusal("storage_full", "there is no space left for the file") from error
        self.metrics.uploaded.inc(size)
        self.watchers.announce(job_id)
        return Uploaded(role=role, format=file_format.name, bytes=size)

    def enqueue(self, job_id: str) -> JobRecord:
        """Put a job into the queue.

        Raises:
            Refusal: If it is not uploading, or what it cannot do without is missing.
        """
        record = self.job(job_id)
        needed = KINDS[record.kind].roles[0]
        if record.state is JobState.UPLOADING and needed not in record.roles:
            raise Refusal("no_upload", f"expected a file of the role {needed}, got none")
        if not self.index.move(job_id, [JobState.UPLOADING], JobState.QUEUED):
            raise Refusal("wrong_state", f"expected a job that is uploading, got one that is {record.state.value}")
        self.watchers.announce(job_id)
        self.scheduler.wake()
        return self.job(job_id)

    def cancel(self, job_id: str) -> JobRecord:
        """Cancel a job, whatever it is at.

        Raises:
            Refusal: If it is at its end.
        """
        record = self.job(job_id)
        if self.index.move(job_id, [JobState.UPLOADING, JobState.QUEUED], JobState.CANCELLED):
            self.folders.of(job_id).discard(upload=True)
            self.index.forget_upload(job_id)
            self.metrics.jobs.labels(record.kind, JobState.CANCELLED.value).inc()
            self.watchers.announce(None)
        elif self.job(job_id).state is JobState.RUNNING:
            self.scheduler.cancel(job_id)
        else:
            raise Refusal("wrong_state", f"expected a job that is not at its end, got one that is {record.state.value}")
        return self.job(job_id)

    def delete(self, job_id: str) -> None:
        """Remove a job with all its files; one that is in work is cancelled first.

        Raises:
            Refusal: If there is none, or the worker does not let go of it.
        """
        if self.job(job_id).state in LIVE:
            self.cancel(job_id)
        deadline = time.monotonic() + DELETE_SECONDS
        while self.job(job_id).state in LIVE:
            if time.monotonic() > deadline:
                raise Refusal("wrong_state", "the worker has not let go of the job yet")
            time.sleep(0.02)
        self.cleaner.remove(job_id)
        self.watchers.announce(job_id)

    def result_file(self, job_id: str, name: str) -> Path:
        """Return a result of a finished job.

        Raises:
            Refusal: If there is none of this name.
        """
        return self._file(self.job(job_id), self.folders.of(job_id).results, name)

    def scan_file(self, job_id: str, name: str) -> Path:
        """Return the scan of a finished job to look at.

        Raises:
            Refusal: If it has another name, or is removed.
        """
        record = self.job(job_id)
        return self._file(record, self.folders.of(job_id).input, name if name == record.scan else "")

    def correction_file(self, job_id: str, name: str) -> Path:
        """Return a corrected mask, or its provenance.

        Raises:
            Refusal: If there is none of this name.
        """
        return self._file(self.job(job_id), self.folders.of(job_id).corrections, name)

    def model_mask(self, job_id: str) -> Path:
        """Return the mask that a correction of this job refers to.

        Raises:
            Refusal: If there is none.
        """
        record = self.job(job_id)
        if record.state is not JobState.FINISHED:
            raise Refusal("wrong_state", f"expected a finished job, got one that is {record.state.value}")
        mask = next((result["name"] for result in record.results if result["role"] == "mask"), "")
        return self._file(record, self.folders.of(job_id).results, mask)

    def correct(self, job_id: str, path: Path) -> CorrectionRecord:
        """Keep a corrected mask beside the model's.

        Args:
            job_id: Of a finished job.
            path: What was sent.

        Raises:
            Refusal: If it does not fit the job's mask, or there is no space.
        """
        model_mask = self.model_mask(job_id)
        mask = read_correction(path, model_mask)
        about = self.scheduler.about.get(self.job(job_id).kind, {})
        provenance = {"job": job_id, "model_mask": model_mask.name, **model_of(model_mask.parent, about)}
        with self._correcting:
            number = 1 + max((found.number for found in self.index.corrections(job_id)), default=0)
            with save_correction(mask, self.folders.of(job_id).corrections, number, provenance) as size:
                record = self.index.add_correction(job_id, mask.lesion_voxels, size, number)
        self.watchers.announce(job_id)
        return record

    def _add_sample(self, job_id: str, files: Mapping[str, Path]) -> None:
        for role, file in files.items():
            copy = self.folders.of(job_id).input / f".{role}"
            shutil.copyfile(file, copy)
            self.add_file(job_id, role, copy, copy.stat().st_size)

    def _check_room(self) -> None:
        try:
            if self.cleaner.make_room(1):
                return
        except (OSError, sqlite3.Error) as error:
            raise Refusal("storage_full", "the folder of jobs cannot be written") from error
        raise Refusal("storage_full", "there is no space left for another scan")

    def _file(self, record: JobRecord, folder: Path, name: str) -> Path:
        found = self.folders.of(record.id).find(folder, name) if record.state is JobState.FINISHED else None
        if found is None:
            raise Refusal("no_file", "the job has no such file")
        return found
