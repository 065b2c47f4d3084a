"""Planes of one series, stacked to a volume by where they lie, never by name or InstanceNumber."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ScanError
from pipeline.formats.dicom.headers import find_value
from pipeline.formats.dicom.planes import Plane
from pipeline.formats.nifti_header import MAX_EXTENT

__all__ = ["Stack", "stack_planes"]

# No slice may lie farther than this from where evenly spaced slices put it. Scanners round positions to 0.01 mm or
# finer; a slice that is missing or was moved is off by millimetres. The same as NIfTI's GRID_TOLERANCE.
POSITION_TOLERANCE = 0.1  # mm
ORIENTATION_TOLERANCE = 1e-3  # of a direction cosine, within one stack
SPACING_TOLERANCE = 1e-3  # of pixel spacings within one stack, relative
# Planes of another orientation or size are set aside if they are so few; more of them make the series a mixed one.
MAX_LOCALISER_PLANES = 5
MAX_KINDS = 20  # of orientation and size in one series, beyond which nobody counts
MAX_NAMES = 3  # files named in a line
# What may tell planes at the same position apart.
DISTINGUISHING = ("EchoTime", "EchoNumbers", "AcquisitionNumber", "TemporalPositionIdentifier", "ImageType")


@dataclass(frozen=True, eq=False)
class Stack:
    """Planes that form a volume.

    Attributes:
        planes: In the order of the K axis: ascending along the normal.
        affine: ``(4, 4)``, (column, row, slice) to RAS+ mm.
        spacing: In mm, between columns, rows and slices.
        notes: What was left out, a line each.
    """

    planes: tuple[Plane, ...]
    affine: NDArray[np.float64]
    spacing: tuple[float, float, float]
    notes: tuple[str, ...]


def stack_planes(planes: Sequence[Plane], same_pixels: Callable[[Plane, Plane], bool]) -> Stack:
    """Order the planes of a series along their normal, and find their grid.

    A few planes of another orientation or size (a localiser) are set aside; a plane that is there twice
    is kept once; both with a note.

    Args:
        planes: Of one series.
        same_pixels: Compares two planes at the same position.

    Raises:
        ScanError: Naming files and positions, if orientations or sizes are mixed, different planes lie at the
            same position, a slice is missing, or slices are unevenly spaced or shifted against each other.
    """
    kept, notes = _set_localiser_aside(planes)
    distances, ordered = _sort(kept)
    ordered, duplicate_notes = _drop_duplicates(distances, ordered, same_pixels)
    if len(ordered) < 2:
        raise ScanError(f"expected at least 2 slices, got {ordered[0].name} alone; name the folder of the whole series")
    normal = np.cross(*ordered[0].directions)
    positions = np.array([plane.position for plane in ordered])
    spacing = _check_spacing(positions @ normal, ordered)
    _check_shift(positions, normal, ordered)
    first = ordered[0]
    between_rows, between_columns = first.pixel_spacing
    lps = np.eye(4)
    lps[:3, 0] = first.directions[0] * between_columns
    lps[:3, 1] = first.directions[1] * between_rows
    lps[:3, 2] = normal * spacing
    lps[:3, 3] = first.position
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    return Stack(tuple(ordered), affine, (between_columns, between_rows, spacing), (*notes, *duplicate_notes))


def _sort(planes: Sequence[Plane]) -> tuple[NDArray[np.float64], list[Plane]]:
    """Sort by the distance along the normal, in mm; planes at the same place by name, so that it is the same always."""
    normal = np.cross(*planes[0].directions)
    by_name = sorted(planes, key=lambda plane: (plane.header.file.name, plane.frame))
    distances = np.array([plane.position @ normal for plane in by_name])
    order = np.argsort(distances, kind="stable")
    return distances[order], [by_name[index] for index in order]


def _set_localiser_aside(planes: Sequence[Plane]) -> tuple[list[Plane], list[str]]:
    groups: list[list[Plane]] = []
    for plane in planes:
        group = next((group for group in groups if _same_kind(plane, group[0])), None)
        if group is None:
            groups.append([plane])
        else:
            group.append(plane)
        if len(groups) > MAX_KINDS:  # as of a volume shown from all sides
            break
    groups.sort(key=len, reverse=True)
    main, *others = groups
    if len(groups) > MAX_KINDS or any(
        len(group) > MAX_LOCALISER_PLANES or 2 * len(group) > len(main) for group in others
    ):
        found = "; ".join(
            f"{len(group)} like {group[0].name} ({_describe_kind(group[0])})" for group in groups[:MAX_NAMES]
        )
        more = "" if len(groups) <= MAX_NAMES else "; and others"
        raise ScanError(f"expected slices of one orientation and size, got {len(groups)} kinds: {found}{more}")
    notes = [
        f"{len(group)} slices of another orientation or size set aside (a localiser?): {_name_some(group)}, "
        f"{_describe_kind(group[0])} instead of {_describe_kind(main[0])}"
        for group in others
    ]
    return main, notes


def _same_kind(plane: Plane, other: Plane) -> bool:
    return (
        plane.shape == other.shape
        and plane.inverted == other.inverted
        and bool(np.abs(plane.directions - other.directions).max() <= ORIENTATION_TOLERANCE)
        and np.allclose(plane.pixel_spacing, other.pixel_spacing, rtol=SPACING_TOLERANCE, atol=0)
    )


def _describe_kind(plane: Plane) -> str:
    rows, columns = plane.shape
    axis = ("sagittal", "coronal", "axial")[int(np.abs(np.cross(*plane.directions)).argmax())]
    return f"{axis}, {columns} x {rows} pixels of {plane.pixel_spacing[1]:.3g} x {plane.pixel_spacing[0]:.3g} mm"


def _drop_duplicates(
    distances: NDArray[np.float64], planes: list[Plane], same_pixels: Callable[[Plane, Plane], bool]
) -> tuple[list[Plane], list[str]]:
    kept, dropped, place = [planes[0]], [], distances[0]
    for distance, plane in zip(distances[1:], planes[1:], strict=True):
        if distance - place > POSITION_TOLERANCE:
            kept.append(plane)
            place = distance
            continue
        in_plane = np.linalg.norm(plane.position - kept[-1].position)
        if in_plane > POSITION_TOLERANCE or not same_pixels(plane, kept[-1]):
            both = f"{kept[-1].name} and {plane.name}, which differ at {distance:.1f} mm along the normal"
            raise ScanError(f"expected one image at each position, got {both}{_find_difference(kept[-1], plane)}")
        dropped.append(plane)
    if not dropped:
        return kept, []
    return kept, [f"{len(dropped)} identical copies of slices left out: {_name_some(dropped)}"]


def _find_difference(plane: Plane, other: Plane) -> str:
    """Say what sets two images apart, such as two echoes."""
    for keyword in DISTINGUISHING:
        values = [find_value(item.header.dataset, keyword, item.frame) for item in (plane, other)]
        if values[0] != values[1]:
            return f" ({keyword} {values[0]} and {values[1]}); the series holds more than one volume"
    return ""


def _check_spacing(distances: NDArray[np.float64], planes: Sequence[Plane]) -> float:
    """Return the distance of slices in mm, and refuse gaps and uneven ones."""
    gaps = np.diff(distances)
    spacing = float(distances[-1] - distances[0]) / len(gaps)
    if spacing * len(planes) > MAX_EXTENT:
        raise ScanError(f"expected slices over at most {MAX_EXTENT:g} mm, got {spacing:.1f} mm from slice to slice")
    even = distances[0] + spacing * np.arange(len(planes))
    if np.abs(distances - even).max() <= POSITION_TOLERANCE:
        return spacing
    usual = float(np.median(gaps))
    wide = [index for index, gap in enumerate(gaps) if gap > 1.5 * usual]
    if wide and all(abs(gap / usual - round(gap / usual)) < 0.1 for gap in gaps):
        missing = sum(round(gap / usual) - 1 for gap in gaps[wide])
        before, after = wide[0], wide[0] + 1
        where = " and ".join(f"{planes[k].name} (at {distances[k]:.1f} mm)" for k in (before, after))
        more = "" if len(wide) == 1 else f" and at {len(wide) - 1} more places"
        count = "1 slice is" if missing == 1 else f"{missing} slices are"
        raise ScanError(f"expected slices every {usual:.2f} mm, but {count} missing: between {where}{more}")
    worst = int(np.abs(gaps - usual).argmax())
    received = f"{gaps.min():.2f} to {gaps.max():.2f} mm"
    where = f"{planes[worst].name} and {planes[worst + 1].name} lie {gaps[worst]:.2f} mm apart"
    raise ScanError(f"expected evenly spaced slices within {POSITION_TOLERANCE} mm, got {received}: {where}")


def _check_shift(positions: NDArray[np.float64], normal: NDArray[np.float64], planes: Sequence[Plane]) -> None:
    """Refuse slices that do not lie above each other, as with a tilted gantry."""
    offsets = positions - positions[0]
    shifts = np.linalg.norm(offsets - np.outer(offsets @ normal, normal), axis=1)
    worst = int(shifts.argmax())
    if shifts[worst] > POSITION_TOLERANCE:
        expected = f"slices that lie straight above each other within {POSITION_TOLERANCE} mm"
        received = f"{planes[worst].name} shifted in plane by {shifts[worst]:.2f} mm against {planes[0].name}"
        raise ScanError(f"expected {expected}, got {received}")


def _name_some(planes: Sequence[Plane]) -> str:
    names = ", ".join(plane.name for plane in planes[:MAX_NAMES])
    return names + (f" and {len(planes) - MAX_NAMES} more" if len(planes) > MAX_NAMES else "")
