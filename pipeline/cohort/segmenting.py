"""One case of a cohort after the other: looked up where it is done, segmented where it is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from pipeline.case import Case, CaseResult, PreparedCase, finish_case, prepare_case
from pipeline.cohort.finding import FoundScan
from pipeline.cohort.folder import CohortFolder
from pipeline.cohort.keys import Settings, case_key, hash_bundle
from pipeline.cohort.rows import Row, failed_row, row_of_report
from pipeline.errors import AR2UNetError, BundleError, ScanError
from pipeline.stream import keep_memory, overlap

if TYPE_CHECKING:
    from pipeline.predictor import Inferred, Predictor

__all__ = ["Outcome", "Segmenter"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case.

    Attributes:
        found: The case.
        row: Of the table.
        key: The hash of all that its results depend on; empty for one that failed.
        workplace: Where its new results wait to be put in their place; None where there are none.
    """

    found: FoundScan
    row: Row
    key: str = ""
    workplace: Path | None = None


@dataclass(frozen=True, slots=True)
class _Task:
    found: FoundScan
    key: str
    case: Case


class Segmenter:
    """Segments the cases of a cohort that are not done yet; results wait in their workplaces.

    Args:
        folder: Of the results, locked by whoever puts them in their place.
        settings: How cases are segmented.
        predictor: Made from the settings.
    """

    def __init__(self, folder: CohortFolder, settings: Settings, predictor: Predictor) -> None:
        self.folder = folder
        self.settings = settings
        self.predictor = predictor
        self.bundle_hash = hash_bundle(settings.bundle)

    def segment_all(self, cases: Iterable[FoundScan], receive: Callable[[Outcome], None]) -> None:
        """Segment cases in order; reading, network and writing of different ones overlap.

        Args:
            cases: Read one ahead only.
            receive: Called in this thread with the outcome of each.

        Raises:
            BundleError: If it is not a scan that is bad but the bundle.
        """
        keep_memory()

        def tasks() -> Iterator[_Task]:
            for found in cases:
                task = self._look_up(found)
                if isinstance(task, Outcome):
                    receive(task)
                else:
                    yield task

        stream = overlap(
            tasks(), prepare=_guarded(self._prepare), infer=_guarded(self._infer), finish=_guarded(self._finish)
        )
        # Closed here: until then its threads may go on writing, and whoever handles the exception keeps it open.
        with closing(stream):
            for task, result in stream:
                receive(_outcome(task, result))

    def segment_one(self, found: FoundScan) -> Outcome:
        """Segment one case, if it is not done yet.

        Raises:
            BundleError: If it is not the scan that is bad but the bundle.
        """
        task = self._look_up(found)
        if isinstance(task, Outcome):
            return task
        try:
            result = _guarded(self._segment)(task)
        except BundleError:
            raise
        except AR2UNetError as error:
            return _outcome(task, error)
        return _outcome(task, result)

    def _look_up(self, found: FoundScan) -> Outcome | _Task:
        """Return the outcome of a case that is done or cannot be tried, else what is to be done."""
        if found.problem is not None:
            return _failed(found, found.problem)
        try:
            key = case_key(found, self.settings, bundle_hash=self.bundle_hash, engine=self.predictor.engine)
        except ScanError as error:
            return _failed(found, error)
        record = self.folder.find_done(found.name, key)
        if record is not None:
            return Outcome(found, replace(record.row, case=found.name, path=found.place), key)
        workplace = self.folder.workplace(found.name)
        settings = self.settings
        case = Case(
            found.flair,
            workplace,
            found.t1,
            found.t1c,
            with_probabilities=settings.with_probabilities,
            with_mesh=settings.with_mesh,
        )
        return _Task(found, key, case)

    def _prepare(self, task: _Task) -> PreparedCase:
        return prepare_case(self.predictor, task.case)

    def _infer(self, ready: PreparedCase) -> Inferred:
        return self.predictor.infer(ready.prepared)

    def _finish(self, ready: PreparedCase, inferred: Inferred) -> CaseResult:
        return finish_case(self.predictor, ready, inferred)

    def _segment(self, task: _Task) -> CaseResult:
        ready = self._prepare(task)
        return self._finish(ready, self._infer(ready))


def _outcome(task: _Task, result: CaseResult | AR2UNetError) -> Outcome:
    found = task.found
    if isinstance(result, AR2UNetError):
        shutil.rmtree(task.case.out, ignore_errors=True)
        return _failed(found, result)
    report: dict[str, Any] = json.loads(result.report.read_bytes())
    row = row_of_report(found.name, found.place, report, found.bids.warnings if found.bids is not None else ())
    return Outcome(found, row, task.key, task.case.out)


def _failed(found: FoundScan, reason: object) -> Outcome:
    """Return the outcome of a case that failed, paths in its reason relative to the folder that was searched."""
    text, path = str(reason), str(found.flair)
    if path.endswith(found.place):
        text = text.replace(path.removesuffix(found.place), "")
    return Outcome(found, failed_row(found.name, found.place, text))


def _guarded(step: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let whatever a step raises be the case's failure: among many scans no single one shall stop the others."""

    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return step(*args, **kwargs)
        except AR2UNetError:
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or ["no reason given"])[0]
            raise ScanError(f"unexpected {type(error).__name__}: {reason}") from error

    return run
