"""Two visits of one patient compared, from their files to the results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.case import Case
from pipeline.comparison.change import (
    Amount,
    Change,
    NewLesion,
    find_new_lesions,
    measure_change,
    measure_overlap,
    share_outside,
)
from pipeline.comparison.content import build_content
from pipeline.comparison.page import describe_category, write_page
from pipeline.comparison.picture import draw_comparison
from pipeline.comparison.registration import OUTSIDE, Registration, assume_aligned, register, resample, write_transform
from pipeline.errors import AR2UNetError, ScanError
from pipeline.formats.atomic import atomic_write
from pipeline.formats.folders import make_folder
from pipeline.formats.nifti import read_mask
from pipeline.formats.nifti_header import printable
from pipeline.formats.resampling import is_same_grid
from pipeline.formats.scan import Scan
from pipeline.measurement import measure, volume_interval
from pipeline.measurement.laterality import is_orientation_stated
from pipeline.reading import ReadScan, read_case

if TYPE_CHECKING:
    from pipeline.case import CaseResult

__all__ = ["Comparison", "Found", "SegmentAll", "Visit", "compare_visits", "look_at_headers"]

SegmentAll = Callable[[Sequence[Case]], Iterator[tuple[Case, "CaseResult | AR2UNetError"]]]

NAMES = ("BEFORE", "AFTER")
TRANSFORM = "before_to_after.tfm"
MAX_SHARE_OUTSIDE = 0.02  # of a lesion, where the other visit's scan did not look


@dataclass(frozen=True)
class Visit:
    """What is given of a visit.

    Attributes:
        flair: What ``pipeline.reading.read_case`` takes.
        mask: NIfTI mask on the scan's grid; None to segment the scan.
        t1: Pre-contrast T1 beside a FLAIR file.
        t1c: Post-contrast T1.
        series: SeriesInstanceUID to read as FLAIR from a DICOM study.
    """

    flair: Path
    mask: Path | None = None
    t1: Path | None = None
    t1c: Path | None = None
    series: str | None = None


@dataclass(frozen=True, eq=False)
class Found:
    """What a visit holds.

    Attributes:
        visit: What was given.
        scan: Read from it.
        mask: ``(I, J, K)`` on its grid.
        mask_file: Where that came from or went to.
        amount: Measured on it.
        predicted_dice: To expect of the mask; None where nobody can say.
        warnings: Of reading and segmenting.
    """

    visit: Visit
    scan: Scan
    mask: NDArray[np.bool_]
    mask_file: Path
    amount: Amount
    predicted_dice: float | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Where the results are.

    Attributes:
        report: JSON, as ``schemas/comparison.schema.json`` describes it.
        page: The same for people.
        picture: PNG.
        transform: ITK transform; None where nothing was registered.
        summary: The result in a line.
        warnings: What was not yet said of either scan, a sentence each.
    """

    report: Path
    page: Path
    picture: Path
    transform: Path | None
    summary: str
    warnings: tuple[str, ...]


def compare_visits(before: Visit, after: Visit, out: Path, segment: SegmentAll) -> Comparison:
    """Register the later visit onto the earlier one, measure what changed, and write it down.

    Args:
        before: Earlier visit.
        after: Later visit.
        out: Folder for the results, made where missing; masks go to ``before`` and ``after`` below it.
        segment: Segments cases in order, as ``pipeline.stream.segment_cases`` does with a predictor; not called where
            both masks are given.

    Raises:
        AR2UNetError: If a scan or mask cannot be read, the two cannot be compared, or a result cannot be written.
    """
    if (before.mask is None) != (after.mask is None):
        raise ScanError("masks go together: expected one of each visit or none, got one")
    reads = [read_case(visit.flair, visit.t1, visit.t1c, visit.series) for visit in (before, after)]
    registration = _register(*(read.scan for read in reads))
    make_folder(out)
    found = _find_lesions((before, after), reads, out, segment)
    new_lesions, outside = _compare_places(*found, registration)
    change = measure_change(found[0].amount, found[1].amount, new_lesions, is_registered=not registration.is_doubtful)
    moved = resample(found[1].mask, found[1].scan.affine, found[0].scan, registration.matrix)
    flair = resample(found[1].scan.flair, found[1].scan.affine, found[0].scan, registration.matrix, outside=OUTSIDE)
    is_seen = flair > OUTSIDE / 2
    flair[~is_seen] = found[1].scan.flair.min()
    overlap = measure_overlap(found[0].mask, moved > 0.5, is_seen)
    days, doubts = look_at_headers(*reads)
    warnings = (*_warn(found, registration, outside), *doubts)
    content = build_content(found, registration, change, overlap, new_lesions, days, warnings, TRANSFORM)
    summary = _summarize(found, change, content)
    picture = out / "compare.png"
    draw_comparison(
        found[0].scan, found[0].mask, flair, moved, picture, _title(found, change, content),
        is_registered=registration.mutual_information is not None, is_seen=is_seen,
        is_side_known=is_orientation_stated(found[0].scan),
    )  # fmt: skip
    transform = None if registration.mutual_information is None else out / TRANSFORM
    if transform is not None:
        write_transform(registration, transform)
    report, page = out / "compare.json", out / "compare.html"
    with atomic_write(report) as file:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        file.write(text.encode("utf-8", "backslashreplace") + b"\n")
    write_page(page, content, picture.read_bytes())
    return Comparison(report, page, picture, transform, f"{summary}; {page}", warnings)


def _register(before: Scan, after: Scan) -> Registration:
    """Register what has a spacing; what has none can only be compared voxel for voxel."""
    unknown = [scan for scan in (before, after) if scan.spacing is None]
    if not unknown:
        return register(before, after)
    name = printable(Path(unknown[0].source))
    reason = f"{name}: its voxel spacing is unknown, so it can only be compared voxel for voxel"
    if len(unknown) == 1:
        raise ScanError(f"{reason} with another such scan, got one of known spacing")
    if before.spatial_shape != after.spatial_shape:
        shapes = f"{before.spatial_shape} and {after.spatial_shape}"
        raise ScanError(f"{reason} on one grid, got shapes {shapes}")
    return assume_aligned(before, after)


def _find_lesions(
    visits: tuple[Visit, Visit], reads: Sequence[ReadScan], out: Path, segment: SegmentAll
) -> tuple[Found, Found]:
    results: list[CaseResult | None] = [None, None]
    if visits[0].mask is None:
        cases = [
            Case(visit.flair, out / name.lower(), visit.t1, visit.t1c, visit.series)
            for name, visit in zip(NAMES, visits, strict=True)
        ]
        for n, (_, result) in enumerate(segment(cases)):
            if isinstance(result, AR2UNetError):
                raise result
            results[n] = result
    before, after = (_look(visit, read, result) for visit, read, result in zip(visits, reads, results, strict=True))
    return before, after


def _look(visit: Visit, read: ReadScan, result: CaseResult | None) -> Found:
    """Read and measure the mask of a visit."""
    path = visit.mask if result is None else result.mask
    if path is None:
        raise ValueError("a visit needs a mask or a result")
    mask = read_mask(path)
    on_grid = Scan(mask.mask[None].astype(np.float32), mask.affine, mask.spacing, str(path))
    if not is_same_grid(on_grid, read.scan):
        expected = f"expected a mask on the voxel grid of {printable(visit.flair)}, shape {read.scan.spatial_shape}"
        came = "another place or orientation"
        if mask.mask.shape != read.scan.spatial_shape:
            came = f"shape {mask.mask.shape}"
        raise ScanError(f"{printable(path)}: {expected}, got {came}")
    measured = measure(mask.mask, read.scan.spacing, read.scan.affine)
    dice = None if result is None or result.assessment is None else result.assessment.predicted_dice
    products = [lesion.diameters.product_mm2 for lesion in measured.lesions if lesion.diameters is not None]
    amount = Amount(
        voxels=measured.lesion_voxels,
        lesion_count=measured.lesion_count,
        volume_ml=measured.volume_ml,
        interval_ml=volume_interval(measured.volume_ml, dice),
        product_mm2=None if len(products) < measured.lesion_count or read.scan.spacing is None else sum(products),
    )
    warnings = read.warnings if result is None else result.warnings
    return Found(visit, read.scan, mask.mask, path, amount, dice, warnings)


def _compare_places(
    before: Found, after: Found, registration: Registration
) -> tuple[tuple[NewLesion, ...], tuple[float, float]]:
    """Return the new lesions, and which share of each visit's lesion the other's scan did not look at."""
    to_before = np.asarray(np.linalg.inv(registration.matrix @ before.scan.affine) @ after.scan.affine, np.float64)
    to_after = np.asarray(np.linalg.inv(to_before), np.float64)
    voxel_ml = None
    if after.scan.spacing is not None:
        voxel_ml = abs(float(np.linalg.det(after.scan.affine[:3, :3]))) / 1000
    outside = (
        share_outside(before.mask, to_after, after.mask.shape),
        share_outside(after.mask, to_before, before.mask.shape),
    )
    return find_new_lesions(before.mask, after.mask, to_before, before.scan.affine, voxel_ml), outside


def look_at_headers(before: ReadScan, after: ReadScan) -> tuple[int | None, tuple[str, ...]]:
    """Return the days between two DICOM studies, and what their headers say against comparing them."""
    if before.source is None or after.source is None:
        return None, ()
    headers = [read.source.header_of(0) for read in (before, after) if read.source is not None]
    patients = [str(header.get("PatientID", "") or "") for header in headers]
    doubts = []
    if all(patients) and patients[0] != patients[1]:
        doubts.append("the two studies name different patients in PatientID")
    try:
        first, second = (datetime.strptime(str(header.get("StudyDate", "")), "%Y%m%d") for header in headers)
    except ValueError:  # no date, as after de-identification
        return None, tuple(doubts)
    days = (second - first).days
    if days < 0:
        doubts.append(f"AFTER was acquired {-days} days earlier than BEFORE")
    return days, tuple(doubts)


def _warn(found: tuple[Found, Found], registration: Registration, outside: tuple[float, float]) -> tuple[str, ...]:
    """Return what the reader of the comparison should know."""
    before, after = (each.scan for each in found)
    lines = list(registration.warnings)
    if before.spatial_shape == after.spatial_shape and np.array_equal(before.flair, after.flair):
        lines.append("BEFORE and AFTER are the same images: nothing but the masks can differ")
    if before.spacing is None:
        lines.append(
            "the voxel spacing is unknown: there are no millilitres and no diameters, and the ratio of voxels holds "
            "only if both scans have one spacing"
        )
    for name, share in zip(NAMES, outside, strict=True):
        if share > MAX_SHARE_OUTSIDE:
            lines.append(f"{share:.0%} of the lesion of {name} lies where the other scan did not look")
    return tuple(lines)


def _sizes(found: tuple[Found, Found], change: Change) -> str:
    amounts = [each.amount for each in found]
    if change.ml is None:
        text = f"{amounts[0].voxels:,} -> {amounts[1].voxels:,} voxels"
    else:
        first, second = (amount.volume_ml or 0.0 for amount in amounts)
        digits = 1 if max(first, second) >= 10 else 2
        text = f"{first:.{digits}f} -> {second:.{digits}f} ml"
    return text if change.percent is None else f"{text} ({change.percent:+.0f} %)"


def _title(found: tuple[Found, Found], change: Change, content: dict[str, Any]) -> str:
    return f"FLAIR abnormality: {_sizes(found, change)}: {describe_category(content)} (RANO-like, imaging only)"


def _summarize(found: tuple[Found, Found], change: Change, content: dict[str, Any]) -> str:
    names = " -> ".join(each.visit.flair.name for each in found)
    return f"{names}: {_sizes(found, change)}, {describe_category(content)} (RANO-like, imaging only)"
