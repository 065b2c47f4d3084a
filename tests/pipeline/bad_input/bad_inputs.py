"""What makes damaged and odd inputs, in the current folder; each returns what is given to the command."""

from __future__ import annotations

import io
import re
import struct
import tarfile
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813 (as everybody writes it)
from PIL import Image
from pydicom.data import get_testdata_file

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


def assert_line(received, expected):
    """Compare a line with what is expected, where ``…`` stands for anything."""
    pattern = ".*".join(re.escape(part) for part in expected.split("…"))
    assert re.fullmatch(pattern, received), f"\nexpected: {expected}\nreceived: {received}"
