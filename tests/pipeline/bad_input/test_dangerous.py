"""What would wait for ever, or end the process, if it were not refused; in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from bad_inputs import (
    PATIENT,
    assert_line,
    itk,
    mha,
    slices,
)


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
