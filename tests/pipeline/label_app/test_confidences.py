"""What is kept of each scan's confidence, and which scan comes next."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.label_app.confidences import Confidences, least_confident


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    image, weights = tmp_path / "a.nii.gz", tmp_path / "model.pt"
    image.write_bytes(b"image")
    weights.write_bytes(b"weights")
    return image, weights


def test_a_confidence_is_kept_for_others_to_read(files: tuple[Path, Path], tmp_path: Path) -> None:
    image, weights = files
    assert Confidences(tmp_path / "kept", weights).read(image) is None
    Confidences(tmp_path / "kept", weights).write(image, 0.625)
    assert Confidences(tmp_path / "kept", weights).read(image) == 0.625


@pytest.mark.parametrize("changed", ["image", "weights"])
def test_a_changed_scan_or_new_weights_make_a_confidence_unknown(
    files: tuple[Path, Path], tmp_path: Path, changed: str
) -> None:
    image, weights = files
    Confidences(tmp_path / "kept", weights).write(image, 0.625)
    os.utime(image if changed == "image" else weights, (1, 1))
    assert Confidences(tmp_path / "kept", weights).read(image) is None


def test_a_damaged_file_is_as_if_it_were_not_there(files: tuple[Path, Path], tmp_path: Path) -> None:
    image, weights = files
    kept = Confidences(tmp_path / "kept", weights)
    kept.write(image, 0.625)
    for path in kept.folder.iterdir():
        path.write_text("{")
    assert kept.read(image) is None


def test_the_least_confident_scan_comes_first() -> None:
    assert least_confident({"a": 0.9, "b": 0.3, "c": 0.3, "d": 0.4}) == "b"


def test_a_scan_of_unknown_confidence_comes_last_even_behind_the_surest() -> None:
    assert least_confident({"a": None, "b": 1.0}) == "b"
    assert least_confident({"a": None, "b": None}) == "a"


def test_a_scan_that_confidence_is_nil_for_is_no_unknown_one() -> None:
    assert least_confident({"a": 0.1, "b": 0.0, "c": None}) == "b"


def test_a_scan_that_was_offered_before_waits_behind_the_others() -> None:
    assert least_confident({"a": 0.1, "b": 0.9}, skipped=["a"]) == "b"
    assert least_confident({"a": 0.4, "b": 0.3}, skipped=["a", "b"]) == "b"
    assert least_confident({"a": 0.1, "b": None}, skipped=["a"]) == "b"


def test_where_all_scans_have_labels_there_is_no_next_one() -> None:
    assert least_confident({}) is None
