"""Damaged and odd inputs of every format, as a user meets them: what is given, and the one line that answers.

Each row is a sentence, what makes the input (in a folder of its own, from small real scans), and the line that is
printed after ``ar2unet: ``; ``…`` stands for anything. DICOM series have 60 more in formats/dicom/test_refusals.py.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (as everybody writes it)
from PIL import Image
from pydicom.data import get_testdata_file

from pipeline.cli import main

NIBABEL = Path(nib.__file__).parent / "tests" / "data"
NILEARN = Path(find_spec("nilearn").origin).parent / "datasets" / "data" if find_spec("nilearn") else Path("missing")
REAL = nib.load(NIBABEL / "anatomical.nii")  # a head of 33 x 41 x 25 voxels of 2 mm
VOLUME, AFFINE = np.asarray(REAL.dataobj).astype("<i2"), REAL.affine
NIFTI = nib.Nifti1Image(VOLUME, AFFINE).to_bytes()
RAW = VOLUME.tobytes(order="F")
PATIENT = "TCGA_XX_0001_20000101"
AGAIN = "copy or download it again"
REPAIR = "convert it from DICOM again, or repair the header"
UNLIKE = "This does not look like the FLAIR scans the network was trained on …"
MAX_GROWTH = 400  # MiB that a refusal may take


# What makes the inputs, in the current folder; each returns what is given to the command.


def save(name, content):
    Path(name).write_bytes(content)
    return name


def nifti(volume=VOLUME, affine=AFFINE, name="scan.nii.gz", unit="mm"):
    image = nib.Nifti1Image(volume, affine, dtype=volume.dtype)
    image.header.set_xyzt_units(unit)
    nib.save(image, name)
    return name


def patched(*patches, name="scan.nii"):
    """The real NIfTI with numbers of its header changed: where they stand, of what kind, and what is written."""
    content = bytearray(NIFTI)
    for offset, kind, *values in patches:
        struct.pack_into(f"<{kind}", content, offset, *values)
    return save(name, bytes(content))


def spoiled(value, voxels=1):
    volume = VOLUME.astype(np.float32)
    volume.flat[:voxels] = value
    return nifti(volume)


def packed(*parts):
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(part) for part in parts) + packer.flush()


def itk(name, volume=VOLUME, spacing=(2.0, 2.0, 2.0), compress=False):
    image = sitk.GetImageFromArray(volume.transpose(2, 1, 0))
    image.SetSpacing(spacing)
    sitk.WriteImage(image, name, compress)
    return name


def nrrd(name="scan.nrrd", data=RAW, **changes):
    fields = {
        "type": "short",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": "33 41 25",
        "space directions": "(2,0,0) (0,2,0) (0,0,2)",
        "endian": "little",
        "encoding": "raw",
    } | {key.replace("_", " "): value for key, value in changes.items()}
    header = "".join(f"{key}: {value}\n" for key, value in fields.items() if value is not None)
    return save(name, f"NRRD0004\n{header}\n".encode() + data)


def mha(name="scan.mha", data=RAW, **changes):
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "0 0 0",
        "ElementSpacing": "2 2 2",
        "DimSize": "33 41 25",
        "ElementType": "MET_SHORT",
        "ElementDataFile": "LOCAL",
    } | changes
    header = "".join(f"{key} = {value}\n" for key, value in fields.items() if value is not None)
    return save(name, header.encode() + data)


def slices(count=5, folder=PATIENT, **others):
    """A patient's folder of the LGG data; other pictures in place of some: ``_3=picture``."""
    Path(folder).mkdir()
    grey = (VOLUME[:, :, 3 : 3 + count].clip(0, 25500) // 100).astype(np.uint8)
    for k in range(count):
        picture = Image.fromarray(np.repeat(grey[:, :, k, None], 3, axis=2))
        picture = others.get(f"_{k + 1}", picture)
        if isinstance(picture, bytes):
            save(f"{folder}/{PATIENT}_{k + 1}.tif", picture)
        elif picture is not None:
            picture.save(f"{folder}/{PATIENT}_{k + 1}.tif", compression="tiff_deflate")
    return folder


def sixteen_bits():
    """A TIFF of 16 bits a color, which Pillow cannot write but reads as if it had 8."""
    tags = {256: 41, 257: 33, 258: 134, 259: 1, 262: 2, 273: 140, 277: 3, 278: 33, 279: 41 * 33 * 6, 284: 1}
    entries = [struct.pack("<HHII", tag, 3, 3 if tag == 258 else 1, value) for tag, value in tags.items()]
    directory = struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4)
    return (
        (b"II*\0" + struct.pack("<I", 8) + directory).ljust(134, b"\0") + struct.pack("<3H", 16, 16, 16) + bytes(8200)
    )


def dicom():
    return Path(get_testdata_file("MR_small.dcm")).read_bytes()


def zipped(**members):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return content.getvalue()


def folder_of(**files):
    Path("folder").mkdir()
    for name, content in files.items():
        save(f"folder/{name}", content)
    return "folder"


def tarball():
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        archive.add(NIBABEL / "0.dcm", "0.dcm")
    return content.getvalue()


def linked(name, target):
    Path(name).symlink_to(target)
    return name


def encrypted():
    content = bytearray(zipped(**{"slice.dcm": dicom()}))
    content[content.find(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def beside(flair, *more):
    return [flair, *more]


def far_away(distance):
    affine = AFFINE.copy()
    affine[2, 3] += distance
    return nifti(affine=affine, name="t1.nii.gz")


def pair(kind):
    nib.save(kind(VOLUME.astype(np.float32), np.diag([2.0, 2, 2, 1])), "scan.img")
    return "scan.hdr"


# What is refused, and how.

NIFTI_FILES = {
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
}

OTHER_FORMATS = {
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
}

NIFTI_HEADERS = {
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
}

INTENSITIES = {
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

NRRD_AND_META_IMAGE = {
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

SLICES = {
    "an empty folder": (
        lambda: slices(0),
        f"{PATIENT}: expected DICOM files or LGG slices, got no files; name the folder that holds them",
    ),
    "a folder named as a file": (
        lambda: slices(0, "scan.nii.gz"),
        "scan.nii.gz: expected DICOM files or LGG slices, got no files; name the folder that holds them",
    ),
    "a folder of patients": (
        lambda: (Path("kaggle_3m").mkdir(), slices(2, f"kaggle_3m/{PATIENT}"))[0] or "kaggle_3m",
        f"kaggle_3m: expected DICOM files, got 2 of other kinds ({PATIENT}/{PATIENT}_1.tif, "
        f"{PATIENT}/{PATIENT}_2.tif); "
        "name a NIfTI file or an LGG patient's folder itself, unpacked",
    ),
    "one slice instead of its folder": (
        lambda: f"{slices()}/{PATIENT}_2.tif",
        f"{PATIENT}/{PATIENT}_2.tif: expected a NIfTI file, got a TIFF picture; of the LGG slices name the "
        "patient's folder",
    ),
    "one slice alone": (
        lambda: slices(1),
        f"{PATIENT}: expected at least 2 voxels along each axis, got shape (41, 33, 1)",
    ),
    "a missing slice": (
        lambda: slices(_3=None),
        f"{PATIENT}, slice 3: missing; slices must run from 1 to 5 without a gap",
    ),
    "a slice of another size": (
        lambda: slices(_3=Image.new("RGB", (40, 33))),
        f"{PATIENT}, slice 3: the slice is 40x33 pixels, expected 41x33 as the first slice",
    ),
    "slices of two patients": (
        lambda: (slices(), save(f"{PATIENT}/TCGA_YY_0002_20000101_3.tif", b""))[0],
        f"{PATIENT}: expected one patient's slices, found those of {PATIENT}, TCGA_YY_0002_20000101; give each a "
        "folder of its own",
    ),
    "two files for one slice": (
        lambda: (slices(), shutil.copy(f"{PATIENT}/{PATIENT}_3.tif", f"{PATIENT}/{PATIENT}_03.tif"))[0],
        f"{PATIENT}, slice 3: both {PATIENT}_03.tif and {PATIENT}_3.tif claim it; take one away",
    ),
    "a slice in CMYK": (
        lambda: slices(_3=Image.new("CMYK", (41, 33))),
        f"{PATIENT}, slice 3: {PATIENT}_3.tif has pixels of kind CMYK, expected 8-bit RGB",
    ),
    "a grey slice of 16 bits": (
        lambda: slices(_3=Image.new("I;16", (41, 33))),
        f"{PATIENT}, slice 3: {PATIENT}_3.tif has pixels of kind I;16, expected 8-bit RGB",
    ),
    "a slice of 16 bits a color": (
        lambda: slices(_3=sixteen_bits()),
        f"{PATIENT}, slice 3: {PATIENT}_3.tif has pixels of kind RGB of 16 bits, expected 8-bit RGB",
    ),
    "a slice cut off": (
        lambda: slices(_3=b"II*\0\x08\0\0\0"),
        f"{PATIENT}, slice 3: cannot read {PATIENT}_3.tif as TIFF: …; {AGAIN}",
    ),
    "a slice that is no TIFF": (
        lambda: slices(_3=b"nothing"),
        f"{PATIENT}, slice 3: cannot read {PATIENT}_3.tif as TIFF: got none (UnidentifiedImageError); {AGAIN}",
    ),
    "a few bytes that unpack to 80 million pixels": (
        lambda: slices(_1=Image.new("RGB", (9000, 9000))),
        f"{PATIENT}, slice 1: {PATIENT}_1.tif is 9000x9000 pixels, expected at most 1,048,576 in all",
    ),
    "black slices": (
        lambda: slices(2, _1=Image.new("RGB", (41, 33)), _2=Image.new("RGB", (41, 33))),
        f"{PATIENT}: all FLAIR voxels are 0; an image must vary",
    ),
}

DICOM_AND_ZIP = {
    "a folder with a NIfTI file": (
        lambda: folder_of(**{"scan.nii": NIFTI}),
        "folder: expected DICOM files, got another kind (scan.nii); name a NIfTI file or an LGG patient's folder "
        "itself, unpacked",
    ),
    "one real slice that is no FLAIR": (
        lambda: save("slice.dcm", dicom()),
        "slice.dcm: expected a FLAIR series, got 1.3.6.1.4.1.5962.1.3.4.1.20040826185059.5457 (series 1, '', 1 "
        "images); name one with --series UID",
    ),
    "the file DICOMDIR": (
        lambda: str(shutil.copy(get_testdata_file("DICOMDIR"), ".")),
        "DICOMDIR: expected DICOM files, got another kind (DICOMDIR); name the folder that the DICOMDIR lies in",
    ),
    "DICOM cut off, then filled up with zeros": (
        lambda: save("slice.dcm", dicom()[:200] + bytes(2**24)),
        f"slice.dcm: expected DICOM files, got none that can be read; {AGAIN} [unreadable: slice.dcm: expected "
        "the elements of an image, got zeros (damaged?)]",
    ),
    "DICOM with zeros in the middle of its header": (
        lambda: save("slice.dcm", dicom()[:1000] + bytes(2**24)),
        f"slice.dcm: expected DICOM files, got none that can be read; {AGAIN} "
        "[unreadable: slice.dcm: expected at most 20,000 elements, got more (damaged?)]",
    ),
    "an empty zip": (
        lambda: save("study.zip", zipped()),
        "study.zip: expected DICOM files or LGG slices, got no files; name the folder that holds them",
    ),
    "a zip of 0 bytes": (
        lambda: save("study.zip", b""),
        f"study.zip: expected a NIfTI file, got an empty file; {AGAIN}",
    ),
    "a zip without DICOM": (
        lambda: save("study.zip", zipped(**{"scan.nii": NIFTI})),
        "study.zip: expected DICOM files, got another kind (scan.nii); name a NIfTI file or an LGG patient's "
        "folder itself, unpacked",
    ),
    "a zip in a zip": (
        lambda: save("study.zip", zipped(**{"study.zip": zipped(a=dicom())})),
        "study.zip: expected DICOM files, got another kind (study.zip); name …, unpacked",
    ),
    "a zip cut off": (
        lambda: save("study.zip", zipped(a=dicom())[:-99]),
        f"study.zip: expected a complete zip archive, got a damaged one; {AGAIN}",
    ),
    "a zip with a password": (
        lambda: save("study.zip", encrypted()),
        "study.zip: expected a zip that opens without a password, got an encrypted one; unpack it first",
    ),
    "a zip that reaches outside": (
        lambda: save("study.zip", zipped(**{"../../evil.dcm": dicom()})),
        "study.zip: expected a FLAIR series, got …",
    ),
    "a zip that unpacks to zeros": (
        lambda: save("study.zip", zipped(a=dicom()[:200] + bytes(2**25))),
        f"study.zip: expected DICOM files, got none that can be read; {AGAIN} [unreadable: a: expected the "
        "elements of an image, got zeros (damaged?)]",
    ),
}

TWO_FILES = {
    "a T1 that is not there": (
        lambda: [nifti(), "--t1", "t1.nii"],
        "t1.nii: expected a scan, got no such file; check the path",
    ),
    "a T1 of another place": (
        lambda: [nifti(), "--t1", far_away(500)],
        "t1.nii.gz: expected at least 50% of the FLAIR's voxels inside of it, got 0%; the two do not show the "
        "same place",
    ),
    "a T1 of half the head": (
        lambda: [nifti(), "--t1", far_away(30)],
        "t1.nii.gz: expected at least 50% of the FLAIR's voxels inside of it, got 40%; the two …",
    ),
    "a T1 with NaN": (
        lambda: [nifti(name="flair.nii"), "--t1c", spoiled(np.nan, 25)],
        "scan.nii.gz: expected finite intensities, got 25 NaN or infinite (0.0739 %); replace …",
    ),
    "a T1 of another shape without spacing": (
        lambda: [nifti(affine=None, unit="unknown"), "--t1c", nifti(VOLUME[1:], None, "t1c.nii", "unknown")],
        "t1c.nii: expected the voxel grid of scan.nii.gz, shape (33, 41, 25), for one of the two has no spacing, "
        "got shape (32, 41, 25)",
    ),
    "a T1 as NRRD elsewhere, without spacing": (
        lambda: [nifti(), "--t1", nrrd("t1.nrrd", space=None, space_directions=None)],
        "t1.nrrd: expected the voxel grid of scan.nii.gz, shape (33, 41, 25), for one of the two has no spacing, "
        "got shape (33, 41, 25) in another place",
    ),
    "a folder for T1": (
        lambda: [nifti(), "--t1", slices()],
        f"{PATIENT}: expected a NIfTI file, got a folder; name the file in it",
    ),
    "DICOM for T1": (
        lambda: [nifti(), "--t1", save("t1.dcm", dicom())],
        "t1.dcm: expected a NIfTI file, got a DICOM file; name the folder of its study as the scan, which brings "
        "its own t1 and t1c",
    ),
    "a zip for T1": (
        lambda: [nifti(), "--t1", save("t1.zip", zipped(a=dicom()))],
        "t1.zip: expected a NIfTI file, got a zip archive; unpack it first",
    ),
    "T1 beside slices": (
        lambda: [slices(), "--t1", nifti()],
        f"{PATIENT}: a folder of slices holds its own t1 and t1c; leave out --t1 and --t1c",
    ),
    "T1 beside DICOM": (
        lambda: [save("slice.dcm", dicom()), "--t1", nifti()],
        "slice.dcm: a DICOM study holds its own t1 and t1c; leave out --t1 and --t1c",
    ),
    "T1 beside two scans": (
        lambda: [nifti(), nifti(name="b.nii"), "--t1", "b.nii"],
        "--t1 and --t1c go with one scan, got 2",
    ),
    "one scan twice": (
        lambda: [nifti(), "scan.nii.gz"],
        "two scans are named scan; their results would overwrite each other",
    ),
    "a series of a NIfTI file": (
        lambda: [nifti(), "--series", "1.2.3"],
        "scan.nii.gz: --series goes with DICOM, got none; leave it out",
    ),
    "a series that is not in the study": (
        lambda: [save("slice.dcm", dicom()), "--series", "1.2.3"],
        "slice.dcm: expected the series 1.2.3, got 1.3.6.1.4.1.5962.1.3.4.1.20040826185059.5457 (series 1, '', 1 "
        "images)",
    ),
}

REFUSED = (
    NIFTI_FILES | OTHER_FORMATS | NIFTI_HEADERS | INTENSITIES | NRRD_AND_META_IMAGE | SLICES | DICOM_AND_ZIP | TWO_FILES
)


def stub_predictor(bundle, device, engine):
    """What no refused scan gets to."""
    return SimpleNamespace(note=None, engine="none", prepare=lambda scan: pytest.fail("it was not refused"))


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run the command in this process, in a folder of the test's own; exit code, stdout and stderr come back."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ar2unet", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return run


def assert_line(received, expected):
    pattern = ".*".join(re.escape(part) for part in expected.split("…"))
    assert re.fullmatch(pattern, received), f"\nexpected: {expected}\nreceived: {received}"


def memory():
    """The most this process ever took, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_in_one_line_that_names_it(what, command, monkeypatch):
    monkeypatch.setattr("pipeline.cli.segment.make_predictor", stub_predictor)
    make, expected = REFUSED[what]
    given = make()
    before = memory()
    code, out, err = command("segment", *([given] if isinstance(given, str) else given), "-o", "out")
    assert_line(err.removesuffix("\n"), f"ar2unet: {expected}")
    assert (code, out) == (2, "")
    assert not Path("out").exists()
    assert memory() - before < MAX_GROWTH


def test_of_several_bad_scans_each_has_its_line_and_the_last_says_that_none_is_left(command, monkeypatch):
    monkeypatch.setattr("pipeline.cli.segment.make_predictor", stub_predictor)
    code, _, err = command("segment", "one.nii", save("two.nii", b""), "-o", "out")
    first, second, last = err.splitlines()
    assert_line(first, "ar2unet: one.nii: expected a scan, got no such file; check the path")
    assert_line(second, f"ar2unet: two.nii: expected a NIfTI file, got an empty file; {AGAIN}")
    assert_line(last, "ar2unet: none of the 2 scans could be segmented")
    assert code == 2


def test_files_that_may_not_be_read_are_refused(command, monkeypatch):
    monkeypatch.setattr("pipeline.cli.segment.make_predictor", stub_predictor)
    nifti()
    Path("scan.nii.gz").chmod(0)
    if os.access("scan.nii.gz", os.R_OK):
        pytest.skip("the superuser may read everything")
    _, _, err = command("segment", "scan.nii.gz", "-o", "out")
    assert err == "ar2unet: scan.nii.gz: cannot be read: Permission denied\n"


# What would wait for ever, or end the process, if it were not refused; in a process of its own.


def piped(name):
    os.mkfifo(name)
    return name


DANGEROUS = {
    "a named pipe": (
        lambda: piped("scan.nii.gz"),
        "scan.nii.gz: expected a NIfTI file, got a device or pipe; save it as a file",
    ),
    "a named pipe as NRRD": (lambda: piped("scan.nrrd"), "scan.nrrd: expected a file, got a folder, device or pipe"),
    "a named pipe behind MetaImage's header": (
        lambda: (piped("scan.raw"), mha("scan.mhd", b"", ElementDataFile="scan.raw"))[1],
        "scan.mhd: its data scan.raw: expected a file, got a folder, device or pipe",
    ),
    "named pipes for slices": (
        lambda: (slices(0), piped(f"{PATIENT}/{PATIENT}_1.tif"))[0],
        f"{PATIENT}, slice 1: cannot read {PATIENT}_1.tif: expected a file, got none, a folder or a pipe",
    ),
    "a name that is not UTF-8": (
        lambda: str(Path(itk("scan.nrrd")).rename(os.fsdecode(b"sc\xffn.nrrd"))),
        r"sc\udcffn.nrrd: expected a name in UTF-8, got other bytes; rename it",
    ),
}


@pytest.mark.parametrize("what", DANGEROUS)
def test_what_would_hang_or_crash_is_refused(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, expected = DANGEROUS[what]
    code = "import sys; from pathlib import Path; from pipeline.reading import read_case; read_case(Path(sys.argv[1]))"
    result = subprocess.run([sys.executable, "-c", code, make()], capture_output=True, text=True, timeout=60)
    assert_line(result.stderr.splitlines()[-1], f"pipeline.errors.…Error: {expected}")


# What is odd, and works; with the real network, for the warnings are its business, too.

ODD = {
    "gzip under the name of a plain file": (lambda: save("scan.nii", gzip.compress(NIFTI)), UNLIKE),
    "a plain file under the name of gzip": (lambda: save("scan.nii.gz", NIFTI), UNLIKE),
    "zeros behind gzip": (lambda: save("scan.nii.gz", gzip.compress(NIFTI) + bytes(99)), UNLIKE),
    "64 MiB of zeros behind the data": (lambda: save("scan.nii.gz", packed(NIFTI, bytes(2**26))), UNLIKE),
    "NIfTI-2, big-endian, of four dimensions": (
        lambda: (
            nib.save(nib.Nifti2Image(VOLUME[..., None], AFFINE, nib.Nifti2Header(endianness=">")), "scan.nii")
            or "scan.nii"
        ),
        UNLIKE,
    ),
    "negative voxel sizes": (lambda: patched((80, "3f", -2, -2, -2)), UNLIKE),
    "a slope of NaN, which NIfTI takes for none": (lambda: patched((112, "f", np.nan)), UNLIKE),
    "a name of spaces, accents and another script": (lambda: nifti(name="Größe 脳  1.nii.gz"), UNLIKE),
    "negative numbers only": (lambda: nifti(VOLUME - np.int16(32000)), UNLIKE),
    "16 bits without a sign": (lambda: nifti(VOLUME.astype(np.uint16) + np.uint16(32768)), UNLIKE),
    "numbers of 1e30": (lambda: nifti(VOLUME * 1e30), UNLIKE),
    "two slices": (lambda: nifti(VOLUME[:, :, 9:11]), UNLIKE),
    "eight voxels": (lambda: nifti(np.arange(8, dtype=np.int16).reshape(2, 2, 2)), UNLIKE),
    "voxels of 0.1 x 0.1 x 48 mm": (lambda: nifti(affine=np.diag([0.1, 0.1, 48, 1])), UNLIKE),
    "one bright voxel": (lambda: nifti((np.arange(VOLUME.size) == 999).astype("i2").reshape(VOLUME.shape)), UNLIKE),
    "noise": (lambda: nifti(np.random.default_rng(0).normal(size=VOLUME.shape)), UNLIKE),
    "a mask instead of a scan": (lambda: nifti((VOLUME.clip(0, 9000) // 9000).astype(np.uint8)), UNLIKE),
    "a statistical map": (lambda: nilearn("image_10426.nii.gz"), UNLIKE),
    "MetaImage without a spacing": (lambda: mha(ElementSpacing=None), UNLIKE),
    "slices named .TIF": (
        lambda: [Path(f).rename(f[:-3] + "TIF") for f in map(str, Path(slices()).glob("*"))] and PATIENT,
        UNLIKE,
    ),
    "a name that would lead out of the results' folder": (lambda: nifti(name="...nii.gz"), UNLIKE),
}


def nilearn(name):
    if not (NILEARN / name).is_file():
        pytest.skip("nilearn, which carries this scan, is not installed")
    return str(NILEARN / name)


@pytest.mark.parametrize("what", ODD)
def test_it_is_segmented_with_a_warning(what, command, exported_bundle):
    make, warning = ODD[what]
    given = make()
    code, out, err = command("segment", given, "-o", "out", "--bundle", str(exported_bundle))
    assert code == 0, err
    assert_line(err.splitlines()[0], f"ar2unet: {Path(given).name}: {warning}")
    assert len(out.splitlines()) == 1
    report = json.loads(Path("out/report.json").read_text())
    assert report["confidence"]["review"]
    assert (report["volume_ml"] is None) == (what in ("MetaImage without a spacing", "slices named .TIF"))
    (mask,) = Path("out").glob("*_mask.nii.gz")
    assert nib.load(mask).shape[:3] == tuple(report["shape"])


# Where the results shall go.


def full_disk(monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pipeline.formats.atomic.os.fsync", fail)


OUTPUT = {
    "a file": (
        lambda patch: save("out", b"taken"),
        "cannot make the folder out for the results: out is a file; name another with -o",
    ),
    "below a file": (
        lambda patch: (save("file", b""), linked("out", "file/out")),
        "cannot make the folder out …: File exists; name another with -o",
    ),
    "a folder in the mask's place": (
        lambda patch: Path("out/scan_mask.nii.gz").mkdir(parents=True),
        "out/scan_mask.nii.gz: cannot be written: Is a directory",
    ),
    "a disk that is full": (full_disk, "out/scan_mask.nii.gz: cannot be written: No space left on device"),
}


@pytest.mark.parametrize("what", OUTPUT)
def test_an_output_that_cannot_be_is_refused_and_leaves_nothing_half_done(what, command, exported_bundle, monkeypatch):
    make, expected = OUTPUT[what]
    make(monkeypatch)
    code, out, err = command("segment", nifti(), "-o", "out", "--bundle", str(exported_bundle))
    assert_line(err.splitlines()[-1], f"ar2unet: {expected}")
    assert (code, out) == (2, "")
    assert not [
        path for path in Path().rglob("*") if path.is_file() and path.name not in ("scan.nii.gz", "out", "file")
    ]


# A bundle that is no longer whole.

BUNDLE = {
    "is missing": (
        shutil.rmtree,
        "bundle must be a bundle with configs and weights, got none at bundle/configs/inference.yaml",
    ),
    "has no weights": (
        lambda bundle: (bundle / "models" / "model.pt").unlink(),
        "bundle must be a bundle with configs and weights, got none at bundle/models/model.pt",
    ),
    "has no metadata": (
        lambda bundle: (bundle / "configs" / "metadata.json").unlink(),
        "bundle must be a bundle with configs and weights, got none at bundle/configs/metadata.json",
    ),
    "has other weights than were exported": (
        lambda bundle: save(bundle / "models" / "model.pt", b"x" * 999),
        "the exported network of bundle was made from other weights: run 'ar2unet export'",
    ),
    "has an exported network that is cut off": (
        lambda bundle: os.truncate(bundle / "models" / "exported" / "network.onnx", 999),
        "bundle/models/exported/network.onnx is not the file that its manifest describes: run 'ar2unet export'",
    ),
    "has a manifest that is cut off": (
        lambda bundle: os.truncate(bundle / "models" / "exported" / "manifest.json", 50),
        "bundle/models/exported/manifest.json must be a manifest of this version (…): run 'ar2unet export'",
    ),
}


@pytest.mark.parametrize("what", BUNDLE)
def test_a_bundle_is_refused_that(what, command, exported_bundle):
    spoil, expected = BUNDLE[what]
    shutil.copytree(exported_bundle, "bundle")
    spoil(Path("bundle"))
    code, out, err = command("segment", nifti(), "-o", "out", "--bundle", "bundle", "--engine", "onnx")
    assert_line(err.removesuffix("\n"), f"ar2unet: {expected}")
    assert (code, out) == (2, "")


def test_an_engine_that_there_is_not_is_refused_with_those_that_are(command):
    code, _, err = command("segment", "scan.nii", "-o", "out", "--engine", "abacus")
    assert code == 2
    assert "'abacus' is not one of 'auto', 'openvino', 'onnx', 'torch'" in " ".join(err.replace("│", "").split())
