"""Lesions found, missed and spurious, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.lesions import LesionCounts, count_lesions


def test_found_missed_and_spurious_lesions_make_the_f1(mask_of):
    truth = mask_of((1, 1, 1), (1, 1, 2), (5, 5, 1), (9, 9, 5))
    prediction = mask_of((1, 1, 2), (1, 1, 3), (5, 5, 1), (3, 9, 3), (8, 1, 6))
    counts = count_lesions(prediction, truth)
    assert counts == LesionCounts(true=3, found=2, predicted=4, spurious=2)
    assert counts.missed == 1
    assert counts.f1 == pytest.approx(4 / 7)  # 2 * 2 / (2 * 2 + 1 + 2)


def test_a_corner_joins_voxels_into_one_lesion(mask_of):
    assert count_lesions(mask_of((3, 3, 3), (4, 4, 4)), mask_of((3, 3, 3), (5, 3, 3))) == LesionCounts(
        true=2, found=1, predicted=1, spurious=0
    )


def test_one_prediction_across_two_lesions_finds_both(mask_of):
    truth, across = mask_of((2, 2, 2), (2, 6, 2)), mask_of(*((2, j, 2) for j in range(2, 7)))
    assert count_lesions(across, truth) == LesionCounts(true=2, found=2, predicted=1, spurious=0)


def test_a_lesion_found_in_two_pieces_counts_once_and_no_piece_is_spurious(mask_of):
    truth, pieces = mask_of(*((2, j, 2) for j in range(2, 7))), mask_of((2, 2, 2), (2, 6, 2))
    counts = count_lesions(pieces, truth)
    assert counts == LesionCounts(true=1, found=1, predicted=2, spurious=0)
    assert counts.f1 == 1


def test_without_lesions_nothing_found_is_1_and_something_found_is_0(mask_of):
    none, some = mask_of(), mask_of((1, 2, 3))
    assert count_lesions(none, none).f1 == 1
    assert count_lesions(some, none).f1 == 0
    assert count_lesions(none, some).f1 == 0


def test_a_lesion_beside_the_truth_is_spurious_and_the_truth_is_missed(mask_of):
    assert count_lesions(mask_of((4, 4, 4)), mask_of((4, 4, 3))).f1 == 0


def test_masks_of_another_shape_are_refused(mask_of):
    with pytest.raises(ValueError, match=r"got \(11, 13, 7\) and \(1, 13, 7\)"):
        count_lesions(mask_of(), np.ones((1, 13, 7)))
