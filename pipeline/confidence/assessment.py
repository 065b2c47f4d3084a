"""What is said about each case without truth: the Dice to expect, whether to review it, and what looks odd."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.confidence.plausibility import PlausibilityModel, read_model
from pipeline.confidence.predicted_dice import DicePredictor, read_dice_predictor, soft_dice

__all__ = ["Assessment", "Assessor", "read_assessor"]


@dataclass(frozen=True)
class Assessment:
    """What a case's reader should know of its mask.

    Attributes:
        predicted_dice: Dice to expect against an expert's mask, 0 to 1.
        review: Whether a person should look at the mask: little Dice to expect, or a warning.
        warnings: What is unusual about the scan, one sentence each.
    """

    predicted_dice: float
    review: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Assessor:
    """Assess cases with what was fitted to a bundle's weights.

    Attributes:
        dice: From probabilities to the Dice to expect.
        plausibility: What the network's scans look like.
    """

    dice: DicePredictor
    plausibility: PlausibilityModel

    def assess(
        self, flair: NDArray[np.floating], probabilities: NDArray[np.floating], mask: NDArray[np.generic]
    ) -> Assessment:
        """Assess one case.

        Args:
            flair: As the network sees it, normalised and in the slice frame, ``(H, W, K)``.
            probabilities: Of lesion, on the scan's voxels.
            mask: On the scan's voxels.
        """
        predicted = self.dice.predict(soft_dice(probabilities, mask))
        warnings = tuple(self.plausibility.check(flair))
        return Assessment(predicted, predicted < self.dice.review_below or bool(warnings), warnings)


def read_assessor(bundle: Path) -> Assessor | None:
    """Read what a bundle's weights were assessed by; None where the bundle has nothing of it.

    Args:
        bundle: The bundle's folder, with ``models/predicted_dice.json`` and ``models/plausibility.json``.

    Raises:
        BundleError: If one of the two is missing or damaged while the other is there.
    """
    dice, plausibility = (bundle / "models" / name for name in ("predicted_dice.json", "plausibility.json"))
    if not dice.exists() and not plausibility.exists():
        return None
    return Assessor(read_dice_predictor(dice), read_model(plausibility))
