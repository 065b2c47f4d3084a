from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import pipeline
from pipeline.confidence.assessment import Assessment
from pipeline.measurement import measure
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
