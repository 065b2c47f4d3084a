from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@dataclass(frozen=True)
class MadePatient:
    """A patient's folder of TIFFs and what was put in it: slices (K, rows, columns, 3), masks (K, rows, columns)."""

    folder: Path
    slices: np.ndarray
    masks: np.ndarray

    def slice_path(self, number: int) -> Path:
        return self.folder / f"{self.folder.name}_{number}.tif"

    def mask_path(self, number: int) -> Path:
        return self.folder / f"{self.folder.name}_{number}_mask.tif"


@pytest.fixture
def kaggle_3m(tmp_path: Path) -> Path:
    folder = tmp_path / "kaggle_3m"
    folder.mkdir()
    (folder / "data.csv").write_text("Patient\n")
    return folder


@pytest.fixture
def make_patient(kaggle_3m: Path) -> Callable[..., MadePatient]:
    """Make a patient of 11 slices, which sort differently by name and by number, 6 rows and 7 columns."""

    def make(name: str = "TCGA_CS_4941_19960909", *, count: int = 11, copies: tuple[int, ...] = ()) -> MadePatient:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        slices = rng.integers(0, 256, (count, 6, 7, 3), np.uint8)
        for channel in copies:
            slices[..., channel] = slices[..., 1]
        masks = np.where(rng.random((count, 6, 7)) < 0.2, 255, 0).astype(np.uint8)
        masks[1] = 0  # a slice without lesion
        made = MadePatient(kaggle_3m / name, slices, masks)
        made.folder.mkdir()
        for number in range(1, count + 1):
            Image.fromarray(slices[number - 1]).save(made.slice_path(number))
            Image.fromarray(masks[number - 1]).save(made.mask_path(number))
        return made

    return make


@pytest.fixture
def patient(make_patient: Callable[..., MadePatient]) -> MadePatient:
    return make_patient()
