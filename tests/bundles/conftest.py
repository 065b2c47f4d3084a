"""A tiny prepared data set, a copy of the bundle with random weights, and a way to run its literal commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[2]
SEGMENTATION_BUNDLE = REPOSITORY / "bundles" / "flair_abnormality_segmentation"

# (columns, rows, slices): no two sizes of a patient are equal, and no two patients have the same.
SHAPES = ((32, 36, 4), (34, 40, 5), (30, 38, 6), (36, 42, 3), (33, 37, 7), (35, 41, 2))
FOLDS = (0, 1, 1, 0, 1, 2)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # the axes of prepared volumes; spacing 1 and no unit: unknown
TINY_CHANNELS = (4, 8, 16)
SMALL_RUN = {
    "channels": list(TINY_CHANNELS),
    "recurrences": 1,
    "batch_size": 2,
    "slice_size": [32, 48],
    "num_workers": 0,
    "val_interval": 1,
}


@dataclass(frozen=True)
class TinyDataset:
    """A prepared data set: its folder, and its entries with relative paths."""

    folder: Path
    entries: list[dict[str, Any]]

    def subjects(self, fold: int) -> list[str]:
        return [entry["subject"] for entry in self.entries if entry["fold"] == fold]


def ellipsoid(shape: tuple[int, ...], center: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    """Return where an ellipsoid lies; center and radii as shares of the shape."""
    grid = np.indices(shape).T.T.astype(float)
    distances = [(grid[axis] - center[axis] * shape[axis]) / (radii[axis] * shape[axis]) for axis in range(len(shape))]
    return sum(distance**2 for distance in distances) <= 1


def make_patient(shape: tuple[int, int, int], seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return t1, flair and t1c, three different uint8 volumes of a head, and the mask of its lesion."""
    rng = np.random.default_rng(seed)
    head = ellipsoid(shape, (0.5, 0.5, 0.5), (0.4, 0.42, 2.0))
    lesion = ellipsoid(shape, (0.62, 0.4, 0.5), (0.15, 0.12, 0.7))
    volumes = []
    for brain, bright in ((110, 90), (90, 220), (120, 150)):
        volume = np.where(lesion, bright, np.where(head, brain, 4)) + rng.normal(0, 4, shape)
        volumes.append(np.clip(volume, 0, 255).astype(np.uint8))
    return volumes, lesion.astype(np.uint8)


def save_nifti(path: Path, volume: np.ndarray, affine: np.ndarray = LPS, *, unit: str = "unknown") -> Path:
    """Write a volume, as ``ar2unet prepare`` does where spacing is unknown."""
    image = nib.Nifti1Image(volume, affine)
    image.set_sform(affine, code=2)
    image.set_qform(affine, code=2)
    image.header.set_xyzt_units(unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> TinyDataset:
    """Six patients in three folds, each of a size of its own."""
    folder = tmp_path_factory.mktemp("tiny_dataset")
    entries = []
    for number, (shape, fold) in enumerate(zip(SHAPES, FOLDS, strict=True)):
        subject = f"sub-{number}"
        volumes, mask = make_patient(shape, number)
        images = [f"{subject}/{name}.nii.gz" for name in ("t1", "flair", "t1c")]
        label = f"derivatives/{subject}_mask.nii.gz"
        for name, volume in zip([*images, label], [*volumes, mask], strict=True):
            save_nifti(folder / name, volume)
        entries.append({"subject": subject, "site": "CS", "fold": fold, "image": images, "label": label})
    (folder / "datalist.json").write_text(json.dumps({"training": entries}))
    return TinyDataset(folder, entries)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundle whose weights are random, but mark a part of every image."""
    import torch

    from networks.ar2unet import AR2UNet

    folder = tmp_path_factory.mktemp("bundle") / SEGMENTATION_BUNDLE.name
    for part in ("configs", "docs"):
        shutil.copytree(SEGMENTATION_BUNDLE / part, folder / part)
    network_def = read_config("inference.yaml")["network_def"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AR2UNet(**{name: value for name, value in network_def.items() if name != "_target_"}).eval()
        with torch.no_grad():
            logits = network(torch.randn(1, 3, 48, 32))
            # Balance the two channels on noise, or one of them might win everywhere.
            network.head.bias[1] += (logits[:, 0] - logits[:, 1]).quantile(0.7)
    (folder / "models").mkdir()
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


def read_config(name: str) -> dict[str, Any]:
    """Return a config of the bundle as YAML has it, nothing resolved."""
    import yaml

    content: dict[str, Any] = yaml.safe_load((SEGMENTATION_BUNDLE / "configs" / name).read_text())
    return content


def command_environment() -> dict[str, str]:
    """Return an environment in which a config's double key is an error, on one thread of the CPU."""
    return {
        **os.environ,
        "MONAI_FAIL_ON_DUPLICATE_CONFIG": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }


RunCommand = Callable[..., str]


@pytest.fixture(scope="session")
def run_command(bundle: Path) -> RunCommand:
    """Run ``python ARGUMENTS`` from the bundle's folder and return what it printed; it must succeed."""

    def run(*arguments: str) -> str:
        finished = subprocess.run(
            [sys.executable, *arguments],
            cwd=bundle,
            env=command_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout
        return finished.stdout

    return run


def as_arguments(overrides: dict[str, Any]) -> list[str]:
    """Return overrides as the command line takes them."""
    return [part for name, value in overrides.items() for part in (f"--{name}", str(value))]


@pytest.fixture
def in_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Be in the bundle's folder, for configs run in this process."""
    import torch
    from monai.utils import set_determinism

    monkeypatch.chdir(bundle)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield bundle
    torch.set_num_threads(threads)
    set_determinism(None)
