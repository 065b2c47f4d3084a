"""Which DICOM SEG of a store is a label, and which of several counts."""

from __future__ import annotations

import pytest
from pydicom import Dataset

from pipeline.label_app.dicom_labels import StoredLabel, find_label, label_segments, newest


def make_header(*segments: tuple[str, str], **changes: str) -> Dataset:
    header = Dataset()
    header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    header.StudyInstanceUID, header.SeriesInstanceUID, header.SOPInstanceUID = "1.1", "1.2", "1.3"
    header.ContentDate, header.ContentTime = "20260304", "050607.25"
    reference = Dataset()
    reference.SeriesInstanceUID = "1.9"
    header.ReferencedSeriesSequence = [reference]
    header.SegmentSequence = []
    for number, (name, kind) in enumerate(segments, start=1):
        segment = Dataset()
        segment.SegmentNumber, segment.SegmentLabel, segment.SegmentAlgorithmType = number, name, kind
        header.SegmentSequence.append(segment)
    for keyword, value in changes.items():
        setattr(header, keyword, value)
    return header


def test_a_segment_is_a_label_by_its_name_unless_an_algorithm_alone_made_it() -> None:
    segments = [("background", "MANUAL"), ("FLAIR abnormality", "AUTOMATIC")]
    segments += [(" flair ABNORMALITY ", "MANUAL"), ("FLAIR abnormality", "SEMIAUTOMATIC"), ("Edema", "MANUAL")]
    assert label_segments(make_header(*segments)) == [3, 4]


def test_a_label_says_what_it_labels_and_when_it_was_made() -> None:
    header = make_header(("FLAIR abnormality", "MANUAL"))
    assert find_label(header) == StoredLabel("1.9", "1.1", "1.2", "1.3", "20260304050607.25")
    assert find_label(Dataset.from_json(header.to_json_dict())) == find_label(header)


@pytest.mark.parametrize("keyword", ["SOPClassUID", "ReferencedSeriesSequence", "SegmentSequence"])
def test_what_lacks_an_element_of_a_label_is_none(keyword: str) -> None:
    header = make_header(("FLAIR abnormality", "MANUAL"))
    delattr(header, keyword)
    assert find_label(header) is None


def test_the_newest_label_of_each_series_counts() -> None:
    def label(image: str, instance: str, date: str, time: str) -> StoredLabel:
        changes = {"SOPInstanceUID": instance, "ContentDate": date, "ContentTime": time}
        found = find_label(make_header(("FLAIR abnormality", "MANUAL"), **changes))
        assert found is not None
        return StoredLabel(image, found.study, found.series, found.instance, found.made)

    labels = [
        label("a", "1.10", "20260304", "0930"),
        label("a", "1.11", "20260304", "093000.5"),
        label("a", "1.12", "20260303", "235959"),
        label("b", "1.13", "20250101", "10"),
    ]
    for order in (labels, labels[::-1]):
        assert {image: found.instance for image, found in newest(order).items()} == {"a": "1.11", "b": "1.13"}
