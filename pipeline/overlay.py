"""The picture of a case: axial slices of the FLAIR with the outline of what was found."""

from __future__ import annotations

import math
import unicodedata
import zlib
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.formats.atomic import atomic_write
from pipeline.formats.scan import Scan
from pipeline.measurement import Measurements, measure

if TYPE_CHECKING:
    from transforms.geometry import SliceFrame

__all__ = ["draw_overlay"]

Voxel = TypeVar("Voxel", bound=np.generic)

MAX_PANELS = 12
MIN_PANELS = 8  # around a small lesion, for orientation
COLUMNS = 4
WIDTH = 1560  # pixels, as all that follows
TITLE_HEIGHT = 112
MARGIN = 3  # around each panel; leaves room for the outline of a lesion at the edge
OUTLINE = 2.7  # thickness
LESION_COLOR = (255, 176, 0)  # told apart from every grey also by color-blind readers
GREYS = 192  # of the palette; its other 64 colors are the outline's, 8 opacities on 8 greys


def draw_overlay(scan: Scan, mask: NDArray[np.generic], path: Path, measurements: Measurements | None = None) -> None:
    """Draw axial slices of the FLAIR with the outline of the mask, as PNG.

    Slices are shown as radiologists look at them, from the feet, the patient's right on
    the left, in true proportion where the spacing is known; around the lesions or, where
    there is none, evenly through the volume. They are numbered from the lowest, from 1.

    Args:
        scan: What was segmented.
        mask: ``(I, J, K)``, nonzero in lesions.
        path: The PNG file.
        measurements: Of the mask; measured here if not given.

    Raises:
        ValueError: If the shape of the mask is not the scan's.
        AR2UNetError: If the file cannot be written.
    """
    from transforms.geometry import find_slice_frame

    if mask.shape != scan.spatial_shape:
        raise ValueError(f"mask must have the scan's shape {scan.spatial_shape}, got {mask.shape}")
    # Only for the order and direction of the axes.
    frame = find_slice_frame(scan.image, scan.affine, None, crop_to_head=False)
    flair, lesion = _axial_view(scan.flair, frame), _axial_view(mask.astype(bool), frame)
    chosen = _choose_slices(np.asarray(lesion.sum(axis=(1, 2))))
    rows, columns = _head_window(flair, lesion, chosen)
    flair, lesion = flair[:, rows, columns], lesion[:, rows, columns]
    aspect = 1.0 if scan.spacing is None else scan.spacing[frame.order[1]] / scan.spacing[frame.order[0]]
    cells, cell, panel = _arrange(len(chosen), aspect * flair.shape[1] / flair.shape[2])
    canvas = Image.new("L", (WIDTH, cells[-1][1] + cell[1]))
    opacity = np.zeros((canvas.height, canvas.width), np.uint8)  # of the outline, 0 to 8
    draw = ImageDraw.Draw(canvas)
    draw.font = ImageFont.load_default(22)
    low, high = (float(value) for value in np.percentile(_sample(flair, chosen), (1, 99.7)))
    for (left, top), number in zip(cells, chosen, strict=True):
        corner = left + (cell[0] - panel[0]) // 2, top + (cell[1] - panel[1]) // 2
        grey = ((flair[number] - low) * (255 / max(high - low, 1e-6))).clip(0, 255).astype(np.uint8)
        canvas.paste(Image.fromarray(grey).resize(panel, Image.Resampling.BICUBIC), corner)
        _draw_line(opacity, *_border(lesion[number], corner, panel))
        _letter(draw, left + cell[0] - 12, top + cell[1] - 12, f"{number + 1}", "rs")
        if _orientation_stated(scan):
            _letter(draw, left + 12, top + 12, "R", "lt")
            _letter(draw, left + cell[0] - 12, top + 12, "L", "rt")
    _title(draw, scan, measurements or measure(mask, scan.spacing, scan.affine))
    with atomic_write(path) as file:
        # Run lengths alone: two thirds of the time of the fastest usual compression, and an eighth more bytes.
        _color(canvas, opacity).save(file, format="PNG", compress_level=1, compress_type=zlib.Z_RLE)


def _axial_view(volume: NDArray[Voxel], frame: SliceFrame) -> NDArray[Voxel]:
    """Return a view ``(slice, row, column)``: slices upwards, rows to posterior, columns to the patient's left."""
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in frame.flipped)
    return volume.transpose(frame.order)[steps].transpose(2, 1, 0)


def _orientation_stated(scan: Scan) -> bool:
    """Whether left and right are known: a header with neither sform nor qform does not tell."""
    return scan.header is None or bool(scan.header["sform_code"] or scan.header["qform_code"])


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


def _sample(flair: NDArray[np.float32], chosen: list[int]) -> NDArray[np.float32]:
    """Return every n-th voxel of the chosen slices along rows and columns: enough for percentiles, and soon sorted."""
    step = max(1, min(flair.shape[1:]) // 128)
    return flair[chosen, ::step, ::step]


def _head_window(flair: NDArray[np.float32], lesion: NDArray[np.bool_], chosen: list[int]) -> tuple[slice, slice]:
    """Return the rows and columns that hold the head, so that panels are not mostly background."""
    low, high = (float(value) for value in np.percentile(_sample(flair, chosen), (1, 99.5)))
    bright, outlined = np.zeros(flair.shape[1:], np.uint8), np.zeros(flair.shape[1:], bool)
    for n in chosen:
        bright += flair[n] > low + 0.12 * (high - low)
        outlined |= lesion[n]
    window = []
    for axis, size in zip((0, 1), flair.shape[1:], strict=True):
        # Single bright voxels in the background are noise.
        kept = np.flatnonzero((bright.mean(axis=1 - axis) > 0.01 * len(chosen)) | outlined.any(axis=1 - axis))
        first, last = (kept[0], kept[-1]) if len(kept) else (0, size - 1)
        margin = max(2, size // 40)
        window.append(slice(max(0, int(first) - margin), int(last) + margin + 1))
    return window[0], window[1]


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


def _border(
    mask: NDArray[np.bool_], corner: tuple[int, int], panel: tuple[int, int]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return rows and columns, in pixels, of points on the border of a mask, less than a pixel apart.

    The border is the contour at 0.5 of the mask interpolated linearly: half-way between
    a voxel of the lesion and one of the background.
    """
    voxels = Image.fromarray(mask.astype(np.uint8) * 255)
    box = voxels.getbbox()
    if box is None:
        return np.empty(0), np.empty(0)
    # A voxel of background all around; beyond the image, too, where it closes the outline of a lesion at the edge.
    voxels = voxels.crop((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1))
    scale = panel[0] / mask.shape[1], panel[1] / mask.shape[0]
    # Never below a pixel a voxel: a lesion of one voxel would be averaged away.
    across, down = (math.ceil(pixels) for pixels in scale)
    enlarged = voxels.resize((voxels.width * across, voxels.height * down), Image.Resampling.BILINEAR)
    field = np.asarray(enlarged).astype(np.float32) - 127.5  # nowhere zero
    rows, columns = [], []
    for step, before, after in (((1, 0), field[:-1], field[1:]), ((0, 1), field[:, :-1], field[:, 1:])):
        row, column = np.nonzero((before < 0) != (after < 0))
        way = before[row, column] / (before[row, column] - after[row, column])
        # Half a pixel leads from its corner to its center.
        rows.append(corner[1] + scale[1] * ((row + 0.5 + step[0] * way) / down + box[1] - 1))
        columns.append(corner[0] + scale[0] * ((column + 0.5 + step[1] * way) / across + box[0] - 1))
    return np.concatenate(rows), np.concatenate(columns)


def _draw_line(opacity: NDArray[np.uint8], rows: NDArray[np.floating], columns: NDArray[np.floating]) -> None:
    """Draw a line through points close to one another: opacity up to 8, less at its edges, which makes them smooth."""
    reach = int(OUTLINE / 2 + 1)
    for down, right in product(range(-reach, reach + 1), repeat=2):
        row, column = rows.astype(int) + down, columns.astype(int) + right
        distance = np.hypot(row + 0.5 - rows, column + 0.5 - columns)
        part = np.rint(8 * np.clip(OUTLINE / 2 + 0.5 - distance, 0, 1)).astype(np.uint8)
        np.maximum.at(opacity.reshape(-1), row * opacity.shape[1] + column, part)


def _color(canvas: Image.Image, opacity: NDArray[np.uint8]) -> Image.Image:
    """Return the greys with the line over them, as palette: a third of the bytes to compress, which takes the time."""
    grey = np.asarray(canvas).reshape(-1)
    index = np.array(canvas.point([round(n * (GREYS - 1) / 255) for n in range(256)]))
    line = np.flatnonzero(opacity > 0)
    index.reshape(-1)[line] = GREYS - 8 + 8 * opacity.reshape(-1)[line] + grey[line] // 32
    greys = np.linspace(0, 255, GREYS)[:, None].repeat(3, axis=1)
    share, below = np.arange(1, 9)[:, None, None] / 8, np.arange(16, 256, 32)[:, None]
    blends = share * np.array(LESION_COLOR) + (1 - share) * below
    picture = Image.fromarray(index)
    picture.putpalette(np.concatenate([greys, blends.reshape(-1, 3)]).round().astype(np.uint8).tobytes())
    return picture


def _letter(draw: ImageDraw.ImageDraw, x: int, y: int, text: str, anchor: str) -> None:
    # A black rim keeps it legible on scalp.
    draw.text((x, y), text, 200, anchor=anchor, stroke_width=2, stroke_fill=0)


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
    side = "patient's right on the left" if _orientation_stated(scan) else "left and right not stated in the file"
    below = f"  ·  axial slices numbered from the lowest  ·  {side}  ·  research use only"
    font = ImageFont.load_default(20)
    shown = name
    while font.getlength(shown + below) > WIDTH - 2 * 19:
        name = name[:-1]
        shown = f"{name}..."
    draw.text((19, 84), shown + below, 160, font, "lm")
