"""Choose how small a component of a mask may be, as a share of the largest one; ``cross_validation.py`` prints it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.metrics import count_confusion
from transforms.components import keep_main_components

if TYPE_CHECKING:
    from cross_validation import HeldOut

__all__ = ["SHARES", "chosen_on_other_folds", "components_table", "dice_by_share"]

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)


def dice_by_share(cases: Sequence[HeldOut]) -> NDArray[np.float64]:
    """Return the Dice ``(patients, shares)`` of masks that keep components of at least each share."""
    return np.array([[_dice(case, share) for share in SHARES] for case in cases])


def chosen_on_other_folds(dice: NDArray[np.float64], folds: NDArray[np.int_]) -> NDArray[np.float64]:
    """Return the Dice ``(patients,)`` with the share for each fold that is best on the other folds.

    Args:
        dice: ``(patients, shares)``.
        folds: ``(patients,)``; at least two different ones.
    """
    result = np.empty(len(dice))
    for fold in np.unique(folds):
        best = dice[folds != fold].mean(axis=0).argmax()
        result[folds == fold] = dice[folds == fold, best]
    return result


def components_table(cases: Sequence[HeldOut]) -> str:
    """Return the mean Dice of each share and fold as a table; the last line is the honest one."""
    dice, folds = dice_by_share(cases), np.array([case.fold for case in cases])
    numbers = np.unique(folds)
    lines = [
        "| smallest share | " + " | ".join(f"fold {n}" for n in numbers) + " | all |",
        "| ---" * (len(numbers) + 2) + " |",
    ]
    rows: list[tuple[Any, NDArray[np.float64]]] = [*zip(SHARES, dice.T, strict=True)]
    if len(numbers) > 1:
        rows.append(("chosen on the other folds", chosen_on_other_folds(dice, folds)))
    for name, values in rows:
        means = [values[folds == n].mean() for n in numbers]
        lines.append(f"| {name} | " + " | ".join(f"{mean:.4f}" for mean in [*means, values.mean()]) + " |")
    return "\n".join(lines)


def _dice(case: HeldOut, share: float) -> float:
    mask = keep_main_components((case.logits > 0).view(np.uint8), smallest_share=share)
    return count_confusion(mask > 0, case.truth).dice
