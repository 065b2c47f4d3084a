"""A bundle whose network can be foreseen, and heads with a lesion in a known place."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.engines.artefact import hash_file, read_artefact, write_manifest
from pipeline.engines.engine import Receive
from pipeline.formats.scan import Scan
from pipeline.predictor import SEGMENTATION_BUNDLE, Predictor

if TYPE_CHECKING:
    import torch

BRIGHT = 2.2  # standard deviations above the head's mean: between tissue and lesion of ``anatomy``


@pytest.fixture
def ar2unet(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command; what it prints and its exit code come back."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from pipeline.cli import main; main()", *map(str, arguments)]
        environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)

    return run


@pytest.fixture
def bundle(tmp_path: Path, make_bundle_network: Callable[..., torch.nn.Module]) -> Path:
    """The shipped bundle's configs with weights of their own."""
    import torch

    folder = tmp_path / "some_segmentation"
    shutil.copytree(SEGMENTATION_BUNDLE / "configs", folder / "configs")
    (folder / "models").mkdir()
    torch.save(make_bundle_network(seed=5).state_dict(), folder / "models" / "model.pt")
    return folder


@pytest.fixture(scope="session")
def exported_bundle(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A copy of the shipped bundle, its network exported once for all processes of pytest; tests leave it as it is."""
    from filelock import FileLock

    from pipeline.exporting import export_bundle

    common = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        common = common.parent  # as pytest-xdist's documentation has it
    folder = common / "exported" / "some_segmentation"
    with FileLock(common / "exported.lock"):
        if not folder.exists():
            new = tmp_path_factory.mktemp("exporting") / folder.name
            for name in ("configs", "models"):
                shutil.copytree(SEGMENTATION_BUNDLE / name, new / name, ignore=shutil.ignore_patterns("exported"))
            export_bundle(new)
            folder.parent.mkdir()
            new.rename(folder)
    return folder


@pytest.fixture(params=["reference road", "fast road"])
def make_predictor(
    request: pytest.FixtureRequest, bundle: Path, exported_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Predictor]:
    """Make a predictor whose network finds what is bright in one channel, by default FLAIR."""

    def make(channel: int = 1) -> Predictor:
        if request.param == "reference road":
            predictor = Predictor(bundle, device="cpu", engine="torch")
            predictor.road.network = _brightness_network(channel)  # type: ignore[attr-defined]
            return predictor
        shutil.copytree(exported_bundle / "models" / "exported", bundle / "models" / "exported", dirs_exist_ok=True)
        manifest = read_artefact(exported_bundle, hash_file(exported_bundle / "models" / "model.pt")).manifest
        write_manifest(bundle, replace(manifest, weights_sha256=hash_file(bundle / "models" / "model.pt")))
        monkeypatch.setattr("pipeline.fast_road._load_engine", lambda name, network: BrightnessEngine(channel))
        return Predictor(bundle, engine="openvino")

    return make


def _brightness_network(channel: int) -> torch.nn.Module:
    import torch

    class BrightnessNetwork(torch.nn.Module):
        def forward(self, slices: torch.Tensor) -> torch.Tensor:
            logits = 40 * (slices[:, channel] - BRIGHT)
            return torch.stack([-logits, logits], dim=1)

    return BrightnessNetwork()


class BrightnessEngine:
    """The same network as an engine; it hands the slices over in reverse order."""

    name = "brightness"

    def __init__(self, channel: int) -> None:
        self.channel = channel

    def infer(self, image: NDArray[np.float32], receive: Receive) -> None:
        for k in reversed(range(image.shape[-1])):
            logits = 40 * (image[self.channel, ..., k] - np.float32(BRIGHT))
            receive(k, np.stack([-logits, logits]))


@pytest.fixture
def anatomy() -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """A head in air, axes to R, A, S, with a lesion at its right front top, and where that lesion is."""
    rng = np.random.default_rng(3)
    axes = np.ogrid[-1:1:46j, -1:1:50j, -1:1:9j]
    radius = axes[0] ** 2 / 0.8**2 + axes[1] ** 2 / 0.9**2 + axes[2] ** 2 / 1.2**2
    volume = np.where(radius < 1, 300 + rng.normal(0, 20, radius.shape), rng.uniform(0, 6, radius.shape))
    lesion = np.zeros(radius.shape, dtype=bool)
    lesion[28:34, 30:38, 6:8] = True
    volume[lesion] = 900
    return volume.astype(np.int16), lesion


@pytest.fixture
def two_lesions() -> Callable[..., NDArray[np.uint8]]:
    """Make a mask of six voxels that touch by a corner only, and two elsewhere."""

    def make(shape: tuple[int, int, int] = (11, 13, 7)) -> NDArray[np.uint8]:
        mask = np.zeros(shape, np.uint8)
        mask[2:4, 3, 4:6] = 1
        mask[4, 4, 6] = mask[5, 5, 5] = 1
        mask[9, 11, 1:3] = 1
        return mask

    return make


@pytest.fixture
def make_head_scan(make_affine: Callable[..., NDArray[np.float64]]) -> Callable[..., tuple[Scan, NDArray[np.float64]]]:
    """Make a bright ellipsoid on black, brighter in the patient's left half, and where its voxels lie in mm."""

    def make(
        orientation: str = "LPS",
        spacing: tuple[float, float, float] | None = (0.9, 1.1, 4.5),
        shape: tuple[int, int, int] = (60, 72, 20),
    ) -> tuple[Scan, NDArray[np.float64]]:
        affine = make_affine(orientation, spacing or (1, 1, 1))
        grid = np.indices(shape).reshape(3, -1)
        place = (affine[:3, :3] @ (grid - (np.array(shape)[:, None] - 1) / 2)).reshape(3, *shape)
        radius = np.array([0.45 * np.abs(affine[n, :3] @ shape) for n in range(3)])
        head = np.square(place / radius[:, None, None, None]).sum(axis=0) < 1
        image = head * np.where(place[0] < 0, 200, 100) + np.random.default_rng(1).random(shape)
        return Scan(image[None].astype(np.float32), affine, spacing, "head.nii.gz"), place

    return make
