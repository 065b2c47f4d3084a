from __future__ import annotations

import csv
import math

import numpy as np
import pytest

from pipeline.measurement import volume_interval
from pipeline.predictor import SEGMENTATION_BUNDLE


def test_the_true_volume_is_always_inside_where_the_dice_is_the_true_one():
    rng = np.random.default_rng(6)
    for _ in range(300):
        prediction, truth = rng.random((2, 60)) < rng.random((2, 1))
        dice = 2 * (prediction & truth).sum() / max(1, prediction.sum() + truth.sum())
        if dice > 0:
            low, high = volume_interval(float(prediction.sum()), dice)
            assert low - 1e-9 <= truth.sum() <= high + 1e-9


@pytest.mark.parametrize("inner", [True, False])
def test_both_ends_are_reached_by_masks_of_which_one_holds_the_other(inner):
    prediction, truth = (30, 12) if inner else (12, 30)
    dice = 2 * min(prediction, truth) / (prediction + truth)
    low, high = volume_interval(prediction, dice)
    assert (low if inner else high) == pytest.approx(truth)


def test_a_perfect_dice_leaves_no_doubt():
    assert volume_interval(7.5, 1.0) == (7.5, 7.5)


@pytest.mark.parametrize(
    ("volume", "dice"),
    [(None, 0.9), (0, 0.9), (-1, 0.9), (math.inf, 0.9), (5, None), (5, 0), (5, 1.01), (5, math.nan), (math.nan, 0.9)],
)
def test_from_nothing_no_interval_follows(volume, dice):
    assert volume_interval(volume, dice) is None


def test_the_true_volume_of_most_unseen_patients_was_inside():
    table = SEGMENTATION_BUNDLE / "docs" / "cross_validation.csv"
    with table.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["input"] == "t1, FLAIR, t1c"]
    inside = []
    for row in rows:
        low, high = volume_interval(float(row["predicted_voxels"]), float(row["predicted_dice"]))
        inside.append(low <= float(row["true_voxels"]) <= high)
    assert (len(inside), sum(inside)) == (100, 94)
