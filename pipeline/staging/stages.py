"""The classes of the staging model, in the words of the Clinical Dementia Rating (CDR)."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["NOTICE", "STAGES", "SURE_ABOVE", "DementiaStage", "verdict"]

NOTICE = "For research use only. Not a diagnosis, and not a medical device."

# From the calibrated probabilities of subjects that the model had not seen: where dementia, or its absence, is as
# likely as this, 61 % of the subjects have an answer, and 84 % of these answers are right.
SURE_ABOVE = 0.7


class DementiaStage(NamedTuple):
    """A class: its name in the model and in ``stage.json``, its rating, and both in words."""

    name: str
    cdr: str
    words: str


STAGES = (
    DementiaStage("NonDemented", "0", "no dementia"),
    DementiaStage("VeryMildDemented", "0.5", "very mild"),
    DementiaStage("Mild or Moderate", "1 or more", "mild or moderate"),
)


def verdict(stage: DementiaStage, *, sure: bool) -> str:
    """Return the answer in words; where it is sure, it is so of dementia or none, and hardly ever of its degree."""
    likeliest = f"{stage.words} (CDR {stage.cdr})"
    if not sure:
        return f"not sure; likeliest {likeliest}"
    return likeliest if stage == STAGES[0] else f"dementia; likeliest {likeliest}"
