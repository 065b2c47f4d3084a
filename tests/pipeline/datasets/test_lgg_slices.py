from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from pipeline.datasets.lgg_slices import read_lgg_patient
from pipeline.errors import DatasetError

FIRST = "TCGA_CS_4941_19960909"


def test_every_pixel_of_every_slice_comes_to_its_voxel_in_the_order_of_the_numbers(patient):
    read = read_lgg_patient(patient.folder)

    assert read.patient == FIRST
    assert read.volume.shape == (3, 7, 6, 11)
    assert read.volume.dtype == read.label.dtype == np.uint8
    for number in range(1, 12):
        for row in range(6):
            for column in range(7):
                voxel = (column, row, number - 1)
                assert read.volume[(slice(None), *voxel)].tolist() == patient.slices[number - 1, row, column].tolist()
                assert read.label[voxel] == patient.masks[number - 1, row, column] / 255


def test_the_affine_says_left_posterior_superior_in_units_of_one_voxel(patient):
    affine = read_lgg_patient(patient.folder).affine
    assert nib.aff2axcodes(affine) == ("L", "P", "S")
    np.testing.assert_array_equal(np.abs(affine), np.eye(4))


def test_without_masks_a_patient_is_read_from_its_slices_alone(patient):
    with_masks = read_lgg_patient(patient.folder)
    for number in range(1, 12):
        patient.mask_path(number).unlink()
    read = read_lgg_patient(patient.folder, with_mask=False)
    assert read.label is None
    np.testing.assert_array_equal(read.volume, with_masks.volume)


def test_a_renamed_folder_keeps_the_name_of_its_slices(patient):
    renamed = patient.folder.rename(patient.folder.with_name("scan"))
    assert read_lgg_patient(renamed).patient == FIRST


def test_hidden_and_foreign_files_are_no_slices(patient):
    (patient.folder / f"._{FIRST}_1.tif").write_bytes(b"left by a Mac")
    (patient.folder / "notes.txt").write_text("nothing")
    assert read_lgg_patient(patient.folder).volume.shape == (3, 7, 6, 11)


def test_a_broken_patient_is_refused_with_the_patient_and_the_slice_in_one_line(patient, breakage):
    damage, message = breakage
    damage(patient)
    with pytest.raises(DatasetError, match=f"{FIRST}.*{message}") as caught:
        read_lgg_patient(patient.folder)
    assert "\n" not in str(caught.value)


def test_a_folder_that_does_not_exist_is_refused_by_name(tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere.*_1\.tif"):
        read_lgg_patient(tmp_path / "nowhere")
