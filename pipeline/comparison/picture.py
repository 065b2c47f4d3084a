"""The picture of a comparison: the same slices of both visits side by side, with the outline of what was found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.drawing import OPACITIES, axial_view, draw_slice, encode_png, write_letter
from pipeline.formats.atomic import atomic_write

if TYPE_CHECKING:
    from pipeline.formats.scan import Scan

__all__ = ["AFTER_COLOR", "BEFORE_COLOR", "draw_comparison"]

Voxel = TypeVar("Voxel", bound=np.generic)

BEFORE_COLOR, AFTER_COLOR = (35, 145, 255), (255, 165, 0)  # told apart from each other and every grey by everybody
MAX_ROWS = 4
WIDTH, TITLE_HEIGHT, HEADING_HEIGHT = 1560, 104, 44  # pixels, as all that follows
MARGIN = 3  # around each panel
OUTLINE = 2.6  # thickness
COLUMNS = (("BEFORE", (0,)), ("AFTER", (1,)), ("AFTER with both", (0, 1)))  # and whose outlines they show


@dataclass(frozen=True, eq=False)
class _Visit:
    """What is shown of a visit: ``(slice, row, column)``, rows to posterior, columns to the patient's left."""

    flair: NDArray[np.float32]
    lesion: NDArray[np.float32]
    low: float
    high: float


def draw_comparison(
    before: Scan,
    before_mask: NDArray[np.generic],
    after_flair: NDArray[np.float32],
    after_mask: NDArray[np.float32],
    path: Path,
    title: str,
    *,
    is_registered: bool = True,
    is_seen: NDArray[np.bool_] | None = None,
    is_side_known: bool = True,
) -> None:
    """Draw the slices in which most lesion is, or most changed, of both visits, as PNG.

    All is shown on the earlier visit's axial slices, as radiologists look at them: from the feet, the patient's
    right on the left, in true proportion where the spacing is known.

    Args:
        before: Earlier visit.
        before_mask: ``(I, J, K)`` on its grid, nonzero in lesions.
        after_flair: FLAIR of the later visit, resampled onto that grid.
        after_mask: Its mask, resampled linearly; lesion from 0.5.
        path: The PNG file; its folder must exist.
        title: Written above, one line of ASCII.
        is_registered: Whether the later visit was registered; if not, it is shown voxel for voxel.
        is_seen: Where the later scan looked; everywhere if not given.
        is_side_known: Whether left and right may be labelled.

    Raises:
        ValueError: If a shape is not that of ``before``.
        AR2UNetError: If the file cannot be written.
    """
    from transforms.geometry import find_slice_frame

    for name, volume in (("before_mask", before_mask), ("after_flair", after_flair), ("after_mask", after_mask)):
        if volume.shape != before.spatial_shape:
            raise ValueError(f"{name} must have the scan's shape {before.spatial_shape}, got {volume.shape}")
    frame = find_slice_frame(before.image, before.affine, None, crop_to_head=False)
    shown = [axial_view(volume, frame) for volume in (before.flair, after_flair)]
    lesions = [axial_view(volume.astype(np.float32), frame) for volume in (before_mask, after_mask)]
    seen = np.ones(shown[0].shape, bool) if is_seen is None else axial_view(is_seen, frame)
    chosen = _choose_slices(lesions[0] > 0.5, lesions[1] > 0.5)
    rows, columns = _window(shown[0], lesions, chosen)
    visits = []
    for volume, lesion, known in zip(shown, lesions, (np.ones_like(seen), seen), strict=True):
        values = volume[chosen][:, rows, columns][known[chosen][:, rows, columns]]
        low, high = (float(value) for value in np.percentile(values if len(values) else volume, (1, 99.2)))
        visits.append(_Visit(volume[:, rows, columns], lesion[:, rows, columns], low, high))
    aspect = 1.0 if before.spacing is None else before.spacing[frame.order[1]] / before.spacing[frame.order[0]]
    titles = title, _note(is_registered=is_registered, is_side_known=is_side_known)
    content = _compose(visits, chosen, aspect, titles, is_side_known=is_side_known)
    with atomic_write(path) as file:
        file.write(content)


def _choose_slices(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> list[int]:
    """Return up to ``MAX_ROWS`` slices, from the lowest: where most changed, and spread over all that is lesion."""
    area, changed = (before | after).sum(axis=(1, 2)), (before ^ after).sum(axis=(1, 2))
    if not area.any():
        total = len(area)
        return sorted({round(n) for n in np.linspace(0.3 * (total - 1), 0.7 * (total - 1), min(MAX_ROWS, total))})
    # Slices that halve, quarter, ... all lesion, those that changed counted twice.
    weight = np.cumsum(area + changed)
    places = (np.arange(MAX_ROWS) + 0.5) / MAX_ROWS * weight[-1]
    chosen = [int(n) for n in np.searchsorted(weight, places)]
    most = int(changed.argmax()) if changed.any() else int(area.argmax())
    chosen[int(np.argmin(np.abs(np.array(chosen) - most)))] = most
    return sorted(set(chosen))


def _window(flair: NDArray[np.float32], lesions: list[NDArray[np.float32]], chosen: list[int]) -> tuple[slice, slice]:
    """Return the rows and columns that hold the head of the earlier visit and every lesion."""
    from transforms.intensity import find_head

    head = find_head(flair[chosen].transpose(1, 2, 0)).any(axis=2)
    kept = head | np.any([lesion[chosen].max(axis=0) > 0.5 for lesion in lesions], axis=0)
    window = []
    for axis, size in enumerate(kept.shape):
        found = np.flatnonzero(kept.any(axis=1 - axis))
        margin = max(2, size // 50)
        window.append(slice(max(0, int(found[0]) - margin), int(found[-1]) + margin + 1))
    return window[0], window[1]


def _compose(
    visits: list[_Visit], chosen: list[int], aspect: float, titles: tuple[str, str], *, is_side_known: bool
) -> bytes:
    """Arrange the panels, a row a slice, the columns as ``COLUMNS`` has them, and return the PNG."""
    before, after = visits
    size = before.flair.shape[1:]
    width = WIDTH // len(COLUMNS)
    # A very flat or tall head would make a picture of any size.
    height = round(width * min(max(aspect * size[0] / size[1], 0.3), 1.6))
    fitting = min(width - 2 * MARGIN, (height - 2 * MARGIN) * size[1] / (aspect * size[0]))
    panel = max(1, round(fitting)), max(1, round(fitting * aspect * size[0] / size[1]))
    top = TITLE_HEIGHT + HEADING_HEIGHT
    canvas = Image.new("L", (WIDTH, top + len(chosen) * height))
    lines = np.zeros((2, canvas.height, canvas.width), np.float32)  # opacity of either outline, 0 to 1
    for row, number in enumerate(chosen):
        for column, (visit, (_, outlined)) in enumerate(zip((before, after, after), COLUMNS, strict=True)):
            left = column * width + (width - panel[0]) // 2
            corner = left, top + row * height + (height - panel[1]) // 2
            canvas.paste(draw_slice(visit.flair[number], (visit.low, visit.high), panel), corner)
            place = slice(corner[1], corner[1] + panel[1]), slice(left, left + panel[0])
            for n in outlined:
                lines[(n, *place)] = _outline(visits[n].lesion[number], panel)
            _label(canvas, column * width, top + row * height, (width, height), number, is_side_known)
    _write_titles(canvas, lines, titles, width)
    opacities = np.rint(OPACITIES * lines).astype(np.uint8)
    return encode_png(canvas, list(zip(opacities, (BEFORE_COLOR, AFTER_COLOR), strict=True)))


def _outline(lesion: NDArray[np.float32], panel: tuple[int, int]) -> NDArray[np.float32]:
    """Return the opacity ``(rows, columns)`` of the line where the mask, interpolated linearly, is 0.5."""
    # Pillow takes what is beyond the image for what is at its edge: an outline there would stay open.
    closed = np.array(lesion)
    closed[[0, -1]] = 0
    closed[:, [0, -1]] = 0
    field = np.asarray(Image.fromarray(closed).resize(panel, Image.Resampling.BILINEAR)) - 0.5
    down, right = np.gradient(field)
    distance = np.abs(field) / np.maximum(np.hypot(down, right), 1e-6)  # pixels from the line
    opacity: NDArray[np.float32] = np.clip(OUTLINE / 2 + 0.5 - distance, 0, 1)
    return opacity


def _label(canvas: Image.Image, left: int, top: int, cell: tuple[int, int], number: int, is_side_known: bool) -> None:
    """Write the number of the slice and the sides into the corners of a cell."""
    draw = ImageDraw.Draw(canvas)
    draw.font = ImageFont.load_default(22)
    letters = [(left + cell[0] - 12, top + cell[1] - 12, f"{number + 1}", "rs")]
    if is_side_known:
        letters += [(left + 12, top + 12, "R", "lt"), (left + cell[0] - 12, top + 12, "L", "rt")]
    for x, y, text, anchor in letters:
        write_letter(draw, x, y, text, anchor)


def _note(*, is_registered: bool, is_side_known: bool) -> str:
    how = "AFTER registered rigidly onto it" if is_registered else "AFTER voxel for voxel, not registered"
    side = "patient's right on the left" if is_side_known else "left and right not stated"
    return f"axial slices of BEFORE, numbered from the lowest  ·  {how}  ·  {side}  ·  research use only"


def _write_titles(canvas: Image.Image, lines: NDArray[np.float32], titles: tuple[str, str], width: int) -> None:
    """Write what was found and what is shown, and above each column what it holds, with the colors as key."""
    draw = ImageDraw.Draw(canvas)
    for y, text, size, grey in ((38, titles[0], 31, 255), (78, titles[1], 20, 160)):
        while size > 12 and ImageFont.load_default(size).getlength(text) > WIDTH - 2 * 19:
            size -= 1
        draw.text((19, y), text, grey, ImageFont.load_default(size), "lm")
    font = ImageFont.load_default(23)
    for n, (heading, outlined) in enumerate(COLUMNS):
        y, x = TITLE_HEIGHT + 20, n * width + 19
        for line in outlined:
            lines[line, y - 2 : y + 3, x : x + 34] = 1
            x += 44
        draw.text((x, y), heading, 220, font, "lm")
