"""The scripts of ``bench/`` as modules, and a tiny prepared data set."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "bench"
SEQUENCES = {"t1": (110, 90), "flair": (90, 220), "t1c": (120, 150)}  # brightness of the brain and of the lesion


@pytest.fixture(scope="module")
def load_script() -> Iterator[Callable[[str], ModuleType]]:
    """Import a script by its name; ``bench/`` is no package, but its scripts may import those beside them."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)  # as Python does for a script
        yield load


@pytest.fixture(scope="session")
def prepared_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four heads with a lesion in two folds, as ``ar2unet prepare`` writes them: axes to L, P, S, spacing unknown."""
    folder = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    entries = []
    for number, shape in enumerate(((32, 36, 5), (34, 40, 6), (30, 38, 7), (36, 42, 4))):
        first, second, third = np.ogrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
        head = (first / 0.8) ** 2 + (second / 0.85) ** 2 + (third / 3) ** 2 <= 1
        lesion = ((first - 0.25) / 0.3) ** 2 + ((second + 0.2) / 0.25) ** 2 + (third / 0.7) ** 2 <= 1
        volumes = {
            name: np.where(lesion, bright, np.where(head, brain, 4)) + rng.normal(0, 4, shape)
            for name, (brain, bright) in SEQUENCES.items()
        }
        subject = f"sub-{number}"
        for name, volume in {**volumes, "mask": lesion}.items():
            image = nib.Nifti1Image(np.clip(volume, 0, 255).astype(np.uint8), np.diag([-1.0, -1.0, 1.0, 1.0]))
            nib.save(image, folder / f"{subject}_{name}.nii.gz")
        images = [f"{subject}_{name}.nii.gz" for name in SEQUENCES]
        entry = {"subject": subject, "site": "CS", "fold": number % 2, "image": images}
        entries.append({**entry, "label": f"{subject}_mask.nii.gz"})
    (folder / "datalist.json").write_text(json.dumps({"training": entries}))
    return folder
