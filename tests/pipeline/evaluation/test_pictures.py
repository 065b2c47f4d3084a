"""The picture of a case: the right slices, both outlines, the right side up."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation.pictures import draw_case

TRUTH, PREDICTION = (0x4D, 0xA3, 0xFF), (0xFF, 0xB0, 0x00)
RAS = np.diag([1.0, 1.0, 1.0, 1.0])


def read_png(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def places_of(picture, color):
    """Return where a color is, as shares of the picture's height and width."""
    places = np.argwhere(np.abs(picture - color).sum(axis=2) < 60)
    return places / picture.shape[:2]


@pytest.fixture
def block():
    """A mask with a block at the patient's right front in a volume (20, 24, 9) of RAS axes."""
    mask = np.zeros((20, 24, 9), dtype=np.uint8)
    mask[12:18, 14:22, 6] = 1
    return mask


def test_the_patients_right_is_on_the_left_and_the_front_above(block):
    # In RAS axes index 12 to 18 of 20 is on the patient's right.
    places = places_of(read_png(draw_case(np.zeros_like(block), block, RAS)), TRUTH)
    top, left = places.mean(axis=0)
    assert left < 0.5
    assert top < 0.5


def test_each_mask_has_a_color_of_its_own(block):
    shifted = np.roll(block, -9, axis=0)
    picture = read_png(draw_case(shifted, block, RAS))
    assert places_of(picture, TRUTH)[:, 1].mean() < 0.5 < places_of(picture, PREDICTION)[:, 1].mean()


def test_a_second_slice_shows_where_most_is_wrong(block):
    prediction = np.zeros_like(block)
    prediction[2:18, 2:20, 1] = 1
    picture = read_png(draw_case(prediction, block, RAS))
    height, width, _ = picture.shape
    assert width == 2 * height
    assert places_of(picture, TRUTH)[:, 1].max() < 0.5  # only in the first slice shown
    assert places_of(picture, PREDICTION)[:, 1].min() > 0.5


def test_a_perfect_case_is_one_slice_and_empty_masks_are_drawn_too(block):
    for prediction, truth in ((block, block), (block * 0, block * 0), (block, block * 0)):
        height, width, _ = read_png(draw_case(prediction, truth, RAS)).shape
        assert height == width


def test_without_any_lesion_the_middle_slice_is_shown(block):
    image = np.zeros(block.shape, dtype=np.float32)
    image[..., 4] = 100
    assert read_png(draw_case(block * 0, block * 0, RAS, image=image)).mean() > 100


def test_the_scan_is_drawn_below_the_outlines(block):
    image = np.zeros(block.shape, dtype=np.float32)
    image[2:8] = 100
    with_scan = read_png(draw_case(block, block, RAS, image=image))
    without = read_png(draw_case(block, block, RAS))
    assert with_scan.max(axis=2).mean() > without.max(axis=2).mean() + 20
