"""The thread that takes one job after the other to the worker process, and sees to it that each comes to an end."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import AR2UNetError
from pipeline.web.folders import Folders, JobFolder
from pipeline.web.index import JobIndex, JobRecord
from pipeline.web.kinds import Order
from pipeline.web.metrics import Metrics
from pipeline.web.models import JobState
from pipeline.web.progress import LiveProgress, Pace
from pipeline.web.worker_process import Worker, WorkerDiedError

__all__ = ["Scheduler"]

logger = logging.getLogger(__name__)

START_SECONDS = 120.0  # for the worker, from nothing to ready; torch and MONAI on a slow disk take half of it
STARTS = 2  # tries for each job
POLL_SECONDS = 0.1  # how soon a cancelled job ends
RETRY_SECONDS = 1.0  # between tries to write to a full disk


@dataclass(frozen=True)
class End:
    """How a job ended.

    Attributes:
        state: Finished, failed or cancelled.
        error: Code and message, where it failed.
        message: What the worker said, where it finished.
    """

    state: JobState
    error: tuple[str, str] | None = None
    message: dict[str, Any] | None = None


class Scheduler:
    """Runs the queued jobs of an index, one at a time and in their order.

    Args:
        index: Of all jobs.
        folders: Of all jobs.
        worker: Does the work.
        job_seconds: The longest that one job may take.
        make_room: Makes room for so many bytes more, and returns whether there is.
        metrics: Counts.
        on_change: Called, from any thread, with the id of a job that changed; None says that many may have.
    """

    def __init__(
        self,
        index: JobIndex,
        folders: Folders,
        worker: Worker,
        *,
        job_seconds: float,
        make_room: Callable[[int], bool],
        metrics: Metrics,
        on_change: Callable[[str | None], None],
    ) -> None:
        self.index, self.folders, self.worker, self.metrics, self.on_change = index, folders, worker, metrics, on_change
        self.job_seconds, self.make_room = job_seconds, make_room
        self.about: dict[str, dict[str, str]] = {}
        self.live: LiveProgress | None = None
        self.pace = Pace()
        self._ready = self._failing = False
        self._cancelled: set[str] = set()
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)

    @property
    def worker_state(self) -> Literal["starting", "ready", "busy", "failing"]:
        """What the worker is at; failing where it cannot be started."""
        if self._failing:
            return "failing"
        if self.live is not None:
            return "busy"
        return "ready" if self._ready else "starting"

    def start(self) -> None:
        """Start the worker, wait until it is ready, and begin.

        Raises:
            AR2UNetError: If the worker cannot serve.
        """
        try:
            self.worker.start()
            self._await_ready()
        except WorkerDiedError as error:
            self.worker.kill()
            raise AR2UNetError(f"the model worker cannot be started: {error}") from error
        except AR2UNetError:
            self.worker.kill()
            raise
        self._thread.start()

    def stop(self) -> None:
        """End the worker and the thread; the job in work fails as interrupted."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self.worker.kill()

    def wake(self) -> None:
        """Look for queued jobs now."""
        self._wake.set()

    def cancel(self, job_id: str) -> None:
        """End a job in work; it is cancelled as soon as the worker is gone."""
        self._cancelled.add(job_id)

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                record = self.index.next_queued()
                taken = record is not None and self.index.move(record.id, [JobState.QUEUED], JobState.RUNNING)
            except sqlite3.Error:
                logger.error("the index of jobs cannot be written; trying again")
                self._stopping.wait(RETRY_SECONDS)
                continue
            if record is not None and taken:
                self._run(record)
            elif record is None:
                self._restart_if_dead()
                self._wake.wait(RETRY_SECONDS)

    def _run(self, record: JobRecord) -> None:
        self.live = LiveProgress(record.id)
        self.on_change(None)  # those that wait have moved up
        try:
            end = self._work(record)
        except WorkerDiedError as error:
            end = End(JobState.FAILED, ("worker_died", str(error)))
            self._restart()
        except AR2UNetError as error:  # the worker was started anew and refused
            end = End(JobState.FAILED, ("worker_died", f"the worker cannot be started again: {error}"))
        except OSError:
            end = End(JobState.FAILED, ("storage_full", "no space left for the results"))
        end = self._settle(record, end)
        self._cancelled.discard(record.id)
        if end.state is JobState.FINISHED:
            self.pace.remember(self.live)
            self.metrics.seconds.labels(record.kind).observe(time.monotonic() - self.live.began)
        self.metrics.jobs.labels(record.kind, end.state.value).inc()
        logger.info("job %s %s%s", record.id[:8], end.state.value, f": {end.error[0]}" if end.error else "")
        self.live = None
        self.on_change(None)

    def _work(self, record: JobRecord) -> End:
        """Have the worker do a job; whatever it is at, it ends when it is cancelled, too late, or the server stops."""
        folder = self.folders.of(record.id)
        folder.discard(upload=False)
        folder.unfinished.mkdir()
        files = {role: str(folder.input / name) for role, name in record.roles.items()}
        self._give(Order(record.id, record.kind, files, str(folder.unfinished), str(folder.view)))
        deadline = time.monotonic() + self.job_seconds
        while True:
            if record.id in self._cancelled:
                return self._break_off(End(JobState.CANCELLED))
            if self._stopping.is_set():
                self.worker.kill()
                return End(JobState.FAILED, ("interrupted", "the server was stopped before the job was finished"))
            if time.monotonic() > deadline:
                message = f"expected to be done in {self.job_seconds:g} s, was not"
                return self._break_off(End(JobState.FAILED, ("timeout", message)))
            message_or_none = self.worker.receive(POLL_SECONDS)
            if message_or_none is not None and message_or_none.get("id") == record.id:
                end = self._take_in(record, message_or_none)
                if end is not None:
                    return end

    def _take_in(self, record: JobRecord, message: dict[str, Any]) -> End | None:
        if message["type"] == "progress" and self.live is not None:
            self.live.advance(message["stage"], message["done"], message["total"])
            self.on_change(record.id)
            return None
        if message["type"] == "failed":
            if "frames" in message:
                logger.error("job %s: %s at %s", record.id[:8], message["message"], " < ".join(message["frames"][::-1]))
            return End(JobState.FAILED, (message["code"], message["message"]))
        return End(JobState.FINISHED, message=message) if message["type"] == "done" else None

    def _break_off(self, end: End) -> End:
        # What computes cannot be asked to leave at every point; the process can be ended at any.
        self._restart()
        return end

    def _settle(self, record: JobRecord, end: End) -> End:
        """Enter the end of a job, and return it; where the disk is full, room is made and it is tried again."""
        folder = self.folders.of(record.id)
        while True:
            try:
                if end.state is JobState.FINISHED and end.message is not None:
                    self._publish(record, folder, end.message)
                else:
                    folder.discard(upload=True)
                    self.index.move(record.id, [JobState.RUNNING], end.state, error=end.error)
                    self.index.forget_upload(record.id)
                break
            except (OSError, sqlite3.Error):
                folder.remove()
                end = End(JobState.FAILED, ("storage_full", "no space left for the results"))
                if self._stopping.wait(RETRY_SECONDS):
                    break  # the next start finds it in work, and says that it was interrupted
        return end

    def _publish(self, record: JobRecord, folder: JobFolder, message: dict[str, Any]) -> None:
        found = sorted(path for path in folder.unfinished.iterdir() if path.is_file() and not path.name.startswith("."))
        roles = message["roles"]
        results = [{"name": path.name, "role": roles.get(path.name), "bytes": path.stat().st_size} for path in found]
        size = sum(int(result["bytes"] or 0) for result in results)
        if not self.make_room(size):
            raise OSError("the results are more than may be stored")
        folder.publish()
        self.index.finish(record.id, results, message["scan"])

    def _give(self, order: Order) -> None:
        """Give an order to a worker that is ready.

        Raises:
            WorkerDiedError: If it cannot be started.
        """
        for attempt in range(STARTS):
            try:
                if not self._ready:
                    self._await_ready()
                self.worker.send(order.as_dict())
                return
            except WorkerDiedError:
                self._restart()
                if attempt == STARTS - 1:
                    raise

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and not self._stopping.is_set():
            message = self.worker.receive(POLL_SECONDS)
            if message is not None and message["type"] == "refused":
                self._failing = True
                raise AR2UNetError(message["message"])
            if message is not None and message["type"] == "ready":
                self.about, self._ready, self._failing = message["about"], True, False
                for note in filter(None, (about.get("note") for about in self.about.values())):
                    logger.warning("%s", note)
                return
        self._failing = True
        raise WorkerDiedError(f"it was not ready within {START_SECONDS:g} s")

    def _restart(self) -> None:
        self._ready = False
        self.metrics.restarts.inc()
        try:
            self.worker.start()
        except (OSError, WorkerDiedError):
            self._failing = True
            logger.error("the worker process cannot be started")

    def _restart_if_dead(self) -> None:
        """Notice the end of a worker that has nothing to do, so that no job has to wait for the next one's start."""
        try:
            if self._ready:
                self.worker.receive(0)
            elif not self._failing:
                self._await_ready()
        except WorkerDiedError:
            self._restart()
        except AR2UNetError as error:
            logger.error("the worker refuses to serve: %s", error)
