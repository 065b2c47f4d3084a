"""How few scans are trained on."""

from __future__ import annotations

import pytest

from pipeline.label_app.fine_tuning import fine_tuning, split


@pytest.mark.parametrize(("scans", "batch", "slices"), [(1, 1, 12), (2, 2, 6), (3, 3, 4), (4, 4, 3), (9, 4, 3)])
def test_a_batch_always_has_twelve_slices(scans: int, batch: int, slices: int) -> None:
    keys = fine_tuning(scans, 50, 1e-4)
    assert (keys["batch_size"], keys["slices_per_patient"]) == (batch, slices)


def test_a_tenth_of_the_steps_warms_up_and_a_quarter_is_averaged() -> None:
    keys = fine_tuning(9, 50, 2.5e-4)  # two batches an epoch
    assert keys["warmup_iterations"] == 10
    assert keys["ema_momentum"] == pytest.approx(0.04)
    assert keys["epochs"] == 50
    assert keys["learning_rate"] == 2.5e-4
    assert keys["val_interval"] == 10


def test_a_single_epoch_is_averaged_with_the_weights_before_and_validated() -> None:
    keys = fine_tuning(1, 1, 1e-4)
    assert keys["ema_momentum"] == 0.5
    assert keys["val_interval"] == 1


@pytest.mark.parametrize(
    ("count", "share", "held"), [(4, 0.5, 0), (5, 0.2, 1), (5, 0.05, 1), (11, 0.3, 3), (9, 0, 0), (9, -1, 0), (6, 1, 5)]
)
def test_some_scans_validate_and_none_does_both(count: int, share: float, held: int) -> None:
    training, validation = split(list(range(count)), share)
    assert len(validation) == held
    assert training + validation == list(range(count))
