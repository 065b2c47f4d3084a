"""Damaged NRRD and MetaImage, and files of other formats; rows as in test_nifti.py."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bad_inputs import (
    AGAIN,
    NIBABEL,
    NIFTI,
    RAW,
    REPAIR,
    VOLUME,
    itk,
    mha,
    nrrd,
    pair,
    save,
    tarball,
)
from PIL import Image

REFUSED = {
    "an Analyze pair": (
        lambda: pair(nib.Spm99AnalyzeImage),
        "scan.hdr: expected a NIfTI file, got an Analyze header; convert it to NIfTI",
    ),
    "a NIfTI pair": (
        lambda: pair(nib.Nifti1Pair),
        "scan.hdr: expected a NIfTI file, got one half of an .hdr/.img pair; convert the pair to one .nii file first",
    ),
    "FreeSurfer's MGH": (
        lambda: str(shutil.copy(NIBABEL / "test.mgz", "test.mgz")),
        "test.mgz: expected a NIfTI file, got an MGH volume; convert it to NIfTI first (mri_convert of "
        "FreeSurfer does)",
    ),
    "MINC 1": (
        lambda: str(shutil.copy(NIBABEL / "tiny.mnc", ".")),
        "tiny.mnc: expected a NIfTI file, got a MINC volume; convert it to NIfTI first (mnc2nii does)",
    ),
    "MINC 2": (
        lambda: str(shutil.copy(NIBABEL / "small.mnc", ".")),
        "small.mnc: expected a NIfTI file, got an HDF5 file, perhaps MINC; convert it to NIfTI first (mnc2nii does)",
    ),
    "a PNG picture": (
        lambda: Image.new("L", (64, 64)).save("scan.png") or "scan.png",
        "scan.png: expected a NIfTI file, got a PNG picture; a volume is needed, not a picture of one",
    ),
    "a NumPy array": (
        lambda: np.save("scan.npy", VOLUME) or "scan.npy",
        "scan.npy: expected a NIfTI file, got a NumPy array, which has no geometry; convert it to NIfTI first",
    ),
    "a tar archive": (
        lambda: save("scan.tar.gz", tarball()),
        "scan.tar.gz: expected a NIfTI file, got a tar archive; unpack it first",
    ),
    "a bzip2 archive": (
        lambda: save("scan.nii.bz2", bz2.compress(NIFTI)),
        "scan.nii.bz2: expected a NIfTI file, got a bzip2 archive; unpack it first",
    ),
    "an xz archive": (
        lambda: save("scan.nii.xz", lzma.compress(NIFTI)),
        "scan.nii.xz: expected a NIfTI file, got an xz archive; unpack it first",
    ),
    "an NRRD volume in gzip": (
        lambda: save("scan.nrrd.gz", gzip.compress(Path(nrrd()).read_bytes())),
        "scan.nrrd.gz: expected a NIfTI file, got an NRRD volume; give it a name that ends in .nrrd or .nhdr, unpacked",
    ),
    "NRRD cut off": (
        lambda: nrrd(data=RAW[:-99]),
        f"scan.nrrd: expected 67,650 bytes of data for shape (33, 41, 25), got 67,551 bytes; {AGAIN}",
    ),
    "NRRD cut off in its header": (
        lambda: save("scan.nrrd", Path(nrrd()).read_bytes()[:90]),
        "scan.nrrd: expected a header that says all, got one that does not end; copy it again, or save it anew",
    ),
    "packed NRRD cut off": (
        lambda: nrrd(encoding="gzip", data=gzip.compress(RAW)[:-99]),
        f"scan.nrrd: expected 67,650 bytes of data once unpacked, got damaged or other ones; {AGAIN}",
    ),
    "packed NRRD of more than its header says": (
        lambda: nrrd(encoding="gzip", sizes="33 41 24", data=gzip.compress(RAW)),
        f"scan.nrrd: expected 64,944 bytes of data once unpacked, got damaged or other ones; {AGAIN}",
    ),
    "NRRD, packed in a way that is not read": (
        lambda: nrrd(encoding="bzip2", data=bz2.compress(RAW)),
        "scan.nrrd: expected a header that says all, got encoding bzip2, where raw and gzip are read; copy it "
        "again, or save it anew",
    ),
    "NRRD whose data file is missing": (
        lambda: nrrd("scan.nhdr", b"", data_file="scan.raw"),
        "scan.nhdr: its data scan.raw: expected a file, got no such file; check the path",
    ),
    "NRRD whose data file is too short": (
        lambda: (save("scan.raw", RAW[:1000]), nrrd("scan.nhdr", b"", data_file="scan.raw"))[1],
        f"scan.nhdr: expected 67,650 bytes of data for shape (33, 41, 25), got 1,000 bytes; {AGAIN}",
    ),
    "NRRD whose data lie anywhere": (
        lambda: nrrd("scan.nhdr", b"", data_file="/etc/passwd"),
        "scan.nhdr: expected one file of data beside it, got /etc/passwd; keep it beside its header, or save "
        "both as one .nrrd or .mha file",
    ),
    "NRRD in a space without left and right": (
        lambda: nrrd(space="scanner-xyz"),
        "scan.nrrd: expected a header that says all, got space scanner-xyz, where one of right-anterior-superior, "
        "left-anterior-superior, left-posterior-superior tells left from right; copy it again, or save it anew",
    ),
    "NRRD in micrometres": (
        lambda: nrrd(space_units='"um" "um" "um"'),
        "scan.nrrd: expected a header that says all, got units um in place of mm; copy it again, or save it anew",
    ),
    "NRRD with directions of zero": (
        lambda: nrrd(space_directions="(0,0,0) (0,0,0) (0,0,0)"),
        f"scan.nrrd: expected an invertible, finite affine, got [[0., …]]; {REPAIR}",
    ),
    "NRRD with NaN for a spacing": (
        lambda: nrrd(space=None, space_directions=None, spacings="2 nan 5"),
        "scan.nrrd: expected a header that says all, got spacings '2 nan 5'; copy it again, or save it anew",
    ),
    "NRRD of a gigantic field of view": (
        lambda: itk("scan.nrrd", spacing=(500.0, 500.0, 500.0)),
        f"scan.nrrd: expected voxels … got 500 x 500 x 500 mm for shape (33, 41, 25); {REPAIR}",
    ),
    "NRRD of sizes that no memory holds": (
        lambda: nrrd(sizes="30000 30000 30000"),
        "scan.nrrd: expected at most 536,870,912 voxels, got shape (30000, 30000, 30000)",
    ),
    "NRRD of vectors": (
        lambda: nrrd(
            dimension="4",
            sizes="3 33 41 25",
            space_directions="none (2,0,0) (0,2,0) (0,0,2)",
            kinds="vector domain domain domain",
            data=RAW * 3,
        ),
        "scan.nrrd: expected one 3D volume of at least 2 voxels a side, got shape (33, 41, 25) of 3 values a voxel",
    ),
    "NRRD that is something else": (
        lambda: save("scan.nrrd", NIFTI),
        "scan.nrrd: expected an NRRD or MetaImage volume, got a NIfTI file; give it a name that ends in .nii or "
        ".nii.gz",
    ),
    "MetaImage cut off": (
        lambda: mha(data=RAW[:-99]),
        f"scan.mha: expected 67,650 bytes of data for shape (33, 41, 25), got 67,551 bytes; {AGAIN}",
    ),
    "packed MetaImage that does not say how long it is": (
        lambda: mha(CompressedData="True", data=zlib.compress(RAW)),
        "scan.mha: expected a header that says all, got no CompressedDataSize; copy it again, or save it anew",
    ),
    "packed MetaImage with some bytes changed": (
        lambda: save("scan.mha", Path(itk("scan.mha", compress=True)).read_bytes()[:-9] + b"\xff" * 9),
        f"scan.mha: expected 67,650 bytes of data once unpacked, got damaged or other ones; {AGAIN}",
    ),
    "MetaImage whose data file is missing": (
        lambda: mha("scan.mhd", b"", ElementDataFile="scan.raw"),
        "scan.mhd: its data scan.raw: expected a file, got no such file; check the path",
    ),
    "MetaImage of more dimensions than ITK survives": (
        lambda: mha(NDims="99"),
        "scan.mha: expected a header that says all, got 99 dimensions of sizes 33 41 25; copy it again, or save "
        "it anew",
    ),
    "MetaImage with a negative size": (
        lambda: mha(DimSize="33 -41 25"),
        "scan.mha: expected a header that says all, got 3 dimensions of sizes 33 -41 25; copy it again, or save "
        "it anew",
    ),
    "MetaImage with a negative spacing": (
        lambda: mha(ElementSpacing="2 -2 2"),
        "scan.mha: expected a header that says all, got ElementSpacing '2 -2 2'; copy it again, or save it anew",
    ),
    "MetaImage with NaN for its place": (
        lambda: mha(Offset="nan 0 0"),
        "scan.mha: expected a header that says all, got Offset 'nan 0 0'; copy it again, or save it anew",
    ),
    "MetaImage with NaN for a voxel": (
        lambda: itk("scan.mha", np.where(np.arange(VOLUME.size).reshape(VOLUME.shape) == 5, np.nan, VOLUME)),
        "scan.mha: expected finite intensities, got NaN or infinite ones; replace them, by 0 outside of the head",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_in_one_line_that_names_it(what, assert_refused):
    assert_refused(*REFUSED[what])
