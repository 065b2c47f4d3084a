"""Damaged NIfTI: files, headers, numbers; a row is a sentence, what makes the input, and the line that answers."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from bad_inputs import (
    AGAIN,
    NIBABEL,
    NIFTI,
    REPAIR,
    VOLUME,
    linked,
    nifti,
    patched,
    save,
    spoiled,
)

REFUSED = {
    "a file that is not there": (
        lambda: "nowhere.nii.gz",
        "nowhere.nii.gz: expected a scan, got no such file; check the path",
    ),
    "a link to nowhere": (
        lambda: linked("scan.nii", "gone"),
        "scan.nii: expected a scan, got no such file; check the path",
    ),
    "a link to itself": (
        lambda: linked("scan.nii", "scan.nii"),
        "scan.nii: cannot be read: Too many levels of symbolic links",
    ),
    "a name too long for any file": (lambda: "x" * 300, "xxx…xxx: cannot be read: File name too long"),
    "a device": (lambda: "/dev/null", "/dev/null: expected a NIfTI file, got a device or pipe; save it as a file"),
    "an empty file": (
        lambda: save("scan.nii.gz", b""),
        f"scan.nii.gz: expected a NIfTI file, got an empty file; {AGAIN}",
    ),
    "gzip of nothing": (
        lambda: save("scan.nii.gz", gzip.compress(b"")),
        f"scan.nii.gz: expected a NIfTI file, got nothing; {AGAIN}",
    ),
    "zeros only": (
        lambda: save("scan.nii", bytes(4000)),
        f"scan.nii: expected a NIfTI file, got zeros, as of an interrupted download; {AGAIN}",
    ),
    "gzip cut off": (
        lambda: save("scan.nii.gz", gzip.compress(NIFTI)[:-2000]),
        f"scan.nii.gz: expected a complete gzip file, got a truncated one; {AGAIN}",
    ),
    "gzip cut off in its header": (
        lambda: save("scan.nii.gz", gzip.compress(NIFTI)[:9]),
        f"scan.nii.gz: expected a complete gzip file, got a truncated one; {AGAIN}",
    ),
    "gzip with one byte flipped": (
        lambda: save("scan.nii.gz", gzip.compress(NIFTI)[:-6] + b"\xff" + gzip.compress(NIFTI)[-5:]),
        f"scan.nii.gz: expected intact gzip data, got damaged ones (CRC check failed …); {AGAIN}",
    ),
    "gzip inside of gzip": (
        lambda: save("scan.nii.gz", gzip.compress(gzip.compress(NIFTI))),
        "scan.nii.gz: expected a NIfTI file, got gzip inside of gzip; unpack it once",
    ),
    "a file cut off in its header": (
        lambda: save("scan.nii", NIFTI[:200]),
        f"scan.nii: expected a header of 348 bytes, got 200 in all; {AGAIN}",
    ),
    "a file cut off in its data": (
        lambda: save("scan.nii", NIFTI[:-500]),
        "scan.nii: expected 68,002 bytes for shape (33, 41, 25) of int16, got a 67,502-byte file (truncated?); "
        f"{AGAIN}",
    ),
    "a file without NIfTI's magic": (
        lambda: patched((344, "4s", b"n+9\0")),
        "scan.nii: expected a NIfTI file, got an Analyze header; convert it to NIfTI",
    ),
    "a web page": (
        lambda: save("scan.nii.gz", b"<!DOCTYPE html><html><body>Not found</body></html>"),
        "scan.nii.gz: expected a NIfTI file, got a web page, as of a failed download; download it again",
    ),
    "a pointer of Git LFS": (
        lambda: save("scan.nii.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
        "scan.nii.gz: expected a NIfTI file, got the pointer that Git LFS left in its place; "
        "fetch the file itself (git lfs pull)",
    ),
    "some text, under a name with a line break and an escape code": (
        lambda: save("two\nlines\x1b[31m.nii", b"some text"),
        r"two\nlines\x1b[31m.nii: expected a NIfTI file, got other content (it starts with b'some tex'); "
        "if it is a scan, convert it to NIfTI first",
    ),
    "two dimensions": (
        lambda: nifti(VOLUME[:, :, 5]),
        "scan.nii.gz: expected a 3D volume, got a 2D image of shape (33, 41); name the whole scan",
    ),
    "one slice": (
        lambda: nifti(VOLUME[:, :, 5:6]),
        "scan.nii.gz: expected a volume of at least 2 slices along each axis, got shape (33, 41, 1)",
    ),
    "several volumes, real ones": (
        lambda: str(shutil.copy(NIBABEL / "functional.nii", ".")),
        "functional.nii: expected one 3D volume, got 20 volumes (shape (17, 21, 3, 20)); save the FLAIR as a "
        "file of its own",
    ),
    "colors": (
        lambda: nifti(np.zeros(VOLUME.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])),
        "scan.nii.gz: expected integers or real numbers, got RGB (datatype 128); save its magnitude or grey values",
    ),
    "complex numbers": (
        lambda: nifti(VOLUME.astype(np.complex64)),
        "scan.nii.gz: expected integers or real numbers, got complex64 (datatype 32); save its magnitude or grey "
        "values",
    ),
    "a type that there is not": (
        lambda: patched((70, "h", 77)),
        "scan.nii: expected integers or real numbers, got an unknown type (datatype 77); save its magnitude or "
        "grey values",
    ),
    "sizes that no memory holds": (
        lambda: patched((40, "4h", 3, 30000, 30000, 30000)),
        "scan.nii: expected at most 536,870,912 voxels, got 27,000,000,000,000 (30000, 30000, 30000)",
    ),
    "large sizes in a small gzip file": (
        lambda: save("scan.nii.gz", gzip.compress(Path(patched((40, "4h", 3, 512, 512, 512))).read_bytes())),
        "scan.nii.gz: expected 268,435,808 bytes for shape (512, 512, 512) of int16, got a …-byte gzip file, too "
        f"small to hold them; {AGAIN}",
    ),
    "a negative size": (
        lambda: patched((44, "h", -41)),
        "scan.nii: expected sizes of at least 1, got shape (33, -41, 25) in the header",
    ),
    "nine dimensions": (lambda: patched((40, "h", 9)), "scan.nii: expected 3 dimensions, got 9 in the header"),
    "NaN in the affine": (
        lambda: patched((280, "f", np.nan)),
        f"scan.nii: expected an invertible, finite affine, got [[ nan, …]]; {REPAIR}",
    ),
    "an affine of zeros": (
        lambda: patched((280, "12f", *[0] * 12)),
        f"scan.nii: expected an invertible, finite affine, got [[0., …]]; {REPAIR}",
    ),
    "an affine that flattens": (
        lambda: patched((296, "4f", 2, 0, 0, 0)),
        f"scan.nii: expected an invertible, finite affine, got [[…]]; {REPAIR}",
    ),
    "a quaternion longer than 1": (
        lambda: patched((252, "2h", 1, 0), (256, "3f", 1, 1, 1)),
        f"scan.nii: expected a rotation in the qform, got no unit quaternion; {REPAIR}",
    ),
    "voxel sizes of zero": (
        lambda: patched((76, "4f", 0, 0, 0, 0)),
        f"scan.nii: expected voxel sizes, got a pixdim of zeros; {REPAIR}",
    ),
    "a gigantic field of view": (
        lambda: nifti(affine=np.diag([70.0, 70, 70, 1])),
        "scan.nii.gz: expected voxels of at least 0.01 mm and at most 1200 mm in all along an axis, "
        f"got 70 x 70 x 70 mm for shape (33, 41, 25); {REPAIR}",
    ),
    "metres in place of millimetres": (
        lambda: nifti(unit="meter"),
        f"scan.nii.gz: expected voxels … got 2000 x 2000 x 2000 mm for shape (33, 41, 25); {REPAIR}",
    ),
    "voxels of a micrometre": (
        lambda: nifti(affine=np.diag([0.001, 0.001, 0.001, 1])),
        f"scan.nii.gz: expected voxels … got 0.001 x 0.001 x 0.001 mm for shape (33, 41, 25); {REPAIR}",
    ),
    "data that begin inside of the header": (
        lambda: patched((108, "f", 0)),
        "scan.nii: expected data 348 to 67108864 bytes into the file, got offset 0",
    ),
    "an intercept of NaN": (lambda: patched((112, "2f", 1, np.nan)), "scan.nii: expected a finite scl_inter, got nan"),
    "one number everywhere": (
        lambda: nifti(VOLUME * 0 + 7),
        "scan.nii.gz: expected intensities that vary, got 7 in every voxel",
    ),
    "zeros everywhere": (lambda: nifti(VOLUME * 0), "scan.nii.gz: expected intensities that vary, got zeros only"),
    "NaN everywhere": (
        lambda: spoiled(np.nan, VOLUME.size),
        "scan.nii.gz: expected finite intensities, got 33,825 NaN or infinite (100 %); replace them, by 0 "
        "outside of the head",
    ),
    "one NaN": (
        lambda: spoiled(np.nan),
        "scan.nii.gz: expected finite intensities, got 1 NaN or infinite (0.00296 %); replace them, by 0 outside "
        "of the head",
    ),
    "one infinite voxel": (
        lambda: spoiled(-np.inf),
        "scan.nii.gz: expected finite intensities, got 1 NaN or infinite (0.00296 %); replace …",
    ),
    "numbers beyond float32": (
        lambda: nifti((VOLUME + 1.0) * 1e300),
        "scan.nii.gz: expected finite intensities, got 33,825 NaN or infinite (100 %); replace …",
    ),
    "a slope beyond float32": (
        lambda: patched((112, "2f", 3e38, 1e38)),
        "scan.nii: expected finite intensities, got … NaN or infinite …",
    ),
    "numbers below float32": (
        lambda: nifti((VOLUME + 1.0) * 1e-300),
        "scan.nii.gz: expected intensities that vary, got zeros only",
    ),
    "64 bits that float32 cannot tell apart": (
        lambda: nifti(VOLUME.astype("u8") + 2**63),
        "scan.nii.gz: expected intensities that vary, got 9.22337e+18 in every voxel",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_in_one_line_that_names_it(what, assert_refused):
    assert_refused(*REFUSED[what])
