"""Which predicted mask belongs to which truth, and to which site a patient."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DatasetError

__all__ = ["LeftOut", "MaskPair", "find_by_subject", "pair_masks", "read_sites", "subject_of"]

NIFTI_ENDING = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
BIDS_SUBJECT = re.compile(r"sub-[^_]+")
# What programs put behind a patient's name: X_mask, X_label-lesion_mask, and X_flair_mask of a file X_flair.
SUFFIX = re.compile(r"_(mask|label-[a-z0-9]+|flair)$", re.IGNORECASE)


@dataclass(frozen=True)
class MaskPair:
    """A patient's predicted mask and its truth."""

    subject: str
    prediction: Path
    truth: Path


@dataclass(frozen=True)
class LeftOut:
    """A patient that cannot be scored, and why, in one line."""

    subject: str
    reason: str


def subject_of(path: Path) -> str:
    """Return the patient's name in a file's name.

    In BIDS names that is ``sub-<label>``. Of others the ending and, as often as they are
    there, ``_mask``, ``_label-<name>`` and ``_flair`` are taken away.
    """
    name = NIFTI_ENDING.sub("", path.name)
    bids = BIDS_SUBJECT.match(name)
    if bids is not None:
        return bids.group()
    while (shorter := SUFFIX.sub("", name)) not in (name, ""):
        name = shorter
    return name


def find_by_subject(folder: Path, suffix: str) -> dict[str, list[Path]]:
    """Find the NIfTI files in a folder and all below it, by patient.

    Where the name of any of them ends in ``suffix``, only those count: the others of such a
    folder are scans or probabilities. Hidden files and folders are passed over.

    Args:
        folder: Searched with everything below it.
        suffix: Of the name without its ending, such as ``_mask``; in lower case.

    Raises:
        DatasetError: If the folder holds no NIfTI file, or cannot be read.
    """
    try:
        files = sorted(
            path
            for path in folder.rglob("*")
            if NIFTI_ENDING.search(path.name)
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
            and path.is_file()
        )
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be read: {error.strerror or error}") from error
    named = [path for path in files if NIFTI_ENDING.sub("", path.name).lower().endswith(suffix)]
    found: dict[str, list[Path]] = {}
    for path in named or files:
        found.setdefault(subject_of(path), []).append(path)
    if not found:
        raise DatasetError(f"{folder} must hold NIfTI files (.nii or .nii.gz), found none")
    return found


def pair_masks(prediction: Path, truth: Path) -> tuple[list[MaskPair], list[LeftOut]]:
    """Pair predicted masks with their truth by the patient's name.

    Args:
        prediction: A folder of masks, or one mask.
        truth: A folder if the prediction is one, else one mask.

    Returns:
        The pairs, and the patients that are on one side only or there more than once on a
        side, both sorted by name.

    Raises:
        DatasetError: If either is missing or without masks, or one is a folder and the other a file.
    """
    for path in (prediction, truth):
        if not _exists(path):
            raise DatasetError(f"{path}: expected a mask or a folder of masks, got no such file or folder")
    if prediction.is_dir() != truth.is_dir():
        kinds = {True: "a folder", False: "a file"}
        raise DatasetError(
            f"expected two folders or two files, got {kinds[prediction.is_dir()]} of predictions ({prediction}) "
            f"and {kinds[truth.is_dir()]} of truth ({truth})"
        )
    if not truth.is_dir():
        predictions, truths = {subject_of(truth): [prediction]}, {subject_of(truth): [truth]}
    else:
        predictions, truths = find_by_subject(prediction, "_mask"), find_by_subject(truth, "_mask")
    pairs, left_out = [], []
    for subject in sorted(predictions.keys() | truths.keys()):
        reason = _why_not(predictions.get(subject, []), truths.get(subject, []))
        if reason is None:
            pairs.append(MaskPair(subject, predictions[subject][0], truths[subject][0]))
        else:
            left_out.append(LeftOut(subject, f"{subject}: {reason}"))
    return pairs, left_out


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from error


def _why_not(predictions: list[Path], truths: list[Path]) -> str | None:
    """Return why these do not make a pair."""
    for paths, name in ((predictions, "predicted"), (truths, "true")):
        if len(paths) > 1:
            listed = ", ".join(str(path) for path in paths)
            return f"expected one {name} mask, a patient counts once, got {len(paths)}: {listed}"
    if not predictions:
        return f"has a true mask ({truths[0]}) but no predicted one"
    if not truths:
        return f"has a predicted mask ({predictions[0]}) but no true one"
    if predictions[0].resolve() == truths[0].resolve():
        return f"expected a prediction and its truth, got one file as both: {truths[0]}"
    return None


def read_sites(path: Path) -> dict[str, str]:
    """Read which site each patient was scanned at.

    Args:
        path: A BIDS ``participants.tsv`` with the columns participant_id and site, or a
            ``datalist.json`` as ``ar2unet prepare`` writes it.

    Returns:
        Site by subject; patients without one are not in it.

    Raises:
        DatasetError: If the file is missing or neither of them, or puts one patient at two sites.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: expected participants.tsv or datalist.json, got {error}") from error
    if path.suffix.lower() == ".json":
        rows = _datalist_rows(path, text)
    else:
        table = csv.DictReader(text.splitlines(), delimiter="\t")
        if not {"participant_id", "site"} <= set(table.fieldnames or ()):
            columns = ", ".join(table.fieldnames or ()) or "none"
            raise DatasetError(f"{path}: expected the columns participant_id and site, got {columns}")
        rows = [(row["participant_id"], row["site"]) for row in table]
    sites: dict[str, str] = {}
    for subject, site in rows:
        if not site or site == "n/a":  # BIDS' word for a missing value
            continue
        if sites.setdefault(subject, site) != site:
            raise DatasetError(f"{path}: expected one site of {subject}, got {sites[subject]} and {site}")
    return sites


def _datalist_rows(path: Path, text: str) -> list[tuple[str, str | None]]:
    try:
        content = json.loads(text)
        entries = content["training"]
        if not all(isinstance(entry, Mapping) for entry in entries):
            raise TypeError("an entry that is no mapping")
        return [(str(entry["subject"]), str(entry["site"]) if entry.get("site") else None) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DatasetError(f"{path}: expected a datalist with subject and site, got {reason}") from error
