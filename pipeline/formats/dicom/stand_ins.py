"""Clean headers in the place of a scanner's own, for libraries that take the standard at its letter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.formats.dicom.headers import find_value, first_of, numbers
from pipeline.formats.dicom.source import DicomSource
from pipeline.formats.scan import Scan

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.valuerep import DSfloat

__all__ = ["make_stand_ins"]

# How far a slice's header may be from the scan's affine: the reader evens out positions within 0.1 mm.
GRID_TOLERANCE = 0.25  # mm
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
MAX_SERIES_NUMBER = 10_000_000  # beyond which there is no room for that of a result

# What is taken over from the source, besides UIDs and geometry. The standard wants the first ones even if empty.
REQUIRED = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
OPTIONAL = (
    "IssuerOfPatientID", "PatientIdentityRemoved", "DeidentificationMethod", "StudyDescription",
    "PositionReferenceIndicator", "Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions",
)  # fmt: skip
LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
CODED_VALUES = {"PatientSex": ("M", "F", "O"), "PatientIdentityRemoved": ("YES", "NO")}


def make_stand_ins(scan: Scan, source: DicomSource) -> list[Dataset]:
    """Make datasets for highdicom in the place of the source's, with just what it reads, in the form it expects.

    Scanners' own headers often break the standard's letter, at which highdicom fails. Of a multi-frame source
    only the frames that are slices are there, in their order.

    Raises:
        ValueError: If the scan does not lie where its source does.
    """
    from pydicom import Dataset
    from pydicom.uid import EnhancedMRImageStorage, MRImageStorage

    common = _copy_common(source.header_of(0))
    orientation, measures, positions = _copy_geometry(scan, source)
    if not source.is_multiframe:
        common.SOPClassUID = MRImageStorage
        images = [Dataset() for _ in positions]
        for k, (image, position) in enumerate(zip(images, positions, strict=True)):
            for part in (common, orientation, measures, position):
                image.update(part)
            image.SOPInstanceUID = source.header_of(k).SOPInstanceUID
        return images
    common.SOPClassUID = EnhancedMRImageStorage
    common.SOPInstanceUID = source.header_of(0).SOPInstanceUID
    common.NumberOfFrames = len(positions)
    shared = Dataset()
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    common.SharedFunctionalGroupsSequence = [shared]
    groups = [Dataset() for _ in positions]
    for group, position in zip(groups, positions, strict=True):
        group.PlanePositionSequence = [position]
    common.PerFrameFunctionalGroupsSequence = groups
    return [common]


def _copy_common(header: Dataset) -> Dataset:
    """Copy what holds for all slices: patient, study, series, equipment and the size."""
    from pydicom import Dataset
    from pydicom.uid import generate_uid

    common = Dataset()
    common.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: it has what any other has
    for keyword in (*REQUIRED, *OPTIONAL):
        value = _copy_value(header, keyword)
        if value or keyword in REQUIRED:
            setattr(common, keyword, value)
    for keyword in LOSSY if find_value(header, LOSSY[0]) == "01" else ():
        setattr(common, keyword, find_value(header, keyword))
    common.StudyInstanceUID, common.SeriesInstanceUID = header.StudyInstanceUID, header.SeriesInstanceUID
    frame_of_reference = find_value(header, "FrameOfReferenceUID")
    common.FrameOfReferenceUID = frame_of_reference or generate_uid(entropy_srcs=[common.SeriesInstanceUID, "frame"])
    number = numbers(find_value(header, "SeriesNumber"), 1)
    common.SeriesNumber = int(number[0]) if number and 0 <= number[0] <= MAX_SERIES_NUMBER else 0
    common.Modality = "MR"
    common.Rows, common.Columns = header.Rows, header.Columns
    return common


def _copy_value(header: Dataset, keyword: str) -> str:
    """Return an element as text; empty where it is missing, or no such value as highdicom takes."""
    from pydicom.valuerep import DA, TM

    value = str(first_of(find_value(header, keyword)) or "")
    if value not in CODED_VALUES.get(keyword, (value,)):
        return ""
    parse = DA if keyword.endswith("Date") else TM if keyword.endswith("Time") else str
    try:
        return str(parse(value) or "")
    except ValueError:
        return ""


def _copy_geometry(scan: Scan, source: DicomSource) -> tuple[Dataset, Dataset, list[Dataset]]:
    """Copy orientation and pixel measures, which hold for all slices, and the position of each.

    They are the headers' own, not the scan's affine: the slices of a scanner may be off a perfect grid by a trifle.
    """
    from pydicom import Dataset

    def copy(keyword: str, group: str, k: int = 0) -> Dataset:
        result = Dataset()
        setattr(result, keyword, _decimal(find_value(source.header_of(k), keyword, source.frames[k], group)))
        return result

    orientation = copy("ImageOrientationPatient", "PlaneOrientationSequence")
    measures = copy("PixelSpacing", "PixelMeasuresSequence")
    positions = [copy("ImagePositionPatient", "PlanePositionSequence", k) for k in range(len(source.frames))]
    _check_grid(scan, source, orientation, measures, positions)
    between = float(np.linalg.norm(scan.affine[:3, 2]))
    thickness = numbers(find_value(source.header_of(0), "SliceThickness", source.frames[0], "PixelMeasuresSequence"), 1)
    measures.SliceThickness = _decimal(thickness if thickness and thickness[0] > 0 else [between])[0]
    measures.SpacingBetweenSlices = _decimal([between])[0]
    return orientation, measures, positions


def _decimal(values: Iterable[float]) -> list[DSfloat]:
    from pydicom.valuerep import DSfloat

    return [DSfloat(float(value), auto_format=True) for value in values]


def _check_grid(
    scan: Scan, source: DicomSource, orientation: Dataset, measures: Dataset, positions: Sequence[Dataset]
) -> None:
    """Refuse a scan that was turned, resampled or cropped since it was read."""
    header = source.header_of(0)
    columns, rows, slices = scan.spatial_shape
    if (header.Columns, header.Rows, len(positions)) != scan.spatial_shape:
        expected = f"{len(positions)} slices of {header.Columns} x {header.Rows} pixels"
        raise ValueError(f"scan must be the source's: {expected}, got {slices} of {columns} x {rows}")
    between_rows, between_columns = measures.PixelSpacing
    origins = np.array([position.ImagePositionPatient for position in positions], dtype=np.float64)
    along_row, down_column = np.array(orientation.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    for i, j in ((0, 0), (columns - 1, 0), (0, rows - 1)):
        voxels = np.stack([np.full(slices, i), np.full(slices, j), np.arange(slices), np.ones(slices)])
        expected_lps = origins + i * between_columns * along_row + j * between_rows * down_column
        off = np.abs((LPS_FROM_RAS @ scan.affine @ voxels)[:3].T - expected_lps).max()
        if off > GRID_TOLERANCE:
            raise ValueError(f"scan must lie where its source does within {GRID_TOLERANCE} mm, is off by {off:.2f} mm")
