"""The cases of a cohort on a Ray cluster: an actor a worker holds the network, and one scan at a time.

Scans go to workers that are free, so never more are on their way than there are workers. A worker that dies, with its
node or alone, costs the scan in its hands only, which another takes up. Workers leave results in their workplaces, on
storage that all nodes share; the process that asked for them puts them in their place.
"""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cohort.finding import FoundScan
from pipeline.cohort.folder import CohortFolder
from pipeline.cohort.keys import Settings, hash_bundle
from pipeline.cohort.rows import failed_row
from pipeline.cohort.segmenting import Outcome
from pipeline.errors import AR2UNetError, BundleError

if TYPE_CHECKING:
    from pipeline.cohort.segmenting import Segmenter

__all__ = ["LOCAL", "RETRIES", "Worker", "connect", "segment_on_ray"]

LOCAL = "local"  # in place of an address: Ray on this machine alone
RETRIES = 2  # of a scan whose worker died
LOOK_AGAIN = 5.0  # seconds until it is looked whether the cluster grew
NOBODY = 60.0  # seconds without any worker until it is said
CPU_LOCKS = Path("/tmp")
NOWHERE = "http://127.0.0.1:9"
# What keeps the processes of Ray from calling out: its head asks cloud providers' metadata services where it runs, and
# even where usage reports are off tells that they are.
OFFLINE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": NOWHERE,
    "http_proxy": NOWHERE,
    "https_proxy": NOWHERE,
    "no_proxy": "127.0.0.1,localhost,::1",
}
# Ray's switch for "this machine only" has the name of the systems that it was made for.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


class Worker:
    """What runs in an actor: a predictor, and the processors that it may use.

    Args:
        folder: Of the results, on storage that all nodes share.
        settings: How cases are segmented; the bundle's folder lies at the same path on all nodes.
        num_cpus: How many processors it uses.
        bundle_hash: What the bundle's folder has to hold.
    """

    def __init__(self, folder: CohortFolder, settings: Settings, num_cpus: int, bundle_hash: str) -> None:
        self._folder, self._settings = folder, settings
        self._num_cpus, self._bundle_hash = num_cpus, bundle_hash
        self._segmenter: Segmenter | None = None
        self._processors: list[int] = []

    def start(self) -> AR2UNetError | None:
        """Load the network; return why that is not possible."""
        import warnings

        from pipeline.cohort.segmenting import Segmenter
        from pipeline.predictor import Predictor
        from pipeline.stream import keep_memory

        warnings.filterwarnings("ignore")
        # Before an engine is loaded, which takes as many threads as the process has processors.
        self._processors = bind_processors(self._num_cpus)
        keep_memory()
        settings = self._settings
        try:
            if hash_bundle(settings.bundle) != self._bundle_hash:
                return BundleError(f"{settings.bundle} on node {os.uname().nodename} is another bundle than here")
            predictor = Predictor(settings.bundle, device=settings.device, engine=settings.engine)
            self._segmenter = Segmenter(self._folder, settings, predictor)
        except AR2UNetError as error:
            return type(error)(str(error))
        return None

    def segment(self, found: FoundScan) -> Outcome | AR2UNetError:
        """Segment a case; return its outcome, or what is wrong with the bundle."""
        if self._segmenter is None:
            return BundleError("a worker must start before it segments")
        try:
            return self._segmenter.segment_one(found)
        except BundleError as error:
            return BundleError(str(error))


def bind_processors(count: int) -> list[int]:
    """Bind this process to processors that no other worker on this node has taken, as far as there are any.

    Each is taken by a lock on a file, which the operating system frees with the process.

    Returns:
        The processors.
    """
    available = sorted(os.sched_getaffinity(0))
    taken: dict[int, int] = {}  # processor: the open file of its lock, which lives as long as the process
    for processor in available:
        if len(taken) == count:
            break
        name = CPU_LOCKS / f"ar2unet-{os.getuid()}-cpu{processor}.lock"
        try:
            lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken[processor] = lock
        except OSError:
            os.close(lock)
    if len(taken) < count:  # more workers than processors: the system may move them about
        for lock in taken.values():
            os.close(lock)
        return available
    os.sched_setaffinity(0, taken)
    return list(taken)


@contextmanager
def connect(address: str) -> Iterator[Any]:
    """Connect to a Ray cluster, or start Ray on this machine; yield the module.

    Nothing is reported to anybody, and no dashboard is started.

    Args:
        address: Such as "10.0.0.1:6379"; "auto" for the cluster that this machine belongs to; ``LOCAL``.

    Raises:
        AR2UNetError: If Ray is not installed, or there is no such cluster.
    """
    if importlib.util.find_spec("ray") is None:
        raise AR2UNetError("--ray needs the package ray: pip install 'ar2unet-monai[ray]', or pip install ray==2.60.0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    try:
        if address == LOCAL:
            with environment(OFFLINE | LOOPBACK):
                import ray

                ray.init(address="local", include_dashboard=False, **quiet)
        else:
            import ray

            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or ["no answer"])[0]
        raise AR2UNetError(f"--ray {address}: expected a running Ray cluster: {reason}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Let processes that are started meanwhile have these variables."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclass(slots=True)
class _Attempt:
    found: FoundScan
    number: int = 1


def segment_on_ray(
    ray: Any,
    folder: CohortFolder,
    settings: Settings,
    cases: Iterable[FoundScan],
    receive: Callable[[Outcome], None],
    *,
    num_cpus: int = 1,
    on_note: Callable[[str], None] | None = None,
) -> None:
    """Segment cases on the cluster that Ray is connected to.

    Args:
        ray: The module, connected.
        folder: Of the results, on storage that all nodes share.
        settings: How cases are segmented.
        cases: Taken only as workers become free.
        receive: Called in this thread with the outcome of each case, in the order in which they come.
        num_cpus: Processors of each worker.
        on_note: Called with what the user should know of the cluster.

    Raises:
        BundleError: If it is not a scan that is bad but the bundle.
        AR2UNetError: If no node has as many processors as a worker asks for.
    """
    shared = CohortFolder(folder.out.resolve())
    settings = replace(settings, bundle=settings.bundle.resolve())
    _Crew(ray, shared, settings, num_cpus, on_note).segment_all(iter(cases), receive)


class _Crew:
    """The workers of a cluster, those that start, those that are free, and those that have a scan in their hands."""

    def __init__(
        self, ray: Any, folder: CohortFolder, settings: Settings, num_cpus: int, on_note: Callable[[str], None] | None
    ) -> None:
        self.ray = ray
        self.num_cpus = num_cpus
        self.on_note = on_note or (lambda line: None)
        self.arguments = (folder, settings, num_cpus, hash_bundle(settings.bundle))
        # A dead actor is replaced by another one, and its scan is ours to give away again: no restarts by Ray.
        self.actor = ray.remote(num_cpus=num_cpus, max_restarts=0, max_task_retries=0)(Worker)
        self.starting: dict[Any, Any] = {}  # reference of the answer: actor
        self.free: list[Any] = []
        self.busy: dict[Any, tuple[Any, _Attempt]] = {}
        self.retries: deque[_Attempt] = deque()
        self.looked = -LOOK_AGAIN
        self.alone_since = time.monotonic()

    def segment_all(self, cases: Iterator[FoundScan], receive: Callable[[Outcome], None]) -> None:
        """Give cases to free workers until each had its outcome."""
        waiting = next(cases, None)
        while waiting is not None or self.retries or self.busy:
            self._hire(needed=waiting is not None or bool(self.retries))
            while self.free and (self.retries or waiting is not None):
                if self.retries:
                    attempt = self.retries.popleft()
                else:
                    attempt = _Attempt(waiting)  # type: ignore[arg-type]  # not None: the loop's condition
                    waiting = next(cases, None)
                actor = self.free.pop()
                self.busy[actor.segment.remote(attempt.found)] = (actor, attempt)
            pending = [*self.starting, *self.busy]
            for answer in self.ray.wait(pending, num_returns=1, timeout=LOOK_AGAIN)[0] if pending else ():
                self._take(answer, receive)

    def _hire(self, *, needed: bool) -> None:
        """Start as many workers as the cluster has room for, now and then, for it may grow."""
        now = time.monotonic()
        if self.free or self.busy:
            self.alone_since = now
        elif now - self.alone_since > NOBODY:
            self.alone_since = now
            self.on_note(f"no worker of {self.num_cpus} CPUs found room in the cluster yet; waiting")
        if not needed or now - self.looked < LOOK_AGAIN:
            return
        self.looked = now
        nodes = [int(node["Resources"].get("CPU", 0)) for node in self.ray.nodes() if node["Alive"]]
        room = sum(cpus // self.num_cpus for cpus in nodes)
        if not room and not (self.starting or self.free or self.busy):
            most = max(nodes, default=0)
            raise AR2UNetError(
                f"a worker asks for {self.num_cpus} CPUs, but no node of the cluster has more than {most}"
            )
        for _ in range(room - len(self.starting) - len(self.free) - len(self.busy)):
            actor = self.actor.remote(*self.arguments)
            self.starting[actor.start.remote()] = actor

    def _take(self, answer: Any, receive: Callable[[Outcome], None]) -> None:
        """Take a worker's answer, or the news of its death."""
        from ray.exceptions import RayError

        actor = self.starting.pop(answer, None)
        attempt = None
        if actor is None:
            actor, attempt = self.busy.pop(answer)
        try:
            result = self.ray.get(answer)
        except RayError as error:
            self.looked = -LOOK_AGAIN  # for another worker at once
            if attempt is not None:
                self._lost(attempt, error, receive)
            return
        if isinstance(result, AR2UNetError):
            raise result
        self.free.append(actor)
        if attempt is not None:
            receive(result)

    def _lost(self, attempt: _Attempt, error: Exception, receive: Callable[[Outcome], None]) -> None:
        if attempt.number <= RETRIES:
            self.on_note(f"{attempt.found.place}: its worker died ({type(error).__name__}); another takes it up")
            attempt.number += 1
            self.retries.append(attempt)
            return
        found = attempt.found
        reason = f"the worker that had it died, {attempt.number} times"
        receive(Outcome(found, failed_row(found.name, found.place, reason)))
