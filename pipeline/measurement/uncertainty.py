"""How far a predicted volume can lie from the true one, told from the Dice that is expected."""

from __future__ import annotations

import math

__all__ = ["volume_interval"]


def volume_interval(volume: float | None, predicted_dice: float | None) -> tuple[float, float] | None:
    """Return the interval in which the true volume lies, if the Dice is as predicted.

    Let P be the predicted volume, T the true one and D = 2 |P ∩ T| / (P + T) their Dice. What both share is at most
    the smaller of them, so D (P + T) <= 2 min(P, T), which is |P - T| <= (1 - D) (P + T). With T the smaller one,
    T >= P D / (2 - D); with T the larger one, T <= P (2 - D) / D. Both bounds are reached where one mask lies inside
    the other. The Dice here is a prediction, so the interval is not a guarantee.

    Args:
        volume: Of the predicted mask, in any unit; None where unknown.
        predicted_dice: Dice to expect; None where nobody can say.

    Returns:
        Lower and upper end in the unit of ``volume``; None where the volume is unknown or nothing, or where the Dice
        is unknown or not in (0, 1], from which nothing follows.
    """
    if volume is None or predicted_dice is None or not (math.isfinite(volume) and volume > 0):
        return None
    if not 0 < predicted_dice <= 1:  # NaN as well
        return None
    factor = (2 - predicted_dice) / predicted_dice
    return volume / factor, volume * factor
