"""What is said of a case: the Dice to expect, whether to review it, what looks odd."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.confidence.assessment import Assessment, Assessor, read_assessor
from pipeline.confidence.plausibility import FEATURES, PlausibilityModel, write_model
from pipeline.confidence.predicted_dice import DicePredictor, write_dice_predictor
from pipeline.errors import BundleError

SHAPE = (40, 44, 8)
EVERYTHING, NOTHING = 1e9, -1.0  # thresholds: every scan is usual, or none


def plausibility(threshold):
    count = len(FEATURES)
    identity = tuple(tuple(float(row == column) for column in range(count)) for row in range(count))
    return PlausibilityModel(FEATURES, (0.0,) * count, (1.0,) * count, identity, threshold)


@pytest.fixture
def flair():
    axes = np.ogrid[-1:1:40j, -1:1:44j, -1:1:8j]
    inside = sum(axis**2 for axis in axes) < 0.9
    return np.where(inside, np.random.default_rng(0).normal(0, 1, SHAPE), -3).astype(np.float32)


@pytest.fixture
def mask():
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[10:20, 10:20, 2:5] = 1
    return mask


@pytest.mark.parametrize(("certainty", "review"), [(1.0, False), (0.5, True)])
def test_a_mask_that_promises_little_is_to_be_reviewed(flair, mask, certainty, review):
    assessor = Assessor(DicePredictor(1.0, 0.0, review_below=0.7, patients=9), plausibility(EVERYTHING))
    # Half of the mask's voxels expected: overlap n / 2, volumes n and n / 2.
    expected = {1.0: 1.0, 0.5: 2 / 3}[certainty]
    assessment = assessor.assess(flair, certainty * mask.astype(np.float32), mask)
    assert assessment == Assessment(pytest.approx(expected), review, ())


def test_an_odd_scan_is_to_be_reviewed_however_good_the_mask_seems(flair, mask):
    assessor = Assessor(DicePredictor(1.0, 0.0, review_below=0.7, patients=9), plausibility(NOTHING))
    assessment = assessor.assess(flair, mask.astype(np.float32), mask)
    assert assessment.predicted_dice == 1
    assert assessment.review
    assert len(assessment.warnings) == 1


def test_a_bundle_with_both_files_has_an_assessor(tmp_path):
    (tmp_path / "models").mkdir()
    assert read_assessor(tmp_path) is None
    line = DicePredictor(1.1, -0.1, 0.7, 40)
    write_dice_predictor(line, tmp_path / "models" / "predicted_dice.json")
    with pytest.raises(BundleError, match=r"plausibility\.json"):
        read_assessor(tmp_path)
    write_model(plausibility(3.0), tmp_path / "models" / "plausibility.json")
    assessor = read_assessor(tmp_path)
    assert assessor.dice == line
    assert assessor.plausibility.threshold == 3.0
