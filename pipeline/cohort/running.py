"""A cohort from its scans to its table, wherever the work is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.cohort.finding import MARKER, FoundScan
from pipeline.cohort.folder import CASES, CohortFolder
from pipeline.cohort.page import PAGE_FILE, write_page
from pipeline.cohort.rows import FAILED, Row, failed_row
from pipeline.cohort.segmenting import Outcome
from pipeline.cohort.table import TABLE_FILE, Table
from pipeline.errors import AR2UNetError

__all__ = ["Summary", "run_cohort"]


class SegmentAll(Protocol):
    """Segments cases, here or on a cluster, and hands each one's outcome over in the calling thread."""

    def __call__(self, cases: Iterable[FoundScan], receive: Callable[[Outcome], None]) -> None:
        """Return when every case had its outcome, in whatever order."""


@dataclass(frozen=True)
class Summary:
    """What a run came to.

    Attributes:
        total: Cases found.
        segmented: Cases that this run segmented.
        unchanged: Cases that an earlier run had done already.
        failed: Cases that could not be segmented.
        table: The CSV file.
        page: The HTML file.
    """

    total: int
    segmented: int
    unchanged: int
    failed: int
    table: Path
    page: Path


def run_cohort(
    folder: CohortFolder,
    cases: Sequence[FoundScan],
    segment_all: SegmentAll,
    *,
    bids_root: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_failure: Callable[[Row], None] | None = None,
) -> Summary:
    """Bring every case's results to their place, and write the table and its page.

    Whatever ends the run early, the table says what was done by then.

    Args:
        folder: Of the results, locked.
        cases: As ``finding.find_cases`` returns them.
        segment_all: Does the work; only this function puts results in their place.
        bids_root: The BIDS tree whose derivative the folder becomes; None outside of BIDS.
        on_progress: Called with the cases that had their outcome, and their total.
        on_failure: Called with the row of each case that failed.

    Raises:
        AR2UNetError: If the bundle is bad, or the table cannot be written.
    """
    table = Table(folder.out / TABLE_FILE, cases)
    counts = {"segmented": 0, "unchanged": 0, "failed": 0}
    if bids_root is not None:
        from pipeline.formats.bids_derivatives import write_dataset_description

        write_dataset_description(folder.out, bids_root, ignored=(MARKER, CASES, TABLE_FILE, PAGE_FILE))

    last: Outcome | None = None

    def receive(outcome: Outcome) -> None:
        nonlocal last
        last = outcome
        row = _settle(folder, outcome)
        kind = "failed" if row.status == FAILED else "segmented" if outcome.workplace is not None else "unchanged"
        counts[kind] += 1
        if kind == "failed" and on_failure is not None:
            on_failure(row)
        table.add(row)
        if on_progress is not None:
            on_progress(len(table), len(cases))

    page = folder.out / PAGE_FILE
    try:
        segment_all(cases, receive)
    finally:
        # An interrupt may have come between the results' arrival in their place and the table.
        if last is not None and folder.find_done(last.found.name, last.key) is not None:
            table.add(last.row)
        table.write()
        write_page(page, folder, table.lines(), len(cases))
    return Summary(total=len(cases), **counts, table=table.path, page=page)


def _settle(folder: CohortFolder, outcome: Outcome) -> Row:
    """Put a case's results in their place, or remove those of inputs that are no more; return its row."""
    found, row = outcome.found, outcome.row
    try:
        if outcome.workplace is not None:
            folder.check_place(found.name)  # before anything of the case lies in the derivative
            others = _write_derivatives(folder, outcome, outcome.workplace)
            folder.commit(found.name, outcome.workplace, outcome.key, row, others)
        elif row.status == FAILED:
            folder.discard(found.name, _derivatives_of(folder, found))
    except AR2UNetError as error:
        return failed_row(found.name, found.place, error)
    return row


def _write_derivatives(folder: CohortFolder, outcome: Outcome, results: Path) -> list[Path]:
    if outcome.found.bids is None:
        return []
    from pipeline.formats.bids_derivatives import write_derivatives

    write_derivatives(outcome.found.bids, results, folder.out)
    return [path for path in _derivatives_of(folder, outcome.found) if path.exists()]


def _derivatives_of(folder: CohortFolder, found: FoundScan) -> list[Path]:
    """Return all files that a scan may have in the BIDS derivative."""
    if found.bids is None:
        return []
    from pipeline.formats.bids_derivatives import derivative_paths

    paths = derivative_paths(found.bids, folder.out)
    volumes = (paths.mask, paths.probabilities)
    sidecars = [path.with_name(path.name.removesuffix(".nii.gz") + ".json") for path in volumes]
    return [*volumes, *sidecars, paths.report, paths.page, paths.overlay, paths.surface]
