from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image

import pipeline
from pipeline.formats.nifti import read_scan
from pipeline.formats.scan import Scan
from pipeline.report import STAGES, Lesion, _choose_slices, build_report, draw_overlay, measure, write_report

SCHEMA = json.loads((Path(pipeline.__file__).parent / "schemas" / "report.schema.json").read_text())
HEAD = (60, 72, 20)
TITLE = 113  # pixels at the top of a picture


def two_lesions(shape=(11, 13, 7)):
    """Six voxels that touch by a corner only, and two elsewhere."""
    mask = np.zeros(shape, np.uint8)
    mask[2:4, 3, 4:6] = 1
    mask[4, 4, 6] = mask[5, 5, 5] = 1
    mask[9, 11, 1:3] = 1
    return mask


def head_scan(make_affine, orientation="LPS", spacing=(0.9, 1.1, 4.5), shape=HEAD):
    """A bright ellipsoid on black, brighter in the patient's left half."""
    affine = make_affine(orientation, spacing or (1, 1, 1))
    grid = np.indices(shape).reshape(3, -1)
    place = (affine[:3, :3] @ (grid - (np.array(shape)[:, None] - 1) / 2)).reshape(3, *shape)
    radius = np.array([0.45 * np.abs(affine[n, :3] @ shape) for n in range(3)])
    head = np.square(place / radius[:, None, None, None]).sum(axis=0) < 1
    image = head * np.where(place[0] < 0, 200, 100) + np.random.default_rng(1).random(shape)
    return Scan(image[None].astype(np.float32), affine, spacing, "head.nii.gz"), place


def some_report(scan, mask, **changes):
    arguments = {
        "scan": scan,
        "measurements": measure(mask, scan.spacing, scan.affine),
        "inputs": {"t1c": Path("/home/jane_doe/t1c.nii.gz"), "flair": "/data/flair.nii.gz"},
        "bundle_name": "flair_abnormality_segmentation",
        "bundle_version": "0.1.0",
        "weights_sha256": "0123456789abcdef" * 4,
        "engine": "torch",
        "seconds": {stage: n + 0.25 for n, stage in enumerate(STAGES)},
        "warnings": ["something to know"],
    }
    return build_report(**{**arguments, **changes})


def validate(report):
    jsonschema.Draft202012Validator(SCHEMA).validate(report)


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


def test_the_schema_is_a_valid_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_voxels_that_touch_by_a_corner_are_one_lesion():
    found = measure(two_lesions(), (0.9, 1.1, 4.5))
    assert found.lesion_voxels == 8
    assert [lesion.voxels for lesion in found.lesions] == [6, 2]
    assert found.volume_ml == pytest.approx(8 * 0.9 * 1.1 * 4.5 / 1000)
    assert found.lesions[1].volume_ml == pytest.approx(2 * 0.9 * 1.1 * 4.5 / 1000)
    assert found.lesions[1].centre_mm is None
    assert (found.slices_total, found.slices_with_lesion) == (7, 5)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LAS", "PSR", "oblique"])
def test_the_centre_of_a_lesion_is_in_scanner_coordinates(make_affine, orientation):
    affine = make_affine(orientation)
    found = measure(two_lesions(), (0.9, 1.1, 4.5), affine)
    assert found.lesions[1].centre_mm == pytest.approx(affine[:3] @ [9, 11, 1.5, 1])
    assert found.lesions[0].centre_mm == pytest.approx(
        affine[:3] @ [(2 * 5 + 9) / 6, (3 * 4 + 9) / 6, (9 * 2 + 11) / 6, 1]
    )
    assert found.volume_ml == pytest.approx(8 * 0.9 * 1.1 * 4.5 / 1000)


def test_slices_are_axial_whatever_the_order_of_the_axes(make_affine):
    found = measure(two_lesions(), (0.9, 1.1, 4.5), make_affine("PSR"))
    assert (found.slices_total, found.slices_with_lesion) == (13, 4)


def test_a_sheared_voxel_has_the_volume_of_its_parallelepiped(make_affine):
    affine = make_affine("RAS")
    affine[1, 2] = 4.5  # the third axis leans by 45 degrees and is longer by the square root of 2
    assert measure(two_lesions(), (0.9, 1.1, 4.5 * 2**0.5), affine).volume_ml == pytest.approx(8 * 0.004455)


def test_without_spacing_there_are_no_millilitres_and_no_millimetres(make_affine):
    found = measure(two_lesions(), None, make_affine("LPS", (1, 1, 1)))
    assert found.volume_ml is None
    assert found.lesions == (Lesion(6, None, None), Lesion(2, None, None))


def test_an_empty_mask_measures_zero():
    found = measure(np.zeros((5, 6, 7)), (1, 2, 3))
    assert (found.lesion_voxels, found.volume_ml, found.lesion_count, found.slices_with_lesion) == (0, 0, 0, 0)
    assert found.slices_total == 7


def test_a_mask_that_is_not_a_volume_is_refused():
    with pytest.raises(ValueError, match=r"got shape \(1, 5, 6, 7\)"):
        measure(np.zeros((1, 5, 6, 7)), None)


@pytest.mark.parametrize("spacing", [(0.9, 1.1, 4.5), None])
@pytest.mark.parametrize("found", [True, False])
def test_a_report_is_valid_and_comes_back_from_its_file(make_affine, tmp_path, spacing, found):
    scan, _ = head_scan(make_affine, spacing=spacing)
    report = some_report(scan, two_lesions(HEAD) * found)
    write_report(tmp_path / "report.json", report)
    assert json.loads((tmp_path / "report.json").read_text("utf-8")) == report
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    validate(report)
    assert report["inputs"] == {"flair": "flair.nii.gz", "t1c": "t1c.nii.gz"}
    assert "jane_doe" not in json.dumps(report)
    assert report["shape"] == [60, 72, 20]
    assert report["lesion_voxels"] == 8 * found
    assert report["software"]["numpy"] == np.__version__
    if spacing is None:
        assert report["volume_ml"] is None
        assert "spacing" in report["volume_note"]
    else:
        assert report["volume_ml"] == pytest.approx(8 * found * 0.004455)
        assert report["volume_note"] is None


@pytest.mark.parametrize(
    "change",
    [
        {"volume_ml": None},
        {"volume_note": "for no reason"},
        {"spacing_mm": None},
        {"spacing_mm": [1, 1, 0]},
        {"weights_sha256": "0123"},
        {"seconds": {"total": 1}},
        {"surprise": 1},
        {"notice": "for everyone"},
    ],
)
def test_the_schema_refuses_a_report_that_contradicts_itself(make_affine, change):
    scan, _ = head_scan(make_affine)
    with pytest.raises(jsonschema.ValidationError):
        validate({**some_report(scan, two_lesions(HEAD)), **change})


def test_a_report_wants_every_stage_and_the_flair(make_affine):
    scan, _ = head_scan(make_affine)
    with pytest.raises(ValueError, match=r"seconds must name read, .* got total"):
        some_report(scan, two_lesions(HEAD), seconds={"total": 1.0})
    with pytest.raises(ValueError, match=r"inputs must name flair .* got \['t1'\]"):
        some_report(scan, two_lesions(HEAD), inputs={"t1": "a"})


def test_a_number_that_is_not_finite_is_never_written(make_affine, tmp_path):
    scan, _ = head_scan(make_affine)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(tmp_path / "report.json", some_report(scan, two_lesions(HEAD)) | {"volume_ml": float("nan")})
    assert not list(tmp_path.iterdir())


def test_file_names_of_any_bytes_can_be_reported(make_affine, tmp_path):
    scan, _ = head_scan(make_affine)
    write_report(tmp_path / "report.json", some_report(scan, two_lesions(HEAD), inputs={"flair": "häßlich\udcff.nii"}))
    validate(json.loads((tmp_path / "report.json").read_text("utf-8")))


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PSR", "oblique"])
def test_the_picture_shows_the_patients_right_on_the_left(make_affine, tmp_path, orientation):
    shape = (72, 20, 60) if orientation == "PSR" else HEAD
    spacing = (1.1, 4.5, 0.9) if orientation == "PSR" else (0.9, 1.1, 4.5)
    scan, place = head_scan(make_affine, orientation, spacing, shape)
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
def test_a_ball_is_drawn_round_where_the_spacing_is_known(make_affine, tmp_path, spacing, proportion):
    scan, place = head_scan(make_affine, "LPS", (2.2, 0.7, 4.5))
    mask = np.square(place).sum(axis=0) < 15**2
    draw_overlay(Scan(scan.image, scan.affine, spacing, "ball"), mask, tmp_path / "overlay.png")
    panels = outlined_panels(tmp_path / "overlay.png", rows=2)
    row, column, panel_proportion = max(panels, key=lambda panel: np.ptp(panel[0]))
    assert np.ptp(row) * panel_proportion / np.ptp(column) == pytest.approx(proportion, rel=0.1)


def test_an_empty_mask_draws_no_outline(make_affine, tmp_path):
    scan, _ = head_scan(make_affine)
    draw_overlay(scan, np.zeros(HEAD), tmp_path / "none.png")
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


def test_a_mask_of_another_shape_is_not_drawn(make_affine, tmp_path):
    scan, _ = head_scan(make_affine)
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
