"""One case: what is read, what is written, what things are called, and what is refused."""

from __future__ import annotations

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
    written = {result.mask, result.report, result.overlay} | ({result.probabilities} if with_probabilities else set())
    assert set((tmp_path / "new" / "out").iterdir()) == written
    assert result.mask.name == "scan_mask.nii.gz"
    mask = np.asarray(nib.load(result.mask).dataobj)
    np.testing.assert_array_equal(mask, lesion)
    assert (result.probabilities is not None) == with_probabilities
    if with_probabilities:
        assert result.probabilities.name == "scan_probabilities.nii.gz"
        np.testing.assert_array_equal(np.asarray(nib.load(result.probabilities).dataobj) > 0.5, lesion)
    assert result.measurements.lesion_voxels == lesion.sum()
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
