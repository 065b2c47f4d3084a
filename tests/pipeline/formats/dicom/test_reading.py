from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRBigEndian, RLELossless

from pipeline.formats.dicom.reading import read_dicom
from pipeline.predictor import SEGMENTATION_BUNDLE

CLINICAL = SEGMENTATION_BUNDLE.parents[2] / "shared" / "data" / "clinical_flair" / "ms_patient01_study1_FLAIR.nii.gz"
CORONAL, SAGITTAL = "LIP", "PIR"  # axes to these, slices along the third
OTHER_UID, T1_UID, T1C_UID = (f"1.2.826.0.1.3680043.10.1.{number}" for number in (6, 7, 9))

Grid = NDArray[np.float64]


def as_sorted(volume: NDArray[np.generic], affine: Grid) -> tuple[NDArray[np.generic], Grid]:
    """A volume as slices sorted along their normal have it: with axes that are right-handed in LPS."""
    if np.linalg.det(affine[:3, :3]) > 0:
        return volume, affine
    flip = np.eye(4)
    flip[2, 2], flip[2, 3] = -1, volume.shape[2] - 1
    return volume[:, :, ::-1], affine @ flip


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LAS", "LPI", "oblique", CORONAL, "RSA", SAGITTAL, "PSR"])
def test_every_voxel_and_the_affine_come_back_whatever_names_and_numbers_say(
    orientation, write_series, make_affine, numbered_volume
):
    affine = make_affine(orientation)
    found = read_dicom(write_series(affine=affine))
    volume, grid = as_sorted(numbered_volume, affine)
    np.testing.assert_array_equal(found.scan.image[0], volume)
    np.testing.assert_allclose(found.scan.affine, grid, atol=1e-6)
    np.testing.assert_allclose(found.scan.spacing, (0.9, 1.1, 4.5), atol=1e-6)
    assert found.scan.image.dtype == np.float32


@pytest.mark.parametrize("orientation", ["LPS", "oblique", SAGITTAL])
def test_each_slice_transposed_is_the_frame_of_its_header(orientation, write_series, make_affine):
    found = read_dicom(write_series(affine=make_affine(orientation)))
    assert not found.source.is_multiframe
    assert found.source.frames == (1,) * 7
    for k in range(7):
        header = found.source.header_of(k)
        assert "PixelData" not in header
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ found.scan.affine @ (0, 0, k, 1)
        np.testing.assert_allclose(lps[:3], [float(value) for value in header.ImagePositionPatient], atol=1e-6)
        assert (header.Columns, header.Rows) == found.scan.spatial_shape[:2]
        assert header.PatientID == "PATIENT-ID-77"
        assert "TransferSyntaxUID" in header.file_meta
    assert len({found.source.header_of(k).SOPInstanceUID for k in range(7)}) == 7


def test_the_source_does_not_print_who_the_patient_is(write_series):
    assert "DOE" not in repr(read_dicom(write_series()))


def test_other_series_other_files_and_nested_folders_do_not_disturb(write_series, numbered_volume, tmp_path):
    folder = write_series("study/a/b")
    write_series("study/c", uid=OTHER_UID, description="t2_tse_tra", number=6, volume=numbered_volume[::-1])
    write_series("study/c", uid=T1C_UID + "1", description="localizer", number=1, prefix="LOC")
    (tmp_path / "study" / "readme.txt").write_text("DICM is not here\n" * 20)
    (tmp_path / "study" / "a" / "scan.nii.gz").write_bytes(b"\x1f\x8b\x08 no dicom")
    (tmp_path / "study" / "a" / ".hidden").write_bytes(b"")
    shutil.copy(get_testdata_file("CT_small.dcm"), tmp_path / "study" / "ct")
    shutil.copy(get_testdata_file("reportsi.dcm"), tmp_path / "study" / "report")
    shutil.copy(get_testdata_file("rtplan.dcm"), tmp_path / "study" / "plan")
    shutil.copy(get_testdata_file("DICOMDIR"), tmp_path / "study" / "DICOMDIR")
    found = read_dicom(tmp_path / "study")
    np.testing.assert_array_equal(found.scan.image, read_dicom(folder).scan.image)
    assert len(found.notes) == 1
    assert found.warnings == ()


def test_a_zip_is_read_in_memory_and_equals_its_folder(write_series, tmp_path):
    folder = write_series("study/nested")
    (tmp_path / "study" / "notes.txt").write_text("x" * 300)
    archive = tmp_path / "study.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted((tmp_path / "study").rglob("*")):
            file.write(path, path.relative_to(tmp_path))
        file.writestr("__MACOSX/._IM001", b"")
        file.writestr("../../outside", (folder / "IM001").read_bytes()[:140])
    before = sorted(tmp_path.rglob("*"))
    found, expected = read_dicom(archive), read_dicom(folder)
    np.testing.assert_array_equal(found.scan.image, expected.scan.image)
    np.testing.assert_array_equal(found.scan.affine, expected.scan.affine)
    assert sorted(tmp_path.rglob("*")) == before
    assert not (tmp_path.parent.parent / "outside").exists()
    (warning,) = found.warnings  # a damaged file among good ones is named
    assert "outside: expected a SeriesInstanceUID" in warning


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_of_one_name_in_a_zip_stay_apart(write_series, numbered_volume, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in write_series().iterdir():
            archive.writestr("IM", path.read_bytes())
    np.testing.assert_array_equal(read_dicom(tmp_path / "a.zip").scan.image[0], numbered_volume)


@pytest.mark.parametrize("orientation", ["LPS", "LPI", "oblique", CORONAL])
def test_a_multi_frame_file_comes_back_with_the_frame_number_of_each_slice(
    orientation, write_multiframe, make_affine, numbered_volume
):
    affine, order = make_affine(orientation), [3, 0, 6, 1, 5, 2, 4]
    found = read_dicom(write_multiframe(affine=affine, order=order))
    rescaled = 2 * numbered_volume.astype(np.float32) + np.arange(7)  # slope 2 and intercept k, frame by frame
    volume, grid = as_sorted(rescaled, affine)
    np.testing.assert_array_equal(found.scan.image[0], volume)
    np.testing.assert_allclose(found.scan.affine, grid, atol=1e-6)
    assert found.source.is_multiframe
    numbers = [order.index(k) + 1 for k in range(7)]
    assert found.source.frames == tuple(numbers if np.linalg.det(affine[:3, :3]) > 0 else numbers[::-1])
    assert "PixelData" not in found.source.datasets[0]
    assert len(found.source.datasets[0].PerFrameFunctionalGroupsSequence) == 7


def test_enhanced_files_of_one_frame_each_are_slices_too(write_multiframe, numbered_volume, tmp_path):
    for k in range(7):

        def renumber(header: Dataset, k: int = k) -> None:
            header.SOPInstanceUID = f"{header.SOPInstanceUID}.{k}"

        write_multiframe(f"study/{(3 * k) % 7}", order=[k], edit=renumber)
    found = read_dicom(tmp_path / "study")
    np.testing.assert_array_equal(found.scan.image[0], 2 * numbered_volume.astype(np.float32) + np.arange(7))
    assert not found.source.is_multiframe


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32])
def test_stored_values_of_every_kind_come_back(dtype, write_series):
    limits = np.iinfo(dtype)
    volume = np.random.default_rng(3).integers(limits.min, limits.max, (11, 13, 7), dtype, endpoint=True)
    found = read_dicom(write_series(volume=volume))
    np.testing.assert_array_equal(found.scan.image[0], volume.astype(np.float32))


def test_bits_beyond_those_stored_are_no_intensities(write_series, numbered_volume):
    overlaid = numbered_volume | (np.arange(7) % 2 << 12).astype(np.int16)  # an overlay in bit 12

    def store_12_bits(header: Dataset, k: int) -> None:
        header.BitsStored, header.HighBit, header.PixelRepresentation = 12, 11, 0

    found = read_dicom(write_series(volume=overlaid, edit=store_12_bits))
    np.testing.assert_array_equal(found.scan.image[0], numbered_volume)


def test_each_slice_is_rescaled_by_its_own_slope_and_intercept(write_series, numbered_volume):
    def rescale(header: Dataset, k: int) -> None:
        header.RescaleSlope, header.RescaleIntercept = str(0.5 * (k + 1)), str(-10 * k)

    found = read_dicom(write_series(edit=rescale))
    slices = np.arange(7)
    np.testing.assert_array_equal(found.scan.image[0], numbered_volume * 0.5 * (slices + 1) - 10 * slices)


def test_where_high_values_are_dark_the_volume_is_inverted(write_series, numbered_volume):
    def invert(header: Dataset, k: int) -> None:
        header.PhotometricInterpretation = "MONOCHROME1"

    found = read_dicom(write_series(edit=invert))
    np.testing.assert_array_equal(found.scan.image[0], numbered_volume.max() - numbered_volume)


def test_big_endian_and_files_without_preamble_are_read(write_series, numbered_volume):
    def to_big_endian(header: Dataset, k: int) -> None:
        header.PixelData = np.frombuffer(header.PixelData, "<i2").astype(">i2").tobytes()

    swapped = read_dicom(write_series("big", syntax=ExplicitVRBigEndian, edit=to_big_endian))
    np.testing.assert_array_equal(swapped.scan.image[0], numbered_volume)
    bare = write_series("bare")
    for path in bare.iterdir():
        content = path.read_bytes()
        meta_bytes = 12 + int.from_bytes(content[140:144], "little")
        path.write_bytes(content[132 + meta_bytes :])
    found = read_dicom(bare)
    np.testing.assert_array_equal(found.scan.image[0], numbered_volume)
    assert found.source.datasets[0].file_meta.TransferSyntaxUID.is_little_endian


def test_t1_and_t1c_are_found_beside_the_flair_on_grids_of_their_own(write_series, make_affine, numbered_volume):
    study = write_series()
    coarse = make_affine("LPS", (1.1, 1.2, 5.0))
    write_series(uid=T1_UID, description="t1_mprage_sag", number=7, prefix="A", affine=make_affine(SAGITTAL))
    t1c = np.ascontiguousarray(numbered_volume[::-1])
    write_series(uid=T1C_UID, description="t1_tse_tra +C", number=9, prefix="B", affine=coarse, volume=t1c)
    found = read_dicom(study)
    assert found.scan.image.shape == (1, 11, 13, 7)
    assert found.t1 is None  # turned by a right angle, it lies elsewhere
    assert any(note.startswith(f"no t1 taken: {T1_UID}") and "%" in note for note in found.notes)
    np.testing.assert_array_equal(found.t1c.image[0], t1c)
    np.testing.assert_allclose(found.t1c.affine, coarse, atol=1e-6)
    alone = read_dicom(study, with_t1=False)
    assert alone.t1 is None
    assert alone.t1c is None


def test_a_damaged_t1_costs_only_itself(write_series):
    study = write_series()
    write_series(uid=T1_UID, description="t1", number=7, prefix="A", edit=lambda header, k: k != 3)
    found = read_dicom(study)
    assert found.t1 is None
    assert any("no t1 taken" in note and "1 slice is missing" in note for note in found.notes)


def test_two_t1_are_left_out_and_named(write_series):
    study = write_series()
    for number in (7, 8):
        write_series(uid=f"{T1_UID}{number}", description="t1", number=number, prefix=f"A{number}")
    found = read_dicom(study)
    assert found.t1 is None
    assert any("more than one" in note and f"{T1_UID}8" in note for note in found.notes)


def test_a_t1_of_another_session_is_not_taken(write_series):
    def move(header: Dataset, k: int) -> None:
        header.FrameOfReferenceUID = "1.2.3"

    study = write_series()
    write_series(uid=T1_UID, description="t1", number=7, prefix="A", edit=move)
    assert read_dicom(study).t1 is None


def test_a_series_named_by_its_uid_is_read_whatever_it_says(write_series, numbered_volume):
    study = write_series()
    other = np.ascontiguousarray(numbered_volume[:, ::-1])
    write_series(uid=OTHER_UID, description="t2_tse_tra", number=6, prefix="B", volume=other)
    np.testing.assert_array_equal(read_dicom(study, series=OTHER_UID).scan.image[0], other)


def test_a_localiser_inside_the_series_is_set_aside_with_a_note(write_series, make_affine, numbered_volume):
    study = write_series()
    write_series(affine=make_affine(SAGITTAL), prefix="AAA", edit=lambda header, k: k < 2)
    write_series(volume=numbered_volume[:8], prefix="ZZZ", edit=lambda header, k: k == 4)
    found = read_dicom(study)
    np.testing.assert_array_equal(found.scan.image[0], numbered_volume)
    notes = [note for note in found.notes if "localiser" in note]
    assert len(notes) == 2
    assert "2 slices" in notes[0]
    assert "AAA" in notes[0]
    assert "sagittal" in notes[0]
    assert "8 x 13 pixels" in notes[1]


def test_identical_slices_are_kept_once_with_a_note(write_series, numbered_volume):
    study = write_series()
    for path in sorted(study.iterdir())[:2]:
        shutil.copy(path, path.with_name(f"copy_of_{path.name}"))
    found = read_dicom(study)
    np.testing.assert_array_equal(found.scan.image[0], numbered_volume)
    assert "2 identical copies of slices left out: copy_of_IM000, copy_of_IM001" in found.notes


def test_a_damaged_file_of_another_series_is_named_and_the_rest_is_read(write_series):
    study = write_series()
    (study / "X1").write_bytes((study / "IM001").read_bytes()[:300])
    (study / "X2").write_bytes(b"")
    (warning,) = read_dicom(study).warnings
    assert "X1: expected a SeriesInstanceUID" in warning
    assert "X2: is empty" in warning


@pytest.mark.parametrize(("orientation", "plane"), [(CORONAL, "coronal"), (SAGITTAL, "sagittal")])
def test_thick_slices_that_are_not_axial_are_warned_about(orientation, plane, write_series, make_affine):
    (warning,) = read_dicom(write_series(affine=make_affine(orientation))).warnings
    assert warning.startswith(f"{plane} slices 4.5 mm apart: ")


@pytest.mark.parametrize(("orientation", "spacing"), [(CORONAL, (1.0, 1.1, 1.4)), ("LPS", (0.5, 0.6, 6.0))])
def test_isotropic_and_axial_series_are_not_warned_about(orientation, spacing, write_series, make_affine):
    assert read_dicom(write_series(affine=make_affine(orientation, spacing))).warnings == ()


def test_positions_rounded_by_the_scanner_are_even(write_series, make_affine):
    def round_positions(header: Dataset, k: int) -> None:
        header.ImagePositionPatient = [f"{float(value):.2f}" for value in header.ImagePositionPatient]

    affine = make_affine("oblique")
    found = read_dicom(write_series(affine=affine, edit=round_positions))
    np.testing.assert_allclose(found.scan.affine, affine, atol=0.01)


REAL = ("MR_small", "MR_small_RLE", "MR_small_bigendian", "MR_small_implicit", "MR_small_jp2klossless")


def test_one_scanner_file_in_every_transfer_syntax_is_the_same_picture(tmp_path):
    """Of pydicom's MR file, the copies are told to lie above each other; their pixels are as the scanner's."""
    for k, name in enumerate((*REAL, "MR_small_jpeg_ls_lossless", "MR_small_padded")):
        header = dcmread(get_testdata_file(f"{name}.dcm"))
        header.ImagePositionPatient[2] = 4.5 * k
        header.save_as(tmp_path / f"{10 - k}")
    pixels = dcmread(get_testdata_file("MR_small.dcm")).pixel_array.T
    found = read_dicom(tmp_path)
    np.testing.assert_array_equal(found.scan.image[0], np.repeat(pixels[:, :, None], 7, axis=2))
    assert found.scan.spacing == pytest.approx((0.3125, 0.3125, 4.5))
    assert any("no tag says FLAIR" in note for note in found.notes)


@pytest.mark.skipif(not CLINICAL.is_file(), reason="the clinical FLAIR scans do not lie beside the repository")
def test_a_clinical_scan_made_into_a_series_equals_its_nifti(write_series):
    image = nib.load(CLINICAL)
    volume, affine = np.asarray(image.dataobj).astype(np.int16), np.asarray(image.affine)
    found = read_dicom(write_series(volume=volume, affine=affine))
    expected, grid = as_sorted(volume, affine)
    np.testing.assert_array_equal(found.scan.image[0], expected)
    np.testing.assert_allclose(found.scan.affine, grid, atol=1e-3)
    np.testing.assert_allclose(found.scan.spacing, image.header.get_zooms()[:3], atol=1e-4)


def test_many_threads_may_read_at_once(write_series, numbered_volume):
    folders = []
    for n in range(6):
        volume = np.roll(numbered_volume, n, axis=0)
        folders.append(
            (volume, write_series(f"study{n}", volume=volume, edit=lambda header, k: header.compress(RLELossless)))
        )
    with ThreadPoolExecutor(6) as pool:
        for (volume, _), found in zip(folders, pool.map(read_dicom, [path for _, path in folders]), strict=True):
            np.testing.assert_array_equal(found.scan.image[0], volume)


def test_a_series_is_read_the_same_twice(write_series: Callable[..., Path]):
    first, second = (read_dicom(write_series()) for _ in range(2))
    np.testing.assert_array_equal(first.scan.image, second.scan.image)
    assert first.notes == second.notes


def test_what_a_file_is_filled_up_with_behind_its_pixels_is_not_read(write_series, numbered_volume):
    folder = write_series()
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes() + bytes(2**12))  # as some archives do, to whole blocks
    found = read_dicom(folder)
    np.testing.assert_array_equal(found.scan.image[0], numbered_volume)
    assert all(0 not in header for header in found.source.datasets)
