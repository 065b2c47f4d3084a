"""Two visits from their files to the results."""

from __future__ import annotations

import json
from importlib import resources
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
import SimpleITK
from pydicom import Dataset

from pipeline.comparison.compare import Visit, compare_visits, look_at_headers
from pipeline.errors import ScanError
from pipeline.measurement import volume_interval


def no_segmentation(cases):
    raise AssertionError("both masks are given")


@pytest.fixture
def compare(save, tmp_path):
    """Compare two visits by their masks; the content of compare.json comes back, checked by its schema."""

    def run(before, after):
        visits = [
            Visit(save(f"{name}.nii.gz", each.scan.flair, each.scan), save(f"{name}_m.nii", each.mask * 1.0, each.scan))
            for name, each in (("first", before), ("second", after))
        ]
        result = compare_visits(*visits, tmp_path / "out", no_segmentation)
        content = json.loads(result.report.read_text())
        schema = json.loads((resources.files("pipeline") / "schemas" / "comparison.schema.json").read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(content, schema)
        return result, content

    return run


def test_a_grown_lesion_is_measured_on_its_own_grid_and_found_where_it_is(compare, make_visit, make_motion):
    motion = make_motion((4, -6, 8), (5, -3, 6))
    before = make_visit(14.0)
    after = make_visit(
        17.0, motion=motion, spacing=(2.7, 3.5, 3.7), shape=(58, 56, 42), second=(8.0, (-25.0, -30.0, 10.0))
    )
    result, content = compare(before, after)
    volumes = [float(each.mask.sum() * np.prod(each.scan.spacing)) / 1000 for each in (before, after)]
    assert [content[name]["volume_ml"] for name in ("before", "after")] == pytest.approx(volumes, abs=1e-3)
    change = content["change"]
    assert change["volume_ml"] == pytest.approx(volumes[1] - volumes[0], abs=1e-3)
    assert change["percent"] == pytest.approx(100 * (volumes[1] / volumes[0] - 1), abs=1e-2)
    assert change["overlap"]["stable_ml"] == pytest.approx(volumes[0], rel=0.05)
    assert change["overlap"]["new_ml"] == pytest.approx(volumes[1] - volumes[0], rel=0.15)
    (lesion,) = change["new_lesions"]
    assert lesion["counts"]
    assert lesion["volume_ml"] == pytest.approx(4 / 3 * np.pi * 0.8**3, rel=0.1)
    assert content["before"]["diameter_product_mm2"] == pytest.approx(28**2, rel=0.2)
    assert content["category"]["name"] == "progression"
    assert "new lesion" in content["category"]["reason"]
    assert content["warnings"] == []
    np.testing.assert_allclose(content["registration"]["matrix_ras"], motion, atol=0.5)
    transform = SimpleITK.ReadTransform(str(result.transform))
    np.testing.assert_allclose(transform.TransformPoint((0, 0, 0)), (motion @ [0, 0, 0, 1])[:3] * [-1, -1, 1], atol=0.5)
    assert sorted(path.name for path in result.report.parent.iterdir()) == [
        "before_to_after.tfm",
        "compare.html",
        "compare.json",
        "compare.png",
    ]
    assert result.summary.startswith("first.nii.gz -> second.nii.gz: 11.")
    assert "progression (RANO-like, imaging only)" in result.summary
    page = result.page.read_text()
    for text in ("van den Bent", "RANO 2.0", "clinical state", "confirming scan", "<img", "Progression"):
        assert text in page


def test_the_same_scan_twice_is_named_as_such(compare, make_visit):
    visit = make_visit()
    result, content = compare(visit, visit)
    assert any("the same images" in warning for warning in result.warnings)
    assert (content["change"]["percent"], content["category"]["name"]) == (0, "stable")
    assert content["change"]["overlap"]["new_voxels"] == content["change"]["overlap"]["resolved_voxels"] == 0


def test_without_a_spacing_voxels_on_one_grid_are_compared(compare, make_visit):
    before, after = make_visit(14.0, is_spacing_known=False), make_visit(9.0, is_spacing_known=False)
    result, content = compare(before, after)
    assert result.transform is None
    assert content["change"]["volume_ml"] is None
    assert content["before"]["diameter_product_mm2"] is None
    percent = 100 * (after.mask.sum() / before.mask.sum() - 1)
    assert content["change"]["percent"] == pytest.approx(percent, abs=1e-3)
    assert content["category"]["name"] == "partial response"
    assert content["registration"]["method"] == "none"
    assert any("spacing is unknown" in warning for warning in content["warnings"])
    assert "voxels (-7" in result.summary


@pytest.mark.parametrize(
    ("other", "received"),
    [({"shape": (53, 63, 36)}, "one of known spacing"), ({"shape": (53, 63, 30), "is_spacing_known": False}, "shapes")],
)
def test_where_only_voxels_are_known_another_grid_is_refused(compare, make_visit, other, received):
    expected = rf"first\.nii\.gz: its voxel spacing is unknown.*{received}"
    with pytest.raises(ScanError, match=expected):
        compare(make_visit(is_spacing_known=False), make_visit(**other))


def test_another_patient_is_doubted_and_its_lesions_are_not_called_new(compare, make_visit):
    result, content = compare(make_visit(person=1), make_visit(person=2, second=(9.0, (-25.0, -30.0, 10.0))))
    assert content["registration"]["doubtful"]
    assert "DOUBTFUL" in result.summary
    assert any("one patient" in warning for warning in result.warnings)
    assert "new lesion" not in content["category"]["reason"]


def test_a_mask_on_another_grid_is_refused(save, make_visit, tmp_path):
    visit, other = make_visit(), make_visit(shape=(53, 63, 30))
    moved = make_visit(orientation="RAS")
    flair = save("flair.nii.gz", visit.scan.flair, visit.scan)
    good = save("good.nii", visit.mask * 1.0, visit.scan)
    for each, reason in ((other, r"got shape \(53, 63, 30\)"), (moved, "another place or orientation")):
        bad = save("bad.nii", each.mask * 1.0, each.scan)
        with pytest.raises(ScanError, match=f"bad.nii: expected a mask on the voxel grid of .*flair.nii.gz.*{reason}"):
            compare_visits(Visit(flair, good), Visit(flair, bad), tmp_path / "out", no_segmentation)
    with pytest.raises(ScanError, match="expected one of each visit or none"):
        compare_visits(Visit(flair, good), Visit(flair), tmp_path / "out", no_segmentation)


def test_a_lesion_outside_of_the_other_scan_is_said(compare, make_visit, make_motion):
    before = make_visit()
    crop = make_visit(shape=(53, 63, 34))
    low = slice(0, 19)  # up to 11 mm above the middle: through the lesion
    scan = type(crop.scan)(crop.scan.image[..., low], crop.scan.affine, crop.scan.spacing, "cut.nii.gz")
    result, content = compare(before, type(crop)(scan, crop.mask[..., low]))
    assert any("of the lesion of BEFORE lies where the other scan did not look" in line for line in result.warnings)
    assert content["change"]["overlap"]["resolved_ml"] < 1


@pytest.mark.parametrize(
    ("dates", "patients", "days", "words"),
    [
        (("20200103", "20200402"), ("a", "a"), 90, []),
        (("20200402", "20200103"), ("a", "a"), -90, ["90 days earlier"]),
        (("20200103", "20200402"), ("a", "b"), 90, ["different patients"]),
        (("", "20200402"), ("", "b"), None, []),
    ],
)
def test_dicom_headers_tell_the_order_and_the_patient(dates, patients, days, words):
    reads = []
    for date, patient in zip(dates, patients, strict=True):
        header = Dataset()
        header.StudyDate, header.PatientID = date, patient
        reads.append(SimpleNamespace(source=SimpleNamespace(header_of=lambda k, header=header: header)))
    found, doubts = look_at_headers(*reads)
    assert found == days
    assert len(doubts) == len(words)
    for doubt, word in zip(doubts, words, strict=True):
        assert word in doubt
    assert look_at_headers(reads[0], SimpleNamespace(source=None)) == (None, ())


def test_a_visit_is_segmented_with_all_its_sequences_and_its_interval_is_that_of_the_expected_dice(
    save, make_visit, tmp_path
):
    taken = {"before": (make_visit(14.0), 0.9), "after": (make_visit(17.0), 0.95)}
    visits = [
        Visit(
            save(f"{name}.nii.gz", visit.scan.flair, visit.scan),
            t1=save(f"{name}_t1.nii", visit.scan.flair / 2, visit.scan),
            t1c=save(f"{name}_t1c.nii", visit.scan.flair / 3, visit.scan),
        )
        for name, (visit, _) in taken.items()
    ]
    cases = []

    def segment(given):
        for case, (name, (visit, dice)) in zip(given, taken.items(), strict=True):
            cases.append(case)
            assessment = SimpleNamespace(predicted_dice=dice)
            mask = save(f"{name}_mask.nii", visit.mask * 1.0, visit.scan)
            yield case, SimpleNamespace(mask=mask, assessment=assessment, warnings=(f"{name} is odd",))

    result = compare_visits(*visits, tmp_path / "out", segment)
    assert [(case.flair, case.t1, case.t1c) for case in cases] == [(v.flair, v.t1, v.t1c) for v in visits]
    assert [case.out for case in cases] == [tmp_path / "out" / name for name in taken]
    content = json.loads(result.report.read_text())
    for name, (_, dice) in taken.items():
        found = content[name]
        assert found["predicted_dice"] == dice
        assert found["volume_interval_ml"] == pytest.approx(volume_interval(found["volume_ml"], dice), abs=1e-3)
    assert content["change"]["distinguishable_from_no_change"] is True
    assert content["warnings"] == ["BEFORE: before is odd", "AFTER: after is odd"]


def test_the_command_segments_both_visits_and_says_one_line(ar2unet, bundle, anatomy, make_nifti, tmp_path):
    for name, gain in (("a", 1), ("b", 2)):
        make_nifti(f"{name}.nii.gz", volume=gain * anatomy[0])
    result = ar2unet("compare", "a.nii.gz", "b.nii.gz", "-o", "out", "--bundle", bundle, "--engine", "torch")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("a.nii.gz -> b.nii.gz: ")
    assert len(result.stdout.strip().splitlines()) == 1
    out = tmp_path / "out"
    assert (out / "before" / "a_mask.nii.gz").is_file()
    assert (out / "after" / "report.json").is_file()
    content = json.loads((out / "compare.json").read_text())
    report = json.loads((out / "after" / "report.json").read_text())
    assert content["after"]["lesion_voxels"] == report["lesion_voxels"]
    assert not content["after"]["mask_given"]


def test_a_scan_that_cannot_be_read_is_one_line_and_leaves_nothing(ar2unet, make_visit, save, tmp_path):
    visit = make_visit()
    path = save("a.nii.gz", visit.scan.flair, visit.scan)
    (tmp_path / "b.nii.gz").write_bytes(b"nothing")
    result = ar2unet("compare", path, "b.nii.gz", "-o", "out")
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("ar2unet: b.nii.gz")
    assert not (tmp_path / "out").exists()
