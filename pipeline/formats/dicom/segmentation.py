"""Masks and probabilities as DICOM SEG, on the slices of the series they were made from.

Every slice of the scan becomes a frame, also those without a voxel of the mask: viewers and converters then have
the whole grid, and an empty mask says "looked at, nothing found" instead of being no file at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ScanError
from pipeline.formats.atomic import atomic_write
from pipeline.formats.dicom.headers import find_value, first_of, numbers
from pipeline.formats.dicom.source import DicomSource
from pipeline.formats.scan import Scan

if TYPE_CHECKING:
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom import Dataset
    from pydicom.valuerep import DSfloat

__all__ = ["write_fractional_segmentation", "write_segmentation"]

SOFTWARE = "ar2unet-monai"
ALGORITHM = "AR2-UNet"
LABEL = "FLAIR abnormality"
DESCRIPTION = "Tissue brighter than normal on FLAIR: the lesion with its edema"
COLOR = (255, 176, 0)  # of the lesion, as in the pictures
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
REFERENCES = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
CODED_VALUES = {"PatientSex": ("M", "F", "O"), "PatientIdentityRemoved": ("YES", "NO")}


def write_segmentation(
    mask: NDArray[np.generic],
    scan: Scan,
    source: DicomSource,
    path: Path,
    *,
    model_name: str,
    model_version: str,
    weights_sha256: str,
    created: datetime | None = None,
) -> None:
    """Write a mask as a BINARY DICOM SEG in the study of its scan, as a series of its own.

    Its UIDs follow from the source's, the mask and the model: made again, the same result is the same
    instance, which an archive keeps once; another result is another one. Only the time of writing differs,
    and with the same ``created`` the files are equal byte for byte.

    Args:
        mask: ``(I, J, K)`` on the scan's grid, 0 background and 1 FLAIR abnormality, of any type; may be empty.
        scan: As read, on the grid of the series.
        source: What the scan was read from.
        path: Of the file, which appears under its name only when it is complete.
        model_name: The bundle's name, at most 64 characters, as the version.
        model_version: The bundle's version.
        weights_sha256: Of the weights file, 64 hexadecimal digits.
        created: Local time for the file to state; None for now.

    Raises:
        ValueError: If the shape is not the scan's, a value is not 0 or 1, or the scan is not the source's.
        ScanError: If the source's headers lack what a DICOM SEG must refer to.
        AR2UNetError: If the file cannot be written.
    """
    if not all((plane == plane.astype(bool)).all() for plane in mask.transpose()):  # plane by plane: no copy in memory
        raise ValueError(f"mask must hold 0 and 1 only, got values from {mask.min()} to {mask.max()}")
    _check_shape("mask", mask, scan)
    frames = mask.transpose(2, 1, 0).astype(np.uint8, order="C")
    _write("BINARY", frames, scan, source, path, (model_name, model_version, weights_sha256), created)


def write_fractional_segmentation(
    probabilities: NDArray[np.floating],
    scan: Scan,
    source: DicomSource,
    path: Path,
    *,
    model_name: str,
    model_version: str,
    weights_sha256: str,
    created: datetime | None = None,
) -> None:
    """Write probabilities as a FRACTIONAL DICOM SEG (PROBABILITY), in steps of 1/255.

    It is a series apart from the mask's, for many viewers show one segmentation a series.

    Args:
        probabilities: ``(I, J, K)`` on the scan's grid, from 0 to 1.
        scan: As in ``write_segmentation``, like all that follow.
        source: Of the scan.
        path: Of the file.
        model_name: The bundle's name.
        model_version: The bundle's version.
        weights_sha256: Of the weights file.
        created: Local time for the file to state; None for now.

    Raises:
        ValueError: If the shape is not the scan's, a value is not from 0 to 1, or the scan is not the source's.
        ScanError: If the source's headers lack what a DICOM SEG must refer to.
        AR2UNetError: If the file cannot be written.
    """
    low, high = float(probabilities.min()), float(probabilities.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"probabilities must lie between 0 and 1, got values from {low:g} to {high:g}")
    _check_shape("probabilities", probabilities, scan)
    frames = probabilities.transpose(2, 1, 0).astype(np.float32, order="C")
    _write("FRACTIONAL", frames, scan, source, path, (model_name, model_version, weights_sha256), created)


def _check_shape(name: str, volume: NDArray[np.generic], scan: Scan) -> None:
    if volume.shape != scan.spatial_shape:
        raise ValueError(f"{name} must have the scan's shape {scan.spatial_shape}, got {volume.shape}")


def _check_references(scan: Scan, source: DicomSource) -> None:
    for k, header in enumerate(source.datasets):
        for keyword in REFERENCES:
            if not find_value(header, keyword):
                where = f"slice {k + 1} of {len(source.datasets)}"
                raise ScanError(f"{scan.source}: a DICOM SEG refers to the {keyword} of each slice, {where} has none")


def _write(
    kind: str,
    frames: NDArray[np.generic],
    scan: Scan,
    source: DicomSource,
    path: Path,
    model: tuple[str, str, str],
    created: datetime | None,
) -> None:
    """Write frames ``(K, rows, columns)``."""
    from highdicom.seg import Segmentation
    from pydicom import dcmwrite
    from pydicom.uid import generate_uid

    _check_references(scan, source)
    images = _stand_in(scan, source)
    software = f"{SOFTWARE} {metadata.version(SOFTWARE)}"
    made = created or datetime.now()
    name, version, weights = model
    made_from = [kind, software, *model, source.frames, [image.SOPInstanceUID for image in images]]
    digest = hashlib.sha256(json.dumps(made_from).encode() + b"\n")
    digest.update(frames.data)
    roles = ("series", "instance", "dimensions")
    uids = {role: generate_uid(entropy_srcs=[digest.hexdigest(), role]) for role in roles}
    what = "mask" if kind == "BINARY" else "probabilities"
    segmentation = Segmentation(
        source_images=images,
        pixel_array=frames,
        segmentation_type=kind,
        segment_descriptions=[_describe_segment(images[0], version, weights)],
        series_instance_uid=uids["series"],
        series_number=100 * images[0].SeriesNumber + (1 if kind == "BINARY" else 2),
        sop_instance_uid=uids["instance"],
        instance_number=1,
        manufacturer=SOFTWARE,
        manufacturer_model_name=name,
        software_versions=software,
        device_serial_number=weights,  # of a program, what tells one from another
        content_label="FLAIR_LESION",
        content_description=f"{LABEL}, {what}",
        content_qualification="RESEARCH",
        content_date=made.date(),
        content_time=made.time(),
        series_date=made.date(),
        series_time=made.time(),
        series_description=f"{LABEL}, {what} by {ALGORITHM} (research)",
        omit_empty_frames=False,
    )
    segmentation["SoftwareVersions"].value = [software, f"{name} {version}"]
    _settle(segmentation, source, made, uids["dimensions"])
    with atomic_write(path) as file:
        dcmwrite(file, segmentation, enforce_file_format=True)


def _settle(segmentation: Segmentation, source: DicomSource, created: datetime, dimensions_uid: str) -> None:
    """Set what highdicom would have otherwise: random and clock values, and what the stand-ins are not."""
    segmentation.InstanceCreationDate = segmentation.ContentDate
    segmentation.InstanceCreationTime = segmentation.ContentTime
    highdicom = segmentation.ContributingEquipmentSequence[-1]
    highdicom["ContributionDateTime"].value = f"{created:%Y%m%d%H%M%S}"
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions_uid
    classes = {header.SOPInstanceUID: header.SOPClassUID for header in source.datasets}
    references = [
        *segmentation.SourceImageSequence,
        *segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence,
    ]
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        (image,) = group.DerivationImageSequence[0].SourceImageSequence
        references.append(image)
        if source.is_multiframe:
            image.ReferencedFrameNumber = source.frames[image.ReferencedFrameNumber - 1]
    for reference in references:
        reference.ReferencedSOPClassUID = classes[reference.ReferencedSOPInstanceUID]


def _describe_segment(image: Dataset, version: str, weights: str) -> SegmentDescription:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    segment = SegmentDescription(
        segment_number=1,
        segment_label=LABEL,
        segmented_property_category=codes.cid7150.MorphologicallyAbnormalStructure,
        # Not Edema: what the network learned to outline is the whole abnormality, tumor or plaque included.
        segmented_property_type=codes.cid7159.Lesion,
        algorithm_type="AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            name=ALGORITHM,
            family=codes.cid7162.ArtificialIntelligence,
            version=version,
            source=SOFTWARE,
            parameters={"weights_sha256": weights},
        ),
        # The same for the mask and the probabilities of a series, and for every model: it is one finding.
        tracking_uid=generate_uid(entropy_srcs=[image.SeriesInstanceUID, LABEL]),
        tracking_id=LABEL,
        anatomic_regions=[codes.cid4.Brain],
        display_color=CIELabColor.from_rgb(*COLOR),
    )
    segment.SegmentDescription = DESCRIPTION
    return segment


def _stand_in(scan: Scan, source: DicomSource) -> list[Dataset]:
    """Make datasets for highdicom in the place of the source's, with just what it reads, in the form it expects.

    Scanners' own headers often break the standard's letter, at which highdicom fails. Of a multi-frame source
    only the frames that are slices are there, in their order.
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
