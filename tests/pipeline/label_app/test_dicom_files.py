"""DICOM in and DICOM SEG out for the server: what `segment` reads, and what highdicom and dciodvfy read back."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from highdicom import UID as new_uid  # noqa: N811
from highdicom.seg import Segmentation, SegmentDescription, segread
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.sr.codedict import codes

from pipeline.engines.artefact import hash_file
from pipeline.errors import ScanError
from pipeline.formats.dicom.reading import read_dicom
from pipeline.formats.nifti import read_mask, read_scan, write_mask
from pipeline.label_app.dicom_files import main, read_label, read_series, write_label, write_network_mask
from pipeline.label_app.dicom_labels import find_label, label_segments
from pipeline.reading import read_case

SHAPE = (11, 13, 7)
FLAIR, T1 = "1.2.826.0.1.3680043.10.1.5", "1.2.826.0.1.3680043.10.1.7"
DCIODVFY = shutil.which("dciodvfy")


def random_mask() -> NDArray[np.uint8]:
    """Every other voxel or so, but none in three slices."""
    mask = np.random.default_rng(3).integers(0, 2, SHAPE, np.uint8)
    mask[:, :, [0, 2, -1]] = 0
    return mask


@pytest.fixture
def series(write_series: Callable[..., Path], make_affine: Callable[..., NDArray[np.float64]]) -> Path:
    return write_series(affine=make_affine("oblique"))


@pytest.fixture
def mask(series: Path, tmp_path: Path) -> Path:
    write_mask(random_mask(), read_dicom(series).scan, tmp_path / "mask.nii.gz")
    return tmp_path / "mask.nii.gz"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "some_segmentation"
    for name, content in {"configs/metadata.json": '{"version": "1.2.3"}', "models/model.pt": "weights"}.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(content)
    return folder


def write_foreign(
    series: Path, path: Path, *, names: tuple[str, ...] = ("FLAIR abnormality",), kind: str = "MANUAL"
) -> Path:
    """Write the mask as another program may: its last segment, empty slices left out, headers of its own."""
    images = sorted((dcmread(file) for file in series.iterdir()), key=lambda image: image.InstanceNumber)
    for image in images:
        image.FrameOfReferenceUID = images[0].FrameOfReferenceUID
    pixels = np.zeros((SHAPE[2], SHAPE[1], SHAPE[0], len(names)), np.uint8)
    pixels[..., -1] = random_mask().transpose(2, 1, 0)[::-1]  # instance numbers run against the slices
    lesion = (codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion)
    segments = [SegmentDescription(n, name, *lesion, kind) for n, name in enumerate(names, start=1)]
    Segmentation(
        images, pixels, "BINARY", segments, new_uid(), 9, new_uid(), 1, "M", "N", "1", "2", omit_empty_frames=True
    ).save_as(path)
    return path


def check_with_dciodvfy(path: Path) -> None:
    if DCIODVFY is None:
        pytest.skip("dciodvfy (Debian: dicom3tools) is not installed")
    result = subprocess.run([DCIODVFY, path], capture_output=True, text=True, check=False)
    assert [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("Error")] == []


def test_a_series_becomes_the_very_scan_that_segment_reads(series: Path, tmp_path: Path) -> None:
    notes = read_series(series, FLAIR, tmp_path)
    assert any(FLAIR in note for note in notes)
    wanted, got = read_case(series).scan, read_scan(tmp_path / f"{FLAIR}_flair.nii.gz")
    np.testing.assert_array_equal(got.image, wanted.image)
    np.testing.assert_allclose(got.affine, wanted.affine, atol=1e-5)
    assert not list(tmp_path.glob("*_t1*"))
    for name, scan in (("got", got), ("wanted", wanted)):
        write_mask(random_mask(), scan, tmp_path / f"{name}.nii.gz")
    assert (tmp_path / "got.nii.gz").read_bytes() == (tmp_path / "wanted.nii.gz").read_bytes()


def test_t1_of_the_same_study_lies_on_the_grid_of_the_flair(write_series: Callable[..., Path], tmp_path: Path) -> None:
    write_series("study/flair")
    volume = np.random.default_rng(5).permutation(10 * 12 * 8).astype(np.int16).reshape(10, 12, 8)
    write_series("study/t1", volume=volume, uid=T1, description="T1 mprage", prefix="T")
    read_series(tmp_path / "study", FLAIR, tmp_path)
    wanted = read_case(tmp_path / "study", series=FLAIR).scan
    files = [tmp_path / f"{FLAIR}_{name}.nii.gz" for name in ("flair", "t1")]
    np.testing.assert_array_equal(read_scan(*files).image, wanted.image)
    assert (wanted.image[0] != wanted.image[1]).any()
    assert not (tmp_path / f"{FLAIR}_t1c.nii.gz").exists()


def test_a_saved_label_is_a_persons_and_comes_back_voxel_for_voxel(series: Path, mask: Path, tmp_path: Path) -> None:
    write_label(mask, series, FLAIR, tmp_path / "label.dcm", "0.8.5")
    label = segread(tmp_path / "label.dcm")
    (segment,) = label.SegmentSequence
    assert (segment.SegmentAlgorithmType, label.ManufacturerModelName) == ("SEMIAUTOMATIC", "MONAI Label")
    assert "SegmentationAlgorithmIdentificationSequence" not in segment
    assert label.file_meta.MediaStorageSOPInstanceUID == label.SOPInstanceUID
    scan = read_dicom(series).scan
    volume = label.get_volume(combine_segments=True)  # in LPS, slices against our normal
    np.testing.assert_array_equal(volume.array.transpose(2, 1, 0)[:, :, ::-1], random_mask())
    last = np.diag([-1, -1, 1, 1]) @ scan.affine @ (0, 0, SHAPE[2] - 1, 1)
    np.testing.assert_allclose(volume.affine[:3, 3], last[:3], atol=1e-6)
    check_with_dciodvfy(tmp_path / "label.dcm")
    read_label(tmp_path / "label.dcm", series, FLAIR, tmp_path / "back.nii.gz")
    assert (tmp_path / "back.nii.gz").read_bytes() == mask.read_bytes()


def test_a_label_saved_twice_is_two_series_of_one_study(series: Path, mask: Path, tmp_path: Path) -> None:
    labels = []
    for name in ("a.dcm", "b.dcm"):
        write_label(mask, series, FLAIR, tmp_path / name, "0.8.5")
        labels.append(find_label(dcmread(tmp_path / name)))
    first, second = labels
    assert first is not None
    assert second is not None
    assert {first.image, second.image} == {FLAIR}
    assert first.study == second.study == str(read_dicom(series).source.header_of(0).StudyInstanceUID)
    assert first.series != second.series
    assert first.instance != second.instance
    assert first.made < second.made


def test_the_networks_own_mask_names_its_weights_and_is_no_label(
    series: Path, mask: Path, bundle: Path, tmp_path: Path
) -> None:
    write_network_mask(mask, series, FLAIR, tmp_path / "mask.dcm", bundle, "model.pt")
    written = dcmread(tmp_path / "mask.dcm")
    assert written.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"
    assert written.DeviceSerialNumber == hash_file(bundle / "models" / "model.pt")
    assert (label_segments(written), find_label(written)) == ([], None)
    check_with_dciodvfy(tmp_path / "mask.dcm")


def test_the_label_of_another_program_is_read_by_its_name_and_place(series: Path, mask: Path, tmp_path: Path) -> None:
    foreign = write_foreign(series, tmp_path / "foreign.dcm", names=("background", "flair Abnormality"))
    assert label_segments(dcmread(foreign)) == [2]
    assert dcmread(foreign).NumberOfFrames < SHAPE[2]
    read_label(foreign, series, FLAIR, tmp_path / "back.nii.gz")
    np.testing.assert_array_equal(read_mask(tmp_path / "back.nii.gz").mask, read_mask(mask).mask)


def test_a_segment_of_another_name_is_no_label(series: Path, tmp_path: Path) -> None:
    assert find_label(dcmread(write_foreign(series, tmp_path / "a.dcm", names=("Hippocampus",)))) is None


def test_a_label_on_other_slices_is_refused(
    series: Path, write_series: Callable[..., Path], make_affine: Callable[..., NDArray[np.float64]], tmp_path: Path
) -> None:
    foreign = write_foreign(series, tmp_path / "foreign.dcm")
    moved = make_affine("oblique")
    moved[:3, 3] += (0.0, 0.6, 0.0)  # mm: less than a pixel
    other = write_series("moved", affine=moved)
    with pytest.raises(ScanError, match="expected frames on the slices of the series, got frame 1"):
        read_label(foreign, other, FLAIR, tmp_path / "back.nii.gz")
    larger = np.arange(11 * 14 * 7, dtype=np.int16).reshape(11, 14, 7)
    other = write_series("larger", affine=make_affine("oblique"), volume=larger)
    with pytest.raises(ScanError, match="expected frames of 11 x 14 pixels, as the series has, got 11 x 13"):
        read_label(foreign, other, FLAIR, tmp_path / "back.nii.gz")
    assert not (tmp_path / "back.nii.gz").exists()


def test_a_damaged_dicom_seg_is_refused(series: Path, tmp_path: Path) -> None:
    whole = write_foreign(series, tmp_path / "foreign.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[: len(whole) - 100])
    with pytest.raises(ScanError, match="the DICOM SEG cannot be read"):
        read_label(tmp_path / "cut.dcm", series, FLAIR, tmp_path / "back.nii.gz")


def test_the_command_says_in_one_line_what_is_wrong(
    write_series: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_series(edit=lambda header, k: k != 3)
    place = ("--folder", str(folder), "--series", FLAIR, "--out", str(tmp_path))
    assert main(("read-series", *place)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("expected slices every 4.50 mm, but 1 slice is missing")
    assert main(("read-series", "--folder", str(write_series("whole")), *place[2:])) == 0
    assert nib.load(tmp_path / f"{FLAIR}_flair.nii.gz").shape == SHAPE
