"""Where the results cannot go, a bundle that is no longer whole, and an engine that there is not."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from bad_inputs import (
    assert_line,
    linked,
    nifti,
    save,
)


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
