"""What every row of the dementia table starts from: the prepared subjects, and the ways of splitting them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import say
from numpy.typing import NDArray

from pipeline.datasets.dementia_slices import STAGES
from pipeline.datasets.splits import SplitPatient, assign_folds
from pipeline.errors import AR2UNetError, DatasetError

FOLDS = 5
CLASSES = 3  # non, very mild, mild or moderate: two moderate subjects cannot be a class of their own


@dataclass(frozen=True)
class Subjects:
    """The prepared data, subjects in the order of the datalist.

    Attributes:
        names: Such as ``sub-NonDemented001``.
        slices: uint8 ``(subjects, slices, rows, columns)``, rows and columns as published.
        stages: 0 (non demented) to 3 (moderate) ``(subjects,)``.
        folds: Of the datalist ``(subjects,)``.
        in_test: Which slices the publisher's split has in its test folder ``(subjects, slices)``.
    """

    names: tuple[str, ...]
    slices: NDArray[np.uint8]
    stages: NDArray[np.int64]
    folds: NDArray[np.int64]
    in_test: NDArray[np.bool_]

    @property
    def classes(self) -> NDArray[np.int64]:
        """The stages with moderate counted as mild or moderate, 0 to 2."""
        return merge_stages(self.stages)


def merge_stages(stages: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return stages with moderate counted as mild or moderate."""
    return np.minimum(stages, CLASSES - 1)


def read_subjects(data: Path) -> Subjects:
    """Read what ``ar2unet prepare dementia`` wrote.

    Raises:
        DatasetError: If the datalist or the table of slices is not there or lacks something.
    """
    import nibabel as nib

    path, table = data / "datalist.json", data / "slices.csv"
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text())["training"]
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        row_of = {entry["subject"]: row for row, entry in enumerate(entries)}
        in_test = np.zeros((len(entries), max(entry["slices"] for entry in entries)), dtype=bool)
        for row in rows:
            in_test[row_of[row["subject"]], int(row["slice"]) - 1] = row["split"] == "test"
        volumes = [np.asarray(nib.load(data / entry["image"]).dataobj) for entry in entries]
        stages, folds = (np.array([entry[key] for entry in entries]) for key in ("label", "fold"))
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise DatasetError(f"{data} must be what 'ar2unet prepare dementia' wrote: {error}") from error
    slices = np.stack(volumes).transpose(0, 3, 2, 1)  # (subjects, columns, rows, slices) before
    return Subjects(tuple(row_of), slices, stages, folds, in_test)


def deal_folds(subjects: Subjects, seed: int) -> NDArray[np.int64]:
    """Deal the subjects out to folds balanced by stage, as ``ar2unet prepare dementia`` does with its seed."""
    patients = [
        SplitPatient(name, STAGES[stage].folder, 1) for name, stage in zip(subjects.names, subjects.stages, strict=True)
    ]
    dealt = assign_folds(patients, folds=FOLDS, seed=seed)
    return np.array([dealt[name] for name in subjects.names])


def shuffle_slices(subjects: Subjects, seed: int) -> NDArray[np.bool_]:
    """Return a fifth of all slices drawn at random, whoever they are of: a split that leaks ``(subjects, slices)``."""
    order = np.random.default_rng(seed).permutation(subjects.in_test.size)
    held_out: NDArray[np.bool_] = (order < subjects.in_test.size // FOLDS).reshape(subjects.in_test.shape)
    return held_out


def keep(
    path: Path | None, settings: Mapping[str, Any], compute: Callable[[], dict[str, NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """Compute arrays and keep them in a file, or read them where that was done before.

    Args:
        path: Such as ``RUNS/fold0.npz``; None keeps nothing.
        settings: All that the outcome depends on.
        compute: Returns arrays by name.

    Raises:
        AR2UNetError: If the file is of other settings.
    """
    if path is None:
        return compute()
    if not path.is_file():
        result = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".new.npz")
        np.savez(unfinished, settings=json.dumps(settings), **result)  # type: ignore[arg-type]
        unfinished.replace(path)  # at once, so that what is interrupted leaves nothing half done
        say(f"{path} is done")
        return result
    with np.load(path) as content:
        if str(content["settings"]) != json.dumps(settings):
            raise AR2UNetError(f"{path} must be of the same data and settings, got others: choose another --runs")
        return {name: content[name] for name in content.files if name != "settings"}
