"""Overlap of a predicted mask with its truth, counted over one patient's whole volume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["SCORE_NAMES", "ConfusionCounts", "count_confusion"]

SCORE_NAMES = ("dice", "iou", "precision", "recall", "specificity", "pixel_accuracy")


@dataclass(frozen=True)
class ConfusionCounts:
    """Voxels by predicted and true class, and the scores that follow from them.

    A score whose denominator is empty is 1 where nothing was there to find or to spoil,
    never NaN: an empty prediction of an empty truth is right, and any lesion found in an
    empty truth scores Dice 0.
    """

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def dice(self) -> float:
        """Dice coefficient, 0 to 1."""
        return _ratio(2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative)

    @property
    def iou(self) -> float:
        """Intersection over union, 0 to 1."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive + self.false_negative)

    @property
    def precision(self) -> float:
        """Share of the predicted voxels that are lesion; 1 for an empty prediction of an empty truth, else 0."""
        if self.true_positive + self.false_positive == 0:
            return float(self.false_negative == 0)
        return self.true_positive / (self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        """Share of the lesion's voxels that are predicted; 1 for an empty prediction of an empty truth, else 0."""
        if self.true_positive + self.false_negative == 0:
            return float(self.false_positive == 0)
        return self.true_positive / (self.true_positive + self.false_negative)

    @property
    def specificity(self) -> float:
        """Share of the background's voxels that are predicted as such."""
        return _ratio(self.true_negative, self.true_negative + self.false_positive)

    @property
    def pixel_accuracy(self) -> float:
        """Share of all voxels that are right. An empty mask already scores about 99 %."""
        return _ratio(self.true_positive + self.true_negative, self.total)

    @property
    def total(self) -> int:
        """All voxels."""
        return self.true_positive + self.false_positive + self.false_negative + self.true_negative

    def __add__(self, other: ConfusionCounts) -> ConfusionCounts:
        """Return the counts of both together."""
        return ConfusionCounts(
            self.true_positive + other.true_positive,
            self.false_positive + other.false_positive,
            self.false_negative + other.false_negative,
            self.true_negative + other.true_negative,
        )

    def scores(self) -> dict[str, float]:
        """Return every score by name."""
        return {name: getattr(self, name) for name in SCORE_NAMES}


def count_confusion(prediction: ArrayLike, truth: ArrayLike) -> ConfusionCounts:
    """Count the voxels of two masks of one shape by predicted and true class.

    Args:
        prediction: Mask of any shape; above 0 is lesion.
        truth: Mask of the same shape.

    Raises:
        ValueError: If the shapes differ.
    """
    predicted, true = np.asarray(prediction) > 0, np.asarray(truth) > 0
    if predicted.shape != true.shape:
        raise ValueError(f"prediction and truth must have one shape, got {predicted.shape} and {true.shape}")
    both = int(np.count_nonzero(predicted & true))
    only_predicted = int(np.count_nonzero(predicted)) - both
    only_true = int(np.count_nonzero(true)) - both
    return ConfusionCounts(both, only_predicted, only_true, true.size - both - only_predicted - only_true)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
