"""What a mask amounts to: numbers, a picture, and the report of one case."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.atomic import atomic_write
from pipeline.formats.scan import CHANNELS, Scan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from transforms.geometry import SliceFrame

__all__ = ["STAGES", "Lesion", "Measurements", "build_report", "draw_overlay", "measure", "write_report"]

Voxel = TypeVar("Voxel", bound=np.generic)

SCHEMA_VERSION = "1.0"
STAGES = ("read", "preprocess", "network", "postprocess", "write", "total")
NO_SPACING_NOTE = "The scan does not state its voxel spacing, so a volume in millilitres cannot be given."
NOTICE = "For research use only. Not a medical device; not for diagnosis or treatment."
SOFTWARE = {"ar2unet": "ar2unet-monai", **{name: name for name in ("torch", "monai", "numpy", "scipy", "nibabel")}}

MAX_PANELS = 12
MIN_PANELS = 8  # around a small lesion, for orientation
COLUMNS = 4
PANEL_WIDTH = 2.6  # inches
DOTS_PER_INCH = 150
LESION_COLOR = "#ffb000"  # told apart from every grey also by color-blind readers


@dataclass(frozen=True)
class Lesion:
    """One connected component of a mask.

    Attributes:
        voxels: Its size.
        volume_ml: Its volume; None where the spacing is unknown.
        centre_mm: Its centre of mass in scanner coordinates, RAS+ mm; None where the affine
            or the spacing is unknown.
    """

    voxels: int
    volume_ml: float | None
    centre_mm: tuple[float, float, float] | None


@dataclass(frozen=True)
class Measurements:
    """What a mask amounts to.

    Attributes:
        lesion_voxels: Voxels of all lesions.
        volume_ml: Their volume; None where the spacing is unknown.
        lesions: The connected components, the largest first.
        slices_total: Axial slices of the volume.
        slices_with_lesion: Axial slices that hold a lesion voxel.
    """

    lesion_voxels: int
    volume_ml: float | None
    lesions: tuple[Lesion, ...]
    slices_total: int
    slices_with_lesion: int

    @property
    def lesion_count(self) -> int:
        """How many lesions there are."""
        return len(self.lesions)


def measure(
    mask: NDArray[np.generic],
    spacing: tuple[float, float, float] | None,
    affine: NDArray[np.float64] | None = None,
) -> Measurements:
    """Measure the lesions of a mask.

    Voxels that share a face, an edge or a corner belong to one lesion (26-connectivity in
    three dimensions). Without a spacing there are no millilitres and no millimetres.

    Args:
        mask: ``(I, J, K)``, nonzero in lesions.
        spacing: Voxel sizes in mm along I, J and K, or None.
        affine: ``(4, 4)``, voxel to RAS+ mm; without it slices are taken along K.

    Raises:
        ValueError: If ``mask`` is not 3D.
    """
    from scipy import ndimage

    if mask.ndim != 3:
        raise ValueError(f"mask must be (I, J, K), got shape {mask.shape}")
    inside = mask.astype(bool)
    indices = np.argwhere(inside)
    axis = 2 if affine is None else _slice_frame(mask.shape, affine).order[2]
    lesions: list[Lesion] = []
    voxel_ml = None
    if spacing is not None:
        # The determinant also holds for sheared voxels, as gantry tilt makes them.
        voxel_mm3 = np.prod(spacing) if affine is None else abs(np.linalg.det(affine[:3, :3]))
        voxel_ml = float(voxel_mm3) / 1000
    if len(indices):
        start = indices.min(axis=0)
        box = tuple(slice(low, high) for low, high in zip(start, indices.max(axis=0) + 1, strict=True))
        labels, count = ndimage.label(inside[box], structure=np.ones((3, 3, 3)))
        label = labels[tuple((indices - start).T)]
        sizes = np.bincount(label, minlength=count + 1)
        centres = np.stack([np.bincount(label, indices[:, n], count + 1) / np.maximum(sizes, 1) for n in range(3)])
        for n in 1 + np.argsort(-sizes[1:], kind="stable"):
            volume = None if voxel_ml is None else int(sizes[n]) * voxel_ml
            centre = None
            if affine is not None and spacing is not None:
                first, second, third = (float(x) for x in affine[:3, :3] @ centres[:, n] + affine[:3, 3])
                centre = (first, second, third)
            lesions.append(Lesion(int(sizes[n]), volume, centre))
    return Measurements(
        lesion_voxels=len(indices),
        volume_ml=None if voxel_ml is None else len(indices) * voxel_ml,
        lesions=tuple(lesions),
        slices_total=mask.shape[axis],
        slices_with_lesion=len(np.unique(indices[:, axis])),
    )


def build_report(
    *,
    scan: Scan,
    measurements: Measurements,
    inputs: Mapping[str, Path | str],
    bundle_name: str,
    bundle_version: str,
    weights_sha256: str,
    engine: str,
    seconds: Mapping[str, float],
    warnings: Sequence[str] = (),
) -> dict[str, object]:
    """Gather the report of one case, as ``schemas/report.schema.json`` describes it.

    Args:
        scan: What was segmented.
        measurements: Of its mask.
        inputs: The file or folder of each sequence given, by "t1", "flair" or "t1c"; the
            report keeps their names without the folders above.
        bundle_name: The bundle's folder name.
        bundle_version: From its metadata.
        weights_sha256: Of the weights file, 64 hexadecimal digits.
        engine: What multiplied, such as "torch".
        seconds: Wall-clock time of each of ``STAGES``.
        warnings: What the reader of the result should know.

    Raises:
        ValueError: If ``inputs`` or ``seconds`` has other keys than those named.
    """
    if "flair" not in inputs or not set(inputs) <= set(CHANNELS):
        raise ValueError(f"inputs must name flair and perhaps t1 and t1c, got {sorted(inputs)}")
    if set(seconds) != set(STAGES):
        raise ValueError(f"seconds must name {', '.join(STAGES)}, got {', '.join(seconds)}")
    known = measurements.volume_ml is not None
    return {
        "schema_version": SCHEMA_VERSION,
        "inputs": {name: Path(inputs[name]).name for name in CHANNELS if name in inputs},
        "shape": list(scan.spatial_shape),
        "spacing_mm": None if scan.spacing is None else [_rounded(size) for size in scan.spacing],
        "volume_ml": _rounded(measurements.volume_ml),
        "volume_note": None if known else NO_SPACING_NOTE,
        "lesion_voxels": measurements.lesion_voxels,
        "lesion_count": measurements.lesion_count,
        "lesions": [
            {
                "voxels": lesion.voxels,
                "volume_ml": _rounded(lesion.volume_ml),
                "centre_ras_mm": lesion.centre_mm and [round(value, 2) for value in lesion.centre_mm],
            }
            for lesion in measurements.lesions
        ],
        "slices_total": measurements.slices_total,
        "slices_with_lesion": measurements.slices_with_lesion,
        "bundle": {"name": bundle_name, "version": bundle_version},
        "weights_sha256": weights_sha256,
        "engine": engine,
        "seconds": {stage: round(seconds[stage], 3) for stage in STAGES},
        "software": _software_versions(),
        "warnings": list(warnings),
        "notice": NOTICE,
    }


def write_report(path: Path, report: Mapping[str, object]) -> None:
    """Write a report as JSON; the file appears under its name only when it is complete.

    Raises:
        ValueError: If a number is not finite.
        AR2UNetError: If the file cannot be written.
    """
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as file:
        # A file name may hold bytes that are no characters.
        file.write(text.encode("utf-8", "backslashreplace") + b"\n")


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
    if mask.shape != scan.spatial_shape:
        raise ValueError(f"mask must have the scan's shape {scan.spatial_shape}, got {mask.shape}")
    frame = _slice_frame(mask.shape, scan.affine)
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


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _software_versions() -> dict[str, str]:
    """Return the versions of what computed, without importing any of it."""
    versions = {"python": platform.python_version()}
    for name, distribution in SOFTWARE.items():
        try:
            versions[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:  # a packed bundle runs without this project installed
            continue
    return versions


def _slice_frame(shape: tuple[int, ...], affine: NDArray[np.float64]) -> SliceFrame:
    """Return the frame in which the network sees a volume, here only for its order of axes."""
    from transforms.geometry import find_slice_frame

    return find_slice_frame(np.broadcast_to(np.float32(0), (1, *shape)), affine, None, crop_to_head=False)


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
