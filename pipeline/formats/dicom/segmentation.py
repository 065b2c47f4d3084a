"""Masks and probabilities as DICOM SEG, on the slices of the series they were made from.

Every slice of the scan becomes a frame, also those without a voxel of the mask: viewers and converters then have
the whole grid, and an empty mask says "looked at, nothing found" instead of being no file at all.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ScanError
from pipeline.formats.atomic import atomic_write
from pipeline.formats.dicom.headers import find_value
from pipeline.formats.dicom.source import DicomSource
from pipeline.formats.dicom.stand_ins import make_stand_ins
from pipeline.formats.scan import Scan

if TYPE_CHECKING:
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom import Dataset

__all__ = ["write_fractional_segmentation", "write_segmentation"]

SOFTWARE = "ar2unet-monai"
ALGORITHM = "AR2-UNet"
LABEL = "FLAIR abnormality"
DESCRIPTION = "Tissue brighter than normal on FLAIR: the lesion with its edema"
COLOR = (255, 176, 0)  # of the lesion, as in the pictures
# What the file must be able to refer to.
REFERENCES = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")


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
    images = make_stand_ins(scan, source)
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
