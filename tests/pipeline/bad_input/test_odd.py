"""What is odd, and works; with the real network, for the warnings are its business, too."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bad_inputs import (
    AFFINE,
    NIFTI,
    NILEARN,
    PATIENT,
    UNLIKE,
    VOLUME,
    assert_line,
    mha,
    nifti,
    packed,
    patched,
    save,
    slices,
)


def nilearn(name):
    if not (NILEARN / name).is_file():
        pytest.skip("nilearn, which carries this scan, is not installed")
    return str(NILEARN / name)


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
