"""Tell where the error of masks lies and what perfect choices would gain; ``cross_validation.py`` prints it.

Every row but the first uses the truth, so none is a score: each is a bound on what one kind of improvement could reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.evaluation.metrics import count_confusion

if TYPE_CHECKING:
    from cross_validation import HeldOut

__all__ = ["ROWS", "dice_by_row", "remaining_error_table"]

ROWS = (
    "as it is",
    "each patient's best threshold, all components",
    "each patient's best choice of components",
    "without error near the outline",
    "without error elsewhere",
)
THRESHOLDS = np.arange(-6, 6.25, 0.5)  # logits
NEAR = 2  # pixels from the truth's outline, in the slice, either way
TOUCHING = np.ones((3, 3, 3))  # voxels that touch at a corner are one component, as in keep_main_components
IN_PLANE = ndimage.generate_binary_structure(2, 1)[:, :, None]


def dice_by_row(case: HeldOut) -> list[float]:
    """Return the Dice of a case's mask after each of ``ROWS``."""
    near = ndimage.binary_dilation(case.truth, IN_PLANE, NEAR) & ~ndimage.binary_erosion(case.truth, IN_PLANE, NEAR)
    masks = (case.mask, np.where(near, case.truth, case.mask), np.where(near, case.mask, case.truth))
    as_it_is, without_near, without_far = (count_confusion(mask, case.truth).dice for mask in masks)
    threshold = max(count_confusion(case.logits > value, case.truth).dice for value in THRESHOLDS)
    return [as_it_is, threshold, _best_components(case), without_near, without_far]


def _best_components(case: HeldOut) -> float:
    """Return the best Dice of any choice among the components of the unfiltered mask.

    Components are added in the order of the share of them that is lesion: no other choice has a higher Dice.
    """
    labels, count = ndimage.label(case.logits > 0, TOUCHING)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    hits = np.bincount(labels[case.truth], minlength=count + 1)[1:]
    order = np.argsort(-hits / np.maximum(sizes, 1), kind="stable")
    predicted, right = np.cumsum([0, *sizes[order]]), np.cumsum([0, *hits[order]])
    total = predicted + np.count_nonzero(case.truth)
    return float(np.divide(2 * right, total, out=np.ones(len(total)), where=total > 0).max())


def remaining_error_table(cases: Sequence[HeldOut]) -> str:
    """Return the mean and the median Dice of each row as a table."""
    dice: NDArray[np.float64] = np.array([dice_by_row(case) for case in cases])
    lines = ["| mask | mean Dice | median |", "| --- | --- | --- |"]
    for name, values in zip(ROWS, dice.T, strict=True):
        lines.append(f"| {name} | {values.mean():.4f} | {np.median(values):.4f} |")
    return "\n".join(lines)
