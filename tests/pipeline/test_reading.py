"""The door: what a scan may come as, what it is called, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.case import Case
from pipeline.errors import DatasetError, ScanError
from pipeline.reading import case_name, read_case

PATIENT = "TCGA_XX_0001_20000101"


@pytest.fixture
def slices(anatomy, tmp_path):
    """A patient's folder as the LGG data set has it: FLAIR the anatomy, t1 darker, t1c brighter."""
    folder = tmp_path / PATIENT
    folder.mkdir()
    volume = np.clip(anatomy[0] // 4, 0, 255)
    channels = np.stack([volume // 3, volume, volume // 2], axis=-1).astype(np.uint8)
    for k in range(volume.shape[2]):
        picture = np.ascontiguousarray(channels[::-1, ::-1, k].transpose(1, 0, 2))  # rows run back, columns left
        Image.fromarray(picture).save(folder / f"{PATIENT}_{k + 1}.tif")
    return folder


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/jane_FLAIR.nii.gz", "jane_FLAIR"),
        ("jane.v2.nii", "jane.v2"),
        ("JANE.NII.GZ", "JANE"),
        (".nii.gz", ".nii.gz"),
        ("...nii.gz", "...nii.gz"),  # not "..", which would be the folder above the results'
        ("..nii", "..nii"),
        ("jane.zip", "jane"),
        ("jane.IMA", "jane"),
        ("jane.mgz", "jane.mgz"),
    ],
)
def test_a_file_is_called_by_its_name_without_a_niftis_ending(path, name):
    assert case_name(Path(path)) == name
    assert Case(Path(path), Path("out")).name == name


def test_a_folder_is_called_by_its_name_even_where_it_is_the_current_one(tmp_path, monkeypatch):
    (tmp_path / "jane.nii.d").mkdir()
    assert case_name(tmp_path / "jane.nii.d") == "jane.nii.d"
    monkeypatch.chdir(tmp_path / "jane.nii.d")
    assert case_name(Path()) == "jane.nii.d"


def test_a_niftis_sequences_are_read_in_their_order(make_nifti, numbered_volume):
    files = {name: make_nifti(f"{name}.nii.gz", volume=factor * numbered_volume)
             for name, factor in {"t1": 2, "flair": 1, "t1c": 3}.items()}  # fmt: skip
    scan = read_case(files["flair"], files["t1"], files["t1c"]).scan
    for channel, factor in zip(scan.image, (2, 1, 3), strict=True):
        np.testing.assert_array_equal(channel, factor * numbered_volume.astype(np.float32))
    assert read_case(files["flair"]).scan.image.shape[0] == 1


def test_a_folder_of_slices_is_read_with_its_three_sequences_and_without_spacing(slices, anatomy):
    scan = read_case(slices).scan
    flair = np.clip(anatomy[0] // 4, 0, 255)[::-1, ::-1]
    for channel, share in zip(scan.image, (3, 1, 2), strict=True):
        np.testing.assert_array_equal(channel, flair // share)
    assert scan.spacing is None
    assert scan.source == str(slices)


def test_a_folder_takes_no_other_sequences_and_must_hold_a_patients_slices(slices, tmp_path, make_nifti):
    with pytest.raises(ScanError, match="holds its own t1 and t1c"):
        read_case(slices, t1c=make_nifti("t1c.nii.gz"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ScanError, match="empty: "):
        read_case(tmp_path / "empty")
    (slices / f"{PATIENT}_4.tif").unlink()
    with pytest.raises(DatasetError, match=PATIENT):
        read_case(slices)


def test_a_folder_whose_flair_does_not_vary_is_refused(tmp_path):
    folder = tmp_path / PATIENT
    folder.mkdir()
    picture = np.zeros((8, 9, 3), np.uint8)
    picture[2:5, 3:7, 0] = 90
    picture[..., 1] = 7
    for k in (1, 2):
        Image.fromarray(picture).save(folder / f"{PATIENT}_{k}.tif")
    with pytest.raises(ScanError, match=f"{PATIENT}: all FLAIR voxels are 7"):
        read_case(folder)


def test_a_sequence_on_another_grid_is_resampled_onto_the_flairs_and_a_note_says_so(make_nifti, make_affine, anatomy):
    flair = make_nifti("flair.nii.gz", orientation="LPS", volume=anatomy[0], spacing=(1.0, 1.2, 3.0))
    other = make_nifti("t1.nii.gz", orientation="LPS", volume=anatomy[0][:, :, ::2], spacing=(1.0, 1.2, 6.0))
    read = read_case(flair, t1=other)
    assert read.notes == ("t1 was resampled onto the FLAIR's grid",)
    np.testing.assert_allclose(read.scan.image[0, ..., 2], anatomy[0][..., 2], atol=1e-3)
    np.testing.assert_array_equal(read.scan.image[1], anatomy[0])
    np.testing.assert_array_equal(read.scan.image[2], anatomy[0])


def test_a_sequence_that_shows_another_place_is_refused(make_nifti, make_affine, anatomy):
    flair = make_nifti("flair.nii.gz", orientation="LPS", volume=anatomy[0])
    far = make_affine("LPS")
    far[:3, 3] += 500
    other = make_nifti("t1c.nii.gz", affine=far, volume=anatomy[0])
    with pytest.raises(ScanError, match="do not show the same place"):
        read_case(flair, t1c=other)


def test_without_spacing_sequences_must_lie_on_the_very_same_grid(make_nifti, anatomy):
    volume = anatomy[0]
    unknown = {"orientation": "LPS", "spacing": (1.0, 1.0, 1.0), "unit": "unknown"}
    flair, same = (make_nifti(f"{n}.nii.gz", volume=volume, **unknown) for n in ("flair", "t1"))
    other = make_nifti("t1c.nii.gz", volume=volume[:, :, 1:], **unknown)
    assert read_case(flair, t1=same).scan.spacing is None
    with pytest.raises(ScanError, match=r"t1c\.nii\.gz"):
        read_case(flair, t1c=other)


def test_a_series_is_named_for_dicom_only(make_nifti, slices):
    for path in (make_nifti(), slices):
        with pytest.raises(ScanError, match="--series goes with DICOM"):
            read_case(path, series="1.2.3")
