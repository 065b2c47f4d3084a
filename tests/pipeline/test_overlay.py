from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.formats.nifti import read_scan
from pipeline.formats.scan import Scan
from pipeline.overlay import _choose_slices, draw_overlay

TITLE = 113  # pixels at the top of a picture


def picture(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def outlined_panels(path, rows):
    """Where the outline was drawn: for each panel that has one, rows and columns from 0 to 1 (of the panel's width)."""
    red, green, blue = np.moveaxis(picture(path), 2, 0)[:, TITLE:]
    outline = (red > 200) & (green > 120) & (green < 220) & (blue < 60)
    height, width = outline.shape[0] / rows, outline.shape[1] / 4
    row, column = np.nonzero(outline)
    number = (row // height).astype(int) * 4 + (column // width).astype(int)
    return [
        (row[number == n] % height / height, column[number == n] % width / width, height / width) for n in set(number)
    ]


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PSR", "oblique"])
def test_the_picture_shows_the_patients_right_on_the_left(make_head_scan, tmp_path, orientation):
    shape = (72, 20, 60) if orientation == "PSR" else (60, 72, 20)
    spacing = (1.1, 4.5, 0.9) if orientation == "PSR" else (0.9, 1.1, 4.5)
    scan, place = make_head_scan(orientation, spacing, shape)
    # A lesion in the left half, in front: right of the middle and above it on every panel that shows it.
    mask = (np.abs(place - np.array([-14, 16, 0])[:, None, None, None]) < 4).all(axis=0)
    assert mask.any()
    draw_overlay(scan, mask, tmp_path / "overlay.png")
    panels = outlined_panels(tmp_path / "overlay.png", rows=2)
    assert panels
    for row, column, _ in panels:
        assert (column > 0.5).all()
        assert (row < 0.5).all()


@pytest.mark.parametrize(("spacing", "proportion"), [((2.2, 0.7, 4.5), 1.0), (None, 2.2 / 0.7)])
def test_a_ball_is_drawn_round_where_the_spacing_is_known(make_head_scan, tmp_path, spacing, proportion):
    scan, place = make_head_scan("LPS", (2.2, 0.7, 4.5))
    mask = np.square(place).sum(axis=0) < 15**2
    draw_overlay(Scan(scan.image, scan.affine, spacing, "ball"), mask, tmp_path / "overlay.png")
    panels = outlined_panels(tmp_path / "overlay.png", rows=2)
    row, column, panel_proportion = max(panels, key=lambda panel: np.ptp(panel[0]))
    assert np.ptp(row) * panel_proportion / np.ptp(column) == pytest.approx(proportion, rel=0.1)


def test_an_empty_mask_draws_no_outline(make_head_scan, tmp_path):
    scan, _ = make_head_scan()
    draw_overlay(scan, np.zeros(scan.spatial_shape), tmp_path / "none.png")
    assert not outlined_panels(tmp_path / "none.png", rows=3)


@pytest.mark.parametrize("shape", [(2, 3, 4), (60, 5, 40), (40, 41, 2), (30, 31, 200)])
@pytest.mark.parametrize("spacing", [(0.9, 1.1, 4.5), None])
def test_every_shape_can_be_drawn(make_affine, tmp_path, shape, spacing):
    affine = make_affine("LPS", spacing or (1, 1, 1))
    image = np.random.default_rng(1).random((3, *shape)).astype(np.float32)
    mask = np.zeros(shape, np.uint8)
    mask[-1, -1, -1] = 1
    draw_overlay(Scan(image, affine, spacing, "字 $x_1$" + "n" * 90), mask, tmp_path / "overlay.png")
    height, width, _ = picture(tmp_path / "overlay.png").shape
    assert width == 1560
    assert 300 < height < 4000


def test_left_and_right_are_not_claimed_where_the_file_does_not_state_them(make_nifti, tmp_path):
    pictures = []
    for name, code in (("known.nii", 1), ("unknown.nii", 0)):
        scan = read_scan(make_nifti(name, orientation="LAS", sform_code=code, qform_code=0))
        draw_overlay(scan, np.zeros(scan.spatial_shape), tmp_path / "overlay.png")
        pictures.append(picture(tmp_path / "overlay.png")[TITLE:])
    rows, columns = np.nonzero((pictures[0] != pictures[1]).any(axis=2))
    panel_width = pictures[0].shape[1] / 4
    place = columns % panel_width / panel_width
    assert (place > 0.9).any()
    assert (place < 0.1).sum() > 1.3 * (place > 0.9).sum()  # an R takes more ink than an L
    assert ((place < 0.1) | (place > 0.9)).all()  # and nothing else
    assert len(set(rows)) < 0.3 * len(pictures[0])


def test_a_mask_of_another_shape_is_not_drawn(make_head_scan, tmp_path):
    scan, _ = make_head_scan()
    with pytest.raises(ValueError, match=r"shape \(60, 72, 20\), got \(72, 60, 20\)"):
        draw_overlay(scan, np.zeros((72, 60, 20)), tmp_path / "overlay.png")


@pytest.mark.parametrize(
    ("area", "expected"),
    [
        (np.zeros(5, int), [0, 1, 2, 3, 4]),
        (np.eye(1, 30, 2, dtype=int)[0], [0, 1, 2, 3, 4, 5, 6, 7]),
        (np.eye(1, 30, 14, dtype=int)[0], [10, 11, 12, 13, 14, 15, 16, 17]),
        (np.arange(3), [0, 1, 2]),
    ],
)
def test_slices_are_chosen_around_the_lesion(area, expected):
    chosen = _choose_slices(area)
    assert chosen == sorted(set(chosen))
    assert len(set(expected) ^ set(chosen)) <= 2  # which side of the lesion gets the odd slice does not matter


def test_a_long_lesion_is_shown_from_end_to_end_with_its_largest_slice():
    area = np.zeros(90, int)
    area[20:71] = 5
    area[34] = 50
    chosen = _choose_slices(area)
    assert len(chosen) == 12
    assert chosen == sorted(set(chosen))
    assert {20, 34, 70} <= set(chosen)
