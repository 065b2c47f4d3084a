"""One patient's scores, worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.evaluation.scoring import score_patient

AFFINE = np.diag([0.9, 1.1, 4.5, 1.0])
VOXEL_ML = 0.9 * 1.1 * 4.5 / 1000
TOTAL = 11 * 13 * 7


def test_a_row_holds_every_score(mask_of):
    prediction = mask_of((2, 3, 1), (2, 3, 2), (2, 3, 3), (8, 8, 5))
    truth = mask_of((2, 3, 1), (2, 3, 2))
    row = score_patient("sub-7", prediction, truth, affine=AFFINE, site="CS").row()
    # To the truth 0, 0, 1 and far; from it 0, 0.
    far = np.sqrt(6**2 + 5**2 + 3**2)
    far_mm = np.sqrt((6 * 0.9) ** 2 + (5 * 1.1) ** 2 + (3 * 4.5) ** 2)
    assert row == {
        "subject": "sub-7",
        "site": "CS",
        "dice": pytest.approx(4 / 6),
        "iou": pytest.approx(2 / 4),
        "precision": pytest.approx(2 / 4),
        "recall": 1,
        "specificity": pytest.approx((TOTAL - 4) / (TOTAL - 2)),
        "pixel_accuracy": pytest.approx((TOTAL - 2) / TOTAL),
        "lesion_f1": pytest.approx(2 / 3),
        "hd95_voxels": pytest.approx(1 + 0.85 * (far - 1)),  # at place 2.85 of 0, 0, 1, far
        "hd95_mm": pytest.approx(4.5 + 0.85 * (far_mm - 4.5)),
        "mean_surface_distance_voxels": pytest.approx((1 + far) / 6),
        "mean_surface_distance_mm": pytest.approx((4.5 + far_mm) / 6),
        "true_voxels": 2,
        "predicted_voxels": 4,
        "volume_error_voxels": 2,
        "true_ml": pytest.approx(2 * VOXEL_ML),
        "predicted_ml": pytest.approx(4 * VOXEL_ML),
        "volume_error_ml": pytest.approx(2 * VOXEL_ML),
        "volume_error_relative": pytest.approx(1),
        "absolute_volume_error_relative": pytest.approx(1),
        "true_lesions": 1,
        "found_lesions": 1,
        "predicted_lesions": 2,
        "spurious_lesions": 1,
    }


def test_too_small_a_volume_is_a_negative_error_whose_size_is_kept_apart(mask_of):
    row = score_patient("a", mask_of((1, 1, 1)), mask_of((1, 1, 1), (1, 1, 2), (1, 1, 3), (1, 1, 4))).row()
    assert row["volume_error_voxels"] == -3
    assert row["volume_error_relative"] == -0.75
    assert row["absolute_volume_error_relative"] == 0.75


def test_without_a_spacing_there_are_voxels_but_neither_millimetres_nor_millilitres(mask_of):
    row = score_patient("a", mask_of((1, 1, 1)), mask_of((1, 1, 3))).row()
    assert row["hd95_voxels"] == row["mean_surface_distance_voxels"] == 2
    assert {name for name, value in row.items() if value is None} == {
        "site",
        *("hd95_mm", "mean_surface_distance_mm", "true_ml", "predicted_ml", "volume_error_ml"),
    }


def test_an_oblique_affine_measures_as_a_straight_one(mask_of, make_affine):
    masks = mask_of((1, 1, 1), (4, 2, 2)), mask_of((1, 5, 3))
    straight = score_patient("a", *masks, affine=AFFINE).row()
    assert score_patient("a", *masks, affine=make_affine("oblique")).row() == pytest.approx(straight)


@pytest.mark.parametrize(("predicted", "score"), [([], 1.0), ([(1, 2, 3)], 0.0)])
def test_an_empty_truth_scores_1_if_nothing_is_found_and_0_if_something_is(mask_of, predicted, score):
    row = score_patient("a", mask_of(*predicted), mask_of(), affine=AFFINE).row()
    assert {row[name] for name in ("dice", "iou", "precision", "recall", "lesion_f1")} == {score}
    assert row["hd95_voxels"] is row["hd95_mm"] is row["mean_surface_distance_voxels"] is None
    assert row["volume_error_relative"] == (None if predicted else 0)
    json.dumps(row, allow_nan=False)


def test_a_missed_lesion_scores_0_and_has_no_distance(mask_of):
    row = score_patient("a", mask_of(), mask_of((1, 2, 3), (1, 2, 4)), affine=AFFINE).row()
    assert {row[name] for name in ("dice", "iou", "precision", "recall", "lesion_f1")} == {0}
    assert row["hd95_voxels"] is row["hd95_mm"] is None
    assert row["volume_error_relative"] == -1


def test_a_slice_is_no_patient():
    with pytest.raises(ValueError, match=r"must be \(I, J, K\)"):
        score_patient("a", np.ones((5, 6)), np.ones((5, 6)))
