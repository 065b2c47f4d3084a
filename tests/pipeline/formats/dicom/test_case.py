"""A DICOM study through the whole of ``segment_case``: found, segmented, and given back as DICOM."""

from __future__ import annotations

import json

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest

from pipeline.case import Case, finish_case, prepare_case, segment_case
from pipeline.errors import ScanError
from pipeline.reading import read_case

FLAIR_UID, T1_UID = "1.2.3.5", "1.2.3.7"


@pytest.fixture
def study(write_series, anatomy, make_affine):
    """A folder with a FLAIR of the anatomy and a T1 of the same place."""
    affine = make_affine("LPS", (0.9, 1.1, 4.5))
    write_series(volume=anatomy[0], affine=affine, uid=FLAIR_UID, description="Ax FLAIR")
    return write_series(
        volume=anatomy[0] // 2, affine=affine, uid=T1_UID, description="Ax T1 pre", number=7, prefix="T1"
    )


def test_the_mask_of_a_study_comes_back_as_nifti_and_as_dicom_seg(study, make_predictor, tmp_path):
    result = segment_case(make_predictor(), study, tmp_path / "out", with_probabilities=True)
    mask = np.asarray(nib.load(result.mask).dataobj)
    assert mask.any()
    segmentation = highdicom.seg.segread(result.segmentation)
    to_voxel = np.linalg.inv(nib.load(result.mask).affine)
    for frame, groups in zip(segmentation.pixel_array, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        left, posterior, superior = groups.PlanePositionSequence[0].ImagePositionPatient
        i, j, k = (to_voxel @ [-left, -posterior, superior, 1])[:3]
        np.testing.assert_allclose([i, j], 0, atol=1e-4)
        np.testing.assert_array_equal(frame, mask[..., round(k)].T)
    assert {item.SeriesInstanceUID for item in segmentation.ReferencedSeriesSequence} == {FLAIR_UID}
    fractional = pydicom.dcmread(tmp_path / "out" / "study_probabilities_seg.dcm", stop_before_pixels=True)
    assert fractional.SegmentationType == "FRACTIONAL"
    report = json.loads(result.report.read_text())
    assert any("FLAIR" in note for note in report["notes"])
    assert report["spacing_mm"] == pytest.approx([0.9, 1.1, 4.5])


def test_a_study_brings_its_own_t1_and_the_missing_sequence_is_flair(study):
    image = read_case(study).scan.image
    np.testing.assert_array_equal(image[0], image[1] // 2)
    np.testing.assert_array_equal(image[2], image[1])


def test_what_is_doubtful_reaches_the_report_and_the_user(study, make_predictor, tmp_path):
    (study / "damaged.dcm").write_bytes(bytes(128) + b"DICM" + b"\x07\x00" * 40)
    predictor = make_predictor()
    ready = prepare_case(predictor, Case(study, tmp_path / "out"))
    result = finish_case(predictor, ready, predictor.infer(ready.prepared))
    assert any("damaged.dcm" in warning for warning in result.warnings)
    assert json.loads(result.report.read_text())["warnings"] == list(result.warnings)


def test_headers_that_no_dicom_seg_can_refer_to_cost_only_the_dicom_seg(
    write_series, anatomy, make_affine, make_predictor, tmp_path
):
    affine = make_affine("LPS", (0.9, 1.1, 4.5))
    study = write_series(
        volume=anatomy[0], affine=affine, edit=lambda header, k: header.__delattr__("StudyInstanceUID")
    )
    result = segment_case(make_predictor(), study, tmp_path / "out")
    assert result.segmentation is None
    assert nib.load(result.mask).shape == anatomy[0].shape
    assert result.overlay.is_file()
    (warning,) = json.loads(result.report.read_text())["warnings"]
    assert "no DICOM SEG was written" in warning
    assert "StudyInstanceUID" in warning


def test_a_series_is_read_by_its_uid_and_a_study_takes_no_other_files(study, make_nifti):
    image = read_case(study, series=T1_UID).scan.image
    assert image[len(image) // 2].max() < read_case(study).scan.image[1].max()
    with pytest.raises(ScanError, match="study: a DICOM study holds its own t1 and t1c"):
        read_case(study, t1=make_nifti("t1.nii.gz"))
    with pytest.raises(ScanError, match=r"1\.2\.3\.99"):
        read_case(study, series="1.2.3.99")
