"""The table of a cohort: gathered as cases are done, written now and then, and at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline.cohort.finding import FoundScan
from pipeline.cohort.rows import COLUMNS, Row, csv_line
from pipeline.formats.atomic import atomic_write

__all__ = ["TABLE_FILE", "Table"]

TABLE_FILE = "cohort.csv"
INTERVAL = 10.0  # seconds between two writings of the table, at least
LARGEST_SHARE = 0.02  # of the time, for writing it


class Table:
    """Rows by case, in the order in which the cases were found.

    Rows are kept as lines of text: a few hundred bytes a case, whatever its size.

    Args:
        path: The CSV file; its folder must exist.
        cases: All there are to be.
        clock: Seconds, as they pass.
    """

    def __init__(self, path: Path, cases: Sequence[FoundScan], clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._cases = cases
        self._clock = clock
        self._lines: dict[str, bytes] = {}
        self._next = clock() + INTERVAL

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, row: Row) -> None:
        """Take a case's row; write the table if it was not written for a while.

        Raises:
            AR2UNetError: If it cannot be written.
        """
        self._lines[row.case] = row.line()
        started = self._clock()
        if started >= self._next:
            self.write()
            ended = self._clock()
            self._next = ended + max(INTERVAL, (ended - started) / LARGEST_SHARE)

    def lines(self) -> Iterator[bytes]:
        """Yield the rows there are, as lines of CSV."""
        for found in self._cases:
            line = self._lines.get(found.name)
            if line is not None:
                yield line

    def write(self) -> None:
        """Write what rows there are, in one step.

        Raises:
            AR2UNetError: If the file cannot be written.
        """
        with atomic_write(self.path) as file:
            file.write(csv_line(COLUMNS))
            file.writelines(self.lines())
