from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FIRST, SECOND = "TCGA_CS_4941_19960909", "TCGA_DU_5849_19950405"


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

    def make(name: str = FIRST, *, count: int = 11, copies: tuple[int, ...] = ()) -> MadePatient:
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


def _write_tiff(path: Path, shape: tuple[int, ...], value: int = 0) -> None:
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)


@pytest.fixture
def write_tiff() -> Callable[..., None]:
    """Write a TIFF of a shape (rows, columns[, 3]) and of one value."""
    return _write_tiff


BREAKAGES = {
    "a gap in the numbers": (
        lambda made: [made.slice_path(4).unlink(), made.mask_path(4).unlink()],
        "slice 4: missing; slices must run from 1 to 11",
    ),
    "numbers that begin at 2": (
        lambda made: [made.slice_path(1).unlink(), made.mask_path(1).unlink()],
        "slice 1: missing",
    ),
    "a slice numbered 0": (lambda made: shutil.copy(made.slice_path(1), made.slice_path(0)), "slice 0: .* from 1"),
    "an absurdly high number": (lambda made: made.slice_path(3).rename(made.slice_path(10**15)), "slice 3: missing"),
    "a number there twice": (
        lambda made: shutil.copy(made.slice_path(3), made.folder / f"{FIRST}_03.tif"),
        "slice 3: both .*_03.tif and .*_3.tif",
    ),
    "a missing mask": (lambda made: made.mask_path(10).unlink(), "slice 10: its mask .*_10_mask.tif is missing"),
    "a mask without a slice": (
        lambda made: shutil.copy(made.mask_path(1), made.mask_path(12)),
        "slice 12: there is a mask",
    ),
    "a mask of another size": (
        lambda made: _write_tiff(made.mask_path(3), (7, 6)),
        "slice 3: its mask is 6x7 pixels, expected 7x6",
    ),
    "a slice of another size": (
        lambda made: _write_tiff(made.slice_path(10), (6, 8, 3)),
        "slice 10: the slice is 8x6 pixels, expected 7x6 as the first slice",
    ),
    "a grey slice": (lambda made: _write_tiff(made.slice_path(2), (6, 7)), "slice 2: .* of kind L, expected 8-bit RGB"),
    "a coloured mask": (
        lambda made: _write_tiff(made.mask_path(2), (6, 7, 3)),
        "slice 2: its mask: .* of kind RGB, expected 8-bit grey",
    ),
    "a mask with a third value": (
        lambda made: _write_tiff(made.mask_path(5), (6, 7), 128),
        "slice 5: its mask has the value 128 .*, expected 0 and 255",
    ),
    "a slice that is not a TIFF": (
        lambda made: made.slice_path(7).write_bytes(b"not a picture"),
        "slice 7: cannot read .*_7.tif as TIFF",
    ),
    "a truncated slice": (
        lambda made: made.slice_path(8).write_bytes(made.slice_path(8).read_bytes()[:120]),
        "slice 8: cannot read .*_8.tif as TIFF",
    ),
    "an empty mask file": (
        lambda made: made.mask_path(9).write_bytes(b""),
        "slice 9: its mask: cannot read .*_9_mask.tif",
    ),
    "a folder in a slice's place": (
        lambda made: [made.slice_path(6).unlink(), made.slice_path(6).mkdir()],
        r"(slice 6: )?cannot read .*_6.tif",
    ),
    "no slices at all": (
        lambda made: [path.unlink() for path in made.folder.iterdir() if "mask" not in path.name],
        "no slices named",
    ),
    "slices of another patient among them": (
        lambda made: made.slice_path(11).rename(made.folder / f"{SECOND}_11.tif"),
        f"expected one patient's slices, found those of {FIRST}, {SECOND}",
    ),
}


@pytest.fixture(params=BREAKAGES.values(), ids=BREAKAGES.keys())
def breakage(request: pytest.FixtureRequest) -> tuple[Callable[[MadePatient], object], str]:
    """One way to break a patient's folder after the other, and the message that must tell of it."""
    return request.param
