"""Heads that are known at every place in mm, so that any grid and any position of the head can be sampled exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.formats.scan import Scan

RADII = np.array([68.0, 84.0, 60.0])  # mm
LESION = np.array([30.0, 20.0, 12.0])  # its middle: right, anterior, superior


@dataclass(frozen=True, eq=False)
class Sampled:
    """A visit."""

    scan: Scan
    mask: NDArray[np.bool_]


@pytest.fixture
def make_motion() -> Callable[..., NDArray[np.float64]]:
    """Make a rigid motion in RAS+ mm: rotations about R, A, S in degrees, then a shift."""

    def make(angles: tuple[float, float, float], shift: tuple[float, float, float]) -> NDArray[np.float64]:
        matrix = np.eye(4)
        for axis, angle in enumerate(np.deg2rad(angles)):
            first, second = (n for n in range(3) if n != axis)
            turn = np.eye(4)
            turn[first, first] = turn[second, second] = np.cos(angle)
            turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
            matrix = turn @ matrix
        matrix[:3, 3] = shift
        return matrix

    return make


@pytest.fixture
def make_visit(make_affine: Callable[..., NDArray[np.float64]]) -> Callable[..., Sampled]:
    """Sample a head with a ball as lesion, and perhaps another, on a grid of one's choice."""

    def make(
        radius: float = 14.0,
        *,
        motion: NDArray[np.float64] | None = None,
        spacing: tuple[float, float, float] = (2.9, 3.1, 4.5),
        shape: tuple[int, int, int] = (53, 63, 34),
        orientation: str = "LPS",
        person: int = 1,
        gain: float = 1.0,
        second: tuple[float, tuple[float, float, float]] | None = None,
        is_spacing_known: bool = True,
    ) -> Sampled:
        affine = make_affine(orientation, spacing)
        affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
        places = np.indices(shape).reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3]
        if motion is not None:
            places = (places - motion[:3, 3]) @ motion[:3, :3]  # where each place was before
        image = _head(places, person)
        lesion = ((places - LESION) ** 2).sum(axis=1) < radius**2
        if second is not None:
            lesion |= ((places - second[1]) ** 2).sum(axis=1) < second[0] ** 2
        image[lesion] = 260
        image = gain * image + np.random.default_rng(4).normal(0, 3 * gain, len(image))
        known = spacing if is_spacing_known else None
        scan = Scan(image.reshape(1, *shape).astype(np.float32), affine, known, f"person{person}.nii.gz")
        return Sampled(scan, lesion.reshape(shape))

    return make


def _head(places: NDArray[np.float64], person: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(person)
    inside = ((places / RADII) ** 2).sum(axis=1) < 1
    image = np.full(len(places), 100.0)
    for _ in range(60):
        middle, width = rng.uniform(-0.8, 0.8, 3) * RADII, rng.uniform(8, 22)
        image += rng.choice([-60, 60]) * np.exp(-((places - middle) ** 2).sum(axis=1) / (2 * width**2))
    return np.where(inside, image.clip(20, 200), 0.0)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write a volume as NIfTI on the grid of a scan; without a spacing the header has no unit."""

    def write(name: str, volume: NDArray[np.generic], scan: Scan) -> Path:
        affine = scan.affine if scan.spacing is not None else np.diag([-1.0, -1.0, 1.0, 1.0])
        image = nib.Nifti1Image(volume, affine)
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
        image.header.set_xyzt_units("mm" if scan.spacing is not None else "unknown")
        nib.save(image, tmp_path / name)
        return tmp_path / name

    return write
