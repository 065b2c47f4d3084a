"""Made-up subjects in the training frame, a bundle fitted to them, and the published ones where they are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

ROWS, COLUMNS, SLICES = 208, 176, 32
SUBJECTS = 15
PREPARED = os.environ.get("AR2UNET_DEMENTIA_DATA")  # what `ar2unet prepare dementia` wrote


def make_subject(seed: int, ventricles: float = 1.0) -> np.ndarray:
    """A brain in black, ``(32, 208, 176)`` as 0 to 255: no two heights, rows or sides of it are alike.

    Args:
        seed: Of what differs between subjects.
        ventricles: Size; about 1.
    """
    rng = np.random.default_rng(seed)
    k, row, column = np.ogrid[:SLICES, :ROWS, :COLUMNS]
    across, along = (column - 87.5) / (68 - 0.5 * k), (row - 100.0) / (86 - 0.6 * k)
    # An egg, its blunt end behind; the right front reaches farther than the left one.
    inside = across**2 * (1 - (0.25 - 0.1 * (across > 0)) * along) + along**2 < 1
    image = 150 + 25 * np.cos(9 * along + 0.1 * k) + 20 * np.cos(11 * np.abs(across)) + 25 * across * along
    gap = 0.1 + 0.004 * k
    for side in (-1, 1):
        fluid = ((across - side * gap) / (0.1 * ventricles)) ** 2 + ((along + 0.1) / (0.3 * ventricles)) ** 2 < 1
        image = np.where(fluid, 35, image)
    image = (
        image + ndimage.gaussian_filter(rng.normal(0, 60, image.shape), (1, 1.2, 1.2)) + rng.normal(0, 3, image.shape)
    )
    return np.where(inside, image.clip(12, 255), 0).astype(np.uint8)


@pytest.fixture(scope="session")
def brain() -> np.ndarray:
    """A made-up subject that no model was fitted to; tests leave it as it is."""
    return make_subject(77, 1.2)


@pytest.fixture(scope="session")
def subjects() -> tuple[list[np.ndarray], list[int]]:
    """Made-up subjects and their labels: the larger the ventricles, the later the stage."""
    labels = [number % 3 for number in range(SUBJECTS)]
    return [make_subject(number, 0.9 + 0.25 * label) for number, label in enumerate(labels)], labels


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, subjects: tuple[list[np.ndarray], list[int]]) -> Path:
    """A bundle whose network and plausibility model were fitted to the made-up subjects; tests leave it as it is."""
    import torch

    from networks.atrophy_classifier import AtrophyClassifier
    from pipeline.staging.plausibility import PlausibilityModel
    from pipeline.staging.plausibility_model import fit_plausibility, write_plausibility

    folder = tmp_path_factory.mktemp("stage") / "some_stage_classification"
    (folder / "models").mkdir(parents=True)
    (folder / "configs").mkdir()
    (folder / "configs" / "metadata.json").write_text(json.dumps({"version": "1.2.3"}))
    images, labels = subjects
    network = AtrophyClassifier()
    network.fit(torch.from_numpy(np.stack(images)), torch.tensor(labels))
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    model = fit_plausibility([image.astype(np.float32) for image in images])
    # So few subjects say little about what is usual in others.
    wider = [
        np.where(np.isinf(limits), limits, limits * (0.85, 1.15) + (0, 0.01))
        for limits in (model.slice_limits, model.volume_limits)
    ]
    model = PlausibilityModel(model.template, *wider)
    write_plausibility(model, folder / "models" / "plausibility.json")
    return folder


@pytest.fixture
def save_slice(tmp_path: Path) -> Callable[..., Path]:
    """Save an array ``(rows, columns)`` as a picture."""

    def save(pixels: np.ndarray, name: str = "slice.png", **options: object) -> Path:
        path = tmp_path / name
        Image.fromarray(pixels).save(path, **options)
        return path

    return save


@pytest.fixture
def save_volume(tmp_path: Path) -> Callable[..., Path]:
    """Save slices ``(slice, row, column)`` of the training frame as NIfTI whose axes have other codes."""

    def save(
        slices: np.ndarray, codes: str = "RPS", name: str = "t1.nii.gz", unit: str = "unknown", size: float = 1.0
    ) -> Path:
        volume = slices.transpose(2, 1, 0)
        ornt = nib.orientations
        turn = ornt.ornt_transform(ornt.axcodes2ornt("RPS"), ornt.axcodes2ornt(codes))
        affine = ornt.inv_ornt_aff(ornt.ornt_transform(ornt.axcodes2ornt("RAS"), ornt.axcodes2ornt(codes)), (9, 9, 9))
        affine = affine @ np.diag([size, size, size, 1])
        image = nib.Nifti1Image(ornt.apply_orientation(volume, turn), affine)
        image.header.set_xyzt_units(unit)
        assert nib.aff2axcodes(affine) == tuple(codes)
        nib.save(image, tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture(scope="session")
def published() -> list[tuple[dict[str, Any], Path]]:
    """Entries of the prepared published data and their volumes; without them the test is skipped."""
    if PREPARED is None:
        pytest.skip("needs the published data: name the folder of the prepared ones in AR2UNET_DEMENTIA_DATA")
    entries = json.loads(Path(PREPARED, "datalist.json").read_text())["training"]
    return [(entry, Path(PREPARED, entry["image"])) for entry in entries]
