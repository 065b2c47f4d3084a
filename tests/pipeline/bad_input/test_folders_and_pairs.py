"""Damaged slices, DICOM and ZIP, and sequences that do not go together; rows as in test_nifti.py.

DICOM series have 60 more in formats/dicom/test_refusals.py.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from bad_inputs import (
    AGAIN,
    NIFTI,
    PATIENT,
    VOLUME,
    assert_line,
    dicom,
    encrypted,
    far_away,
    folder_of,
    nifti,
    nrrd,
    save,
    sixteen_bits,
    slices,
    spoiled,
    zipped,
)
from PIL import Image
from pydicom.data import get_testdata_file

REFUSED = {
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


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_in_one_line_that_names_it(what, assert_refused):
    assert_refused(*REFUSED[what])


def test_of_several_bad_scans_each_has_its_line_and_the_last_says_that_none_is_left(command, refusing):
    code, _, err = command("segment", "one.nii", save("two.nii", b""), "-o", "out")
    first, second, last = err.splitlines()
    assert_line(first, "ar2unet: one.nii: expected a scan, got no such file; check the path")
    assert_line(second, f"ar2unet: two.nii: expected a NIfTI file, got an empty file; {AGAIN}")
    assert_line(last, "ar2unet: none of the 2 scans could be segmented")
    assert code == 2


def test_files_that_may_not_be_read_are_refused(command, refusing):
    nifti()
    Path("scan.nii.gz").chmod(0)
    if os.access("scan.nii.gz", os.R_OK):
        pytest.skip("the superuser may read everything")
    _, _, err = command("segment", "scan.nii.gz", "-o", "out")
    assert err == "ar2unet: scan.nii.gz: cannot be read: Permission denied\n"
