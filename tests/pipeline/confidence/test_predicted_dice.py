"""The Dice that a mask's own probabilities promise."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.confidence.predicted_dice import (
    DicePredictor,
    fit_dice_predictor,
    read_dice_predictor,
    soft_dice,
    write_dice_predictor,
)
from pipeline.errors import BundleError


def test_the_soft_dice_by_hand():
    probabilities = np.array([[[0.9, 0.6, 0.3, 0.0]]])
    mask = np.array([[[1, 1, 0, 0]]], dtype=np.uint8)
    # overlap 0.9 + 0.6; the mask has 2 voxels, the lesion is expected to have 0.9 + 0.6 + 0.3
    assert soft_dice(probabilities, mask) == pytest.approx(2 * 1.5 / (2 + 1.8))


def test_a_certain_mask_is_expected_to_be_right():
    probabilities = np.zeros((4, 5, 6))
    probabilities[1:3, 2:4, 3:5] = 1
    assert soft_dice(probabilities, probabilities > 0.5) == 1


def test_voxels_with_next_to_no_probability_do_not_add_up():
    probabilities = np.full((50, 50, 50), 0.01)
    probabilities[:3, :3, :3] = 1
    assert soft_dice(probabilities, probabilities > 0.5) == 1


@pytest.mark.parametrize(("highest", "expected"), [(0.0, 1.0), (0.25, 0.75)])
def test_an_empty_mask_is_as_good_as_there_is_no_lesion(highest, expected):
    probabilities = np.zeros((3, 3, 3))
    probabilities[1, 1, 1] = highest
    assert soft_dice(probabilities, np.zeros((3, 3, 3), dtype=bool)) == pytest.approx(expected)


def test_the_soft_dice_is_the_dice_on_average_where_probabilities_are_right():
    rng = np.random.default_rng(0)
    probabilities = rng.beta(0.4, 0.4, (40, 40, 40)).clip(0.06, 1)
    mask = probabilities > 0.5
    dices = []
    for _ in range(5):
        truth = rng.random(probabilities.shape) < probabilities
        dices.append(2 * (truth & mask).sum() / (truth.sum() + mask.sum()))
    assert soft_dice(probabilities, mask) == pytest.approx(np.mean(dices), abs=0.005)


def test_how_probabilities_and_mask_lie_in_memory_does_not_matter():
    probabilities = np.random.default_rng(1).random((5, 6, 7), dtype=np.float32)
    mask = probabilities > 0.6
    expected = soft_dice(probabilities, mask)
    for first in (probabilities, np.asfortranarray(probabilities), probabilities[::-1].copy()[::-1]):
        for second in (mask, np.asfortranarray(mask), mask[:, ::-1].copy()[:, ::-1]):
            assert soft_dice(first, second) == pytest.approx(expected, abs=1e-12)


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"mask must have the probabilities' shape \(2, 2, 2\), got \(2, 2, 3\)"):
        soft_dice(np.zeros((2, 2, 2)), np.zeros((2, 2, 3)))


def test_the_line_is_found_and_stays_between_0_and_1():
    soft = [0.5, 0.7, 0.8, 0.95]
    predictor = fit_dice_predictor(soft, [1.5 * value - 0.5 for value in soft])
    assert (predictor.slope, predictor.intercept) == (pytest.approx(1.5), pytest.approx(-0.5))
    assert predictor.patients == 4
    assert predictor.predict(0.8) == pytest.approx(0.7)
    assert (predictor.predict(0.1), predictor.predict(1.0)) == (0, 1)


@pytest.mark.parametrize("soft", [[0.5, 0.6], [0.5, 0.6, 0.7, 0.8], [0.5, 0.5, 0.5]])
def test_a_line_through_too_little_is_refused(soft):
    with pytest.raises(ValueError, match="a line needs"):
        fit_dice_predictor(soft, [0.1, 0.2, 0.3] if len(soft) != 2 else [0.1, 0.2])


def test_the_line_comes_back_from_its_file(tmp_path):
    predictor = DicePredictor(1.25, -0.2, 0.7, 40)
    write_dice_predictor(predictor, tmp_path / "line.json")
    assert read_dice_predictor(tmp_path / "line.json") == predictor


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", json.dumps({"slope": "a", "intercept": 0, "review_below": 0, "patients": 1}),
                '{"slope": NaN, "intercept": 0, "review_below": 0.7, "patients": 3}'],
)  # fmt: skip
def test_a_damaged_file_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "line.json"
    path.write_text(content)
    with pytest.raises(BundleError, match=r"line\.json must") as caught:
        read_dice_predictor(path)
    assert "\n" not in str(caught.value)
