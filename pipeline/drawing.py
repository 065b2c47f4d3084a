"""What the pictures of slices have in common: how a slice is looked at, its greys, and lines drawn over it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from io import BytesIO
from itertools import product
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from transforms.geometry import SliceFrame

__all__ = [
    "LESION_COLOR",
    "OPACITIES",
    "OUTLINE",
    "axial_view",
    "draw_line",
    "draw_slice",
    "encode_png",
    "find_border",
    "find_window",
    "head_window",
    "write_letter",
]

Voxel = TypeVar("Voxel", bound=np.generic)
Color = tuple[int, int, int]

OUTLINE = 2.7  # thickness in pixels
LESION_COLOR: Color = (255, 176, 0)  # told apart from every grey also by color-blind readers
OPACITIES = 8  # of a line
COLORS = 256  # of a palette; each line over the greys takes 64 of them, 8 opacities on 8 greys


def axial_view(volume: NDArray[Voxel], frame: SliceFrame) -> NDArray[Voxel]:
    """Return a view ``(slice, row, column)``: slices upwards, rows to posterior, columns to the patient's left."""
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in frame.flipped)
    return volume.transpose(frame.order)[steps].transpose(2, 1, 0)


def find_window(flair: NDArray[np.float32], chosen: Sequence[int]) -> tuple[float, float]:
    """Return the intensities that are shown black and white, for the chosen slices of ``(slice, row, column)``."""
    low, high = (float(value) for value in np.percentile(_sample(flair, chosen), (1, 99.7)))
    return low, high


def _sample(flair: NDArray[np.float32], chosen: Sequence[int]) -> NDArray[np.float32]:
    """Return every n-th voxel of the chosen slices along rows and columns: enough for percentiles, and soon sorted."""
    step = max(1, min(flair.shape[1:]) // 128)
    return flair[list(chosen), ::step, ::step]


def head_window(flair: NDArray[np.float32], lesion: NDArray[np.bool_], chosen: Sequence[int]) -> tuple[slice, slice]:
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


def draw_slice(image: NDArray[np.float32], window: tuple[float, float], size: tuple[int, int]) -> Image.Image:
    """Return a slice ``(row, column)`` in greys, enlarged to width and height in pixels."""
    low, high = window
    grey = ((image - low) * (255 / max(high - low, 1e-6))).clip(0, 255).astype(np.uint8)
    return Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC)


def find_border(
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


def draw_line(opacity: NDArray[np.uint8], rows: NDArray[np.floating], columns: NDArray[np.floating]) -> None:
    """Draw a line through points close to one another: opacity up to 8, less at its edges, which makes them smooth."""
    reach = int(OUTLINE / 2 + 1)
    for down, right in product(range(-reach, reach + 1), repeat=2):
        row, column = rows.astype(int) + down, columns.astype(int) + right
        distance = np.hypot(row + 0.5 - rows, column + 0.5 - columns)
        part = np.rint(8 * np.clip(OUTLINE / 2 + 0.5 - distance, 0, 1)).astype(np.uint8)
        np.maximum.at(opacity.reshape(-1), row * opacity.shape[1] + column, part)


def encode_png(canvas: Image.Image, lines: Sequence[tuple[NDArray[np.uint8], Color]]) -> bytes:
    """Return the PNG of greys with lines over them, each the opacity that ``draw_line`` made and its color.

    It has a palette: a third of the bytes to compress, which takes the time.
    """
    greys = COLORS - 64 * len(lines)
    grey = np.asarray(canvas).reshape(-1)
    index = np.array(canvas.point([round(n * (greys - 1) / 255) for n in range(256)]))
    palette = [np.linspace(0, 255, greys)[:, None].repeat(3, axis=1)]
    share, below = np.arange(1, 9)[:, None, None] / 8, np.arange(16, 256, 32)[:, None]
    for number, (opacity, color) in enumerate(lines):
        line = np.flatnonzero(opacity > 0)
        index.reshape(-1)[line] = greys + 64 * number - 8 + 8 * opacity.reshape(-1)[line] + grey[line] // 32
        palette.append((share * np.array(color) + (1 - share) * below).reshape(-1, 3))
    picture = Image.fromarray(index)
    picture.putpalette(np.concatenate(palette).round().astype(np.uint8).tobytes())
    file = BytesIO()
    # Run lengths alone: two thirds of the time of the fastest usual compression, and an eighth more bytes.
    picture.save(file, format="PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return file.getvalue()


def write_letter(draw: ImageDraw.ImageDraw, x: int, y: int, text: str, anchor: str) -> None:
    """Write letters in light grey; a black rim keeps them legible on scalp."""
    draw.text((x, y), text, 200, anchor=anchor, stroke_width=2, stroke_fill=0)
