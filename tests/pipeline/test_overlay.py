from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from pipeline.drawing import OUTLINE
from pipeline.errors import AR2UNetError
from pipeline.formats.nifti import read_scan
from pipeline.formats.scan import Scan
from pipeline.overlay import _choose_slices, draw_overlay

TITLE = 112  # pixels at the top of a picture


def picture(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def line_of(image):
    """How much of the outline's amber is in each pixel, 0 to 1."""
    return (image[..., 0] - image[..., 2]) / 255


def outlined_panels(path, rows):
    """Where the outline was drawn: for each panel that has one, rows and columns from 0 to 1 (of the panel's width)."""
    outline = line_of(picture(path))[TITLE:] > 0.7
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


@pytest.fixture
def draw_bright(make_affine, tmp_path):
    """Draw a mask on a volume bright to its edges; one panel comes back, and left, top, width, height of its slice."""

    def draw(mask, number, spacing=None):
        image = np.random.default_rng(4).uniform(150, 200, mask.shape)
        affine = make_affine("LPS", spacing or (1, 1, 1))
        scan = Scan(image[None].astype(np.float32), affine, spacing, "bright")
        draw_overlay(scan, mask, tmp_path / "overlay.png")
        cells = picture(tmp_path / "overlay.png")[TITLE:]
        height, width = cells.shape[0] // 2, cells.shape[1] // 4
        row, column = divmod(number, 4)
        panel = cells[row * height : (row + 1) * height, column * width : (column + 1) * width]
        bright = (panel > 0).any(axis=2) & (line_of(panel) <= 0)
        rows, columns = (np.flatnonzero(bright.mean(axis=axis) > 0.3) for axis in (1, 0))
        return line_of(panel), (columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1)

    return draw


@pytest.mark.parametrize("shape", [(37, 43, 8), (230, 200, 8), (600, 500, 8)])
@pytest.mark.parametrize("spacing", [None, (2.2, 0.7, 4.5)])
def test_the_outline_encloses_the_lesion_where_it_lies(draw_bright, shape, spacing):
    mask = np.zeros(shape, bool)
    u, v = np.meshgrid(*((np.arange(size) + 0.5) / size for size in shape[:2]), indexing="ij")
    mask[..., 5] = np.hypot(u - 0.3, v - 0.6) < 0.2
    line, (left, top, width, height) = draw_bright(mask, 5, spacing)
    # The line's centre: all that it encloses, and half of itself.
    enclosed = ndimage.binary_fill_holes(line > 0.5) - line / 2
    assert enclosed.sum() / (width * height) == pytest.approx(mask[..., 5].mean(), rel=0.03)
    rows, columns = np.indices(line.shape) + 0.5
    for place, start, size, expected in ((columns, left, width, u), (rows, top, height, v)):
        centre = (place * enclosed).sum() / enclosed.sum()
        assert centre == pytest.approx(start + size * expected[mask[..., 5]].mean(), abs=0.3)  # pixels


@pytest.mark.parametrize("spacing", [None, (3.0, 1.0, 4.5)])
def test_the_outline_is_equally_thick_across_and_along(draw_bright, spacing):
    mask = np.zeros((61, 150, 8), bool)
    mask[14:40, 31:90, 2] = True
    line, (left, top, width, height) = draw_bright(mask, 2, spacing)
    across, along = line[top + height * 60 // 150], line[:, left + width * 27 // 61]
    assert across.sum() / 2 == pytest.approx(OUTLINE, rel=0.06)
    assert along.sum() / 2 == pytest.approx(OUTLINE, rel=0.06)


def test_the_outline_is_equally_thick_in_every_direction(draw_bright):
    mask = np.zeros((180, 190, 8), bool)
    u, v = np.indices(mask.shape[:2]) - np.array([89.5, 94.5])[:, None, None]
    mask[..., 2] = np.hypot(u, v) < 48
    line, (left, top, width, height) = draw_bright(mask, 2)
    rows, columns = np.indices(line.shape) + 0.5
    direction = np.arctan2(rows - top - height / 2, columns - left - width / 2)
    for start in np.arange(-np.pi, np.pi, np.pi / 8):
        sector = (direction >= start) & (direction < start + np.pi / 8)
        assert (line * sector).sum() / (np.pi / 8 * 48 * width / 180) == pytest.approx(OUTLINE, rel=0.12)


def test_the_outline_is_amber_and_its_edges_are_smooth_on_black_and_on_white(make_affine, tmp_path):
    mask = np.zeros((90, 99, 8), bool)
    mask[10:80, 20:70, 3] = np.tri(70, 50, dtype=bool)
    image = np.zeros((1, *mask.shape), np.float32)
    image[:, :2] = image[:, 45:] = 1
    pictures = []
    for drawn in (np.zeros(mask.shape), mask):  # both show all eight slices
        draw_overlay(Scan(image, make_affine("LPS"), None, "steps"), drawn, tmp_path / "overlay.png")
        pictures.append(picture(tmp_path / "overlay.png")[TITLE:])
    opacity = line_of(pictures[1])[..., None]
    assert (pictures[1] == (255, 176, 0)).all(axis=2).sum() > 100
    assert (np.histogram(opacity, bins=np.linspace(0.06, 0.94, 6))[0] > 20).all()
    np.testing.assert_allclose(pictures[1], opacity * (255, 176, 0) + (1 - opacity) * pictures[0], atol=18)


def test_the_head_fills_the_panel_and_a_lesion_outside_of_it_is_shown_too(make_affine, tmp_path):
    image = np.random.default_rng(1).random((1, 80, 90, 8)).astype(np.float32)
    image[:, 30:60, 35:60] = 100
    image[:, 42:46, 25:35] = 100  # a nose
    scan, mask = Scan(image, make_affine("LPS"), None, "small"), np.zeros((80, 90, 8))
    for outside in (False, True):
        mask[8:12, 80:84] = outside
        draw_overlay(scan, mask, tmp_path / "overlay.png")
        panel = picture(tmp_path / "overlay.png")[TITLE:, :390]
        panel = panel[: len(panel) // 2]
        bright = (panel > 200).all(axis=2)
        # Between the letters.
        down, across = np.ptp(np.nonzero(bright[:, 60:-60])[0]), np.ptp(np.nonzero(bright[60:-60])[1])
        assert down / across == pytest.approx(35 / 30, rel=0.04)  # with its nose
        assert (across / 390 > 0.8) != outside
        assert (line_of(panel) > 0.7).any() == outside


def test_a_lesion_of_one_voxel_can_be_seen_where_a_pixel_is_larger(draw_bright):
    mask = np.zeros((700, 650, 8), bool)
    mask[301, 402, 4] = True
    line, (left, top, width, height) = draw_bright(mask, 4)
    rows, columns = np.nonzero(line > 0.7)
    assert len(rows) >= 4
    assert columns.mean() + 0.5 == pytest.approx(left + width * 301.5 / 700, abs=0.6)
    assert rows.mean() + 0.5 == pytest.approx(top + height * 402.5 / 650, abs=0.6)


@pytest.mark.parametrize("place", [np.s_[:9, :11], np.s_[-9:, -11:], np.s_[20:30, -3:]])
def test_the_outline_of_a_lesion_at_the_edge_is_closed(draw_bright, place):
    mask = np.zeros((50, 54, 8), bool)
    mask[..., 1][place] = True
    line, (_, _, width, height) = draw_bright(mask, 1)
    enclosed = ndimage.binary_fill_holes(line > 0.5) - line / 2
    assert enclosed.sum() / (width * height) == pytest.approx(mask[..., 1].mean(), rel=0.06)


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


def test_slices_are_numbered_from_the_lowest_and_the_title_says_what_was_found(make_affine, tmp_path, monkeypatch):
    written, draw_text = [], ImageDraw.ImageDraw.text

    def text(self, place, words, *arguments, **options):
        written.append(words)
        draw_text(self, place, words, *arguments, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    image = np.random.default_rng(1).uniform(1, 2, (1, 30, 33, 5)).astype(np.float32)
    mask = np.zeros((30, 33, 5))
    mask[10:20, 15:20, 0] = 2  # the highest slice: the axis runs to the feet
    draw_overlay(Scan(image, make_affine("LPI"), None, "down.nii"), mask, tmp_path / "overlay.png")
    assert [words for words in written if words.isdigit()] == ["1", "2", "3", "4", "5"]
    rows, columns = np.nonzero(line_of(picture(tmp_path / "overlay.png"))[TITLE:] > 0.7)
    assert rows.min() > 390  # the fifth panel begins the second row
    assert columns.max() < 390
    assert "FLAIR abnormality: 50 voxels (spacing unknown) in 1 lesion, 1 of 5 slices" in written
    assert any(words.startswith("down.nii  ·  axial slices") for words in written)


@pytest.mark.parametrize("shape", [(60, 3, 40), (3, 60, 40)])
def test_letters_neither_touch_one_another_nor_the_edge_of_a_very_flat_or_narrow_picture(make_affine, tmp_path, shape):
    image = np.zeros((1, *shape), np.float32)
    image[:, 1:-1, 1:-1] = 1
    scan = Scan(image, make_affine("LPS", (1, 1, 4)), (1.0, 1.0, 4.0), "flat")
    draw_overlay(scan, np.zeros(shape), tmp_path / "overlay.png")
    cells = picture(tmp_path / "overlay.png")[TITLE:].max(axis=2)
    cells = cells.reshape(3, len(cells) // 3, 4, 390).swapaxes(1, 2).reshape(12, -1, 390)
    for number, cell in enumerate(cells):
        assert (cell[:39, :39] > 100).any(), number  # an R
        bright = cell[:, -39:] > 100
        assert not bright[:, -5:].any(), number
        # From top to bottom: an L, perhaps the slice, the number.
        runs = ndimage.label(bright[:, 5:-5].any(axis=1))[1]
        assert runs >= 2, number
        assert not bright[:6].any(), number
        assert not bright[-6:].any(), number


@pytest.mark.parametrize("code", [1, 0])
def test_a_long_name_is_shortened_so_that_nothing_is_cut_off(make_nifti, tmp_path, code):
    scan = read_scan(make_nifti("W" * 90 + ".nii", orientation="LAS", sform_code=code, qform_code=0))
    draw_overlay(scan, np.zeros(scan.spatial_shape), tmp_path / "overlay.png")
    title = picture(tmp_path / "overlay.png")[:TITLE].max(axis=2)
    assert (title[:, 1400:1541] > 60).any()
    assert (title[:, 1541:] == 0).all()
    assert (title[:, :19] == 0).all()


@pytest.mark.parametrize(
    ("name", "readable"),
    [("M\u00fcller.nii", "Muller.nii"), ("Mu\u0308ller.nii", "Muller.nii"), ("字\udcff\n$x_1$", "???$x_1$"), ("", "")],
)
def test_a_name_is_written_without_what_the_font_lacks(make_head_scan, tmp_path, name, readable):
    scan, _ = make_head_scan()
    titles = []
    for source in (name, readable):
        named = Scan(scan.image, scan.affine, None, source)
        draw_overlay(named, np.zeros(scan.spatial_shape), tmp_path / "overlay.png")
        titles.append(picture(tmp_path / "overlay.png")[:TITLE])
    assert (titles[0] == titles[1]).all()


def test_the_greys_are_those_of_the_scan(make_affine, tmp_path):
    steps = np.linspace(0, 1000, 64, dtype=np.float32)
    image = np.broadcast_to(steps[:, None, None], (64, 70, 5))[None].copy()
    draw_overlay(Scan(image, make_affine("LPS"), None, "ramp"), np.zeros((64, 70, 5)), tmp_path / "overlay.png")
    panel = picture(tmp_path / "overlay.png")[TITLE:, :390]
    height = (len(picture(tmp_path / "overlay.png")) - TITLE) // 2
    row = panel[height // 2]
    assert (row == row[:, :1]).all()  # grey
    inside = row[5:-5, 0]
    assert (np.diff(inside) >= 0).all()
    assert inside[0] <= 2
    assert inside[-1] >= 253
    np.testing.assert_allclose(inside, np.linspace(inside[0], inside[-1], len(inside)), atol=9)


def test_a_folder_that_is_not_there_is_named(make_head_scan, tmp_path):
    scan, _ = make_head_scan()
    with pytest.raises(AR2UNetError, match=r"missing.overlay\.png: cannot be written: No such file"):
        draw_overlay(scan, np.zeros(scan.spatial_shape), tmp_path / "missing" / "overlay.png")


def test_drawing_does_without_matplotlib_and_torch(tmp_path):
    code = (
        "import sys; import numpy as np; from pathlib import Path\n"
        "from pipeline.formats.scan import Scan; from pipeline.overlay import draw_overlay\n"
        "image = np.random.default_rng(1).random((1, 30, 31, 5), dtype=np.float32)\n"
        "draw_overlay(Scan(image, np.eye(4), None, 'x'), image[0] > 0.9, Path(sys.argv[1]))\n"
        "print([name for name in ('matplotlib', 'torch', 'monai', 'pandas', 'skimage') if name in sys.modules])\n"
    )
    path = tmp_path / "overlay.png"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
    assert path.exists()


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
