from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from pipeline.errors import ScanError
from pipeline.staging.reading import read_slices, stage_name


@pytest.mark.parametrize("codes", ["RPS", "RAS", "LPS", "LAI", "SPR", "PIL"])
def test_volumes_of_every_axis_order_come_out_in_the_training_frame(save_volume, codes, brain):
    read = read_slices(save_volume(brain, codes))
    assert read.slices.shape == (32, 208, 176)
    assert np.array_equal(read.slices, brain)
    assert not read.is_single


def test_a_taller_volume_keeps_all_slices(save_volume, brain):
    tall = np.concatenate([brain[5:10], brain])
    assert np.array_equal(read_slices(save_volume(tall, "LPI")).slices, tall)


def test_sides_are_known_only_where_the_file_knows_its_spacing(save_volume, save_slice, brain):
    assert not read_slices(save_volume(brain)).sides_known
    assert read_slices(save_volume(brain, unit="mm")).sides_known
    assert not read_slices(save_slice(brain[3])).sides_known


@pytest.mark.parametrize("shape", [(176, 208), (176, 208, 1)])
def test_one_slice_as_nifti_is_turned_by_its_affine(tmp_path, shape, brain):
    upwards = brain[3][::-1].T.reshape(shape)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(upwards), np.eye(4)), tmp_path / "s.nii")
    read = read_slices(tmp_path / "s.nii")
    assert read.is_single
    assert np.array_equal(read.slices[0], brain[3])


def flat_nifti(path, pixels, size=1.0, *, unit="mm", code=1):
    """A slice as NIfTI, axes to R and A, its spacing and orientation stated or not."""
    affine = np.diag([size, size, 4.0, 1.0])
    image = nib.Nifti1Image(np.ascontiguousarray(pixels[::-1].T)[..., None], affine)
    image.header.set_xyzt_units(unit)
    image.set_sform(affine, code=code)
    image.set_qform(affine, code=code)
    nib.save(image, path)
    return path


def test_the_sides_of_one_slice_are_known_only_where_its_file_states_spacing_and_orientation(tmp_path, brain):
    assert read_slices(flat_nifti(tmp_path / "a.nii", brain[3])).sides_known
    assert not read_slices(flat_nifti(tmp_path / "b.nii", brain[3], unit="unknown")).sides_known
    assert not read_slices(flat_nifti(tmp_path / "c.nii", brain[3], code=0)).sides_known


def test_pixels_of_another_size_are_refused_where_the_file_of_one_slice_states_it(tmp_path, brain):
    with pytest.raises(ScanError, match=r"got voxels of 2 x 2 mm$"):
        read_slices(flat_nifti(tmp_path / "a.nii", brain[3], 2.0))
    assert np.array_equal(
        read_slices(flat_nifti(tmp_path / "b.nii", brain[3], 2.0, unit="unknown")).slices[0], brain[3]
    )


def test_the_sides_of_a_volume_without_a_stated_orientation_are_not_known(save_volume, brain):
    path = save_volume(brain, "LAS", unit="mm")
    image = nib.load(path)
    for code in (1, 0):
        image.set_sform(image.affine, code=code)
        image.set_qform(image.affine, code=code)
        nib.save(image, path.with_name(f"{code}.nii"))
    assert read_slices(path.with_name("1.nii")).sides_known
    assert not read_slices(path.with_name("0.nii")).sides_known


def dicom(path, pixels, spacing=(1, 1), directions=(1, 0, 0, 0, 1, 0)):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(path, {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.Modality = generate_uid(), generate_uid(), "MR"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelSpacing, dataset.ImageOrientationPatient = list(spacing), list(directions)
    dataset.ImagePositionPatient, dataset.InstanceNumber = [0, 0, 0], 1
    dataset.PixelData = pixels.astype("<u2").tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_one_dicom_slice_is_turned_by_its_own_axes(tmp_path, brain):
    # DICOM's columns usually run to the patient's left; the training slices' to the right.
    read = read_slices(dicom(tmp_path / "s.dcm", brain[3][:, ::-1]))
    assert np.array_equal(read.slices[0], brain[3])
    assert read.sides_known


def refused(path, *words):
    with pytest.raises(ScanError) as caught:
        read_slices(path)
    line = str(caught.value)
    assert "\n" not in line
    assert line.count(str(path)) == 1
    for word in words:
        assert word in line


def test_a_dicom_slice_of_another_size_or_spacing_is_refused(tmp_path, brain):
    refused(dicom(tmp_path / "a.dcm", brain[3][:100]), "176x100x1")
    refused(dicom(tmp_path / "b.dcm", brain[3], (1.2, 1)), "voxels of 1.2 x 1 mm")


def test_volumes_of_other_sizes_and_spacings_are_refused_with_what_is_expected(save_volume, brain):
    refused(save_volume(brain[:, 1:], name="rows.nii.gz"), "OASIS/Talairach", "176x208 pixels", "176x207x32 voxels")
    refused(save_volume(brain[:31], name="few.nii.gz"), "at least 32", "176x208x31")
    refused(save_volume(brain, name="coarse.nii.gz", unit="mm", size=1.5), "voxels of 1.5 x 1.5 x 1.5 mm")
    sideways = save_volume(brain.transpose(1, 0, 2), name="coronal.nii.gz")
    refused(sideways, "across, from front to back and upwards")


def test_a_slice_of_nan_is_refused(tmp_path):
    nib.save(nib.Nifti1Image(np.full((176, 208), np.nan, np.float32), np.eye(4)), tmp_path / "s.nii")
    refused(tmp_path / "s.nii", "NaN")


def test_what_is_no_scan_is_refused(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    refused(tmp_path / "empty.png", "an empty file")
    (tmp_path / "text.nii").write_bytes(b"hello")
    refused(tmp_path / "text.nii", "as PNG, JPEG, NIfTI or DICOM")
    refused(tmp_path / "missing.png", "no such file")
    refused(tmp_path, "got a folder")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "device or pipe")
    (tmp_path / "cut.nii.gz").write_bytes(b"\x1f\x8b\x08")
    refused(tmp_path / "cut.nii.gz", "gzip")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.b.nii.gz", "a.b"), ("27 (1).jpg", "27 (1)"), ("x.PNG", "x"), (".png", ".png"), ("y", "y")],
)
def test_results_are_named_after_the_file(name, expected):
    assert stage_name(Path("folder", name)) == expected
