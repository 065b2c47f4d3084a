"""The picture of a case: axial slices of the FLAIR with the outline of what was found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.atomic import atomic_write
from pipeline.formats.scan import Scan
from pipeline.measurement import Measurements, measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from transforms.geometry import SliceFrame

__all__ = ["draw_overlay"]

Voxel = TypeVar("Voxel", bound=np.generic)

MAX_PANELS = 12
MIN_PANELS = 8  # around a small lesion, for orientation
COLUMNS = 4
PANEL_WIDTH = 2.6  # inches
DOTS_PER_INCH = 150
LESION_COLOR = "#ffb000"  # told apart from every grey also by color-blind readers


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
    flair, outline = _axial_view(scan.flair, frame), _axial_view(mask.astype(bool), frame)
    chosen = _choose_slices(np.asarray(outline.sum(axis=(1, 2))))
    flair, outline = flair[chosen], outline[chosen]
    rows, columns = _head_window(flair, outline)
    flair, outline = flair[:, rows, columns], outline[:, rows, columns]
    aspect = 1.0
    if scan.spacing is not None:
        aspect = scan.spacing[frame.order[1]] / scan.spacing[frame.order[0]]
    figure, panels = _montage(len(chosen), aspect * flair.shape[1] / flair.shape[2])
    low, high = np.percentile(flair, (1, 99.7))
    for axes, number, plane, plane_mask in zip(panels, chosen, flair, outline, strict=True):
        axes.imshow(plane, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect, interpolation="bicubic")
        _draw_outline(axes, plane_mask)
        _letter(axes, 0.97, 0.03, f"{number + 1}", "right", "bottom")
        if _orientation_stated(scan):
            _letter(axes, 0.03, 0.97, "R", "left", "top")
            _letter(axes, 0.97, 0.97, "L", "right", "top")
    _title(figure, scan, measurements or measure(mask, scan.spacing, scan.affine))
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH, facecolor="black")


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


def _head_window(flair: NDArray[np.float32], outline: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Return the rows and columns that hold the head, so that panels are not mostly background."""
    low, high = np.percentile(flair, (1, 99.5))
    bright = flair > low + 0.12 * (high - low)
    window = []
    for axis, size in ((1, flair.shape[1]), (2, flair.shape[2])):
        others = tuple({0, 1, 2} - {axis})
        # Single bright voxels in the background are noise.
        kept = np.flatnonzero((bright.mean(axis=others) > 0.01) | outline.any(axis=others))
        first, last = (kept[0], kept[-1]) if len(kept) else (0, size - 1)
        margin = max(2, size // 40)
        window.append(slice(max(0, int(first) - margin), int(last) + margin + 1))
    return window[0], window[1]


def _montage(count: int, proportion: float) -> tuple[Figure, list[Axes]]:
    """Return a black figure with room for a title and ``count`` panels of height over width ``proportion``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    width = COLUMNS * PANEL_WIDTH
    # Very flat or tall panels would make a figure of any size; the picture keeps its proportion inside.
    height = rows * width / columns * min(max(proportion, 0.3), 2.0)
    title = 0.75  # inches
    figure = Figure(figsize=(width, height + title), facecolor="black")
    FigureCanvasAgg(figure)
    top = height / (height + title)
    grid = figure.add_gridspec(rows, columns, left=0, right=1, bottom=0, top=top, wspace=0.01, hspace=0.01)
    panels = [figure.add_subplot(grid[n // columns, n % columns]) for n in range(count)]
    for axes in panels:
        axes.set_axis_off()
    return figure, panels


def _draw_outline(axes: Axes, mask: NDArray[np.bool_]) -> None:
    if mask.any():
        # A border of background closes the outline of a lesion at the edge.
        padded = np.pad(mask.astype(float), 1)
        y, x = (np.arange(-1, size + 1) for size in mask.shape)
        axes.contour(x, y, padded, levels=[0.5], colors=LESION_COLOR, linewidths=1.3)


def _letter(axes: Axes, x: float, y: float, text: str, horizontal: str, vertical: str) -> None:
    axes.text(x, y, text, transform=axes.transAxes, color="#c8c8c8", fontsize=10, ha=horizontal, va=vertical)


def _title(figure: Figure, scan: Scan, found: Measurements) -> None:
    """Write what was found, and below it what is shown."""
    if not found.lesion_count:
        amount = "none found"
    else:
        unit = f"{found.lesion_voxels:,} voxels (spacing unknown)"
        if found.volume_ml is not None:
            unit = f"{found.volume_ml:.{1 if found.volume_ml >= 10 else 2}f} ml"
        count = f"{found.lesion_count} lesion{'s' if found.lesion_count > 1 else ''}"
        amount = f"{unit} in {count}, {found.slices_with_lesion} of {found.slices_total} slices"
    name = Path(scan.source).name
    name = name if len(name) <= 60 else f"{name[:57]}..."
    # The font lacks most of the world's characters, and a missing one is a box and a warning.
    name = "".join(c if c.isprintable() and ord(c) < 0x250 else "?" for c in name)
    side = "patient's right on the left" if _orientation_stated(scan) else "left and right not stated in the file"
    below = f"{name}  ·  axial slices numbered from the lowest  ·  {side}  ·  research use only"
    inch = 1 / figure.get_figheight()
    for text, offset, size, color in ((f"FLAIR abnormality: {amount}", 0.3, 14, "white"), (below, 0.56, 9, "#a0a0a0")):
        figure.text(
            0.012, 1 - offset * inch, text, fontsize=size, color=color, va="center", parse_math=False,
        )  # fmt: skip
