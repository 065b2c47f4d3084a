"""The picture of a comparison."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.comparison import picture as picture_module
from pipeline.comparison.picture import AFTER_COLOR, BEFORE_COLOR, COLUMNS, TITLE_HEIGHT, WIDTH, draw_comparison


def places(path, color):
    """Where the picture has a color, in the cells: columns ``(row, column)`` of pixels below the headings."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    found = np.argwhere((np.abs(pixels - color) < 40).all(axis=2))
    return found[found[:, 0] > TITLE_HEIGHT + 44]


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PSR"])
def test_each_outline_is_in_its_columns_and_on_its_side(make_visit, tmp_path, orientation):
    before = make_visit(10.0, orientation=orientation, shape=(53, 63, 66), spacing=(2.9, 3.1, 3.0))
    after = make_visit(18.0, orientation=orientation, shape=(53, 63, 66), spacing=(2.9, 3.1, 3.0))
    path = tmp_path / "compare.png"
    draw_comparison(before.scan, before.mask, after.scan.flair, after.mask.astype(np.float32), path, "title")
    cell = WIDTH // len(COLUMNS)
    blue, orange = places(path, BEFORE_COLOR), places(path, AFTER_COLOR)
    assert set(blue[:, 1] // cell) == {0, 2}
    assert set(orange[:, 1] // cell) == {1, 2}
    # The lesion is in the patient's right front, so in the left upper quarter of a panel.
    assert (blue[:, 1] % cell).max() < cell / 2
    with Image.open(path) as picture:
        assert picture.size[0] == WIDTH
    # In the last column the earlier lesion lies inside of the later.
    inner, outer = (found[found[:, 1] // cell == 2] for found in (blue, orange))
    assert outer[:, 1].min() < inner[:, 1].min()
    assert inner[:, 1].max() < outer[:, 1].max()


@pytest.mark.parametrize("is_side_known", [True, False])
def test_each_cell_has_the_number_of_its_slice_and_the_sides_where_they_are_known(
    make_visit, tmp_path, monkeypatch, is_side_known
):
    written = []
    monkeypatch.setattr(
        picture_module, "write_letter", lambda draw, x, y, text, anchor: written.append((x, text, anchor))
    )
    visit = make_visit()
    mask = visit.mask & (np.arange(34) == 20)
    assert mask.any()
    draw_comparison(
        visit.scan, mask, visit.scan.flair, mask.astype(np.float32), tmp_path / "compare.png", "title",
        is_side_known=is_side_known,
    )  # fmt: skip
    numbers = [text for _, text, _ in written if text.isdecimal()]
    assert numbers == ["21"] * 3  # from the lowest, which is 1
    cell = WIDTH // len(COLUMNS)
    sides = [(text, x % cell < cell / 2, anchor) for x, text, anchor in written if not text.isdecimal()]
    assert sorted(sides) == ([("L", False, "rt")] * 3 + [("R", True, "lt")] * 3 if is_side_known else [])


def test_proportions_are_those_in_mm(make_visit, tmp_path):
    heights = []
    for spacing, shape in (((2.9, 3.1, 4.5), (53, 63, 34)), ((2.9, 1.55, 4.5), (53, 126, 34))):
        visit = make_visit(spacing=spacing, shape=shape)
        path = tmp_path / "compare.png"
        draw_comparison(visit.scan, visit.mask, visit.scan.flair, visit.mask.astype(np.float32), path, "title")
        with Image.open(path) as picture:
            heights.append(picture.size[1])
    assert heights[0] == pytest.approx(heights[1], rel=0.05)


def test_masks_with_nothing_in_them_are_drawn_all_the_same(make_visit, tmp_path):
    visit, path = make_visit(), tmp_path / "compare.png"
    nothing = np.zeros(visit.mask.shape, np.float32)
    draw_comparison(visit.scan, nothing, visit.scan.flair, nothing, path, "no lesion", is_side_known=False)
    assert len(places(path, BEFORE_COLOR)) == len(places(path, AFTER_COLOR)) == 0


def test_another_shape_is_refused(make_visit, tmp_path):
    visit = make_visit()
    with pytest.raises(ValueError, match="after_mask must have the scan's shape"):
        draw_comparison(
            visit.scan, visit.mask, visit.scan.flair, np.zeros((3, 4, 5), np.float32), tmp_path / "x.png", "title"
        )
