"""The picture of a case: axial slices of the FLAIR with the outline of what was found."""

from __future__ import annotations

import unicodedata
from pathlib import Path

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
from pipeline.formats.atomic import atomic_write
from pipeline.formats.scan import Scan
from pipeline.measurement import Measurements, measure
from pipeline.measurement.laterality import is_orientation_stated

__all__ = ["draw_overlay"]

MAX_PANELS = 12
MIN_PANELS = 8  # around a small lesion, for orientation
COLUMNS = 4
WIDTH = 1560  # pixels, as all that follows
TITLE_HEIGHT = 112
MARGIN = 3  # around each panel; leaves room for the outline of a lesion at the edge


def draw_overlay(scan: Scan, mask: NDArray[np.generic], path: Path, measurements: Measurements | None = None) -> bytes:
    """Draw axial slices of the FLAIR with the outline of the mask, as PNG.

    Slices are shown as radiologists look at them, from the feet, the patient's right on
    the left, in true proportion where the spacing is known; around the lesions or, where
    there is none, evenly through the volume. They are numbered from the lowest, from 1.

    Args:
        scan: What was segmented.
        mask: ``(I, J, K)``, nonzero in lesions.
        path: The PNG file.
        measurements: Of the mask; measured here if not given.

    Returns:
        The bytes of the file.

    Raises:
        ValueError: If the shape of the mask is not the scan's.
        AR2UNetError: If the file cannot be written.
    """
    from transforms.geometry import find_slice_frame

    if mask.shape != scan.spatial_shape:
        raise ValueError(f"mask must have the scan's shape {scan.spatial_shape}, got {mask.shape}")
    # Only for the order and direction of the axes.
    frame = find_slice_frame(scan.image, scan.affine, None, crop_to_head=False)
    flair, lesion = axial_view(scan.flair, frame), axial_view(mask.astype(bool), frame)
    chosen = _choose_slices(np.asarray(lesion.sum(axis=(1, 2))))
    rows, columns = head_window(flair, lesion, chosen)
    flair, lesion = flair[:, rows, columns], lesion[:, rows, columns]
    aspect = 1.0 if scan.spacing is None else scan.spacing[frame.order[1]] / scan.spacing[frame.order[0]]
    cells, cell, panel = _arrange(len(chosen), aspect * flair.shape[1] / flair.shape[2])
    canvas = Image.new("L", (WIDTH, cells[-1][1] + cell[1]))
    opacity = np.zeros((canvas.height, canvas.width), np.uint8)  # of the outline, 0 to 8
    draw = ImageDraw.Draw(canvas)
    draw.font = ImageFont.load_default(22)
    window = find_window(flair, chosen)
    for (left, top), number in zip(cells, chosen, strict=True):
        corner = left + (cell[0] - panel[0]) // 2, top + (cell[1] - panel[1]) // 2
        canvas.paste(draw_slice(flair[number], window, panel), corner)
        draw_line(opacity, *find_border(lesion[number], corner, panel))
        write_letter(draw, left + cell[0] - 12, top + cell[1] - 12, f"{number + 1}", "rs")
        if is_orientation_stated(scan):
            write_letter(draw, left + 12, top + 12, "R", "lt")
            write_letter(draw, left + cell[0] - 12, top + 12, "L", "rt")
    _title(draw, scan, measurements or measure(mask, scan.spacing, scan.affine))
    content = encode_png(canvas, [(opacity, LESION_COLOR)])
    with atomic_write(path) as file:
        file.write(content)
    return content


def _choose_slices(lesion_area: NDArray[np.integer]) -> list[int]:
    """Return the slices to show, in order, for the number of lesion voxels in each."""
    total = len(lesion_area)
    with_lesion = np.flatnonzero(lesion_area)
    if not len(with_lesion):
        # The lowest and highest tenth show neck and scalp.
        edge = total // 10 if total > MAX_PANELS else 0
        return sorted({round(n) for n in np.linspace(edge, total - 1 - edge, min(MAX_PANELS, total))})
    if len(with_lesion) > MAX_PANELS:
        chosen = with_lesion[np.linspace(0, len(with_lesion) - 1, MAX_PANELS).round().astype(int)]
        largest = int(np.argmax(lesion_area))
        chosen[np.argmin(np.abs(chosen - largest))] = largest
        return [int(n) for n in chosen]
    distance = np.abs(np.arange(total)[:, None] - with_lesion).min(axis=1)
    nearest = np.argsort(distance, kind="stable")[: max(MIN_PANELS, -(-len(with_lesion) // COLUMNS) * COLUMNS)]
    return sorted(int(n) for n in nearest)


def _arrange(count: int, proportion: float) -> tuple[list[tuple[int, int]], tuple[int, int], tuple[int, int]]:
    """Return left and top of the cell of each panel, and (width, height) of all cells and of all panels.

    Panels are of height over width ``proportion`` and lie in the middle of their cells.
    """
    columns = min(COLUMNS, count)
    width = WIDTH // columns
    # Very flat or tall panels would make a picture of any size.
    height = round(width * min(max(proportion, 0.3), 2.0))
    cells = [(n % columns * width, TITLE_HEIGHT + n // columns * height) for n in range(count)]
    fitting = min(width - 2 * MARGIN, (height - 2 * MARGIN) / proportion)
    return cells, (width, height), (max(1, round(fitting)), max(1, round(fitting * proportion)))


def _title(draw: ImageDraw.ImageDraw, scan: Scan, found: Measurements) -> None:
    """Write what was found, and below it what is shown."""
    if not found.lesion_count:
        amount = "none found"
    else:
        unit = f"{found.lesion_voxels:,} voxels (spacing unknown)"
        if found.volume_ml is not None:
            unit = f"{found.volume_ml:.{1 if found.volume_ml >= 10 else 2}f} ml"
        count = f"{found.lesion_count} lesion{'s' if found.lesion_count > 1 else ''}"
        amount = f"{unit} in {count}, {found.slices_with_lesion} of {found.slices_total} slices"
    draw.text((19, 45), f"FLAIR abnormality: {amount}", 255, ImageFont.load_default(31), "lm")
    # The font has ASCII and little more; what it lacks would be a box. Accents are left out.
    name = "".join(c for c in unicodedata.normalize("NFKD", Path(scan.source).name) if not unicodedata.combining(c))
    name = "".join(c if " " <= c <= "~" else "?" for c in name)
    side = "patient's right on the left" if is_orientation_stated(scan) else "left and right not stated in the file"
    below = f"  ·  axial slices numbered from the lowest  ·  {side}  ·  research use only"
    font = ImageFont.load_default(20)
    shown = name
    while font.getlength(shown + below) > WIDTH - 2 * 19:
        name = name[:-1]
        shown = f"{name}..."
    draw.text((19, 84), shown + below, 160, font, "lm")
