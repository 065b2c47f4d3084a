"""What is one scan, what is held out, and which labels may be saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import DatasetError, ScanError
from pipeline.label_app.studies import check_label, find_sequences, is_held_out, read_held_out, without_companions


def test_t1_and_t1c_beside_a_flair_are_no_scans_of_their_own() -> None:
    names = ["a_flair.nii.gz", "a_t1.nii.gz", "a_t1c.nii", "b.nii.gz", "c_t1.nii.gz", "d_flair.nii", "a_t2.nii.gz"]
    assert without_companions(names) == ["a_flair.nii.gz", "b.nii.gz", "c_t1.nii.gz", "d_flair.nii", "a_t2.nii.gz"]


def test_the_sequences_beside_a_flair_are_found(tmp_path: Path) -> None:
    for name in (
        "a_flair.nii.gz",
        "a_t1.nii",
        "a_t1c.nii.gz",
        "b_flair.nii.gz",
        "b_t1c.nii.gz",
        "c.nii.gz",
        "c_t1.nii.gz",
    ):
        (tmp_path / name).touch()
    assert find_sequences(tmp_path / "a_flair.nii.gz") == (tmp_path / "a_t1.nii", tmp_path / "a_t1c.nii.gz")
    assert find_sequences(tmp_path / "b_flair.nii.gz") == (None, tmp_path / "b_t1c.nii.gz")
    assert find_sequences(tmp_path / "c.nii.gz") == (None, None)


def test_the_list_of_scans_held_out_takes_patterns_comments_and_file_names(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# tests\nsub-07*\n\nsub-12.nii.gz  # the hard one\nvisit.1\n")
    held_out = read_held_out(tmp_path / "list.txt")
    assert held_out == ("sub-07*", "sub-12", "visit.1")
    held = ("sub-07_flair", "sub-12", "visit.1")
    assert all(is_held_out(name, held_out) for name in held)
    assert not any(is_held_out(name, held_out) for name in ("sub-1", "sub-121", "sub-06", "SUB-12"))


def test_a_list_that_is_not_there_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"list\.txt must be a text file"):
        read_held_out(tmp_path / "list.txt")


def test_a_mask_on_the_scans_grid_may_be_saved(
    make_nifti: Callable[..., Path], numbered_volume: NDArray[np.int16]
) -> None:
    image = make_nifti("image.nii.gz")
    check_label(make_nifti("label.nii.gz", volume=(numbered_volume > 500).astype(np.uint8)), image)
    check_label(make_nifti("none.nii.gz", volume=np.zeros_like(numbered_volume)), image)


def test_a_label_that_cannot_be_learnt_from_is_refused(
    make_nifti: Callable[..., Path], numbered_volume: NDArray[np.int16], tmp_path: Path
) -> None:
    image, mask = make_nifti("image.nii.gz"), (numbered_volume > 500).astype(np.uint8)
    with pytest.raises(ScanError, match="expected a mask of 0 and 1, got 0, 2"):
        check_label(make_nifti("two.nii.gz", volume=mask * 2), image)
    with pytest.raises(ScanError, match="expected the voxel grid of"):
        check_label(make_nifti("elsewhere.nii.gz", volume=mask, orientation="RAS"), image)
    with pytest.raises(ScanError, match="shape"):
        check_label(make_nifti("small.nii.gz", volume=mask[1:]), image)
    with pytest.raises(ScanError, match=r"must be a \.nii\.gz or \.nii file, got label\.seg\.nrrd"):
        check_label(tmp_path / "label.seg.nrrd", image)
