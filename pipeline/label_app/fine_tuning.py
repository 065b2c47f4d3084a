"""How trained weights are trained on with a few scans more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

__all__ = ["fine_tuning", "split"]

Entry = TypeVar("Entry")

SLICES = 12  # in a batch
FEWEST_FOR_VALIDATION = 5  # labelled scans: with fewer, none can be spared


def split(entries: Sequence[Entry], share: float) -> tuple[list[Entry], list[Entry]]:
    """Return what is trained on, and the last few scans to validate with; none of fewer than five.

    Args:
        entries: A scan each.
        share: Of the scans, for validation.
    """
    count = max(1, round(len(entries) * share)) if share > 0 and len(entries) >= FEWEST_FOR_VALIDATION else 0
    count = min(count, len(entries) - 1)
    return list(entries[: len(entries) - count]), list(entries[len(entries) - count :])


def fine_tuning(scans: int, epochs: int, learning_rate: float) -> dict[str, Any]:
    """Return the keys of the bundle's training config that differ when trained weights are trained on.

    Few scans make few steps: a tenth of them warm up, the last quarter is averaged. Batches keep their slices.

    Args:
        scans: To train on.
        epochs: In each of which every scan gives some slices.
        learning_rate: At its peak.
    """
    batch = min(4, scans)
    steps = epochs * (scans // batch)
    return {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch,
        "slices_per_patient": SLICES // batch,
        "warmup_iterations": steps // 10,
        "ema_momentum": min(0.5, 4 / max(1, steps)),
        "val_interval": max(1, epochs // 5),
        "num_workers": 0,
    }
