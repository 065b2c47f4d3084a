"""Small scans below a folder, and a bundle that segments them fast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.cohort.finding import FoundScan


@pytest.fixture
def write_scan(anatomy: tuple[NDArray[np.int16], NDArray[np.bool_]]) -> Callable[..., Path]:
    """Write a head as NIfTI whose voxels and lesion are another with each number."""

    def write(path: Path, number: int = 0) -> Path:
        volume = anatomy[0].copy()
        volume[28:34, 28 - number : 30, 6:8] = 950  # beside the lesion, so that it is no fragment
        volume[0, 0, 0] = number
        image = nib.Nifti1Image(volume, np.diag([-0.9, 1.1, 4.5, 1.0]))
        image.header.set_xyzt_units("mm")
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)
        return path

    return write


@pytest.fixture
def found(tmp_path: Path, write_scan: Callable[..., Path]) -> Callable[..., FoundScan]:
    """Make a case of a scan that is there."""

    def make(name: str, number: int = 0) -> FoundScan:
        return FoundScan(name, f"{name}.nii.gz", write_scan(tmp_path / "scans" / f"{name}.nii.gz", number))

    return make


@pytest.fixture
def scans(tmp_path: Path, write_scan: Callable[..., Path]) -> Path:
    """A folder of seven scans, of which two are damaged."""
    folder = tmp_path / "scans"
    for number in range(5):
        write_scan(folder / f"site{number % 2}" / f"p{number}.nii.gz", number)
    (folder / "site0" / "cut.nii.gz").write_bytes((folder / "site0" / "p0.nii.gz").read_bytes()[:900])
    (folder / "site1" / "text.nii").write_text("no scan at all")
    return folder


@pytest.fixture
def results_of() -> Callable[[Path], dict[str, bytes]]:
    """Return what two runs have to agree on: the table without seconds, and every mask's bytes."""

    def read(out: Path) -> dict[str, bytes]:
        lines = (out / "cohort.csv").read_bytes().splitlines()
        table = b"\n".join(line.rpartition(b",")[0] for line in lines)
        masks = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*_mask.nii.gz")}
        return {"table": table, **masks}

    return read
