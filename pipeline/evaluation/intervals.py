"""How sure a mean or median over patients is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["LEVEL", "MIN_PATIENTS", "RESAMPLES", "SEED", "Intervals", "bootstrap_intervals"]

RESAMPLES = 10_000
LEVEL = 0.95
SEED = 0
# Resampling so few tells little of other patients: of one, an interval would even have no width at all.
MIN_PATIENTS = 5


@dataclass(frozen=True)
class Intervals:
    """Bootstrap intervals, lower and upper end, of the mean and the median."""

    mean: tuple[float, float]
    median: tuple[float, float]


def bootstrap_intervals(
    values: Sequence[float], *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = SEED
) -> Intervals | None:
    """Estimate intervals of the mean and the median over patients with the percentile bootstrap.

    Patients are drawn with replacement, as many as there are; the interval holds the middle
    ``level`` of the resamples' statistics (Efron, "Bootstrap methods: another look at the
    jackknife", 1979). The order of the values does not matter.

    Args:
        values: One a patient.
        resamples: How often to draw.
        level: Share of the resamples inside the interval.
        seed: Of the draws.

    Returns:
        The intervals, or None for fewer than ``MIN_PATIENTS`` values.
    """
    if len(values) < MIN_PATIENTS:
        return None
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    drawn = ordered[np.random.default_rng(seed).integers(0, len(ordered), (resamples, len(ordered)))]
    ends = [(1 - level) / 2, (1 + level) / 2]
    mean_low, mean_high = (float(end) for end in np.quantile(drawn.mean(axis=1), ends))
    median_low, median_high = (float(end) for end in np.quantile(np.median(drawn, axis=1), ends))
    return Intervals(mean=(mean_low, mean_high), median=(median_low, median_high))
