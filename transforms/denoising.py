"""Estimate the noise in a volume, and take out what is more than the training scans have.

The training scans are almost free of noise. A network that was trained on them loses lesions where there is much of
it, and signed noise in air misleads ``find_head``, which takes the darkest voxel for the level of air. A scan with no
more noise than the training scans is left as it is, to the last bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from transforms.intensity import replace_nonfinite

__all__ = ["HIGHEST_TRAINING_NOISE", "Noise", "estimate_noise", "reduce_noise"]

# ``Noise.relative`` up to which nothing is done. The highest of all sequences of the 100 LGG patients is 0.139;
# noise of 5 % of the maximum gives at least 0.286.
HIGHEST_TRAINING_NOISE = 0.15

# Noise is about the same everywhere, so a few slices say how much there is.
SLICES_TO_LOOK_AT = 8

# Side of the square, in pixels, whose mean and variance decide how much of a pixel is kept. Of 3, 5 and
# 7 it gave the highest Dice on 12 training patients with 5 % noise.
WINDOW = 5

# Slices on their way at once: few enough to stay in the processor's cache.
SLICES_AT_ONCE = 2

# Of what the second differences along rows and along columns make of white noise: their standard deviation,
# sqrt(1 + 4 + 1) squared; and the median of a normal distribution's absolute values.
LAPLACIAN_GAIN = 6.0
MEDIAN_OF_ABSOLUTE = 0.6745


class Noise(NamedTuple):
    """How much noise a sequence has.

    Attributes:
        deviation: Its standard deviation, in the unit of the intensities.
        relative: The same as a share of the standard deviation of the tissue's intensities; 0 where nothing can be
            told.
        air: Intensity of air: the median of what is darker than tissue.
    """

    deviation: float
    relative: float
    air: float


def estimate_noise(volume: NDArray[np.floating]) -> Noise:
    """Estimate the noise of one sequence from what is left of its tissue when everything smooth is taken away.

    Immerkaer, "Fast noise variance estimation", 1996, with two deviations: the median in place of the mean, which edges
    and texture would raise, and tissue alone, for air has no noise where a scanner masks it. Noise that a scanner or
    a resampling has smoothed counts for less than it is, and fine texture counts as noise.

    Args:
        volume: Intensities ``(H, W, K)``, slices along K; NaN and infinite voxels count as air.
    """
    if min(volume.shape[:2]) < 3 or volume.size == 0:
        return Noise(0.0, 0.0, 0.0)
    step = -(-volume.shape[2] // SLICES_TO_LOOK_AT)
    slices = replace_nonfinite(volume[..., ::step].transpose(2, 0, 1))
    # Of every second 3x3 pixels: their mean, and their second difference along rows and along columns.
    first, middle, last = slices[:, :-2:2], slices[:, 1:-1:2], slices[:, 2::2]
    smooth, curved = (first + middle + last) / 3, first - 2 * middle + last
    smooth = (smooth[..., :-2:2] + smooth[..., 1:-1:2] + smooth[..., 2::2]) / 3
    curved = curved[..., :-2:2] - 2 * curved[..., 1:-1:2] + curved[..., 2::2]
    tissue = smooth > smooth.mean(dtype=np.float64)
    if not tissue.any():
        return Noise(0.0, 0.0, float(smooth.min()))
    air = float(np.median(smooth[~tissue]))
    deviation = float(np.median(np.abs(curved[tissue]))) / (MEDIAN_OF_ABSOLUTE * LAPLACIAN_GAIN)
    contrast = float(smooth[tissue].std(dtype=np.float64))
    return Noise(deviation, deviation / contrast if contrast > 0 else 0.0, air)


def reduce_noise(
    volume: NDArray[np.floating], *, highest_noise: float = HIGHEST_TRAINING_NOISE
) -> NDArray[np.floating]:
    """Smooth the sequences of a volume that have more noise than the training scans; leave the others as they are.

    Each pixel is drawn towards the mean of its neighbourhood in the slice, the more so the more of the variance there
    is explained by the noise alone: Lee, "Digital image enhancement and noise filtering by use of local statistics",
    1980. What is then still darker than air becomes air, as no magnitude image has anything darker.

    Args:
        volume: Intensities ``(C, H, W, K)`` before they are normalised, slices along K. Not modified.
        highest_noise: ``Noise.relative`` up to which a sequence is left as it is.

    Returns:
        ``(C, H, W, K)``: ``volume`` itself where no sequence has more noise; otherwise a copy, float32.

    Raises:
        ValueError: If ``volume`` is not 4D.
    """
    if volume.ndim != 4:
        raise ValueError(f"volume must be (C, H, W, K), got shape {volume.shape}")
    noises = [estimate_noise(channel) for channel in volume]
    if all(noise.relative <= highest_noise for noise in noises):
        return volume
    result = volume.astype(np.float32)  # the order in memory is kept
    for channel, noise in zip(result, noises, strict=True):
        if noise.relative > highest_noise:
            slices = channel.transpose(2, 0, 1)
            finite = replace_nonfinite(slices)
            for start in range(0, len(slices), SLICES_AT_ONCE):
                part = slice(start, start + SLICES_AT_ONCE)
                slices[part] = np.maximum(_smooth(finite[part], noise), 0) + np.float32(noise.air)
    return result


def _smooth(slices: NDArray[np.float32], noise: Noise) -> NDArray[np.float32]:
    """Draw the pixels of slices ``(N, H, W)`` towards the mean of their neighbourhood; return them with air at 0."""
    # From air up, for the variance is a difference of squares, and float32 loses it where all values are large.
    result = slices - np.float32(noise.air)
    size, explained = (1, WINDOW, WINDOW), np.float32(noise.deviation**2)
    mean = ndimage.uniform_filter(result, size=size)
    variance = ndimage.uniform_filter(result * result, size=size)
    variance -= mean * mean
    np.maximum(variance, explained, out=variance)
    result -= mean
    result *= 1 - explained / variance
    result += mean
    return result
