from __future__ import annotations

import base64
import html
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from pipeline.confidence.assessment import Assessment
from pipeline.contours import ContourPicture
from pipeline.errors import AR2UNetError
from pipeline.measurement import measure_scan
from pipeline.report import STAGES, build_report
from pipeline.report_page import write_page

VOID = {"meta", "img", "br"}


class Checker(HTMLParser):
    """Says whether each tag is closed in order, and gathers the text."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


def read_page(path):
    source = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(source)
    assert checker.open == []
    return source, re.sub(r"\s+", " ", " ".join(checker.text))


@pytest.fixture
def page_of(make_head_scan, two_lesions, tmp_path):
    def make(spacing=(0.9, 1.1, 4.5), found=True, contours=(), plane=True, **changes):
        scan, _ = make_head_scan(spacing=spacing)
        mask = two_lesions(scan.spatial_shape) * found
        arguments = {
            "measurements": measure_scan(scan, mask),
            "inputs": {"flair": "flair.nii.gz"},
            "bundle_name": "flair_abnormality_segmentation",
            "bundle_version": "0.3.0",
            "weights_sha256": "0123456789abcdef" * 4,
            "engine": "torch f32",
            "seconds": {stage: n + 0.25 for n, stage in enumerate(STAGES)},
            "assessment": Assessment(predicted_dice=0.876, review=False, warnings=()),
        }
        report = build_report(scan=scan, **{**arguments, **changes})
        write_page(tmp_path / "report.html", report, b"the montage", contours)
        return (report, *read_page(tmp_path / "report.html"))

    return make


def test_the_page_says_what_the_report_says(page_of):
    report, source, text = page_of(contours=[ContourPicture(b"a slice", 2, (2,))])
    low, high = report["volume_interval_ml"]
    for words in (
        "flair.nii.gz",
        f"{report['volume_ml']:.3f} ml",
        f"{low:.3f} to {high:.3f} ml",
        "18 had their true volume inside",
        "Dice 0.88",
        "No doubt was raised",
        "Right",
        "100 % on the right",
        f"{report['slices_with_lesion']} of 20",
        "1.1 × 0.9",
        "Slice 2, lesion 2: 1.1 × 0.9 mm.",
        "flair_abnormality_segmentation 0.3.0",
        report["weights_sha256"],
        "torch f32",
        "5.25 s",
        "network 2.25",
        f"numpy {np.__version__}",
        "60 × 72 × 20 voxels, 0.9 × 1.1 × 4.5 mm",
    ):
        assert words in text, words
    assert text.count("not for diagnosis or treatment") == 2
    for lesion in report["lesions"]:
        assert ", ".join(f"{value:.1f}".replace("-", "\N{MINUS SIGN}") for value in lesion["centre_ras_mm"]) in text
    for picture in (b"the montage", b"a slice"):
        assert base64.b64encode(picture).decode() in source


def test_the_page_loads_nothing_and_runs_nothing(page_of):
    _, source, _ = page_of()
    assert not re.findall(r"(?:src|href)=\"(?!data:)|url\(|@import|<script", source)
    assert "default-src 'none'" in source


def test_a_case_to_review_says_so_at_the_top_with_its_warnings(page_of):
    doubt = Assessment(predicted_dice=0.44, review=True, warnings=("it looks <odd>",))
    _, source, text = page_of(assessment=doubt, warnings=["and noisy"], notes=["t1 was resampled"])
    top = text[: text.index("Volume")]
    for words in ("Review this case.", "Dice 0.44", "it looks <odd>", "and noisy"):
        assert words in top
    assert html.escape("it looks <odd>") in source
    assert 'class="verdict review"' in source
    assert "t1 was resampled" in text


def test_a_bundle_that_was_not_assessed_has_neither_confidence_nor_interval(page_of):
    _, source, text = page_of(assessment=None)
    assert 'class="verdict unknown"' in source
    assert "can be trusted is not known" in text
    assert "an interval of the volume cannot be given" in text


def test_without_a_spacing_there_are_no_millilitres_and_the_page_says_why(page_of):
    _, _, text = page_of(spacing=None, contours=[ContourPicture(b"a slice", 5, ())])
    assert "8 voxels" in text
    assert "The scan does not state its voxel spacing" in text
    assert "Slice 5, the one with most lesion." in text
    assert "spacing not stated" in text
    without_reasons = re.sub(r"[^.]*cannot be given\.|Nor can [^.]*\.", "", text)
    assert not re.search(r"\d ?(ml|mm)\b", without_reasons)


def test_a_scan_without_lesion_says_so_and_has_no_table(page_of):
    _, source, text = page_of(found=False)
    assert "<table>" not in source
    assert "0.000 ml" in text
    assert "No lesion was found" in text
    assert "Nothing was found. A small or faint lesion may have been missed" in text
    assert "Dice 0." not in text


def test_a_side_that_is_not_known_is_not_claimed(page_of, make_head_scan, two_lesions):
    from pipeline.measurement import measure

    scan, _ = make_head_scan()
    measured = measure(two_lesions(scan.spatial_shape), scan.spacing, scan.affine)
    _, _, text = page_of(measurements=measured)
    assert "does not state its orientation" in text
    assert "right is on the left" not in text
    assert "Right" not in text


def test_names_are_text_whatever_they_hold(page_of):
    _, source, text = page_of(inputs={"flair": "<b>&\udcff.nii", "t1": "t1.nii"})
    assert "<b>&amp;" not in source
    assert "<b>&\\udcff.nii" in text
    assert "t1: t1.nii" in text


def test_a_folder_that_is_not_there_is_named(page_of, tmp_path):
    report, _, _ = page_of()
    with pytest.raises(AR2UNetError, match="cannot be written: No such file"):
        write_page(tmp_path / "missing" / "report.html", report, b"")
    assert [path.name for path in Path(tmp_path).iterdir()] == ["report.html"]
