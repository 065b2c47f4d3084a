"""The masks of numbered volumes, written as DICOM SEG and read back by highdicom, dcmqi and dciodvfy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from highdicom.seg import Segmentation, segread
from numpy.typing import NDArray
from pydicom import Dataset

from pipeline.errors import AR2UNetError, ScanError
from pipeline.formats.dicom.headers import quiet_pydicom
from pipeline.formats.dicom.reading import read_dicom
from pipeline.formats.dicom.segmentation import write_fractional_segmentation, write_segmentation
from pipeline.formats.dicom.source import DicomScan, DicomSource
from pipeline.formats.scan import Scan
from pipeline.predictor import SEGMENTATION_BUNDLE

CLINICAL = SEGMENTATION_BUNDLE.parents[2] / "shared" / "data" / "clinical_flair" / "ms_patient01_study1_FLAIR.nii.gz"
SHAPE = (11, 13, 7)
ORDER = [3, 0, 6, 1, 5, 2, 4]  # of a multi-frame file's frames
CORONAL, SAGITTAL = "LIP", "PIR"
MODEL: dict[str, Any] = {
    "model_name": "flair_abnormality_segmentation",
    "model_version": "1.2.3",
    "weights_sha256": "0123456789abcdef" * 4,
    "created": datetime(2026, 3, 4, 5, 6, 7),
}
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
DCIODVFY = shutil.which("dciodvfy")
DCMQI = shutil.which("segimage2itkimage", path=str(Path(sys.executable).parent)) or shutil.which("segimage2itkimage")
needs_dciodvfy = pytest.mark.skipif(DCIODVFY is None, reason="dciodvfy (Debian: dicom3tools) is not installed")
needs_dcmqi = pytest.mark.skipif(DCMQI is None, reason="segimage2itkimage (PyPI: dcmqi) is not installed")

Found = Callable[..., DicomScan]


def random_mask(shape: tuple[int, ...] = SHAPE) -> NDArray[np.uint8]:
    """Every other voxel or so, but none in slice 2 nor in the first and last."""
    mask = np.random.default_rng(3).integers(0, 2, shape, np.uint8)
    mask[:, :, [0, 2, -1]] = 0
    return mask


@pytest.fixture(params=["axial", "oblique", "coronal", "sagittal", "enhanced", "enhanced oblique"])
def found(request, write_series, write_multiframe, make_affine) -> DicomScan:
    axes = {"coronal": CORONAL, "sagittal": SAGITTAL, "oblique": "oblique"}.get(request.param.split()[-1], "LPS")
    if request.param.startswith("enhanced"):
        return read_dicom(write_multiframe(affine=make_affine(axes), order=ORDER))
    return read_dicom(write_series(affine=make_affine(axes)))


def write(found: DicomScan, path: Path, mask: NDArray[np.generic] | None = None, **changes: Any) -> Segmentation:
    write_segmentation(random_mask() if mask is None else mask, found.scan, found.source, path, **MODEL | changes)
    return segread(path)


def as_scan_has_it(frames: NDArray[np.generic], affine: Any) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """``(K, rows, columns)`` and affine of highdicom, in LPS and with slices against our normal, as a scan has them."""
    flip = np.eye(4)
    flip[2, 2], flip[2, 3] = -1, len(frames) - 1
    return frames.transpose(2, 1, 0)[:, :, ::-1], LPS @ affine[:, [2, 1, 0, 3]] @ flip


def check_with_dciodvfy(path: Path) -> None:
    result = subprocess.run([DCIODVFY, path], capture_output=True, text=True, check=False)
    lines = (result.stdout + result.stderr).splitlines()
    assert "Segmentation" in lines[0] or any(line == "Segmentation" for line in lines), lines
    assert [line for line in lines if line.startswith("Error")] == []


def read_with_dcmqi(path: Path, folder: Path) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    folder.mkdir()
    command = [DCMQI, "--inputDICOM", path, "--outputDirectory", folder, "--outputType", "nrrd"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    image = SimpleITK.ReadImage(folder / "1.nrrd")
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), LPS @ affine


def test_highdicom_reads_every_voxel_and_the_affine_back(found, tmp_path):
    volume = write(found, tmp_path / "a.dcm").get_volume(combine_segments=True)
    mask, affine = as_scan_has_it(volume.array, volume.affine)
    np.testing.assert_array_equal(mask, random_mask())
    np.testing.assert_allclose(affine, found.scan.affine, atol=1e-6)


@needs_dcmqi
def test_dcmqi_reads_every_voxel_and_the_affine_back(found, tmp_path):
    write(found, tmp_path / "a.dcm")
    mask, affine = read_with_dcmqi(tmp_path / "a.dcm", tmp_path / "out")
    np.testing.assert_array_equal(mask, random_mask())
    np.testing.assert_allclose(affine, found.scan.affine, atol=1e-4)


@needs_dciodvfy
def test_dciodvfy_finds_no_error(found, tmp_path):
    write(found, tmp_path / "a.dcm")
    check_with_dciodvfy(tmp_path / "a.dcm")
    write_fractional_segmentation(random_mask() / 3, found.scan, found.source, tmp_path / "b.dcm", **MODEL)
    check_with_dciodvfy(tmp_path / "b.dcm")


def test_each_frame_is_its_slice_transposed_and_refers_to_it(found, tmp_path):
    segmentation = write(found, tmp_path / "a.dcm")
    assert segmentation.NumberOfFrames == 7
    source, mask = found.source, random_mask()
    pixels = segmentation.pixel_array
    for k, group in zip(reversed(range(7)), segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        (image,) = group.DerivationImageSequence[0].SourceImageSequence
        header = source.header_of(k)
        assert image.ReferencedSOPInstanceUID == header.SOPInstanceUID
        assert image.ReferencedSOPClassUID == header.SOPClassUID
        assert image.SpatialLocationsPreserved == "YES"
        assert image.get("ReferencedFrameNumber") == (source.frames[k] if source.is_multiframe else None)
        lps = LPS @ found.scan.affine @ (0, 0, k, 1)
        np.testing.assert_allclose(group.PlanePositionSequence[0].ImagePositionPatient, lps[:3], atol=1e-6)
        np.testing.assert_array_equal(pixels[6 - k], mask[:, :, k].T)


def test_the_series_and_all_its_instances_are_referred_to(found, tmp_path):
    segmentation = write(found, tmp_path / "a.dcm")
    header = found.source.header_of(0)
    (series,) = segmentation.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == header.SeriesInstanceUID
    expected = [(item.SOPClassUID, item.SOPInstanceUID) for item in found.source.datasets]
    for sequence in (series.ReferencedInstanceSequence, segmentation.SourceImageSequence):
        assert [(item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) for item in sequence] == expected
    assert segmentation.SeriesInstanceUID != header.SeriesInstanceUID
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "StudyDate", "PatientSex"):
        assert segmentation[keyword].value == header[keyword].value


def test_frames_of_a_multi_frame_file_that_are_no_slices_are_not_referred_to(write_multiframe, tmp_path):
    found = read_dicom(write_multiframe(order=ORDER))
    scan = Scan(found.scan.image[..., :5], found.scan.affine, found.scan.spacing, "")
    source = DicomSource(found.source.datasets, found.source.frames[:5])
    write_segmentation(random_mask()[..., :5], scan, source, tmp_path / "a.dcm", **MODEL)
    segmentation = segread(tmp_path / "a.dcm")
    np.testing.assert_array_equal(as_scan_has_it(segmentation.pixel_array, np.eye(4))[0], random_mask()[..., :5])
    references = [
        group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        for group in segmentation.PerFrameFunctionalGroupsSequence
    ]
    assert references == [ORDER.index(k) + 1 for k in (4, 3, 2, 1, 0)]


def test_the_segment_is_described_in_coded_terms(write_series, tmp_path):
    segmentation = write(read_dicom(write_series()), tmp_path / "a.dcm")
    (segment,) = segmentation.SegmentSequence
    for keyword, expected in (
        ("SegmentedPropertyCategoryCodeSequence", ("49755003", "SCT", "Morphologically Abnormal Structure")),
        ("SegmentedPropertyTypeCodeSequence", ("52988006", "SCT", "Lesion")),
        ("AnatomicRegionSequence", ("12738006", "SCT", "Brain")),
    ):
        (code,) = segment[keyword]
        assert (code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning) == expected
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("AR2-UNet", "1.2.3")
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeValue == "123110"  # artificial intelligence
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    assert segment.SegmentLabel == segment.TrackingID == "FLAIR abnormality"
    assert segmentation.ManufacturerModelName == MODEL["model_name"]
    assert segmentation.DeviceSerialNumber == MODEL["weights_sha256"]
    assert segmentation.SoftwareVersions[1] == "flair_abnormality_segmentation 1.2.3"
    assert segmentation.ContentQualification == "RESEARCH"
    assert (segmentation.SeriesNumber, segmentation.ContentDate) == (501, "20260304")


@needs_dcmqi
@needs_dciodvfy
def test_an_empty_mask_has_a_frame_a_slice_all_the_same(found, tmp_path):
    segmentation = write(found, tmp_path / "a.dcm", np.zeros(SHAPE, bool))
    assert segmentation.NumberOfFrames == 7
    assert not segmentation.pixel_array.any()
    check_with_dciodvfy(tmp_path / "a.dcm")
    mask, affine = read_with_dcmqi(tmp_path / "a.dcm", tmp_path / "out")
    assert mask.shape == SHAPE
    assert not mask.any()
    np.testing.assert_allclose(affine, found.scan.affine, atol=1e-4)


def test_probabilities_come_back_within_half_a_step_in_a_series_of_their_own(found, tmp_path):
    probabilities = np.random.default_rng(4).random(SHAPE)
    probabilities[:, :, 3], probabilities[0, 0, 0], probabilities[1, 0, 0] = 0, 1, 0.002
    write_fractional_segmentation(probabilities, found.scan, found.source, tmp_path / "b.dcm", **MODEL)
    fractional = segread(tmp_path / "b.dcm")
    assert (fractional.SegmentationType, fractional.SegmentationFractionalType) == ("FRACTIONAL", "PROBABILITY")
    assert (fractional.BitsAllocated, fractional.MaximumFractionalValue, fractional.NumberOfFrames) == (8, 255, 7)
    volume = fractional.get_volume(rescale_fractional=True)
    values, affine = as_scan_has_it(volume.array[..., 0], volume.affine)
    np.testing.assert_allclose(values, probabilities, atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(affine, found.scan.affine, atol=1e-6)
    binary = write(found, tmp_path / "a.dcm")
    assert fractional.SeriesInstanceUID != binary.SeriesInstanceUID
    assert fractional.SeriesNumber != binary.SeriesNumber
    assert fractional.SegmentSequence[0].TrackingUID == binary.SegmentSequence[0].TrackingUID


def test_the_same_result_is_the_same_file_and_another_one_another_instance(found, tmp_path):
    first = write(found, tmp_path / "a.dcm")
    again = write(found, tmp_path / "b.dcm")
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    assert write(found, tmp_path / "c.dcm", created=None).SOPInstanceUID == first.SOPInstanceUID
    mask = random_mask()
    mask[5, 6, 3] ^= 1
    others = [
        write(found, tmp_path / "d.dcm", mask),
        write(found, tmp_path / "e.dcm", model_version="1.2.4"),
        write(found, tmp_path / "f.dcm", weights_sha256="f" * 64),
    ]
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert len({item[keyword].value for item in (first, again, *others)}) == 4


@pytest.mark.parametrize("dtype", [bool, np.int64, np.float32])
def test_a_mask_may_be_of_any_type_and_order_in_memory(dtype, write_series, tmp_path):
    found = read_dicom(write_series())
    mask = random_mask()
    expected = write(found, tmp_path / "a.dcm").PixelData
    for order in "CF":
        assert write(found, tmp_path / "b.dcm", mask.astype(dtype, order=order)).PixelData == expected


def test_headers_that_break_the_standards_letter_are_no_obstacle(write_series, tmp_path):
    def edit(header: Dataset, k: int) -> None:
        header.PatientSex = "FEMALE"
        header.PatientBirthDate, header.StudyDate, header.StudyTime = "unknown", "2020-01-02", "at noon"
        header.PatientID = "7" * 80
        header.PatientName = "Müller^Jürgen"
        header.AccessionNumber = "A" * 30
        header.SeriesNumber = -3
        header.SliceThickness = None
        header.ManufacturerModelName = ["one", "two"]
        del header.FrameOfReferenceUID, header.StudyID, header.Manufacturer

    quiet_pydicom()  # it would warn of what is written here
    found = read_dicom(write_series(edit=edit))
    segmentation = write(found, tmp_path / "a.dcm")
    np.testing.assert_array_equal(as_scan_has_it(segmentation.pixel_array, np.eye(4))[0], random_mask())
    assert segmentation.PatientName == "Müller^Jürgen"
    assert segmentation.PatientID == "7" * 80  # or an archive would take it for another patient
    for keyword in ("PatientSex", "PatientBirthDate", "StudyDate", "StudyTime", "StudyID"):
        assert not segmentation[keyword].value
    assert segmentation.SeriesNumber == 1
    assert segmentation.FrameOfReferenceUID
    assert segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 4.5


@needs_dciodvfy
def test_a_series_stripped_of_names_gives_a_valid_segmentation(write_series, tmp_path):
    def strip(header: Dataset, k: int) -> None:
        for keyword in ("PatientName", "PatientID", "PatientSex", "PatientBirthDate", "StudyDate", "StudyTime"):
            del header[keyword]
        del header.AccessionNumber, header.StudyID, header.Manufacturer, header.SpecificCharacterSet

    write(read_dicom(write_series(edit=strip)), tmp_path / "a.dcm")
    check_with_dciodvfy(tmp_path / "a.dcm")


def test_the_frames_keep_positions_that_are_off_the_grid_by_a_trifle(write_series, tmp_path):
    def jitter(header: Dataset, k: int) -> None:
        header.ImagePositionPatient[2] += 0.04 * (-1) ** k

    found = read_dicom(write_series(edit=jitter))
    for k, group in zip(
        reversed(range(7)), write(found, tmp_path / "a.dcm").PerFrameFunctionalGroupsSequence, strict=True
    ):
        position = group.PlanePositionSequence[0].ImagePositionPatient
        assert position == found.source.header_of(k).ImagePositionPatient


@pytest.mark.parametrize("stored", [["YES", "20"], ["01", "20"]])
def test_what_was_made_from_lossy_pixels_says_so(stored, write_series, tmp_path):
    def edit(header: Dataset, k: int) -> None:
        header.LossyImageCompression, header.LossyImageCompressionRatio = stored
        header.LossyImageCompressionMethod = "ISO_15444_1"

    segmentation = write(read_dicom(write_series(edit=edit)), tmp_path / "a.dcm")
    assert segmentation.LossyImageCompression == ("01" if stored[0] == "01" else "00")
    assert segmentation.get("LossyImageCompressionRatio") == (20 if stored[0] == "01" else None)


def test_enhanced_images_of_one_frame_each_are_referred_to_as_such(write_series, tmp_path):
    def edit(header: Dataset, k: int) -> None:
        header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
        header.NumberOfFrames = 1

    segmentation = write(read_dicom(write_series(edit=edit)), tmp_path / "a.dcm")
    assert {item.ReferencedSOPClassUID.name for item in segmentation.SourceImageSequence} == {
        "Enhanced MR Image Storage"
    }


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SOPInstanceUID", "SOPClassUID"])
def test_slices_that_cannot_be_referred_to_are_refused_in_one_line(keyword, write_series, tmp_path):
    found = read_dicom(write_series())
    del found.source.datasets[3][keyword]
    with pytest.raises(ScanError, match=f"^{tmp_path}.*the {keyword} of each slice, slice 4 of 7 has none$"):
        write(found, tmp_path / "a.dcm")
    assert list(tmp_path.glob("*.dcm*")) == []


def test_masks_and_probabilities_that_are_none_are_refused(write_series, tmp_path):
    found = read_dicom(write_series())
    rest = (found.scan, found.source, tmp_path / "a.dcm")
    for shape in ((13, 11, 7), (7, 13, 11), (1, *SHAPE), SHAPE[:2]):
        with pytest.raises(ValueError, match=r"mask must have the scan's shape \(11, 13, 7\), got"):
            write_segmentation(np.zeros(shape, np.uint8), *rest, **MODEL)
        with pytest.raises(ValueError, match=r"probabilities must have the scan's shape"):
            write_fractional_segmentation(np.zeros(shape), *rest, **MODEL)
    for value in (2, -1, 0.5, np.nan):
        with pytest.raises(ValueError, match="mask must hold 0 and 1 only"):
            write_segmentation(np.full(SHAPE, value), *rest, **MODEL)
    for value in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="probabilities must lie between 0 and 1"):
            write_fractional_segmentation(np.full(SHAPE, value), *rest, **MODEL)
    assert not rest[-1].exists()


def test_a_scan_that_is_not_the_sources_is_refused(write_series, make_affine, tmp_path):
    found = read_dicom(write_series(affine=make_affine("oblique")))
    scan, source = found.scan, found.source
    image, affine = scan.image, scan.affine
    moved, flipped = affine.copy(), affine @ np.diag([1, 1, -1, 1])
    moved[:3, 3] += 1
    swapped = DicomSource(source.datasets[::-1], source.frames)
    fewer = DicomSource(source.datasets[:-1], source.frames[:-1])
    turned = Scan(image.transpose(0, 2, 1, 3), affine, scan.spacing, "")
    for wrong, of in (
        (Scan(image, moved, scan.spacing, ""), source),
        (Scan(image, flipped, scan.spacing, ""), source),
        (Scan(image, affine @ np.diag([1.1, 1, 1, 1]), scan.spacing, ""), source),
        (Scan(image, affine @ np.diag([1, 1.1, 1, 1]), scan.spacing, ""), source),
        (scan, swapped),
        (scan, fewer),
        (turned, source),
    ):
        with pytest.raises(ValueError, match="scan must"):
            write_segmentation(np.zeros(wrong.spatial_shape), wrong, of, tmp_path / "a.dcm", **MODEL)


def test_a_folder_that_is_not_there_is_named(write_series, tmp_path):
    with pytest.raises(AR2UNetError, match="nowhere"):
        write(read_dicom(write_series()), tmp_path / "nowhere" / "a.dcm")


@needs_dcmqi
@needs_dciodvfy
@pytest.mark.skipif(not CLINICAL.is_file(), reason="the clinical FLAIR scans do not lie beside the repository")
def test_the_mask_of_a_clinical_scan_comes_back_from_dcmqi(write_series, tmp_path):
    image = nib.load(CLINICAL)
    volume = np.asarray(image.dataobj).astype(np.int16)
    found = read_dicom(write_series(volume=volume, affine=np.asarray(image.affine)))
    mask = found.scan.flair > np.percentile(found.scan.flair, 97)
    write(found, tmp_path / "a.dcm", mask)
    check_with_dciodvfy(tmp_path / "a.dcm")
    back, affine = read_with_dcmqi(tmp_path / "a.dcm", tmp_path / "out")
    np.testing.assert_array_equal(back, mask)
    np.testing.assert_allclose(affine, found.scan.affine, atol=1e-3)
