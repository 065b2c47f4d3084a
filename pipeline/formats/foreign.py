"""What a file is that is not of the format expected, told by how it starts, and what to do about it."""

from __future__ import annotations

__all__ = ["AGAIN", "REPLACE", "START_BYTES", "describe_content"]

START_BYTES = 540  # that ``describe_content`` looks at
AGAIN = "copy or download it again"  # what to do about damage
REPLACE = "replace them, by 0 outside of the head"  # about voxels that are no numbers

UNPACK = "unpack it first"
JOIN_PAIR = "convert the pair to one .nii file first"
TO_NIFTI = "convert it to NIfTI first"
# Where in the file, which bytes, and what they tell. In order: some DICOM files begin with a TIFF header, too.
SIGNATURES = (
    (128, b"DICM", "a DICOM file; name the folder of its study as the scan, which brings its own t1 and t1c"),
    (344, b"n+1\0", "a NIfTI file; give it a name that ends in .nii or .nii.gz"),
    (4, b"n+2\0", "a NIfTI file; give it a name that ends in .nii or .nii.gz"),
    (344, b"ni1\0", f"one half of an .hdr/.img pair; {JOIN_PAIR}"),
    (4, b"ni2\0", f"one half of an .hdr/.img pair; {JOIN_PAIR}"),
    (0, b"NRRD", "an NRRD volume; give it a name that ends in .nrrd or .nhdr, unpacked"),
    (0, b"ObjectType", "a MetaImage volume; give it a name that ends in .mha or .mhd, unpacked"),
    (0, b"NDims", "a MetaImage volume; give it a name that ends in .mha or .mhd, unpacked"),
    (0, b"\0\0\0\1\0\0", f"an MGH volume; {TO_NIFTI} (mri_convert of FreeSurfer does)"),
    (0, b"CDF", f"a MINC volume; {TO_NIFTI} (mnc2nii does)"),
    (0, b"\x89HDF", f"an HDF5 file, perhaps MINC; {TO_NIFTI} (mnc2nii does)"),
    (0, b"\x93NUMPY", f"a NumPy array, which has no geometry; {TO_NIFTI}"),
    (0, b"\x89PNG", "a PNG picture; a volume is needed, not a picture of one"),
    (0, b"\xff\xd8\xff", "a JPEG picture; a volume is needed, not a picture of one"),
    (0, b"II*\0", "a TIFF picture; of the LGG slices name the patient's folder"),
    (0, b"MM\0*", "a TIFF picture; of the LGG slices name the patient's folder"),
    (0, b"\x1f\x8b", "gzip inside of gzip; unpack it once"),
    (0, b"PK\x03\x04", f"a zip archive; {UNPACK}"),
    (0, b"BZh", f"a bzip2 archive; {UNPACK}"),
    (0, b"\xfd7zXZ", f"an xz archive; {UNPACK}"),
    (0, b"\x28\xb5\x2f\xfd", f"a Zstandard archive; {UNPACK}"),
    (0, b"7z\xbc\xaf", f"a 7-Zip archive; {UNPACK}"),
    (0, b"Rar!", f"a RAR archive; {UNPACK}"),
    (257, b"ustar", f"a tar archive; {UNPACK}"),
    (0, b"version https://git-lfs", "the pointer that Git LFS left in its place; fetch the file itself (git lfs pull)"),
)
WEB_PAGES = (b"<!doctype html", b"<html", b"<?xml", b"<head", b'{"error')


def describe_content(start: bytes) -> str:
    """Say what a file is, and what to do with it, as the end of a line.

    Args:
        start: Its first ``START_BYTES``, or all of it.
    """
    for position, signature, content in SIGNATURES:
        if start[position : position + len(signature)] == signature:
            return content
    if start.lstrip().lower().startswith(WEB_PAGES):
        return "a web page, as of a failed download; download it again"
    if not start.strip(b"\0"):
        return f"{'zeros, as of an interrupted download' if start else 'nothing'}; {AGAIN}"
    return f"other content (it starts with {start[:8]!r}); if it is a scan, {TO_NIFTI}"
