"""Lesions found and missed, counted as connected components."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["LesionCounts", "count_lesions"]


@dataclass(frozen=True)
class LesionCounts:
    """How many lesions there are, and how many of them meet.

    Attributes:
        true: Lesions of the truth.
        found: Those of them that the prediction overlaps by at least one voxel.
        predicted: Lesions of the prediction.
        spurious: Those of them that overlap no voxel of the truth.
    """

    true: int
    found: int
    predicted: int
    spurious: int

    @property
    def missed(self) -> int:
        """Lesions of the truth that the prediction does not touch."""
        return self.true - self.found

    @property
    def f1(self) -> float:
        """``2 found / (2 found + missed + spurious)``; 1 where neither mask holds a lesion."""
        total = 2 * self.found + self.missed + self.spurious
        return 2 * self.found / total if total else 1.0


def count_lesions(prediction: NDArray[np.generic], truth: NDArray[np.generic]) -> LesionCounts:
    """Count the lesions of two masks and those that overlap.

    A lesion is a connected component of voxels that share a face, an edge or a corner
    (26-connectivity), of any size. One voxel in common is enough for a lesion of the truth
    to count as found, and for one of the prediction not to count as spurious.

    Args:
        prediction: Mask ``(I, J, K)``; nonzero is lesion.
        truth: Mask of the same shape.

    Raises:
        ValueError: If the masks are not 3D or differ in shape.
    """
    if prediction.ndim != 3 or prediction.shape != truth.shape:
        raise ValueError(f"masks must be (I, J, K) and of one shape, got {prediction.shape} and {truth.shape}")
    from scipy import ndimage

    common = (prediction != 0) & (truth != 0)
    neighbours = np.ones((3, 3, 3))
    counts = []
    for mask in (truth, prediction):
        labels, count = ndimage.label(mask != 0, structure=neighbours)
        counts.append((int(count), len(np.unique(labels[common]))))
    (true, found), (predicted, touching) = counts
    return LesionCounts(true=true, found=found, predicted=predicted, spurious=predicted - touching)
