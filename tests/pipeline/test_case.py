"""One case: what is read, what is written, what things are called, and what is refused."""

from __future__ import annotations

import base64
import json

import nibabel as nib
import numpy as np
import pytest

from pipeline.case import Case, finish_case, prepare_case, segment_case
from pipeline.errors import AR2UNetError


@pytest.mark.parametrize("with_probabilities", [False, True])
def test_a_case_leaves_its_files_and_says_where_they_are(
    with_probabilities, make_predictor, make_nifti, anatomy, tmp_path
):
    volume, lesion = anatomy
    files = {name: make_nifti(f"{name}.nii.gz", orientation="RAS", volume=volume, spacing=(1, 1, 1), unit="unknown")
             for name in ("scan", "before", "after")}  # fmt: skip
    predictor, steps = make_predictor(), []
    result = segment_case(
        predictor,
        files["scan"],
        tmp_path / "new" / "out",
        t1=files["before"],
        t1c=files["after"],
        with_probabilities=with_probabilities,
        on_progress=lambda *step: steps.append(step),
    )
    written = {result.mask, result.report, result.page, result.overlay}
    written |= {result.probabilities} if with_probabilities else set()
    assert set((tmp_path / "new" / "out").iterdir()) == written
    assert result.mask.name == "scan_mask.nii.gz"
    mask = np.asarray(nib.load(result.mask).dataobj)
    np.testing.assert_array_equal(mask, lesion)
    assert (result.probabilities is not None) == with_probabilities
    if with_probabilities:
        assert result.probabilities.name == "scan_probabilities.nii.gz"
        np.testing.assert_array_equal(np.asarray(nib.load(result.probabilities).dataobj) > 0.5, lesion)
    assert result.measurements.lesion_voxels == lesion.sum()
    assert result.mesh is None
    page = result.page.read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2  # the montage and the slice with most lesion
    assert base64.b64encode(result.overlay.read_bytes()).decode() in page
    assert "cannot be given" in page  # millilitres
    assert steps[-1][0] == steps[-1][1]

    report = json.loads(result.report.read_text())
    assert report["inputs"] == {"t1": "before.nii.gz", "flair": "scan.nii.gz", "t1c": "after.nii.gz"}
    assert report["lesion_voxels"] == lesion.sum()
    assert report["engine"] == predictor.engine
    assert report["weights_sha256"] == predictor.weights_sha256
    seconds = report["seconds"]
    assert seconds.pop("total") == pytest.approx(sum(seconds.values()), abs=0.01)
    assert result.seconds == pytest.approx(sum(seconds.values()), abs=0.01)


def test_nothing_is_written_before_the_last_step(make_predictor, make_nifti, anatomy, tmp_path):
    predictor = make_predictor()
    ready = prepare_case(predictor, Case(make_nifti("scan.nii.gz", volume=anatomy[0]), tmp_path / "out"))
    assert ready.read.scan.spatial_shape == anatomy[0].shape
    inferred = predictor.infer(ready.prepared)
    assert not (tmp_path / "out").exists()
    assert finish_case(predictor, ready, inferred).mask.parent == tmp_path / "out"


def test_a_folder_for_results_that_cannot_be_made_is_named(make_predictor, make_nifti, anatomy, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(AR2UNetError, match=r"cannot make the folder .*taken/out"):
        segment_case(make_predictor(), make_nifti("scan.nii.gz", volume=anatomy[0]), tmp_path / "taken" / "out")


def test_a_mesh_is_written_where_asked_for(make_predictor, make_nifti, anatomy, tmp_path):
    scan = make_nifti("scan.nii.gz", orientation="RAS", volume=anatomy[0])
    result = segment_case(make_predictor(), scan, tmp_path / "out", with_mesh=True)
    assert result.mesh == tmp_path / "out" / "scan_lesion.stl"
    assert int.from_bytes(result.mesh.read_bytes()[80:84], "little") > 100
    assert not [warning for warning in result.warnings if "mesh" in warning]


def test_where_there_can_be_no_mesh_the_report_says_why_and_the_rest_is_done(
    make_predictor, make_nifti, anatomy, tmp_path
):
    scan = make_nifti("scan.nii.gz", orientation="RAS", volume=anatomy[0], spacing=(1, 1, 1), unit="unknown")
    result = segment_case(make_predictor(), scan, tmp_path / "out", with_mesh=True)
    assert result.mesh is None
    (warning,) = [warning for warning in result.warnings if "mesh" in warning]
    assert warning.startswith("no mesh was written: ")
    assert "spacing" in warning
    assert warning in json.loads(result.report.read_text())["warnings"]
    assert set((tmp_path / "out").iterdir()) == {result.mask, result.report, result.page, result.overlay}
