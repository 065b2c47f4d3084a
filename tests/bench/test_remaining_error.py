"""What perfect choices would gain, on masks whose errors are counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

SHAPE = (40, 40, 5)


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("remaining_error")


@pytest.fixture(scope="module")
def make_case(load_script):
    cross_validation = load_script("cross_validation")

    def make(logits, truth):
        return cross_validation.HeldOut("sub-1", "A", 0, logits, logits > 0, truth, np.ones(SHAPE, dtype=bool))

    return make


@pytest.fixture
def truth():
    """A lesion of 10 x 10 pixels in slices 1 and 2: 200 voxels."""
    volume = np.zeros(SHAPE, dtype=bool)
    volume[10:20, 10:20, 1:3] = True
    return volume


@pytest.fixture
def logits(truth):
    return np.where(truth, np.float32(5), np.float32(-5))


def gains(script, case):
    return dict(zip(script.ROWS, script.dice_by_row(case), strict=True))


def test_a_perfect_mask_has_nothing_to_gain(script, make_case, logits, truth):
    assert set(script.dice_by_row(make_case(logits, truth))) == {1.0}


def test_a_spurious_component_is_gone_with_the_best_choice_and_with_errors_elsewhere(script, make_case, logits, truth):
    logits[30:35, 30:34, 1] = 4  # 20 voxels
    dice = gains(script, make_case(logits, truth))
    assert dice["as it is"] == dice["without error near the outline"] == pytest.approx(400 / 420)
    assert dice["each patient's best choice of components"] == dice["without error elsewhere"] == 1
    assert dice["each patient's best threshold, all components"] == 1  # 4.5 lies between


def test_a_component_that_is_mostly_wrong_still_counts_where_it_gains(script, make_case, logits, truth):
    logits[:] = -5
    logits[10:20, 10:20, 1:3] = 5
    truth[30:32, 30:32, 4] = True  # 4 voxels of lesion, found with 5 more
    logits[30:33, 30:33, 4] = 5
    dice = gains(script, make_case(logits, truth))
    assert dice["as it is"] == pytest.approx(2 * 204 / (209 + 204))
    assert dice["each patient's best choice of components"] == pytest.approx(max(408 / 413, 400 / 404))


def test_a_mask_drawn_too_narrowly_is_mended_near_the_outline(script, make_case, logits, truth):
    logits[10, :, :] = logits[19, :, :] = -1.25  # a row of 10 pixels on two sides of two slices
    logits[~truth] = -5
    dice = gains(script, make_case(logits, truth))
    assert dice["as it is"] == dice["without error elsewhere"] == pytest.approx(2 * 160 / (160 + 200))
    assert dice["without error near the outline"] == 1
    assert dice["each patient's best threshold, all components"] == 1


def test_a_missed_core_is_error_elsewhere(script, make_case, logits, truth):
    logits[13:17, 13:17, 1] = -7  # 16 voxels, 3 or more from the outline
    dice = gains(script, make_case(logits, truth))
    assert dice["as it is"] == dice["without error near the outline"] == pytest.approx(2 * 184 / (184 + 200))
    assert dice["without error elsewhere"] == 1


def test_an_empty_mask_of_nothing_is_right(script, make_case):
    nothing = np.zeros(SHAPE, dtype=bool)
    assert set(script.dice_by_row(make_case(np.full(SHAPE, -9, np.float32), nothing))) == {1.0}


def test_the_table_has_mean_and_median_of_every_row(script, make_case, logits, truth):
    missed = np.full(SHAPE, -9, np.float32)
    cases = [make_case(logits, truth), make_case(logits, truth), make_case(missed, truth)]
    table = script.remaining_error_table(cases).splitlines()
    assert len(table) == 2 + len(script.ROWS)
    assert table[2] == "| as it is | 0.6667 | 1.0000 |"
    assert {line.count("|") for line in table} == {4}
