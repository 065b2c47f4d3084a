"""Enlarged slices with the outline of the lesions and their two diameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.drawing import (
    LESION_COLOR,
    axial_view,
    draw_line,
    draw_slice,
    encode_png,
    find_border,
    find_window,
    head_window,
    write_letter,
)
from pipeline.measurement import Measurements
from pipeline.measurement.laterality import is_orientation_stated

if TYPE_CHECKING:
    from pipeline.formats.scan import Scan
    from transforms.geometry import SliceFrame

__all__ = ["DIAMETER_COLOR", "ContourPicture", "draw_contours"]

DIAMETER_COLOR = (110, 200, 255)
MAX_PICTURES = 2
MEASURABLE = 10.0  # mm of both diameters, from which RANO measures a lesion; smaller ones get no second picture
MAX_SIZE = 720, 840  # width and height of a picture in pixels
MARGIN = 3


@dataclass(frozen=True)
class ContourPicture:
    """A slice with outlines.

    Attributes:
        png: The picture.
        slice: Number of the slice, from 1, the lowest.
        lesions: Numbers of the lesions whose diameters are drawn, from 1, the largest.
    """

    png: bytes
    slice: int
    lesions: tuple[int, ...]


def draw_contours(scan: Scan, mask: NDArray[np.generic], measurements: Measurements) -> list[ContourPicture]:
    """Draw the slices with the diameters of the largest lesions; without a spacing that with most lesion.

    They are shown as radiologists look at them, in true proportion where the spacing is known.

    Args:
        scan: What was segmented.
        mask: ``(I, J, K)``, nonzero in lesions.
        measurements: Of the mask.

    Returns:
        At most ``MAX_PICTURES``, that of the largest lesion first; none for an empty mask.
    """
    from transforms.geometry import find_slice_frame

    if not measurements.lesions:
        return []
    frame = find_slice_frame(scan.image, scan.affine, None, crop_to_head=False)
    flair, lesion = axial_view(scan.flair, frame), axial_view(mask.astype(bool), frame)
    shown: dict[int, list[int]] = {}
    for number, each in enumerate(measurements.lesions, 1):
        diameters = each.diameters
        if diameters is None:
            continue
        large = number == 1 or min(diameters.longest_mm, diameters.perpendicular_mm) >= MEASURABLE
        if diameters.slice in shown or (large and len(shown) < MAX_PICTURES):
            shown.setdefault(diameters.slice, []).append(number)
    if not shown:
        shown[int(np.argmax(lesion.sum(axis=(1, 2)))) + 1] = []
    return [
        ContourPicture(_draw(scan, flair, lesion, frame, measurements, number, lesions), number, tuple(lesions))
        for number, lesions in shown.items()
    ]


def _draw(
    scan: Scan,
    flair: NDArray[np.float32],
    lesion: NDArray[np.bool_],
    frame: SliceFrame,
    measurements: Measurements,
    number: int,
    lesions: Sequence[int],
) -> bytes:
    """Draw one slice of ``(slice, row, column)``, and the diameters of some lesions."""
    chosen = [number - 1]
    rows, columns = head_window(flair, lesion, chosen)
    image, outlined = flair[number - 1, rows, columns], lesion[number - 1, rows, columns]
    aspect = 1.0 if scan.spacing is None else scan.spacing[frame.order[1]] / scan.spacing[frame.order[0]]
    proportion = aspect * image.shape[0] / image.shape[1]
    width = min(MAX_SIZE[0], MAX_SIZE[1] / proportion)
    size = max(1, round(width)), max(1, round(width * proportion))
    canvas = Image.new("L", (max(size[0], 120) + 2 * MARGIN, max(size[1], 120) + 2 * MARGIN))
    canvas.paste(draw_slice(image, find_window(flair, chosen), size), (MARGIN, MARGIN))
    layers = [np.zeros((canvas.height, canvas.width), np.uint8) for _ in range(2)]
    draw_line(layers[0], *find_border(outlined, (MARGIN, MARGIN), size))
    scale = size[0] / image.shape[1], size[1] / image.shape[0]
    for diameters in (measurements.lesions[n - 1].diameters for n in lesions):
        for ends in () if diameters is None else (diameters.longest_ends, diameters.perpendicular_ends):
            seen = np.array([_in_view(end, frame) for end in ends]) - (rows.start, columns.start) + 0.5
            (top, bottom), (left, right) = MARGIN + seen.T * np.array(scale[::-1])[:, None]
            share = np.linspace(0, 1, 2 + 2 * int(np.hypot(bottom - top, right - left)))
            draw_line(layers[1], top + (bottom - top) * share, left + (right - left) * share)
    draw = ImageDraw.Draw(canvas)
    draw.font = ImageFont.load_default(24)
    write_letter(draw, canvas.width - 12, canvas.height - 12, f"{number}", "rs")
    if is_orientation_stated(scan):
        write_letter(draw, 12, 12, "R", "lt")
        write_letter(draw, canvas.width - 12, 12, "L", "rt")
    return encode_png(canvas, [(layers[0], LESION_COLOR), (layers[1], DIAMETER_COLOR)])


def _in_view(voxel: tuple[float, float, float], frame: SliceFrame) -> tuple[float, float]:
    """Return row and column of a voxel on its slice, as ``axial_view`` shows it."""
    column, row = (
        frame.spatial_shape[axis] - 1 - voxel[axis] if flip else voxel[axis]
        for axis, flip in zip(frame.order[:2], frame.flipped[:2], strict=True)
    )
    return row, column
