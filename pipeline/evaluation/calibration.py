"""Whether a probability means what it says: of the voxels given 0.8, are 80 % lesion?

Guo et al., "On calibration of modern neural networks", 2017. They compare a classifier's
confidence in whatever class it chose with its accuracy. Here it is the probability of
lesion with the share of lesion, voxel by voxel and inside of the head, because whoever
reads a probability map or sets a threshold on it reads the former.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ReliabilityBins", "expected_calibration_error", "fit_temperature", "reliability", "summarize_calibration"]

BINS = 15  # as Guo et al.
# A probability that was interpolated in float32 may lie this far outside of 0 to 1.
ROUNDING = 1e-5
# What fit_temperature searches. Trained networks have T between 0.5 and 5.
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 100.0


@dataclass(frozen=True)
class ReliabilityBins:
    """Voxels sorted by their probability into equal bins over 0 to 1; those of several patients can be added.

    Bin m of M holds probabilities above (m - 1) / M up to and with m / M, the first bin also 0.

    Attributes:
        counts: Voxels of each bin.
        probability_sums: The sum of their probabilities.
        positive_sums: How many of them are lesion.
    """

    counts: tuple[int, ...]
    probability_sums: tuple[float, ...]
    positive_sums: tuple[int, ...]

    def __add__(self, other: ReliabilityBins) -> ReliabilityBins:
        """Return the bins of both together.

        Raises:
            ValueError: If they differ in number.
        """
        if len(self.counts) != len(other.counts):
            raise ValueError(f"bins must be equal in number, got {len(self.counts)} and {len(other.counts)}")
        return ReliabilityBins(
            tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),
            tuple(a + b for a, b in zip(self.probability_sums, other.probability_sums, strict=True)),
            tuple(a + b for a, b in zip(self.positive_sums, other.positive_sums, strict=True)),
        )


def reliability(
    probabilities: ArrayLike, truth: ArrayLike, inside: ArrayLike | None = None, bins: int = BINS
) -> ReliabilityBins:
    """Sort the voxels of a volume by their probability.

    Args:
        probabilities: Of lesion, any shape, 0 to 1.
        truth: Mask of the same shape; above 0 is lesion.
        inside: Mask of the same shape: only these voxels are looked at, such as the head's. None takes all.
        bins: How many, over equal parts of 0 to 1.

    Raises:
        ValueError: If the shapes differ, a probability is not in 0 to 1, or ``bins`` is below 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    values, lesion = np.asarray(probabilities), np.asarray(truth) > 0
    chosen = np.ones(values.shape, dtype=bool) if inside is None else np.asarray(inside) > 0
    if not values.shape == lesion.shape == chosen.shape:
        raise ValueError(
            f"probabilities, truth and inside must have one shape, got {values.shape}, {lesion.shape}, {chosen.shape}"
        )
    values, lesion = values[chosen].astype(np.float64), lesion[chosen]
    # Written so that NaN is refused, too.
    if values.size and not (values.min() >= -ROUNDING and values.max() <= 1 + ROUNDING):
        raise ValueError(f"probabilities must be 0 to 1, got {values.min():g} to {values.max():g}")
    values = values.clip(0, 1)
    places = np.maximum(np.ceil(values * bins).astype(np.intp) - 1, 0)
    return ReliabilityBins(
        tuple(np.bincount(places, minlength=bins).tolist()),
        tuple(np.bincount(places, weights=values, minlength=bins).tolist()),
        tuple(np.bincount(places[lesion], minlength=bins).tolist()),
    )


def expected_calibration_error(bins: ReliabilityBins) -> float:
    """Return how far mean probability and share of lesion lie apart, the mean over bins weighted by their voxels.

    0 is perfect. All voxels are pooled, so large heads count more, and the many voxels
    that are surely background count most.

    Raises:
        ValueError: If there is no voxel.
    """
    total = sum(bins.counts)
    if not total:
        raise ValueError("the calibration error of no voxels is undefined")
    # Counts cancel: count / total * |sum / count - positives / count|.
    pairs = zip(bins.probability_sums, bins.positive_sums, strict=True)
    return math.fsum(abs(probability - positive) for probability, positive in pairs) / total


def summarize_calibration(bins: ReliabilityBins) -> dict[str, Any]:
    """Return what ``summary.json`` says of the calibration in the head; an empty bin's means are None.

    Raises:
        ValueError: If there is no voxel.
    """
    number = len(bins.counts)
    rows = zip(bins.counts, bins.probability_sums, bins.positive_sums, strict=True)
    return {
        "region": "head",
        "expected_calibration_error": expected_calibration_error(bins),
        "voxels": sum(bins.counts),
        "bins": [
            {
                "from": place / number,
                "to": (place + 1) / number,
                "voxels": count,
                "mean_probability": probability / count if count else None,
                "lesion_share": positive / count if count else None,
            }
            for place, (count, probability, positive) in enumerate(rows)
        ],
    }


def fit_temperature(logits: ArrayLike, truth: ArrayLike) -> float:
    """Return the temperature T that calibrates best: probabilities are then ``sigmoid(logit / T)``.

    The one T that minimises the negative log-likelihood, searched over log T (Guo et al., section
    4.2). Above 1 the network was too sure of itself, below 1 not sure enough. No voxel
    changes sides of 0.5. Voxels must come from patients the network was not trained on.

    Args:
        logits: Of lesion over background ``(N,)``, the difference of the two channels; voxels inside of heads.
        truth: ``(N,)``; above 0 is lesion.

    Returns:
        T, from 0.01 to 100; at an end of this range where the logits separate the classes entirely or not at all.

    Raises:
        ValueError: If the arrays are not one-dimensional and of one size, or a logit is not
            finite, or not both classes are there.
    """
    from scipy.optimize import minimize_scalar

    values, lesion = np.asarray(logits, dtype=np.float64), np.asarray(truth) > 0
    if values.ndim != 1 or values.shape != lesion.shape:
        raise ValueError(f"logits and truth must both be (N,), got {values.shape} and {lesion.shape}")
    if not np.isfinite(values).all():
        raise ValueError("logits must be finite, got NaN or infinity")
    positive = int(np.count_nonzero(lesion))
    if positive in (0, lesion.size):
        raise ValueError(f"a temperature needs voxels of both classes, got {positive} lesion of {lesion.size}")
    wrong_way = np.where(lesion, -values, values)

    def negative_log_likelihood(log_temperature: float) -> float:
        losses: NDArray[np.float64] = np.logaddexp(0, wrong_way * math.exp(-log_temperature))
        return float(losses.mean())

    # Convex in 1 / T, so there is but one minimum to find.
    bounds = (math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE))
    found = minimize_scalar(negative_log_likelihood, bounds=bounds, method="bounded")
    return math.exp(float(found.x))
