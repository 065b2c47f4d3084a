from __future__ import annotations

import gzip
import importlib.util
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from pipeline.errors import ScanError
from pipeline.formats.nifti import read_scan
from pipeline.formats.nifti_header import MAX_VOXELS


@pytest.mark.skipif(importlib.util.find_spec("pydicom") is None, reason="pydicom is not installed")
def test_pydicom_is_neither_loaded_nor_lost():
    code = (
        "import sys\n"
        "import pipeline.formats.nifti_header\n"
        "print('pydicom' in sys.modules)\n"
        "import pydicom\n"
        "print(pydicom is sys.modules['pydicom'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_a_sequence_on_another_grid_is_refused(make_nifti, make_affine, numbered_volume, refusal):
    flair = make_nifti()
    assert "got shape (11, 13, 6)" in refusal(flair, t1=make_nifti("t1.nii", volume=numbered_volume[:, :, :6]))
    moved = make_affine("oblique")
    moved[1, 3] += 0.25
    assert "0.25 mm away" in refusal(flair, t1c=make_nifti("t1c.nii", affine=moved))
    moved[1, 3] -= 0.24
    assert read_scan(flair, t1c=make_nifti("t1c.nii", affine=moved)).image.shape == (3, 11, 13, 7)


def test_metres_and_microns_become_millimetres(make_nifti):
    in_mm = read_scan(make_nifti())
    for unit, factor in (("meter", 0.001), ("micron", 1000.0)):
        affine = in_mm.affine.copy()
        affine[:3] *= factor
        scan = read_scan(make_nifti(affine=affine, unit=unit))
        np.testing.assert_allclose(scan.affine, in_mm.affine, rtol=1e-5)
        assert scan.spacing == pytest.approx(in_mm.spacing, rel=1e-5)


def test_a_missing_or_empty_file_and_a_folder_are_refused(tmp_path, refusal):
    assert "no such file" in refusal(tmp_path / "none.nii.gz")
    assert "folder" in refusal(tmp_path)
    (tmp_path / "empty.nii.gz").touch()
    assert "empty" in refusal(tmp_path / "empty.nii.gz")
    os.mkfifo(tmp_path / "pipe.nii")
    assert "pipe" in refusal(tmp_path / "pipe.nii")


def test_a_name_with_a_line_break_still_gives_one_line(tmp_path):
    with pytest.raises(ScanError, match=r"two\\nlines.nii: "):
        read_scan(tmp_path / "two\nlines.nii")


@pytest.mark.parametrize(
    ("content", "received"),
    [
        (b"just some words", "it starts with b'just som'"),
        (b"\x89PNG\r\n\x1a\n" + bytes(400), "PNG"),
        (bytes(128) + b"DICM" + bytes(400), "DICOM"),
        (b"\x5c\1\0\0" + bytes(400), "Analyze"),
        (b"\x5c\1\0\0" + bytes(340) + b"ni1\0" + bytes(9), ".hdr/.img"),
        (b"\x5c\1\0\0", "expected a header of 348 bytes, got 4"),
        (b"\x1f\x8b", "truncated"),
    ],
)
def test_other_content_is_refused_and_named(tmp_path, content, received, refusal):
    for name, stored in (("a.nii", content), ("a.nii.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(stored)
    assert received in refusal(tmp_path / "a.nii")
    if content[:2] != b"\x1f\x8b":
        assert received in refusal(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(
    ("shape", "received"),
    [((40, 50), "2D"), ((8, 9, 1), "(8, 9, 1)"), ((1, 8, 9), "(1, 8, 9)"), ((5, 6, 7, 3), "3 volumes")],
)
def test_what_is_not_one_volume_is_refused(make_nifti, shape, received, refusal):
    assert received in refusal(make_nifti(volume=np.random.default_rng(3).random(shape)))


@pytest.mark.parametrize(
    ("fields", "received"),
    [
        ({"dim": [3, -11, 13, 7, 1, 1, 1, 1]}, "(-11, 13, 7)"),
        ({"dim": [3, 11, 0, 7, 1, 1, 1, 1]}, "(11, 0, 7)"),
        ({"dim": [0, 11, 13, 7, 1, 1, 1, 1]}, "got 0"),
        ({"dim": [9, 11, 13, 7, 1, 1, 1, 1]}, "got 9"),
        ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, f"at most {MAX_VOXELS:,} voxels"),
        ({"dim": [3, 800, 800, 800, 1, 1, 1, 1]}, "1,024,000,352 bytes"),
        ({"datatype": 128}, "RGB"),
        ({"datatype": 32}, "complex64"),
        ({"datatype": 77}, "datatype 77"),
        ({"vox_offset": 12}, "offset 12"),
        ({"vox_offset": np.nan}, "offset nan"),
        ({"vox_offset": 1e20}, "offset 1e+20"),
        ({"pixdim": np.zeros(8)}, "pixdim of zeros"),
        ({"srow_x": [0, 0, 0, 5]}, "invertible"),
        ({"srow_y": [0, np.inf, 0, 0]}, "invertible"),
        ({"srow_x": [1e9, 0, 0, 0]}, "at most 1200 mm"),
        ({"sform_code": 0, "quatern_b": 3}, "qform"),
        ({"sform_code": 0, "quatern_b": np.nan}, ""),
        ({"scl_slope": 1, "scl_inter": np.inf}, "scl_inter"),
    ],
)
def test_an_absurd_header_is_refused(make_nifti, fields, received, edit_header, refusal):
    assert received in refusal(edit_header(make_nifti("flair.nii"), **fields))


def test_signaling_nan_in_a_header_raises_no_warning(make_nifti):
    source = make_nifti("flair.nii")
    content = bytearray(source.read_bytes())
    content[80:84] = b"\1\0\x80\x7f"  # the first voxel size; the sform still holds the geometry
    source.write_bytes(content)
    assert read_scan(source).spacing == pytest.approx((0.9, 1.1, 4.5))


def test_a_small_file_that_promises_a_huge_volume_takes_no_memory(make_nifti, tmp_path, edit_header, refusal):
    plain = edit_header(make_nifti("flair.nii"), dim=[3, 812, 812, 812, 1, 1, 1, 1])
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(plain.read_bytes()))
    tracemalloc.start()
    try:
        assert "too small" in refusal(tmp_path / "bomb.nii.gz")
        assert "truncated" in refusal(plain)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
