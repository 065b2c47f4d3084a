"""``pipeline.evaluation.metrics``: every score worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.metrics import SCORE_NAMES, ConfusionCounts, count_confusion

#                  tp fp fn tn   dice   iou  prec. recall spec.  acc.
CASES = {
    "partly right": (3, 1, 2, 4, 2 / 3, 0.5, 0.75, 0.6, 0.8, 0.7),
    "all right": (2, 0, 0, 8, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
    "missed": (0, 0, 2, 8, 0.0, 0.0, 0.0, 0.0, 1.0, 0.8),
    "beside": (0, 3, 2, 5, 0.0, 0.0, 0.0, 0.0, 0.625, 0.5),
    "nothing there, nothing found": (0, 0, 0, 10, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
    "nothing there, something found": (0, 1, 0, 9, 0.0, 0.0, 0.0, 0.0, 0.9, 0.9),
    "lesion everywhere": (10, 0, 0, 0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
}


@pytest.mark.parametrize("case", CASES)
def test_every_score_is_what_it_is_by_hand(case):
    *counts, dice, iou, precision, recall, specificity, pixel_accuracy = CASES[case]
    scores = ConfusionCounts(*counts).scores()
    assert tuple(scores) == SCORE_NAMES
    assert scores == pytest.approx(
        {
            "dice": dice,
            "iou": iou,
            "precision": precision,
            "recall": recall,
            "specificity": specificity,
            "pixel_accuracy": pixel_accuracy,
        }
    )


def test_no_voxels_at_all_give_no_nan():
    assert set(ConfusionCounts(0, 0, 0, 0).scores().values()) == {1.0}


def test_voxels_are_counted_by_what_is_above_zero():
    prediction = np.array([[1, 2, 0.5, 1, 0], [0, 0, 0, 0, -1]])
    truth = np.array([[255, 255, 255, 0, 255], [255, 0, 0, 0, 0]], dtype=np.uint8)
    assert count_confusion(prediction, truth) == ConfusionCounts(3, 1, 2, 4)


def test_swapping_the_masks_swaps_precision_and_recall():
    prediction, truth = np.arange(24).reshape(2, 3, 4) % 5 == 0, np.arange(24).reshape(2, 3, 4) % 3 == 0
    one, other = count_confusion(prediction, truth), count_confusion(truth, prediction)
    assert one.precision == other.recall != one.recall
    assert one.dice == other.dice


def test_masks_of_different_shapes_are_refused_even_where_they_would_broadcast():
    with pytest.raises(ValueError, match=r"must have one shape, got \(1, 2, 3\) and \(2, 3\)"):
        count_confusion(np.ones((1, 2, 3)), np.ones((2, 3)))


def test_counts_add_up():
    assert ConfusionCounts(1, 2, 3, 4) + ConfusionCounts(10, 20, 30, 40) == ConfusionCounts(11, 22, 33, 44)
