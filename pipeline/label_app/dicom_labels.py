"""Which DICOM SEG of a store is a label that a person saved, and of which series."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.formats.dicom.headers import find_value, first_of, text
from pipeline.formats.dicom.segmentation import LABEL

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["StoredLabel", "find_label", "label_segments", "newest"]

SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"


@dataclass(frozen=True)
class StoredLabel:
    """A DICOM SEG that labels a series.

    Attributes:
        image: SeriesInstanceUID of what it labels.
        study: Its StudyInstanceUID.
        series: Its own SeriesInstanceUID.
        instance: Its SOPInstanceUID.
        made: When, as text that sorts by time.
    """

    image: str
    study: str
    series: str
    instance: str
    made: str


def label_segments(dataset: Dataset) -> list[int]:
    """Return the numbers of the segments of a DICOM SEG that are a person's label of the FLAIR abnormality.

    A segment of another name is none, nor is one that an algorithm alone made (SegmentAlgorithmType AUTOMATIC), as
    the network's own masks are: nothing is ever learned from them.
    """
    return [
        int(segment.SegmentNumber)
        for segment in find_value(dataset, "SegmentSequence") or ()
        if text(segment, "SegmentLabel").casefold() == LABEL.casefold()
        and text(segment, "SegmentAlgorithmType") != "AUTOMATIC"
    ]


def find_label(dataset: Dataset) -> StoredLabel | None:
    """Return what a DICOM SEG labels, from its header; None where it is no such label."""
    references = find_value(dataset, "ReferencedSeriesSequence")
    if text(dataset, "SOPClassUID") != SEGMENTATION_STORAGE or not references or not label_segments(dataset):
        return None
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    study, series, instance = (text(dataset, keyword) for keyword in keywords)
    time = text(dataset, "ContentTime").ljust(6, "0")
    return StoredLabel(
        text(first_of(references), "SeriesInstanceUID"), study, series, instance, text(dataset, "ContentDate") + time
    )


def newest(labels: Iterable[StoredLabel]) -> dict[str, StoredLabel]:
    """Return the newest label of each series, by SeriesInstanceUID."""
    ordered = sorted(labels, key=lambda label: (label.made, label.instance))
    return {label.image: label for label in ordered}
