"""Scans of every orientation, for all tests: no two sizes are equal, no two voxels, no two spacings."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

if TYPE_CHECKING:
    from networks.ar2unet import AR2UNet

SHAPE = (11, 13, 7)  # all sizes differ, so a swapped axis cannot pass unseen
SPACING = (0.9, 1.1, 4.5)  # mm, anisotropic: thick slices
ORIGIN = (-21.5, 33.25, 7.75)  # mm
ORIENTATIONS = ("RAS", "LPS", "LAS", "PSR", "oblique")
CODES = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


def _affine(orientation: str, spacing: tuple[float, float, float] = SPACING) -> NDArray[np.float64]:
    """Axis codes such as "RAS", permuted ones such as "PSR", or "oblique": LPS turned about two axes."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, code in enumerate("LPS" if orientation == "oblique" else orientation):
        world, sign = CODES[code]
        affine[world, axis] = sign * spacing[axis]
    if orientation == "oblique":
        pitch, yaw = np.deg2rad((17.0, -8.0))
        about_x = [[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]]
        about_z = [[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]]
        affine[:3, :3] = np.array(about_z) @ np.array(about_x) @ affine[:3, :3]
    affine[:3, 3] = ORIGIN
    return affine


@pytest.fixture
def make_affine() -> Callable[..., NDArray[np.float64]]:
    """Make the affine of an orientation: axis codes ("RAS", "LPS", "LAS", "PSR", …) or "oblique"."""
    return _affine


@pytest.fixture
def numbered_volume() -> NDArray[np.int16]:
    """A volume whose voxels all differ."""
    return np.random.default_rng(1).permutation(np.prod(SHAPE)).astype(np.int16).reshape(SHAPE)


@pytest.fixture
def make_nifti(tmp_path: Path, numbered_volume: NDArray[np.int16]) -> Callable[..., Path]:
    """Write a NIfTI file; by default the numbered volume, oblique, with sform and qform of different codes."""

    def make(
        name: str = "flair.nii.gz",
        *,
        orientation: str = "oblique",
        affine: NDArray[np.float64] | None = None,
        volume: NDArray[np.generic] = numbered_volume,
        spacing: tuple[float, float, float] = SPACING,
        unit: str = "mm",
        sform_code: int = 1,
        qform_code: int = 2,
        image_class: type[nib.Nifti1Image] = nib.Nifti1Image,
    ) -> Path:
        affine = _affine(orientation, spacing) if affine is None else affine
        image = image_class(volume, affine)
        image.set_sform(affine, code=sform_code)
        image.set_qform(affine, code=qform_code)
        image.header.set_xyzt_units(unit)
        image.header["descrip"] = b"made by a test"
        path = tmp_path / name
        nib.save(image, path)
        return path

    return make


@pytest.fixture(params=ORIENTATIONS)
def oriented_nifti(request: pytest.FixtureRequest, make_nifti: Callable[..., Path]) -> Path:
    """The numbered volume in one orientation after the other."""
    return make_nifti(f"{request.param}.nii.gz", orientation=request.param)


@pytest.fixture
def make_head() -> Callable[..., tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Make a stand-in head, brightness 80 to 140 in air of noise below 20, and the mask of where it truly is."""

    def make(
        shape: tuple[int, int, int] = (42, 52, 9),
        center: tuple[float, float, float] = (18.0, 27.0, 4.0),
        radii: tuple[float, float, float] = (12.0, 16.0, 3.4),
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        random = np.random.default_rng(2)
        grid = np.stack(np.indices(shape), axis=-1)
        inside = (((grid - center) / radii) ** 2).sum(axis=-1) <= 1
        return np.where(inside, random.uniform(80, 140, shape), random.uniform(0, 20, shape)).astype(np.float32), inside

    return make


@pytest.fixture
def make_bundle_network() -> Callable[..., AR2UNet]:
    """Make the segmentation bundle's network with random weights."""
    import torch
    import yaml

    from networks.ar2unet import AR2UNet
    from pipeline.predictor import SEGMENTATION_BUNDLE

    def make(seed: int = 0) -> AR2UNet:
        definition = yaml.safe_load((SEGMENTATION_BUNDLE / "configs" / "inference.yaml").read_text())["network_def"]
        del definition["_target_"]
        torch.manual_seed(seed)
        return AR2UNet(**{**definition, "in_channels": 3})

    return make


@pytest.fixture
def small_bundle(tmp_path: Path) -> Path:
    """The shipped bundle's configs with a small network of random weights, so that exporting it takes little time."""
    import torch
    import yaml

    from networks.ar2unet import AR2UNet
    from pipeline.predictor import SEGMENTATION_BUNDLE

    folder = tmp_path / "some_segmentation"
    shutil.copytree(SEGMENTATION_BUNDLE / "configs", folder / "configs")
    path = folder / "configs" / "inference.yaml"
    config = yaml.safe_load(path.read_text())
    config["network_def"] |= {"channels": [2, 4], "recurrences": 1, "backbone": "none"}
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    torch.manual_seed(2)
    (folder / "models").mkdir()
    torch.save(AR2UNet(2, 3, 2, (2, 4), recurrences=1, patch_size=2).state_dict(), folder / "models" / "model.pt")
    return folder
