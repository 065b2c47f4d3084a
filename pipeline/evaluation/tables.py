"""The scores of many patients as a table, a row a patient, and as a summary over patients and groups of them."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation.intervals import LEVEL, MIN_PATIENTS, RESAMPLES, SEED, bootstrap_intervals
from pipeline.evaluation.metrics import ConfusionCounts
from pipeline.evaluation.scoring import PatientScores
from pipeline.formats.atomic import atomic_write

__all__ = [
    "METRICS",
    "NO_SITE",
    "PATIENTS_FILE",
    "SUMMARY_FILE",
    "summarize",
    "write_patients",
    "write_rows",
    "write_summary",
]

PATIENTS_FILE = "patients.csv"
SUMMARY_FILE = "summary.json"

# The columns of the table that are summarised.
METRICS = (
    "dice",
    "iou",
    "precision",
    "recall",
    "specificity",
    "pixel_accuracy",
    "lesion_f1",
    "hd95_voxels",
    "hd95_mm",
    "mean_surface_distance_voxels",
    "mean_surface_distance_mm",
    "volume_error_voxels",
    "volume_error_ml",
    "volume_error_relative",
    "absolute_volume_error_relative",
)
NO_SITE = "unknown"
SIZE_NAMES = ("small", "medium", "large")  # terciles of the patients that have a lesion
NO_LESION = "none"
DECIMALS = 6


def write_patients(path: Path, patients: Sequence[PatientScores]) -> None:
    """Write the table, a row a patient in the order given; what is undefined is an empty field.

    Args:
        path: The CSV file; its folder must exist.
        patients: At least one.

    Raises:
        AR2UNetError: If the file cannot be written.
    """
    write_rows(path, [patient.row() for patient in patients])


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same columns as CSV; what is None is an empty field.

    Args:
        path: The CSV file; its folder must exist.
        rows: At least one.

    Raises:
        AR2UNetError: If the file cannot be written.
    """
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({name: round(cell, DECIMALS) if isinstance(cell, float) else cell for name, cell in row.items()})
    with atomic_write(path) as file:
        # A file name may hold bytes that are no characters.
        file.write(text.getvalue().encode("utf-8", "backslashreplace"))


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write a summary as JSON.

    Args:
        path: The JSON file; its folder must exist.
        summary: As ``summarize`` returns it, or more.

    Raises:
        ValueError: If a number is not finite.
        AR2UNetError: If the file cannot be written.
    """
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", "backslashreplace") + b"\n")


def summarize(patients: Sequence[PatientScores]) -> dict[str, Any]:
    """Summarise scores over all patients, by site and by lesion size.

    Each metric's mean, median, minimum and maximum are taken over the patients for whom it
    is defined, and ``defined`` says for how many that is. Means and medians have a bootstrap
    interval over patients. Small, medium and large are the terciles of the true volume among
    the patients with a lesion; equal volumes are never parted.

    Args:
        patients: At least one.

    Returns:
        What ``summary.json`` holds: numbers, texts and None, none of them NaN.
    """
    pooled = sum((patient.counts for patient in patients), start=ConfusionCounts(0, 0, 0, 0))
    background = [
        (counts.true_negative + counts.false_positive) / counts.total for counts in (each.counts for each in patients)
    ]
    return {
        **_summarize_group(patients),
        "pooled_over_voxels": pooled.scores(),
        "pixel_accuracy_of_an_empty_mask": statistics.fmean(background),
        "bootstrap": {
            "method": "percentile, over patients",
            "level": LEVEL,
            "resamples": RESAMPLES,
            "seed": SEED,
            "minimum_patients": MIN_PATIENTS,
        },
        "by_site": _by(patients, lambda patient: patient.site or NO_SITE),
        "by_lesion_size": _by_lesion_size(patients),
    }


def _summarize_group(patients: Sequence[PatientScores]) -> dict[str, Any]:
    """Summarise every metric over some patients."""
    rows = [patient.row() for patient in patients]
    summary: dict[str, Any] = {"patients": len(rows)}
    intervals: dict[str, dict[str, list[float] | None]] = {"mean": {}, "median": {}}
    for name in METRICS:
        values = [float(value) for row in rows if (value := row[name]) is not None]
        found = bootstrap_intervals(values)
        statistic: tuple[tuple[str, Callable[[list[float]], float]], ...] = (
            ("mean", statistics.fmean),
            ("median", statistics.median),
            ("minimum", min),
            ("maximum", max),
        )
        for key, calculate in statistic:
            summary.setdefault(key, {})[name] = calculate(values) if values else None
        summary.setdefault("defined", {})[name] = len(values)
        intervals["mean"][name] = None if found is None else list(found.mean)
        intervals["median"][name] = None if found is None else list(found.median)
    return {**summary, "intervals": intervals}


def _by(patients: Sequence[PatientScores], group_of: Callable[[PatientScores], str]) -> dict[str, Any]:
    names = sorted({group_of(patient) for patient in patients})
    return {name: _summarize_group([patient for patient in patients if group_of(patient) == name]) for name in names}


def _by_lesion_size(patients: Sequence[PatientScores]) -> dict[str, Any]:
    """Summarise by terciles of the true volume, in ml where every patient's is known, else in voxels."""
    in_ml = all(patient.voxel_ml is not None for patient in patients)
    column = "true_ml" if in_ml else "true_voxels"
    sizes = {patient.subject: _size(patient, column) for patient in patients}
    with_lesion = [size for size in sizes.values() if size > 0]
    limits = np.quantile(with_lesion or [0.0], [1 / 3, 2 / 3])

    def name_of(patient: PatientScores) -> str:
        size = sizes[patient.subject]
        return NO_LESION if size == 0 else SIZE_NAMES[int(np.searchsorted(limits, size))]

    groups = _by(patients, name_of)
    ordered = {}
    for name in (NO_LESION, *SIZE_NAMES):
        if name in groups:
            members = [sizes[patient.subject] for patient in patients if name_of(patient) == name]
            ordered[name] = {"from": min(members), "to": max(members), "unit": column.removeprefix("true_")}
            ordered[name].update(groups[name])
    return ordered


def _size(patient: PatientScores, column: str) -> float:
    size = patient.row()[column]
    return float(size) if isinstance(size, int | float) else 0.0
