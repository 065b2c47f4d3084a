"""What the configs of the staging bundle need beside MONAI's own parts: entries, transforms, inferers, results."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.inferers import Inferer
from monai.transforms import MapTransform
from torch import nn

from networks.atrophy_classifier import CLASSES
from pipeline.datasets.splits import check_no_leak
from pipeline.errors import DatasetError, ScanError
from pipeline.formats.atomic import atomic_write
from pipeline.staging.reading import ENDINGS, read_slices, stage_name

__all__ = [
    "CDR",
    "LoadT1Slicesd",
    "SaveStaged",
    "StageInferer",
    "SubjectMeanInferer",
    "TakeSubjectSlicesd",
    "stage_entries",
    "stage_folder_entries",
]

CDR = ("0", "0.5", "1 or more")  # Clinical Dementia Rating of each class
DISCLAIMER = "Research only: a statistical impression from images, not a diagnosis."
NO_FOLD = -1

log = logging.getLogger(__name__)


def stage_entries(dataset_dir: str | Path, fold: int, part: Literal["training", "validation"]) -> list[dict[str, Any]]:
    """Return one side of a subject-wise split of what ``ar2unet prepare dementia`` wrote.

    Args:
        dataset_dir: Folder with its ``datalist.json``.
        fold: The fold held out for validation; -1 holds out none, so its validation side is empty.
        part: Which side: "training" (all other folds) or "validation" (the fold).

    Returns:
        Entries with ``subject``, ``image`` (absolute path), ``label`` (0 to 2, moderate counted with mild), ``stage``
        and ``fold``.

    Raises:
        DatasetError: If there is no such datalist, a subject is on both sides, or there is no such fold.
    """
    path = Path(dataset_dir, "datalist.json")
    try:
        entries = [
            {
                "subject": entry["subject"],
                "fold": entry["fold"],
                "image": str(path.parent.resolve() / entry["image"]),
                "label": min(int(entry["label"]), len(CLASSES) - 1),
                "stage": entry["stage"],
            }
            for entry in json.loads(path.read_text())["training"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} must be a datalist as 'ar2unet prepare dementia' writes it: {error}") from error
    check_no_leak({key: entry[key] for key in ("subject", "image", "fold")} for entry in entries)
    chosen = [entry for entry in entries if (entry["fold"] == fold) == (part == "validation")]
    if not chosen and not (part == "validation" and fold == NO_FOLD):
        folds = sorted({entry["fold"] for entry in entries})
        raise DatasetError(f"{path} has nothing for {part} with fold {fold}; its folds are {folds}")
    return chosen


def stage_folder_entries(folder: str | Path) -> list[dict[str, Any]]:
    """Return the slices and volumes of a folder, not below, that end as T1 files may.

    Returns:
        Entries with ``subject``, the file's name without its ending, and ``image``, its path.

    Raises:
        DatasetError: If the folder has none, or two whose results would have one name.
    """
    paths = [
        path
        for path in sorted(Path(folder).glob("*"))
        if path.name.lower().endswith(ENDINGS) and not path.name.startswith(".")
    ]
    if not paths:
        raise DatasetError(f"{folder} must hold T1 slices or volumes ({', '.join(ENDINGS)}), found none")
    entries: dict[str, dict[str, Any]] = {}
    for path in paths:
        name = stage_name(path)
        if name in entries:
            raise DatasetError(f"{folder} holds both {Path(entries[name]['image']).name} and {path.name}; keep one")
        entries[name] = {"subject": name, "image": str(path.resolve())}
    return list(entries.values())


class LoadT1Slicesd(MapTransform):
    """Read files as slices ``(N, rows, columns)`` of the training frame, as ``ar2unet stage`` does, or refuse them.

    Args:
        keys: Paths.
        allow_missing_keys: Whether a missing key is passed over.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with every path replaced by its slices, float32, and ``notes`` on how."""
        result = dict(data)
        for key in self.key_iterator(result):
            read = read_slices(Path(result[key]))
            result[key], result["notes"] = torch.from_numpy(read.slices), "; ".join(read.notes)
        return result


class TakeSubjectSlicesd(MapTransform):
    """Keep of a taller volume the neighbouring slices that are most like the training subjects'; say which.

    Args:
        keys: Slices ``(N, rows, columns)``.
        network: An ``AtrophyClassifier``, whose weights are loaded when the first volume comes.
        allow_missing_keys: Whether a missing key is passed over.
    """

    def __init__(self, keys: KeysCollection, network: nn.Module, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.network: Any = network

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with at most a subject's slices, ``first_slice`` (from 0) and ``correlation``."""
        result = dict(data)
        for key in self.key_iterator(result):
            slices = result[key]
            count, device = self.network.slices, self.network.mask.device
            if len(slices) == 1:
                position, correlation = self.network.slice_positions(slices[None].to(device))
                result["first_slice"], result["correlation"] = int(position), float(correlation)
                continue
            if len(slices) < count:
                raise ScanError(f"{result['subject']}: expected 1 slice or at least {count}, got {len(slices)}")
            first, result["correlation"] = self.network.find_slices(slices.to(device))
            result["first_slice"], result[key] = first, slices[first : first + count]
            if len(slices) > count:
                run = f"slices {first + 1} to {first + count} of {len(slices)}"
                log.info("%s: took %s, correlation %.2f", result["subject"], run, result["correlation"])
                result["notes"] = "; ".join(note for note in (result.get("notes"), f"took {run}") if note)
        return result


class StageInferer(Inferer):
    """Hand subjects' slices to an ``AtrophyClassifier``, and single slices to its heads for single slices."""

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return the logits ``(B, 3)`` of slices ``(B, N, rows, columns)``."""
        plain = torch.as_tensor(inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs)
        if plain.shape[1] == 1:
            logits: torch.Tensor = network.slice_logits(plain)  # type: ignore[attr-defined]
            return logits
        return network(plain, *args, **kwargs)


class SubjectMeanInferer(Inferer):
    """Run a network of single slices on all slices of subjects, and average their probabilities.

    Args:
        inferer: What calls the network with slices ``(B, 1, H, W)``.
    """

    def __init__(self, inferer: Inferer) -> None:
        super().__init__()
        self.inferer = inferer

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return the logarithm of mean probabilities ``(B, classes)``, logits as good as any, of ``(B, N, H, W)``."""
        logits = self.inferer(inputs.flatten(0, 1)[:, None], network, *args, **kwargs)
        probabilities = logits.softmax(1).unflatten(0, inputs.shape[:2])  # (B, N, classes)
        mean: torch.Tensor = probabilities.mean(1).clamp_min(torch.finfo(probabilities.dtype).tiny).log()
        return mean


class SaveStaged(MapTransform):
    """Write each subject's answer as ``<subject>_stage.json``.

    Args:
        keys: Probabilities ``(3,)``.
        output_dir: Created when the first answer is written.
        allow_missing_keys: Whether a missing key is passed over.
    """

    def __init__(self, keys: KeysCollection, output_dir: str | Path, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_dir = Path(output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write; the dictionary needs ``subject``, and the key of ``image`` its slices."""
        result = dict(data)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        for key in self.key_iterator(result):
            content = json.dumps(_describe(result, result[key]), indent=2) + "\n"
            with atomic_write(self.output_dir / f"{result['subject']}_stage.json") as file:
                file.write(content.encode())
        return result


def _describe(data: Mapping[Hashable, Any], probabilities: torch.Tensor) -> dict[str, Any]:
    """Return what is written of one answer."""
    shares = [round(float(share), 4) for share in np.asarray(probabilities.cpu())]
    best = int(np.argmax(shares))
    first, count = int(data["first_slice"]), len(data["image"])
    where = {"like_training_slice": first + 1} if count == 1 else {"slices": [first + 1, first + count]}
    return {
        "subject": data["subject"],
        "stage": CLASSES[best],
        "cdr": CDR[best],
        "probabilities": dict(zip(CLASSES, shares, strict=True)),
        "probability_of_any_dementia": round(1 - shares[0], 4),
        **where,
        "correlation_with_training_slices": round(float(data["correlation"]), 3),
        "notes": [note for note in str(data.get("notes", "")).split("; ") if note],
        "disclaimer": DISCLAIMER,
    }
