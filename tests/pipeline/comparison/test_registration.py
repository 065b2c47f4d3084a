"""Registration, on heads whose motion is known."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK

from pipeline.comparison.registration import _warnings, assume_aligned, register, resample, write_transform
from pipeline.errors import ScanError
from pipeline.formats.nifti import read_scan
from pipeline.formats.scan import Scan
from pipeline.predictor import SEGMENTATION_BUNDLE

CLINICAL = SEGMENTATION_BUNDLE.parents[2] / "shared" / "data" / "clinical_flair" / "ms_patient01_study1_FLAIR.nii.gz"


def errors(found, true, scan):
    """The farthest that a place of the head comes to lie from where it should, in mm, and the angle in degrees."""
    head = np.argwhere(scan.flair > np.percentile(scan.flair, 70))[::97]
    places = np.c_[head, np.ones(len(head))] @ scan.affine.T
    turn = found[:3, :3].T @ true[:3, :3]
    angle = np.rad2deg(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
    return np.linalg.norm((places @ (found - true).T)[:, :3], axis=1).max(), angle


@pytest.mark.parametrize(
    ("angles", "shift", "orientation"),
    [((4, -7, 9), (6, -4, 8), "LPS"), ((-12, 5, 16), (-14, 9, 11), "PSR"), ((0, 0, 3), (120, -90, 70), "oblique")],
)
def test_a_known_motion_is_recovered_on_another_grid(make_visit, make_motion, angles, shift, orientation):
    before, motion = make_visit().scan, make_motion(angles, shift)
    far = make_motion((0, 0, 0), shift if max(np.abs(shift)) > 50 else (0, 0, 0))
    after = make_visit(
        motion=np.linalg.inv(far) @ motion, spacing=(2.7, 3.5, 3.7), shape=(58, 56, 42), orientation=orientation, gain=7
    ).scan
    after = Scan(after.image, far @ after.affine, after.spacing, after.source)  # as from another table position
    found = register(before, after)
    distance, angle = errors(found.matrix, motion, before)
    assert distance < 0.5
    assert angle < 0.5
    assert found.warnings == ()
    assert not found.is_doubtful
    assert found.correlation > 0.8
    assert found.head_overlap > 0.9
    turn = np.rad2deg(np.arccos((np.trace(motion[:3, :3]) - 1) / 2))
    assert found.rotation_degrees == pytest.approx(turn, abs=0.5)
    assert found.translation_mm == pytest.approx(np.linalg.norm(shift), abs=0.5)


def test_the_same_scans_give_the_same_registration(make_visit, make_motion):
    before, after = make_visit().scan, make_visit(motion=make_motion((3, 2, 1), (2, 3, 5))).scan
    first, second = register(before, after), register(before, after)
    np.testing.assert_array_equal(first.matrix, second.matrix)
    assert first.mutual_information == second.mutual_information


def test_another_head_is_doubted(make_visit):
    found = register(make_visit(person=1).scan, make_visit(person=2).scan)
    (warning,) = found.warnings
    assert "one patient" in warning
    assert found.is_doubtful


@pytest.mark.parametrize(
    ("correlation", "overlap", "rotation", "words"),
    [
        (0.5, 0.5, 45.0, None),
        (0.49, 0.9, 5.0, "inside the heads correlate by 0.49 only"),
        (0.9, 0.48, 5.0, "the heads overlap by a Dice of 0.48 only"),
        (0.9, 0.9, 47.0, "the head would be turned by 47 degrees"),
    ],
)
def test_what_speaks_against_a_registration_is_named(correlation, overlap, rotation, words):
    warnings = _warnings(correlation, overlap, rotation)
    assert len(warnings) == (words is not None)
    assert words is None or words in warnings[0]


def test_without_a_spacing_nothing_is_registered(make_visit):
    known, unknown = make_visit().scan, make_visit(is_spacing_known=False).scan
    for pair in ((known, unknown), (unknown, known)):
        with pytest.raises(ScanError, match="expected a known voxel spacing"):
            register(*pair)


def test_scans_on_one_grid_can_be_taken_for_aligned_and_are_still_judged(make_visit):
    first, same, other = (make_visit(person=n, is_spacing_known=False).scan for n in (1, 1, 2))
    found = assume_aligned(first, same)
    np.testing.assert_allclose(found.matrix, np.eye(4), atol=1e-9)
    assert (found.mutual_information, found.rotation_degrees, found.warnings) == (None, 0, ())
    assert assume_aligned(first, other).is_doubtful
    with pytest.raises(ValueError, match="one shape"):
        assume_aligned(first, make_visit(shape=(50, 60, 30)).scan)


def test_a_moved_mask_comes_back_to_where_it_was(make_visit, make_motion):
    motion = make_motion((5, -4, 8), (3, 7, -6))
    before, after = (
        make_visit(),
        make_visit(motion=motion, orientation="PSR", shape=(60, 40, 50), spacing=(2.9, 4, 3.4)),
    )
    moved = resample(after.mask, after.scan.affine, before.scan, motion) > 0.5
    assert 2 * (moved & before.mask).sum() / (moved.sum() + before.mask.sum()) > 0.9


def test_the_transform_file_leads_from_before_to_after_in_lps(make_visit, make_motion, tmp_path):
    found = register(make_visit().scan, make_visit(motion=make_motion((2, -3, 6), (5, 1, -4))).scan)
    path = tmp_path / "motion.tfm"
    write_transform(found, path)
    transform = SimpleITK.ReadTransform(str(path))
    place = np.array([11.0, -23.0, 17.0])
    expected = (found.matrix @ [*place, 1])[:3] * [-1, -1, 1]
    np.testing.assert_allclose(transform.TransformPoint((place * [-1, -1, 1]).tolist()), expected, atol=1e-4)


@pytest.mark.skipif(not CLINICAL.is_file(), reason="the clinical scans are not here")
def test_a_clinical_scan_turned_and_resampled_is_brought_back(make_motion):
    before, motion = read_scan(CLINICAL), make_motion((6, -5, 9), (7, -4, 5))
    shape, spacing = (250, 240, 46), (0.95, 1.05, 3.2)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1])
    centre = before.affine @ [*((np.array(before.spatial_shape) - 1) / 2), 1]
    affine[:3, 3] = centre[:3] - affine[:3, :3] @ (np.array(shape) - 1) / 2
    grid = Scan(np.zeros((1, *shape), np.float32), affine, spacing, "later.nii.gz")
    flair = resample(before.flair, before.affine, grid, np.linalg.inv(motion))
    noisy = 1.7 * flair + np.random.default_rng(2).normal(30, 0.03 * flair.max(), shape)
    found = register(before, Scan(noisy[None].astype(np.float32), affine, spacing, "later.nii.gz"))
    distance, angle = errors(found.matrix, motion, before)
    assert distance < 0.5
    assert angle < 0.5
    assert not found.is_doubtful
