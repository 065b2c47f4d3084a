"""A case's row in the table of a cohort."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

__all__ = ["COLUMNS", "DONE", "FAILED", "Row", "failed_row", "row_of_report"]

DONE, FAILED = "done", "failed"


@dataclass(frozen=True, slots=True)
class Row:
    """One case of a cohort.

    Attributes:
        case: Its name, and that of its folder.
        path: Of the scan, relative to the folder that was searched.
        status: ``DONE`` or ``FAILED``.
        reason: Why it failed, one line; empty where it did not.
        volume_ml: Of all lesions; None where the spacing is unknown.
        volume_low_ml: Lower end of the volume's interval; None where nobody can say.
        volume_high_ml: Upper end of it.
        lesion_voxels: Voxels of all lesions.
        lesions: How many there are.
        expected_dice: How far the mask can be trusted; None where the bundle does not say.
        review: Whether somebody should look at the mask.
        warnings: What the reader of the result should know, separated by semicolons.
        seconds: What the case took.
    """

    case: str
    path: str
    status: str
    reason: str = ""
    volume_ml: float | None = None
    volume_low_ml: float | None = None
    volume_high_ml: float | None = None
    lesion_voxels: int | None = None
    lesions: int | None = None
    expected_dice: float | None = None
    review: bool | None = None
    warnings: str = ""
    seconds: float | None = None

    def line(self) -> bytes:
        """Return the row as a line of CSV, in UTF-8."""
        return csv_line(["" if value is None else _cell(value) for value in astuple(self)])


COLUMNS = tuple(field.name for field in fields(Row))


def csv_line(cells: Sequence[str]) -> bytes:
    """Return a line of CSV, in UTF-8; a file name's bytes that are no characters are written as escapes."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8", "backslashreplace")


def row_of_report(case: str, path: str, report: Mapping[str, Any], warnings: Sequence[str] = ()) -> Row:
    """Return the row of a case that is done.

    Args:
        case: Its name.
        path: Of the scan, as the table shows it.
        report: Its ``report.json``.
        warnings: Of finding it, besides those of the report.
    """
    confidence = report.get("confidence") or {}
    low, high = report.get("volume_interval_ml") or (None, None)
    return Row(
        case=case,
        path=path,
        status=DONE,
        volume_ml=report["volume_ml"],
        volume_low_ml=low,
        volume_high_ml=high,
        lesion_voxels=report["lesion_voxels"],
        lesions=report["lesion_count"],
        expected_dice=confidence.get("predicted_dice"),
        review=confidence.get("review"),
        warnings=_one_line("; ".join([*warnings, *report["warnings"]])),
        seconds=report["seconds"]["total"],
    )


def failed_row(case: str, path: str, reason: object) -> Row:
    """Return the row of a case that failed."""
    return Row(case=case, path=path, status=FAILED, reason=_one_line(str(reason)))


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) and value == int(value) else str(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())
