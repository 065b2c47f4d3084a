from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import pipeline
from pipeline.confidence.assessment import Assessment
from pipeline.measurement import measure, measure_scan, volume_interval
from pipeline.report import STAGES, build_report, write_report

SCHEMA = json.loads((Path(pipeline.__file__).parent / "schemas" / "report.schema.json").read_text())


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


@pytest.mark.parametrize("review", [True, False])
def test_an_assessment_goes_into_the_report_and_its_warnings_come_first(make_head_scan, two_lesions, review):
    scan, _ = make_head_scan()
    assessment = Assessment(predicted_dice=0.87654, review=review, warnings=("it looks odd",) * review)
    report = some_report(scan, two_lesions(scan.spatial_shape), assessment=assessment)
    validate(report)
    assert report["confidence"] == {"predicted_dice": 0.877, "review": review}
    assert report["warnings"] == ["it looks odd"] * review + ["something to know"]


def test_without_an_assessment_the_report_says_nothing_of_confidence(make_head_scan, two_lesions):
    scan, _ = make_head_scan()
    report = some_report(scan, two_lesions(scan.spatial_shape))
    validate(report)
    assert report["confidence"] is None


def validate(report):
    jsonschema.Draft202012Validator(SCHEMA).validate(report)


def test_the_schema_is_a_valid_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("spacing", [(0.9, 1.1, 4.5), None])
@pytest.mark.parametrize("found", [True, False])
def test_a_report_is_valid_and_comes_back_from_its_file(make_head_scan, two_lesions, tmp_path, spacing, found):
    scan, _ = make_head_scan(spacing=spacing)
    report = some_report(scan, two_lesions(scan.spatial_shape) * found)
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
        {"volume_interval_ml": [1.0]},
        {"volume_interval_note": None},
        {"laterality": {"side": "up", "left_fraction": 0.5}},
        {"spacing_mm": None},
        {"spacing_mm": [1, 1, 0]},
        {"weights_sha256": "0123"},
        {"seconds": {"total": 1}},
        {"surprise": 1},
        {"notice": "for everyone"},
    ],
)
def test_the_schema_refuses_a_report_that_contradicts_itself(make_head_scan, two_lesions, change):
    scan, _ = make_head_scan()
    with pytest.raises(jsonschema.ValidationError):
        validate({**some_report(scan, two_lesions(scan.spatial_shape)), **change})


def test_a_report_wants_every_stage_and_the_flair(make_head_scan, two_lesions):
    scan, _ = make_head_scan()
    with pytest.raises(ValueError, match=r"seconds must name read, .* got total"):
        some_report(scan, two_lesions(scan.spatial_shape), seconds={"total": 1.0})
    with pytest.raises(ValueError, match=r"inputs must name flair .* got \['t1'\]"):
        some_report(scan, two_lesions(scan.spatial_shape), inputs={"t1": "a"})


def test_a_number_that_is_not_finite_is_never_written(make_head_scan, two_lesions, tmp_path):
    scan, _ = make_head_scan()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(
            tmp_path / "report.json", some_report(scan, two_lesions(scan.spatial_shape)) | {"volume_ml": float("nan")}
        )
    assert not list(tmp_path.iterdir())


def test_file_names_of_any_bytes_can_be_reported(make_head_scan, two_lesions, tmp_path):
    scan, _ = make_head_scan()
    write_report(
        tmp_path / "report.json",
        some_report(scan, two_lesions(scan.spatial_shape), inputs={"flair": "häßlich\udcff.nii"}),
    )
    validate(json.loads((tmp_path / "report.json").read_text("utf-8")))


def test_the_volume_has_the_interval_that_follows_from_the_expected_dice(make_head_scan, two_lesions):
    scan, _ = make_head_scan()
    assessment = Assessment(predicted_dice=0.8, review=False, warnings=())
    report = some_report(scan, two_lesions(scan.spatial_shape), assessment=assessment)
    validate(report)
    assert report["volume_interval_ml"] == pytest.approx(list(volume_interval(8 * 0.004455, 0.8)), abs=1e-6)
    assert "18 had their true volume inside" in report["volume_interval_note"]


@pytest.mark.parametrize(
    ("spacing", "found", "dice", "reason"),
    [
        (None, 1, 0.8, "does not state its voxel spacing"),
        ((0.9, 1.1, 4.5), 0, 0.8, "No lesion was found"),
        ((0.9, 1.1, 4.5), 1, 0.0, "No usable Dice"),
        ((0.9, 1.1, 4.5), 1, None, "No usable Dice"),
    ],
)
def test_without_an_interval_the_report_says_why(make_head_scan, two_lesions, spacing, found, dice, reason):
    scan, _ = make_head_scan(spacing=spacing)
    assessment = None if dice is None else Assessment(predicted_dice=dice, review=True, warnings=())
    report = some_report(scan, two_lesions(scan.spatial_shape) * found, assessment=assessment)
    validate(report)
    assert report["volume_interval_ml"] is None
    assert reason in report["volume_interval_note"]


@pytest.mark.parametrize("spacing", [(0.9, 1.1, 4.5), None])
def test_lesions_have_diameters_and_sides(make_head_scan, two_lesions, spacing):
    scan, _ = make_head_scan("LPS", spacing=spacing)
    mask = two_lesions(scan.spatial_shape)
    report = some_report(scan, mask, measurements=measure_scan(scan, mask))
    validate(report)
    assert report["laterality"] == {"side": "right", "left_fraction": 0.0}
    assert [lesion["side"] for lesion in report["lesions"]] == ["right", "right"]
    expected = {"longest_mm": 1.1, "perpendicular_mm": 0.9, "product_mm2": 0.99, "slice": 2}
    assert report["lesions"][1]["diameters"] == (None if spacing is None else pytest.approx(expected))
    unknown = some_report(scan, mask)  # measured without the plane between the halves
    validate(unknown)
    assert unknown["laterality"] is None
    assert [lesion["side"] for lesion in unknown["lesions"]] == [None, None]


@pytest.mark.parametrize("spacing", [(0.9, 1.1, 4.5), None])
def test_the_schema_wants_diameters_where_the_spacing_is_known_and_only_there(make_head_scan, two_lesions, spacing):
    scan, _ = make_head_scan(spacing=spacing)
    report = some_report(scan, two_lesions(scan.spatial_shape))
    diameters = {"longest_mm": 1.1, "perpendicular_mm": 0.9, "product_mm2": 0.99, "slice": 2}
    report["lesions"][0]["diameters"] = diameters if spacing is None else None
    with pytest.raises(jsonschema.ValidationError):
        validate(report)
