from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from pipeline.contours import DIAMETER_COLOR, MAX_SIZE, draw_contours
from pipeline.drawing import LESION_COLOR
from pipeline.formats.nifti import read_scan
from pipeline.formats.scan import Scan
from pipeline.measurement import measure_scan


def pixels_of(png, color):
    with Image.open(io.BytesIO(png)) as image:
        array = np.asarray(image.convert("RGB")).astype(int)
    return np.abs(array - color).sum(axis=2) < 60


def box_at(place, center, reach):
    return (np.abs(place - np.array(center)[:, None, None, None]) < np.array(reach)[:, None, None, None]).all(axis=0)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LAS", "PSR", "oblique"])
def test_the_diameters_are_drawn_inside_the_outline_in_true_proportion(make_head_scan, orientation):
    shape, spacing = (60, 72, 20), (0.9, 1.4, 4.5)
    if orientation == "PSR":
        shape, spacing = (72, 20, 60), (1.4, 4.5, 0.9)
    scan, place = make_head_scan(orientation, spacing, shape)
    mask = box_at(place, (-12, 18, 0), (7, 12, 6))  # in the left half, in front; long from front to back
    measured = measure_scan(scan, mask)
    (picture,) = draw_contours(scan, mask, measured)
    assert picture.lesions == (1,)
    assert picture.slice == measured.lesions[0].diameters.slice
    lines, outline = pixels_of(picture.png, DIAMETER_COLOR), pixels_of(picture.png, LESION_COLOR)
    rows, columns = np.nonzero(lines)
    assert rows.mean() < 0.45 * lines.shape[0]
    assert columns.min() > lines.shape[1] / 2
    enclosed = ndimage.binary_fill_holes(outline | lines)
    assert not (lines & ~ndimage.binary_dilation(enclosed, iterations=4)).any()
    # The longest one runs from corner to corner; pixels are square millimetres, so the outline tells the scale.
    scale = np.ptp(np.nonzero(outline)[0]) / (np.ptp(place[1][mask]) + 1.4)
    if orientation != "oblique":
        assert np.hypot(np.ptp(rows), np.ptp(columns)) / scale == pytest.approx(
            measured.lesions[0].diameters.longest_mm, rel=0.06
        )


def test_without_a_spacing_the_slice_with_most_lesion_is_shown_without_diameters(make_head_scan):
    scan, place = make_head_scan("LPS", None)
    mask = box_at(place, (5, 6, 1), (4, 6, 2)) | box_at(place, (5, 6, 3), (6, 8, 1))
    (picture,) = draw_contours(scan, mask, measure_scan(scan, mask))
    assert (picture.lesions, picture.slice) == ((), int(mask.sum(axis=(0, 1)).argmax()) + 1)
    assert pixels_of(picture.png, LESION_COLOR).any()
    assert not pixels_of(picture.png, DIAMETER_COLOR).any()


def test_a_second_slice_is_shown_for_a_second_measurable_lesion_only(make_head_scan):
    scan, place = make_head_scan("LPS")
    large, other = box_at(place, (-12, 8, -9), (7, 9, 6)), box_at(place, (12, -8, 18), (6, 7, 4))
    small, beside = box_at(place, (12, -8, 32), (3, 3, 3)), box_at(place, (12, 8, -9), (3, 4, 3))
    mask = large | other | small | beside
    measured = measure_scan(scan, mask)
    assert measured.lesion_count == 4
    pictures = draw_contours(scan, mask, measured)
    assert [picture.slice for picture in pictures] == [lesion.diameters.slice for lesion in measured.lesions[:2]]
    assert pictures[0].lesions[0] == 1
    assert pictures[1].lesions == (2,)
    assert len(draw_contours(scan, large | small, measure_scan(scan, large | small))) == 1


def test_an_empty_mask_has_no_picture(make_head_scan):
    scan, _ = make_head_scan()
    mask = np.zeros(scan.spatial_shape)
    assert draw_contours(scan, mask, measure_scan(scan, mask)) == []


@pytest.mark.parametrize("shape", [(2, 3, 4), (60, 5, 40), (5, 60, 8), (700, 650, 2)])
@pytest.mark.parametrize("spacing", [(0.9, 1.1, 4.5), (9.0, 0.4, 1.0), None])
def test_every_shape_can_be_drawn(make_affine, shape, spacing):
    image = np.random.default_rng(1).random((1, *shape)).astype(np.float32)
    mask = np.zeros(shape, np.uint8)
    mask[-1, -1, -1] = mask[0, 0, 0] = 1
    scan = Scan(image, make_affine("LPS", spacing or (1, 1, 1)), spacing, "any")
    pictures = draw_contours(scan, mask, measure_scan(scan, mask))
    assert pictures
    for picture in pictures:
        with Image.open(io.BytesIO(picture.png)) as drawn:
            assert drawn.width <= MAX_SIZE[0] + 6
            assert drawn.height <= MAX_SIZE[1] + 6


def test_left_and_right_are_not_claimed_where_the_file_does_not_state_them(make_nifti):
    pictures = []
    for name, code in (("known.nii", 1), ("unknown.nii", 0)):
        scan = read_scan(make_nifti(name, orientation="LAS", sform_code=code, qform_code=0))
        mask = np.zeros(scan.spatial_shape)
        mask[4:7, 5:8, 3] = 1
        (picture,) = draw_contours(scan, mask, measure_scan(scan, mask))
        with Image.open(io.BytesIO(picture.png)) as drawn:
            pictures.append(np.asarray(drawn.convert("RGB")).astype(int))
    rows, columns = np.nonzero(np.abs(pictures[0] - pictures[1]).sum(axis=2))
    assert rows.max() < 60
    assert columns.min() < 60
    assert columns.max() > pictures[0].shape[1] - 60
