"""How good a mask probably is, told from its probabilities, where there is no truth to compare with.

Every voxel's calibrated probability says how likely it is lesion, so the probabilities alone say what overlap
to expect of a mask: the soft Dice. A straight line, fitted on patients that no network had seen, turns it
into the Dice such masks really had.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BundleError
from pipeline.formats.atomic import atomic_write

__all__ = ["DicePredictor", "fit_dice_predictor", "read_dice_predictor", "soft_dice", "write_dice_predictor"]

# Less likely voxels are left out: a scan has millions of them, and tiny errors of calibration would add up.
NEGLIGIBLE = 0.05


def soft_dice(probabilities: NDArray[np.floating], mask: NDArray[np.generic]) -> float:
    """Return the Dice to expect of a mask if the probabilities are right.

    Twice the expected overlap over the sum of the mask's and the lesion's expected volume. An empty mask
    is right if there is no lesion at all, which the likeliest voxel alone decides.

    Args:
        probabilities: Of lesion, any shape, 0 to 1.
        mask: Of the same shape, nonzero in lesions.

    Returns:
        0 to 1.

    Raises:
        ValueError: If the shapes differ.
    """
    if probabilities.shape != mask.shape:
        raise ValueError(f"mask must have the probabilities' shape {probabilities.shape}, got {mask.shape}")
    # In the order of memory, in which voxels are picked out several times faster.
    order: Literal["F", "C"] = "F" if probabilities.flags.f_contiguous else "C"
    probabilities, inside = probabilities.ravel(order=order), mask.ravel(order=order) != 0
    voxels = int(np.count_nonzero(inside))
    if voxels == 0:
        return 1.0 - float(probabilities.max(initial=0.0))
    overlap = float(probabilities[inside].sum(dtype=np.float64))
    volume = float(probabilities[probabilities > NEGLIGIBLE].sum(dtype=np.float64))
    return min(1.0, 2 * overlap / (voxels + volume))


@dataclass(frozen=True)
class DicePredictor:
    """The line from the soft Dice to the Dice that masks like this one had.

    Attributes:
        slope: Dice for each unit of soft Dice.
        intercept: Dice at a soft Dice of 0.
        review_below: Predicted Dice under which a person should look at the mask.
        patients: How many the line was fitted on.
    """

    slope: float
    intercept: float
    review_below: float
    patients: int

    def predict(self, soft: float) -> float:
        """Return the predicted Dice, 0 to 1, for a soft Dice."""
        return min(1.0, max(0.0, self.slope * soft + self.intercept))


def fit_dice_predictor(soft: Sequence[float], true: Sequence[float], *, review_below: float = 0.7) -> DicePredictor:
    """Fit the line by least squares.

    Args:
        soft: Soft Dice of each patient, from a network that had not seen the patient.
        true: Dice against the truth, in the same order.
        review_below: Kept with the line.

    Raises:
        ValueError: If there are fewer than 3 patients, the lengths differ, or all soft Dice are equal.
    """
    if len(soft) != len(true) or len(soft) < 3:
        raise ValueError(f"a line needs as many soft as true Dice and at least 3, got {len(soft)} and {len(true)}")
    if np.ptp(soft) == 0:
        raise ValueError(f"a line needs soft Dice that differ, got {soft[0]} {len(soft)} times")
    slope, intercept = np.polyfit(soft, true, 1)
    return DicePredictor(float(slope), float(intercept), review_below, len(soft))


def read_dice_predictor(path: Path) -> DicePredictor:
    """Read what ``write_dice_predictor`` wrote.

    Raises:
        BundleError: If the file is missing or damaged.
    """
    try:
        content = json.loads(path.read_text())
        slope, intercept, below = (float(content[name]) for name in ("slope", "intercept", "review_below"))
        predictor = DicePredictor(slope, intercept, below, int(content["patients"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} must be JSON with slope, intercept, review_below and patients: {error}") from error
    if not np.isfinite([slope, intercept, below]).all():
        raise BundleError(f"{path} must hold finite numbers")
    return predictor


def write_dice_predictor(predictor: DicePredictor, path: Path) -> None:
    """Write the line as JSON.

    Raises:
        AR2UNetError: If the file cannot be written.
    """
    with atomic_write(path) as file:
        file.write(json.dumps(asdict(predictor), indent=2).encode() + b"\n")
