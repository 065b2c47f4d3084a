"""Find the head in a volume, and bring intensities to one scale.

MR intensities have no unit: the same tissue may read 80 in one scan and 4,000 in
the next. Everything here is therefore unchanged when a volume is multiplied by a
positive number or shifted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["find_head", "find_head_box", "normalize_intensity", "otsu_threshold", "replace_nonfinite"]

# The head is searched on a coarser in-plane grid: every second pixel of slices at
# least this large. Its box moves by at most a pixel and the search is four times faster.
MIN_SIZE_TO_SUBSAMPLE = 64

# Half of Otsu's threshold lies between air and dark tissue (bone marrow, CSF on
# FLAIR), where Otsu's own lies between dark and bright tissue.
HEAD_SHARE_OF_OTSU = 0.5

HISTOGRAM_BINS = 128


def replace_nonfinite(volume: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the volume as float32, with NaN and infinite voxels set to its smallest finite value.

    Tools write NaN outside of the field of view; the smallest value is what air looks like.

    Args:
        volume: Intensities of any shape.

    Returns:
        The same shape. All zeros where no voxel is finite.
    """
    values = np.asarray(volume, dtype=np.float32)
    # Quicker than asking each voxel: NaN and infinity pass through to an end.
    if np.isfinite([values.min(initial=0), values.max(initial=0)]).all():
        return values
    finite = np.isfinite(values)
    lowest = values[finite].min() if finite.any() else np.float32(0)
    return np.where(finite, values, lowest)


def otsu_threshold(values: NDArray[np.floating]) -> float:
    """Return the threshold that best separates dark from bright values.

    Otsu, "A threshold selection method from gray-level histograms", 1979. The mean of
    all equally good thresholds is taken, so a histogram with a gap is cut in the gap's middle.

    Args:
        values: Finite values of any shape, not all equal.
    """
    counts, edges = np.histogram(values, HISTOGRAM_BINS)
    centers = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(float)
    above = counts.sum() - below
    sum_below = np.cumsum(counts * centers)[:-1]
    sum_above = (counts * centers).sum() - sum_below
    between_class_variance = below * above * (sum_below / below - sum_above / above) ** 2
    best = np.isclose(between_class_variance, between_class_variance.max(), atol=0)
    return float(edges[1:-1][best].mean())


def find_head(volume: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return where the head is: the largest connected region brighter than air.

    Slices are smoothed over 3x3 pixels first, so that noise neither joins the head
    nor counts as one.

    Args:
        volume: Finite intensities of one sequence ``(I, J, K)``, slices along K.

    Returns:
        Mask ``(I, J, K)``; all true where the volume is constant up to rounding, for then
        nothing can be told apart.
    """
    coarse, steps = _find_coarse_head(volume)
    head = coarse.repeat(steps[0], axis=1)[:, : volume.shape[0]].repeat(steps[1], axis=2)[..., : volume.shape[1]]
    return head.transpose(1, 2, 0)


def find_head_box(volume: NDArray[np.floating]) -> tuple[slice, slice, slice]:
    """Return the smallest box around the head that ``find_head`` finds, in less time and memory.

    Args:
        volume: Finite intensities of one sequence ``(I, J, K)``, slices along K.
    """
    coarse, steps = _find_coarse_head(volume)
    box = []
    for axis, (size, step) in enumerate(zip(volume.shape, (*steps, 1), strict=True)):
        inside = np.flatnonzero(coarse.transpose(1, 2, 0).any(axis=tuple({0, 1, 2} - {axis})))
        box.append(slice(int(inside[0]) * step, min((int(inside[-1]) + 1) * step, size)))
    return box[0], box[1], box[2]


def _find_coarse_head(volume: NDArray[np.floating]) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """Find the head of ``(I, J, K)`` on the coarser grid; return it ``(K, I', J')``, and its pixels' sizes."""
    first, second = (2 if size >= MIN_SIZE_TO_SUBSAMPLE else 1 for size in volume.shape[:2])
    # A copy, slice by slice in memory: that is how it is filtered and labelled fastest.
    coarse = volume[::first, ::second].transpose(2, 0, 1).copy()
    ndimage.uniform_filter(coarse, size=(1, 3, 3), mode="nearest", output=coarse)
    lowest, highest = float(coarse.min()), float(np.percentile(coarse, 99.5))
    if _differ_by_rounding(lowest, highest):
        highest = float(coarse.max())
    if _differ_by_rounding(lowest, highest):
        return np.ones(coarse.shape, dtype=bool), (first, second)
    np.clip(coarse, lowest, highest, out=coarse)
    threshold = lowest + HEAD_SHARE_OF_OTSU * (otsu_threshold(coarse) - lowest)
    regions, count = ndimage.label(coarse > threshold)
    sizes = np.zeros(count + 1, dtype=np.int64)
    for part in regions:  # slice by slice: to count them, NumPy copies the numbers into 64 bits
        sizes += np.bincount(part.ravel(), minlength=count + 1)
    sizes[0] = 0
    return regions == sizes.argmax(), (first, second)


def normalize_intensity(
    volume: NDArray[np.floating], *, lower_percentile: float = 0.5, upper_percentile: float = 99.5
) -> NDArray[np.float32]:
    """Clip each channel to robust percentiles of its head, then give the head mean 0 and variance 1.

    The result is the same for ``a * volume + b`` with any ``a > 0``, up to rounding.

    Args:
        volume: Intensities ``(C, I, J, K)``, slices along K; any numeric type and range.
            NaN and infinite voxels count as air.
        lower_percentile: Of the head's intensities, in percent; what is darker is clipped.
        upper_percentile: Of the head's intensities, in percent; what is brighter is clipped.

    Returns:
        ``(C, I, J, K)``. A constant channel becomes all zeros.

    Raises:
        ValueError: If ``volume`` is not 4D or the percentiles are not in order.
    """
    if volume.ndim != 4:
        raise ValueError(f"volume must be (C, I, J, K), got shape {volume.shape}")
    if not 0 <= lower_percentile < upper_percentile <= 100:
        raise ValueError(
            f"percentiles must satisfy 0 <= lower < upper <= 100, got {lower_percentile} and {upper_percentile}"
        )
    result = np.empty_like(volume, dtype=np.float32)
    for channel, normalized in zip(volume, result, strict=True):
        finite = replace_nonfinite(channel)
        # Slice by slice, as find_head and to_slice_frame leave them in memory.
        inside = finite.transpose(2, 0, 1)[find_head(finite).transpose(2, 0, 1)]
        low, high = np.percentile(inside, [lower_percentile, upper_percentile])
        np.clip(inside, low, high, out=inside)
        # float64 sums: float32 loses the mean of millions of 16-bit values.
        mean, deviation = inside.mean(dtype=np.float64), inside.std(dtype=np.float64)
        # Where rounding alone makes the values differ, there is no contrast to enlarge.
        if deviation <= 1e-6 * max(abs(mean), np.finfo(np.float32).tiny):
            normalized[...] = 0
            continue
        np.clip(finite, low, high, out=normalized)
        normalized -= np.float32(mean)
        normalized /= np.float32(deviation)
    return result


def _differ_by_rounding(lowest: float, highest: float) -> bool:
    """Return whether there are too few float32 numbers between two intensities to fill a histogram."""
    largest = np.float32(max(abs(lowest), abs(highest)))
    return bool(highest - lowest <= 2 * HISTOGRAM_BINS * np.spacing(largest))
