"""A tiny prepared data set, a copy of the bundle with random weights, and ways to run its configs."""

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
import yaml

REPOSITORY = Path(__file__).parents[2]
SEGMENTATION_BUNDLE = REPOSITORY / "bundles" / "flair_abnormality_segmentation"

# (columns, rows, slices): no two sizes of a patient are equal, and no two patients have the same.
SHAPES = ((32, 36, 4), (34, 40, 5), (30, 38, 6), (36, 42, 3), (33, 37, 7), (35, 41, 2))
FOLDS = (0, 1, 1, 0, 1, 2)
SEQUENCES = ("t1", "flair", "t1c")
STAGES = ("NonDemented", "VeryMildDemented", "MildDemented", "ModerateDemented")
STAGE_LABELS = (0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 3)  # of 18 subjects in three folds
RPS = np.diag([1.0, -1.0, 1.0, 1.0])  # the axes of prepared T1 volumes
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # the axes of prepared volumes; voxel size 1 and no unit: spacing unknown

# A training of seconds: three patients, one a batch, no published backbone.
SMALL_TRAINING: dict[str, Any] = {
    "fold": 1,
    "epochs": 2,
    "channels": [4, 8, 16],
    "recurrences": 1,
    "network_def#backbone": "none",
    "batch_size": 1,
    "slice_size": [32, 48],
    "warmup_iterations": 2,
    "val_interval": 1,
    "num_workers": 0,
}

# A network for the staging bundle's volumes of 30 columns, 34 rows and 8 slices.
SMALL_STAGING: dict[str, Any] = {
    "network_def#slices": 8,
    "network_def#size": [34, 30],
    "network_def#window": [[5, 29], [6, 22]],
    "network_def#fluid_slices": 4,
    "network_def#fluid_window": [[9, 21], [10, 18]],
}


@dataclass(frozen=True)
class TinyDataset:
    """A prepared data set: its folder, and its entries with relative paths."""

    folder: Path
    entries: list[dict[str, Any]]

    def held_out(self, fold: int) -> list[dict[str, Any]]:
        return [entry for entry in self.entries if entry["fold"] == fold]

    def spatial_shape(self, subject: str) -> tuple[int, int, int]:
        return SHAPES[int(subject.removeprefix("sub-"))]


def _ellipsoid(
    shape: tuple[int, ...], center: tuple[float, ...], radii: tuple[float, ...]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return where an ellipsoid lies; center and radii as shares of the shape."""
    shares = [grid / size for grid, size in zip(np.indices(shape), shape, strict=True)]
    terms = [((share - middle) / radius) ** 2 for share, middle, radius in zip(shares, center, radii, strict=True)]
    return np.sum(terms, axis=0) <= 1


@pytest.fixture(scope="session")
def make_patient() -> Callable[[tuple[int, int, int], int], tuple[dict[str, np.ndarray], np.ndarray]]:
    """Make t1, flair and t1c of a head with a lesion that is bright in flair, uint8, and the lesion's mask."""

    def make(shape: tuple[int, int, int], seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        rng = np.random.default_rng(seed)
        head = _ellipsoid(shape, (0.5, 0.5, 0.5), (0.4, 0.42, 2.0))
        lesion = _ellipsoid(shape, (0.62, 0.4, 0.5), (0.15, 0.12, 0.7))
        volumes = {}
        for sequence, brain, bright in (("t1", 110, 90), ("flair", 90, 220), ("t1c", 120, 150)):
            volume = np.where(lesion, bright, np.where(head, brain, 4)) + rng.normal(0, 4, shape)
            volumes[sequence] = np.clip(volume, 0, 255).astype(np.uint8)
        return volumes, lesion.astype(np.uint8)

    return make


@pytest.fixture(scope="session")
def save_nifti() -> Callable[..., Path]:
    """Write a volume; by default as ``ar2unet prepare`` does, which knows no spacing."""

    def save(
        path: Path,
        volume: np.ndarray,
        affine: np.ndarray = LPS,
        *,
        unit: str = "unknown",
        sform_code: int = 2,
        qform_code: int = 2,
    ) -> Path:
        image = nib.Nifti1Image(volume, affine)
        image.set_sform(affine, code=sform_code)
        image.set_qform(affine, code=qform_code)
        image.header.set_xyzt_units(unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)
        return path

    return save


@pytest.fixture(scope="session")
def tiny_dataset(
    tmp_path_factory: pytest.TempPathFactory, make_patient: Callable[..., Any], save_nifti: Callable[..., Path]
) -> TinyDataset:
    """Six patients in three folds, each of a size of its own."""
    folder = tmp_path_factory.mktemp("tiny_dataset")
    entries = []
    for number, (shape, fold) in enumerate(zip(SHAPES, FOLDS, strict=True)):
        subject = f"sub-{number}"
        volumes, mask = make_patient(shape, number)
        images = {name: f"{subject}/{name}.nii.gz" for name in SEQUENCES}
        label = f"derivatives/{subject}_mask.nii.gz"
        for name, image in images.items():
            save_nifti(folder / image, volumes[name])
        save_nifti(folder / label, mask)
        entries.append({"subject": subject, "site": "CS", "fold": fold, "image": list(images.values()), "label": label})
    (folder / "datalist.json").write_text(json.dumps({"training": entries}))
    return TinyDataset(folder, entries)


@pytest.fixture(scope="session")
def make_t1() -> Callable[[int, int], np.ndarray]:
    """Make a head ``(columns, rows, slices)`` whose fluid widens with the stage of dementia."""

    def make(label: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        columns, rows, _ = np.indices((30, 34, 8))
        brain = 120 + 10 * np.arange(8) + rng.normal(0, 10, (30, 34, 8))
        fluid = (np.abs(columns - 14) < 1 + label + rng.random()) & (np.abs(rows - 14) < 3)
        inside = ((columns - 14) / 10) ** 2 + ((rows - 17) / 14) ** 2 < 1
        return (np.where(fluid, 25, brain) * inside).clip(0, 255).astype(np.uint8)

    return make


@pytest.fixture(scope="session")
def staging_dataset(
    tmp_path_factory: pytest.TempPathFactory, make_t1: Callable[..., np.ndarray], save_nifti: Callable[..., Path]
) -> Path:
    """The folder of a data set as ``ar2unet prepare dementia`` writes it, but for its size."""
    folder = tmp_path_factory.mktemp("staging_dataset")
    entries = []
    for number, label in enumerate(STAGE_LABELS):
        name = f"sub-{number:02}"
        image = f"{name}/{name}_T1w.nii.gz"
        save_nifti(folder / image, make_t1(label, number), RPS)
        entries.append({"subject": name, "fold": number % 3, "image": image, "label": label, "stage": STAGES[label]})
    (folder / "datalist.json").write_text(json.dumps({"training": entries}))
    return folder


@pytest.fixture(scope="session")
def small_staging(staging_dataset: Path) -> dict[str, Any]:
    """What to override for a fit of seconds."""
    return {"dataset_dir": str(staging_dataset), "fold": 1, **SMALL_STAGING}


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def configs() -> dict[str, dict[str, Any]]:
    """The bundle's configs by file name, as YAML and JSON have them, nothing resolved."""
    paths = sorted((SEGMENTATION_BUNDLE / "configs").glob("*.yaml"))
    return {path.name: yaml.safe_load(path.read_text()) for path in paths}


@pytest.fixture(scope="session")
def metadata() -> dict[str, Any]:
    """The bundle's ``metadata.json``."""
    content: dict[str, Any] = json.loads((SEGMENTATION_BUNDLE / "configs" / "metadata.json").read_text())
    return content


@pytest.fixture(scope="session")
def network_arguments(configs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What ``inference.yaml`` makes its network with, by argument, computed where the config computes it."""
    from monai.bundle import ConfigParser

    config = ConfigParser(configs["inference.yaml"])
    names = [name for name in configs["inference.yaml"]["network_def"] if name != "_target_"]
    return {name: config.get_parsed_content(f"network_def#{name}") for name in names}


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, network_arguments: dict[str, Any]) -> Path:
    """A copy of the bundle whose weights are random, but mark a part of every image."""
    import torch

    from networks.ar2unet import AR2UNet

    folder = tmp_path_factory.mktemp("bundle") / SEGMENTATION_BUNDLE.name
    shutil.copytree(SEGMENTATION_BUNDLE, folder, ignore=shutil.ignore_patterns("models"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AR2UNet(**network_arguments).eval()
        with torch.no_grad():
            logits = network(torch.randn(1, network_arguments["in_channels"], 48, 32))
            # Balance the two channels, or one of them might win everywhere.
            network.head.bias[1] += (logits[:, 0] - logits[:, 1]).quantile(0.7)
    (folder / "models").mkdir()
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


@pytest.fixture(scope="session")
def run_command(bundle: Path) -> Callable[..., str]:
    """Run ``python ARGUMENTS`` from the bundle's folder and return what it printed; it must succeed."""
    environment = {
        **os.environ,
        "MONAI_FAIL_ON_DUPLICATE_CONFIG": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }

    def run(*arguments: str, **overrides: Any) -> str:
        flags = [part for name, value in overrides.items() for part in (f"--{name}", str(value).replace(" ", ""))]
        finished = subprocess.run(
            [sys.executable, *arguments, *flags],
            cwd=bundle,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout
        return finished.stdout

    return run


@pytest.fixture(scope="session")
def small_training(tiny_dataset: TinyDataset) -> dict[str, Any]:
    """What to override for a training of seconds."""
    return {"dataset_dir": str(tiny_dataset.folder), **SMALL_TRAINING}


@pytest.fixture
def in_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Be in the bundle's folder, on one thread of the CPU, for configs that run in this process."""
    import torch
    from monai.utils import set_determinism

    monkeypatch.chdir(bundle)
    monkeypatch.setenv("MONAI_FAIL_ON_DUPLICATE_CONFIG", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "path", list(sys.path))  # a workflow that runs puts its bundle's folder there
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield bundle
    torch.set_num_threads(threads)
    set_determinism(None)


@pytest.fixture
def start_training(in_bundle: Path, small_training: dict[str, Any], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Make an initialised workflow of ``train.yaml``, with configs on top, that writes to ``tmp_path / "run"``.

    An override that is None is left to the configs.
    """
    from monai.bundle import ConfigWorkflow

    started = []

    def start(*on_top: str, **overrides: Any) -> ConfigWorkflow:
        settings = {**small_training, "output_dir": str(tmp_path / "run"), **overrides}
        files = [f"configs/{name}" for name in ("train.yaml", *on_top)]
        settings = {key: value for key, value in settings.items() if value is not None}
        workflow = ConfigWorkflow(files, logging_file=False, workflow_type="train", **settings)
        workflow.initialize()
        started.append(workflow)
        return workflow

    yield start
    for workflow in started:
        workflow.parser.get_parsed_content("writer").close()
