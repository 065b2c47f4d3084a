"""What a config reads before it starts: the datalist's folds, a folder's scans, a run's last checkpoint, a flag."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from pipeline.datasets.splits import check_no_leak
from pipeline.errors import DatasetError

__all__ = ["as_flag", "datalist_entries", "finished_epochs", "folder_entries", "latest_checkpoint"]

SEQUENCE_SUFFIXES = ("t1", "flair", "t1c")
NO_FOLD = -1


def as_flag(value: bool | str) -> bool:
    """Return a flag as a bool; ``--amp false`` on the command line arrives as the string "false".

    Raises:
        ValueError: If the value is neither true nor false.
    """
    flag = {"true": True, "false": False}.get(str(value).lower())
    if flag is None:
        raise ValueError(f"a flag must be true or false, got {value!r}")
    return flag


def datalist_entries(
    dataset_dir: str | Path, fold: int, part: Literal["training", "validation"]
) -> list[dict[str, Any]]:
    """Return one side of a patient-wise split of a prepared data set.

    Args:
        dataset_dir: Folder with a ``datalist.json`` as ``ar2unet prepare`` writes it.
        fold: The fold held out for validation; -1 holds out none, so its validation side is empty.
        part: Which side: "training" (all other folds) or "validation" (the fold).

    Returns:
        Entries with absolute paths under ``image`` (t1, flair, t1c) and ``label``.

    Raises:
        DatasetError: If there is no datalist, a patient is on both sides, or there is no such fold.
    """
    path = Path(dataset_dir, "datalist.json")
    try:
        entries = json.loads(path.read_text())["training"]
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(f"{path} must be a datalist as 'ar2unet prepare' writes it: {error}") from error
    check_no_leak(entries)
    chosen = [entry for entry in entries if (entry["fold"] == fold) == (part == "validation")]
    if not chosen and not (part == "validation" and fold == NO_FOLD):
        folds = sorted({entry["fold"] for entry in entries})
        raise DatasetError(f"{path} has nothing for {part} with fold {fold}; its folds are {folds}")
    root = path.parent.resolve()
    return [
        {**entry, "image": [str(root / image) for image in entry["image"]], "label": str(root / entry["label"])}
        for entry in chosen
    ]


def folder_entries(folder: str | Path) -> list[dict[str, Any]]:
    """Return the scans of a folder: every ``X.nii.gz`` (FLAIR), or ``X_{t1,flair,t1c}.nii.gz`` together.

    Args:
        folder: Searched itself, not below.

    Returns:
        Entries with ``subject`` (X), ``flair`` (the path of it) and ``image``, either that path alone or
        those of t1, flair, t1c. A missing t1 or t1c is replaced by FLAIR.

    Raises:
        DatasetError: If the folder holds no scan, or t1 or t1c without FLAIR.
    """
    scans: dict[str, dict[str, str]] = {}
    for path in sorted(Path(folder).glob("*.nii*")):
        if not path.name.endswith((".nii", ".nii.gz")):
            continue
        stem = re.sub(r"\.nii(\.gz)?$", "", path.name)
        subject, _, sequence = stem.rpartition("_")
        if not subject or sequence not in SEQUENCE_SUFFIXES:
            subject, sequence = stem, "alone"
        scans.setdefault(subject, {})[sequence] = str(path.resolve())
    if not scans:
        raise DatasetError(f"{folder} must hold X.nii.gz or X_flair.nii.gz files, found none")
    entries: list[dict[str, Any]] = []
    for subject, found in scans.items():
        if "alone" in found:
            if len(found) > 1:
                raise DatasetError(f"{folder} holds both {subject}.nii.gz and {subject}_<sequence>.nii.gz; keep one")
            entries.append({"subject": subject, "flair": found["alone"], "image": found["alone"]})
            continue
        if "flair" not in found:
            raise DatasetError(f"{folder} holds {subject}_{sorted(found)[0]} but no {subject}_flair.nii.gz")
        image = [found.get(name, found["flair"]) for name in SEQUENCE_SUFFIXES]
        entries.append({"subject": subject, "flair": found["flair"], "image": image})
    return entries


def latest_checkpoint(folder: str | Path) -> str:
    """Return the checkpoint of the highest epoch that a run left in a folder.

    Raises:
        DatasetError: If there is none.
    """
    return str(_checkpoints(folder)[finished_epochs(folder)])


def finished_epochs(folder: str | Path) -> int:
    """Return the epoch of the latest checkpoint in a folder.

    Added to a seed, it keeps a resumed run from drawing the very slices and distortions of its first epochs again.

    Raises:
        DatasetError: If there is no checkpoint.
    """
    return max(_checkpoints(folder))


def _checkpoints(folder: str | Path) -> dict[int, Path]:
    """Return the checkpoints by their epoch; at least one."""
    found = {
        int(match.group(1)): path
        for path in Path(folder).glob("*.pt")
        if (match := re.search(r"_epoch=(\d+)\.pt$", path.name))
    }
    if not found:
        raise DatasetError(f"{folder} must hold a checkpoint to resume from, found none")
    return found
