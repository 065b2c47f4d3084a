"""The arithmetic behind a description, against SciPy's and against what the shipped model was fitted to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from pipeline.confidence.description import FEATURES, _erode, _extreme, _reduce, _within, describe
from pipeline.formats.nifti import read_scan
from transforms.geometry import find_slice_frame, to_slice_frame
from transforms.intensity import normalize_intensity

SAMPLE = Path(__file__).parents[3] / "pipeline" / "sample" / "sub-phantom_FLAIR.nii.gz"


@pytest.fixture
def volume():
    return np.random.default_rng(0).normal(0, 1, (23, 17, 4)).astype(np.float32)


@pytest.fixture
def mask(volume):
    return ndimage.uniform_filter(volume, size=(7, 7, 1)) > -0.15


@pytest.fixture(scope="module")
def sample():
    scan = read_scan(SAMPLE)
    frame = find_slice_frame(scan.image, scan.affine, scan.spacing)
    return normalize_intensity(to_slice_frame(scan.image, frame))[0]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 3), (5, 3), (1, 7), (7, 7), (9, 11)])
def test_the_extreme_of_a_window_is_that_of_scipys_filters(volume, height, width):
    for ours, theirs in ((np.maximum, ndimage.maximum_filter), (np.minimum, ndimage.minimum_filter)):
        expected = theirs(volume, size=(height, width, 1))
        np.testing.assert_array_equal(_extreme(volume, ours, height, width), expected)


def test_closing_and_opening_are_scipys(volume):
    closed = _extreme(_extreme(volume, np.maximum, 7, 7), np.minimum, 7, 7)
    np.testing.assert_array_equal(closed, ndimage.grey_closing(volume, size=(7, 7, 1)))
    opened = _extreme(_extreme(volume, np.minimum, 7, 7), np.maximum, 7, 7)
    np.testing.assert_array_equal(opened, ndimage.grey_opening(volume, size=(7, 7, 1)))


@pytest.mark.parametrize("pixels", [1, 2, 4, 9, 20])
def test_erosion_is_scipys_with_nothing_outside(mask, pixels):
    for whole in (mask, np.ones_like(mask)):
        expected = ndimage.binary_erosion(whole, np.ones((3, 3, 1)), iterations=pixels)
        np.testing.assert_array_equal(_erode(whole, pixels), expected)


@pytest.mark.parametrize("distance", [1.5, 3.1, 5.0, 30.0])
def test_within_a_distance_is_what_the_distance_transform_says(mask, distance):
    few = mask & (np.random.default_rng(1).random(mask.shape) < 0.02)
    few[..., 2] = False  # a slice of none
    few[11, 8, 3] = True
    for k in (0, 1, 3):
        expected = ndimage.distance_transform_edt(~few[..., k]) <= distance
        np.testing.assert_array_equal(_within(few, distance)[..., k], expected)
    assert not _within(few, distance)[..., 2].any()


def test_pixels_are_averaged_and_slices_skipped():
    volume = np.random.default_rng(2).normal(0, 1, (301, 227, 81)).astype(np.float32)
    expected = volume[:300, :225, ::2].reshape(100, 3, 75, 3, 41).mean(axis=(1, 3))
    np.testing.assert_allclose(_reduce(volume), expected, atol=1e-6)
    assert _reduce(volume).dtype == np.float32


def test_how_a_volume_lies_in_memory_does_not_matter(sample):
    assert not sample.flags.c_contiguous
    np.testing.assert_array_equal(describe(sample), describe(np.ascontiguousarray(sample)))


def test_a_description_stays_what_the_shipped_model_was_fitted_to(sample):
    # Whoever changes a feature has to fit models/plausibility.json anew.
    expected = {
        "size of the upper slices": 0.61967,
        "size of the bottom slice": 0.89676,
        "height of the widest part": 0.42275,
        "length to width": 0.16762,
        "cut on the left or right": 0.26597,
        "cut in front or behind": 0.24052,
        "left-right symmetry": 0.39770,
        "front-back symmetry": 0.40586,
        "outline of front and back": 0.00817,
        "brightness of front and back": -0.11601,
        "brightness of the scalp": -0.04010,
        "brightness of the skull": -1.24158,
        "brightness of the cortex": 0.14759,
        "brightness of the white matter": 0.12453,
        "skewness": -0.43731,
        "contrast": 0.03502,
        "share of dark voxels": 0.25780,
        "dark voxels above and below": -0.01528,
        "dark voxels in front and behind": 0.00959,
        "noise in the slices": -2.54366,
        "likeness of neighbouring slices": 0.83304,
        "dark and bright lines": 0.20656,
        "brightness around the CSF": 0.15618,
    }
    assert dict(zip(FEATURES, describe(sample), strict=True)) == pytest.approx(expected, abs=1e-4)
