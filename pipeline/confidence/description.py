"""Describe a volume, as the network sees it, by a few hand-made numbers.

Each is there for a way in which an input can be unsuitable, and all are cheap and robust: they shall tell a T1 from
a FLAIR and a cut-off head from a whole one, not one scanner from another.
"""

from __future__ import annotations

from itertools import pairwise, product
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from transforms.intensity import find_head

__all__ = ["FEATURES", "describe"]

Voxel = TypeVar("Voxel", bound=np.generic)

# Their names go into the warning. What each is there for:
FEATURES = (
    "size of the upper slices",  # the top of the head is cut off; slices are not axial
    "size of the bottom slice",  # upside down; slices are not axial
    "height of the widest part",  # upside down
    "length to width",  # slices are not axial; a part is cut off
    "cut on the left or right",  # the head leaves the field of view
    "cut in front or behind",
    "left-right symmetry",  # slices are not axial; noise
    "front-back symmetry",  # a bottle is symmetrical
    "outline of front and back",  # the back of a head is wider than its front
    "brightness of front and back",
    "brightness of the scalp",  # from here inwards: CT, an inverted scan, another sequence
    "brightness of the skull",
    "brightness of the cortex",
    "brightness of the white matter",
    "skewness",
    "contrast",
    "share of dark voxels",  # CSF, air and bone
    "dark voxels above and below",  # sinuses and skull base lie low: upside down
    "dark voxels in front and behind",  # and in front: back to front
    "noise in the slices",
    "likeness of neighbouring slices",
    "dark and bright lines",  # sulci are dark on FLAIR; another sequence
    "brightness around the CSF",  # on T1 gray matter is darker than white, on FLAIR it is not
)

# A description does not depend on how finely a head is sampled: pixels are averaged and slices
# skipped down to about this many.
GRID_PIXELS = 112
GRID_SLICES = 40

# Slices from which contrast and symmetry are taken, as a share of the head's height: above the
# skull base, below the vertex.
MIDDLE = (0.4, 0.8)

# Borders between scalp, skull, cortex and white matter, as a share of the greatest depth.
DEPTHS = (0.0, 0.1, 0.22, 0.4, 1.0)

UPPER = 0.87  # of the head's height, where the head has become small but is always seen
LOWER_HALF = 0.5
CSF_PERCENTILE = 5  # of the smoothed brain's intensities
# Distances from CSF, in pixels of the grid: in gray matter, and far enough to be in white matter.
NEAR_CSF, FAR_FROM_CSF = (1.5, 3.1), 5.0

LINE_WINDOW = 7, 7  # pixels of the grid: wider than a sulcus

TINY = 1e-6  # keeps a constant volume from dividing by zero


def describe(flair: NDArray[np.floating]) -> NDArray[np.float64]:
    """Describe a volume by the numbers that ``FEATURES`` names.

    Args:
        flair: FLAIR ``(H, W, K)`` in the slice frame (axes to left, posterior, superior),
            cropped to the head and normalised.

    Returns:
        ``(F,)``, finite for any finite volume.

    Raises:
        ValueError: If ``flair`` is not 3D.
    """
    if flair.ndim != 3:
        raise ValueError(f"flair must be (H, W, K), got shape {flair.shape}")
    volume = _reduce(flair)
    head = _fill_holes(find_head(volume))
    occupied = np.flatnonzero(head.any(axis=(0, 1)))
    bottom, height = occupied[0], len(occupied)
    volume, head = volume[..., bottom : bottom + height], head[..., bottom : bottom + height]
    first = int(MIDDLE[0] * height)
    middle = slice(first, max(first + 1, round(MIDDLE[1] * height)))
    features = [
        *_describe_outline(head),
        *_describe_symmetry(volume[..., middle], head[..., middle]),
        *_describe_contrast(volume[..., middle], head[..., middle]),
        *_describe_darkness(volume, head),
        *_describe_texture(volume[..., middle], head[..., middle]),
    ]
    return np.nan_to_num(np.asarray(features, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _reduce(flair: NDArray[np.floating]) -> NDArray[np.float32]:
    """Average pixels and skip slices down to about ``GRID_PIXELS`` and ``GRID_SLICES``."""
    step = max(1, round(max(flair.shape[:2]) / GRID_PIXELS))
    height, width = (max(1, size // step) for size in flair.shape[:2])
    kept = flair[: height * step, : width * step, :: max(1, flair.shape[2] // GRID_SLICES)]
    rows, columns = min(step, kept.shape[0]), min(step, kept.shape[1])
    total: NDArray[np.float32] = np.zeros((height, width, kept.shape[2]), dtype=np.float32)
    for row, column in product(range(rows), range(columns)):
        total += kept[row::step, column::step]
    total /= rows * columns
    return total


def _fill_holes(tissue: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the head with whatever it encloses in each slice."""
    outside = np.pad(~tissue, ((1, 1), (1, 1), (0, 0)), constant_values=True)
    in_plane = ndimage.generate_binary_structure(3, 1) & np.array([False, True, False])
    regions, _ = ndimage.label(outside, structure=in_plane)
    filled: NDArray[np.bool_] = (regions != regions[0, 0])[1:-1, 1:-1]
    return filled


def _describe_outline(head: NDArray[np.bool_]) -> list[float]:
    """Describe which part of a head there is, from its mask ``(H, W, K)``."""
    areas = head.sum(axis=(0, 1))
    heights = (np.arange(len(areas)) + 0.5) / len(areas)
    widths, lengths = head.sum(axis=0), head.sum(axis=1)  # (W, K), (H, K)
    middle = np.argsort(areas)[-max(1, len(areas) // 3) :]  # the largest third of the slices
    aspect = np.log(lengths.max(axis=0)[middle].mean() / widths.max(axis=0)[middle].mean())
    return [
        float(np.sqrt(areas[min(len(areas) - 1, int(UPPER * len(areas)))] / areas.max())),
        float(np.sqrt(areas[0] / areas.max())),
        float((areas * heights).sum() / areas.sum()),
        float(aspect),
        _cut(lengths),
        _cut(widths),
    ]


def _cut(chords: NDArray[np.integer]) -> float:
    """Return how straight the head ends along an axis, 0 to 1, from its chords ``(N, K)`` across it.

    A head that leaves the field of view ends with a chord about as long as its longest one.
    """
    occupied = np.flatnonzero(chords.any(axis=1))
    ends = max(chords[occupied[0]].sum(), chords[occupied[-1]].sum())
    return float(np.sqrt(ends / chords.max(axis=0).sum()))


def _describe_symmetry(volume: NDArray[np.float32], head: NDArray[np.bool_]) -> list[float]:
    """Compare left with right and front with back, in the middle slices ``(H, W, M)``."""
    box = _extent(head, axis=0), _extent(head, axis=1)
    boxed, inside = volume[box], head[box]
    smooth = ndimage.uniform_filter(np.where(inside, boxed, 0), size=(5, 5, 1))
    place = np.linspace(-1, 1, inside.shape[1])
    deep = _erode(inside, max(1, inside.shape[0] // 8))
    return [
        _correlation(smooth[inside], smooth[::-1][inside]),
        _correlation(smooth[inside], smooth[:, ::-1][inside]),
        _median(np.array([_widest(head[..., k].sum(axis=0)) for k in range(head.shape[2]) if head[..., k].any()])),
        _mean(boxed[:, place > 0.2][deep[:, place > 0.2]]) - _mean(boxed[:, place < -0.2][deep[:, place < -0.2]]),
    ]


def _widest(widths: NDArray[np.integer]) -> float:
    """Return where a slice's outline is wide: -1 at the front of the head, 1 at its back."""
    widths = widths[_extent(widths > 0, axis=0)]
    return float((widths * np.linspace(-1, 1, len(widths))).sum() / widths.sum())


def _describe_contrast(volume: NDArray[np.float32], head: NDArray[np.bool_]) -> list[float]:
    """Give the brightness from the scalp inwards, in the middle slices ``(H, W, M)``, and its distribution inside."""
    depth = np.stack([_relative_depth(head[..., k]) for k in range(head.shape[2])], axis=-1)
    bands = [_median(volume[(depth > low) & (depth <= high)]) for low, high in pairwise(DEPTHS)]
    inside = volume[depth > DEPTHS[2]]
    if inside.size == 0:
        return [*bands, 0.0, 0.0]
    low, center, high = np.percentile(inside, [10, 50, 90])
    return [*bands, float((high + low - 2 * center) / (high - low + TINY)), float(np.log(high - low + TINY))]


def _describe_darkness(volume: NDArray[np.float32], head: NDArray[np.bool_]) -> list[float]:
    """Give the share of the head ``(H, W, K)`` that is dark, and how much more of it lies low and in front."""
    half = (float(volume.min()) + _median(volume[head])) / 2
    dark = (volume < half) & head
    shares = dark.sum(axis=(0, 1)) / np.maximum(1, head.sum(axis=(0, 1)))
    third = max(1, len(shares) // 3)
    low = slice(0, max(1, int(LOWER_HALF * len(shares))))
    extent = _extent(head[..., low], axis=1)
    center = (extent.start + extent.stop) // 2
    front, back = (
        dark[:, part, low].sum() / max(1, head[:, part, low].sum()) for part in (slice(center), slice(center, None))
    )
    return [float(shares.mean()), float(shares[:third].mean() - shares[-third:].mean()), float(front - back)]


def _describe_texture(volume: NDArray[np.float32], head: NDArray[np.bool_]) -> list[float]:
    """Describe noise, the likeness of neighbouring slices, and fine structure in the middle slices ``(H, W, M)``."""
    deep = _erode(head, max(1, head.shape[0] // 10))
    if not deep.any():
        return [0.0, 1.0, 0.0, 0.0]
    smooth = ndimage.uniform_filter(volume, size=(3, 3, 1))
    spread = float(volume[deep].std()) + TINY
    noise = np.log(float(np.median(np.abs(volume - smooth)[deep])) / spread + 0.01)
    both = deep[..., 1:] & deep[..., :-1]
    likeness = _correlation(smooth[..., 1:][both], smooth[..., :-1][both]) if both.any() else 1.0
    # Morphological closing and opening: what is narrower than the window disappears.
    dark_lines = _extreme(_extreme(smooth, np.maximum, *LINE_WINDOW), np.minimum, *LINE_WINDOW) - smooth
    bright_lines = smooth - _extreme(_extreme(smooth, np.minimum, *LINE_WINDOW), np.maximum, *LINE_WINDOW)
    lines = np.log((dark_lines[deep].mean() + TINY) / (bright_lines[deep].mean() + TINY))
    return [float(noise), likeness, float(lines), _gray_to_white(volume, smooth, deep)]


def _gray_to_white(volume: NDArray[np.float32], smooth: NDArray[np.float32], deep: NDArray[np.bool_]) -> float:
    """Return how much brighter than the rest of the brain it is where CSF is near: there lies gray matter."""
    low, csf, high = np.percentile(smooth[deep], [10, CSF_PERCENTILE, 90])
    dark = (smooth < csf) & deep
    near = deep & _within(dark, NEAR_CSF[1]) & ~_within(dark, NEAR_CSF[0])
    far = deep & ~_within(dark, FAR_FROM_CSF)
    return (_median(volume[near]) - _median(volume[far])) / float(high - low + TINY)


def _erode(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Return what of a mask ``(H, W, K)`` is left when it loses so many pixels on every side; outside is nothing."""
    margin = (pixels, pixels)
    padded = np.pad(mask, (margin, margin, (0, 0)))
    return _extreme(padded, np.minimum, 2 * pixels + 1, 2 * pixels + 1)[pixels:-pixels, pixels:-pixels]


def _within(mask: NDArray[np.bool_], distance: float) -> NDArray[np.bool_]:
    """Return where some pixel of the mask ``(H, W, K)`` lies within this distance, in pixels of one slice."""
    reach = int(distance)
    near = np.zeros((len(mask) + 2 * reach, *mask.shape[1:]), dtype=bool)
    for offset in range(-reach, reach + 1):  # the rows of a disk
        half = int(np.sqrt(distance**2 - offset**2))
        near[reach + offset :][: len(mask)] |= _extreme(mask, np.maximum, 1, 2 * half + 1)
    return near[reach : reach + len(mask)]


def _extreme(volume: NDArray[Voxel], larger: np.ufunc, height: int, width: int) -> NDArray[Voxel]:
    """Give each pixel of ``(H, W, K)`` the largest or smallest value in a window around it, in its slice.

    Args:
        volume: Of any type.
        larger: ``np.maximum`` or ``np.minimum``.
        height: Of the window, in pixels; odd. Of a window that reaches outside the part inside counts.
        width: The same.
    """
    for axis, size in enumerate((height, width)):
        margins = [(size // 2, size // 2) if n == axis else (0, 0) for n in range(3)]
        values = np.moveaxis(np.pad(volume, margins, mode="edge"), axis, 0)
        seen = 1  # pixels that each value is the extreme of; they double until they are the window
        while seen < size:
            step = min(seen, size - seen)
            values = larger(values[:-step], values[step:])
            seen += step
        volume = np.moveaxis(values, 0, axis)
    return volume


def _relative_depth(head: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return how far each pixel of a slice ``(H, W)`` lies from the head's outline: 0 outside, 1 deepest."""
    depth: NDArray[np.float64] = ndimage.distance_transform_edt(np.pad(head, 1))[1:-1, 1:-1]
    return depth / max(1.0, float(depth.max()))


def _extent(mask: NDArray[np.bool_], axis: int) -> slice:
    """Return from where to where along an axis a mask holds anything."""
    places = np.flatnonzero(mask.any(axis=tuple(n for n in range(mask.ndim) if n != axis)))
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)


def _correlation(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    first, second = first - first.mean(), second - second.mean()
    return float((first * second).sum() / (np.sqrt((first**2).sum() * (second**2).sum()) + TINY))


def _mean(values: NDArray[np.floating]) -> float:
    return float(values.mean()) if values.size else 0.0


def _median(values: NDArray[np.floating]) -> float:
    return float(np.median(values)) if values.size else 0.0
