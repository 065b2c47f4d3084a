"""DICOM series made from numbered volumes: names are shuffled, and instance numbers run against the slices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UID, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage

from pipeline.errors import ScanError
from pipeline.formats.dicom.reading import read_dicom

PATIENT = "DOE^JANE"
STUDY = "1.2.826.0.1.3680043.10.1"
FLAIR_UID, T1_UID, T1C_UID = (f"{STUDY}.{number}" for number in (5, 7, 9))
FRAME_OF_REFERENCE = f"{STUDY}.1000"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

Edit = Callable[[Dataset, int], object]


def _decimal(values: Any) -> list[str]:
    return [f"{value:.12g}"[:16] for value in np.ravel(values)]


def _header(uid: str, description: str | None, number: int) -> Dataset:
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 100"
    header.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    header.StudyDate = header.PatientBirthDate = "20200102"
    header.StudyTime = "101112"
    header.AccessionNumber = header.StudyID = "1"
    header.Modality = "MR"
    header.Manufacturer = "Test"
    if description is not None:
        header.SeriesDescription = description
    header.PatientName = PATIENT
    header.PatientID = "PATIENT-ID-77"
    header.PatientSex = "O"
    header.StudyInstanceUID = STUDY
    header.SeriesInstanceUID = uid
    header.SeriesNumber = number
    header.FrameOfReferenceUID = FRAME_OF_REFERENCE
    header.PositionReferenceIndicator = ""
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    return header


def _set_pixels(header: Dataset, frames: NDArray[np.generic], syntax: UID, encode: Callable[..., bytes] | None) -> None:
    """Fill in pixels ``(frames, rows, columns)``."""
    header.Rows, header.Columns = frames.shape[1:]
    header.BitsAllocated = header.BitsStored = 8 * frames.dtype.itemsize
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = int(np.issubdtype(frames.dtype, np.signedinteger))
    header.PixelData = frames.tobytes() if encode is None else encapsulate([encode(frame) for frame in frames])
    header["PixelData"].VR = "OB" if encode is not None else "OW"
    header["PixelData"].is_undefined_length = encode is not None
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = header.SOPClassUID
    meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.file_meta = meta


def _save(header: Dataset, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    syntax = header.file_meta.TransferSyntaxUID
    file = FileDataset(None, header, b"\0" * 128, header.file_meta, syntax.is_implicit_VR, syntax.is_little_endian)
    file.save_as(path, enforce_file_format=True)


def _as_lps(affine: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    lps = LPS @ affine
    return lps, np.linalg.norm(lps[:3, :3], axis=0)


@pytest.fixture
def write_series(
    tmp_path: Path, numbered_volume: NDArray[np.int16], make_affine: Callable[..., NDArray[np.float64]]
) -> Callable[..., Path]:
    """Write the slices ``[:, :, k]`` of a volume as MR images, a file each, and return their folder.

    ``edit(header, k)`` may change what is about to be written; if it returns False, the slice is left out.
    """

    def write(
        folder: str = "study",
        *,
        volume: NDArray[np.generic] = numbered_volume,
        affine: NDArray[np.float64] | None = None,
        uid: str = FLAIR_UID,
        description: str | None = "t2_tirm_tra_dark-fluid",
        number: int = 5,
        prefix: str = "IM",
        edit: Edit = lambda header, k: None,
        syntax: UID = ExplicitVRLittleEndian,
        encode: Callable[..., bytes] | None = None,
    ) -> Path:
        lps, spacing = _as_lps(make_affine("LPS") if affine is None else affine)
        slices = volume.shape[2]
        names = np.random.default_rng(7).permutation(slices)
        for k in range(slices):
            header = _header(uid, description, number)
            header.SOPClassUID = MRImageStorage
            header.SOPInstanceUID = f"{uid}.{k + 1}"
            header.InstanceNumber = slices - k
            header.ImagePositionPatient = _decimal(lps[:3, 3] + k * lps[:3, 2])
            header.ImageOrientationPatient = _decimal((lps[:3, :2] / spacing[:2]).T)
            header.PixelSpacing = _decimal([spacing[1], spacing[0]])
            header.SliceThickness = _decimal(spacing[2])[0]
            _set_pixels(header, np.ascontiguousarray(volume[:, :, k].T)[None], syntax, encode)
            if edit(header, k) is not False:
                _save(header, tmp_path / folder / f"{prefix}{names[k]:03d}")
        return tmp_path / folder

    return write


@pytest.fixture
def write_multiframe(
    tmp_path: Path, numbered_volume: NDArray[np.int16], make_affine: Callable[..., NDArray[np.float64]]
) -> Callable[..., Path]:
    """Write the slices of a volume, in an order of their own, as one enhanced MR image, and return its file."""

    def write(
        name: str = "enhanced.dcm",
        *,
        volume: NDArray[np.int16] = numbered_volume,
        affine: NDArray[np.float64] | None = None,
        order: Any = None,
        edit: Callable[[Dataset], object] = lambda header: None,
        syntax: UID = ExplicitVRLittleEndian,
        encode: Callable[..., bytes] | None = None,
    ) -> Path:
        lps, spacing = _as_lps(make_affine("LPS") if affine is None else affine)
        order = list(range(volume.shape[2])) if order is None else order
        header = _header(FLAIR_UID, "FLAIR 3D", 5)
        header.SOPClassUID = EnhancedMRImageStorage
        header.SOPInstanceUID = f"{FLAIR_UID}.1"
        header.InstanceNumber = 1
        header.NumberOfFrames = len(order)
        shared, measures, orientation = Dataset(), Dataset(), Dataset()
        measures.PixelSpacing = _decimal([spacing[1], spacing[0]])
        measures.SliceThickness = _decimal(spacing[2])[0]
        orientation.ImageOrientationPatient = _decimal((lps[:3, :2] / spacing[:2]).T)
        shared.PixelMeasuresSequence = Sequence([measures])
        shared.PlaneOrientationSequence = Sequence([orientation])
        header.SharedFunctionalGroupsSequence = Sequence([shared])
        groups = []
        for k in order:
            group, position, rescaling = Dataset(), Dataset(), Dataset()
            position.ImagePositionPatient = _decimal(lps[:3, 3] + k * lps[:3, 2])
            rescaling.RescaleSlope, rescaling.RescaleIntercept = "2", str(k)
            group.PlanePositionSequence = Sequence([position])
            group.PixelValueTransformationSequence = Sequence([rescaling])
            groups.append(group)
        header.PerFrameFunctionalGroupsSequence = Sequence(groups)
        frames = np.ascontiguousarray(volume[:, :, order].transpose(2, 1, 0))
        _set_pixels(header, frames, syntax, encode)
        edit(header)
        _save(header, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def refusal() -> Callable[..., str]:
    """Have an input refused; the message is one line, names the path, and names no patient."""

    def refuse(path: Path, **arguments: Any) -> str:
        with pytest.raises(ScanError) as caught:
            read_dicom(path, **arguments)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        assert "DOE" not in message
        assert "PATIENT-ID-77" not in message
        return message

    return refuse
