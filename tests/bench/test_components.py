"""The choice of the smallest component: by the other folds alone, and printed for every share."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

SHAPE = (20, 18, 6)


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("components")


@pytest.fixture(scope="module")
def make_case(load_script):
    return partial(_make_case, load_script("cross_validation"))


def _make_case(cross_validation, fold, fragment_is_lesion):
    """A lesion of 64 voxels and, apart, a fragment of 8, which the network finds in either case."""
    logits = np.full(SHAPE, -5, np.float32)
    truth = np.zeros(SHAPE, dtype=bool)
    logits[2:6, 2:6, 1:5] = 5
    logits[12:14, 12:14, 1:3] = 5
    truth[2:6, 2:6, 1:5] = True
    truth[12:14, 12:14, 1:3] = fragment_is_lesion
    return cross_validation.HeldOut(f"sub-{fold}", "A", fold, logits, logits > 0, truth, truth)


def test_a_fragment_counts_from_the_share_at_which_it_goes(script, make_case):
    dice = script.dice_by_share([make_case(0, False), make_case(0, True)])
    kept = np.array(script.SHARES) <= 8 / 64
    np.testing.assert_allclose(dice[0], np.where(kept, 128 / 136, 1))
    np.testing.assert_allclose(dice[1], np.where(kept, 1, 128 / 136))


def test_a_folds_own_patients_have_no_say_in_its_share(script):
    dice = np.array([[0.9, 0.5], [0.9, 0.5], [0.1, 0.3]])
    chosen = script.chosen_on_other_folds(dice, np.array([0, 0, 1]))
    np.testing.assert_array_equal(chosen, [0.5, 0.5, 0.1])


def test_the_table_has_a_line_a_share_and_the_honest_one(script, make_case):
    table = script.components_table([make_case(0, False), make_case(1, False)]).splitlines()
    assert table[0] == "| smallest share | fold 0 | fold 1 | all |"
    assert table[1].count("|") == table[0].count("|")
    assert len(table) == 3 + len(script.SHARES)
    assert table[-1] == "| chosen on the other folds | 1.0000 | 1.0000 | 1.0000 |"


def test_one_fold_alone_has_nothing_to_choose_on(script, make_case):
    assert "chosen" not in script.components_table([make_case(0, False)])
