"""The LGG FLAIR data: the publisher's slices (``kaggle_3m``) to one volume a sequence and a mask for each patient.

Source: M. Buda, A. Saha, M. A. Mazurowski, "Association of genomic subtypes of lower-grade gliomas with shape
features automatically extracted by a deep learning algorithm", Computers in Biology and Medicine, 2019; published on
Kaggle as ``mateuszbuda/lgg-mri-segmentation``.

What a patient's folder holds is said in ``lgg_slices.py``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.datasets.datalist import (
    SEQUENCES,
    Failure,
    PreparedDataset,
    image_path,
    label_path,
    remove,
    sidecar_path,
    write_dataset_files,
    write_json,
    write_volume,
)
from pipeline.datasets.lgg_slices import LAYOUT, LggPatient, list_slices, read_lgg_patient
from pipeline.datasets.splits import SplitPatient, assign_folds, check_no_leak
from pipeline.errors import DatasetError

__all__ = ["Failure", "PreparedDataset", "prepare_lgg"]

FOLDER = re.compile(r"TCGA_(?P<site>[A-Z0-9]{2})_(?P<code>[A-Z0-9]{4})_(?P<date>\d{8})")

# Part of each fingerprint: raise it when what is written from the same slices changes, and every patient is redone.
FORMAT = 1

LABELS = {"0": "background", "1": "FLAIR abnormality"}
SPACING = "unknown: the published slices carry no voxel spacing; the 1 in the header is a placeholder, not a millimetre"
AUTHORS = ("Mateusz Buda", "Ashirbani Saha", "Maciej A. Mazurowski")
DESCRIPTION = {
    "name": "LGG FLAIR abnormality segmentation",
    "source": "Kaggle mateuszbuda/lgg-mri-segmentation, folder kaggle_3m; images from TCIA, TCGA-LGG",
    "reference": "Buda, Saha, Mazurowski, Computers in Biology and Medicine, 2019",
    "licence": "believed to be CC BY-NC-SA 4.0 (not confirmed)",
    "spacing": SPACING,
    "channels": {str(channel): name for channel, name in enumerate(SEQUENCES)},
    "labels": LABELS,
}


def prepare_lgg(
    source: Path,
    out: Path,
    *,
    folds: int = 5,
    seed: int = 0,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> PreparedDataset:
    """Bring the publisher's folder ``kaggle_3m`` to the data contract, and split its patients into folds.

    A patient whose slices have not changed since is left alone, so a second run writes nothing. A patient that fails
    is left out of the datalist and named in the result; the others are done. The same slices, folds and seed always
    give the same bytes. Nothing is ever deleted: subjects of an earlier run stay in ``out``, but out of the datalist.

    Args:
        source: The folder ``kaggle_3m``.
        out: The data root to write to; made if needed.
        folds: Number of patient-wise folds.
        seed: Of the split.
        on_progress: Called after each patient with patients done, patients in all, and the patient's name.

    Returns:
        What was done.

    Raises:
        DatasetError: If ``source`` has no patient folders, ``folds`` is below 2, or ``out`` cannot be written.
    """
    if folds < 2:
        raise DatasetError(f"folds must be at least 2, got {folds}")
    folders, failures = find_patients(source)
    entries: list[dict[str, Any]] = []
    written = 0
    for done, folder in enumerate(folders, start=1):
        try:
            fingerprint = fingerprint_of(folder)
            state = read_record(out, folder.name, fingerprint) or read_lgg_patient(folder)
            if isinstance(state, LggPatient) and state.patient != folder.name:
                raise DatasetError(f"{folder.name}: its slices are those of {state.patient}")
        except DatasetError as error:
            failures.append(Failure(folder.name, str(error)))
        else:
            # Outside the try: a full disk is no fault of the patient's and ends the run.
            if isinstance(state, LggPatient):
                state = write_patient(out, state, fingerprint)
                written += 1
            entries.append(state)
        if on_progress is not None:
            on_progress(done, len(folders), folder.name)

    splittable = (SplitPatient(entry["subject"], entry["site"], entry["lesion_voxels"]) for entry in entries)
    fold_of = assign_folds(splittable, folds=folds, seed=seed)
    for entry in entries:
        entry["fold"] = fold_of[entry["subject"]]
    check_no_leak(entries)
    write_dataset_files(out, entries, {**DESCRIPTION, "seed": seed, "folds": folds}, authors=AUTHORS)
    return PreparedDataset(out / "datalist.json", len(entries), written, len(entries) - written, tuple(failures))


def find_patients(source: Path) -> tuple[list[Path], list[Failure]]:
    """Find the patients' folders, sorted by name; a patient's second folder and folders of other names fail.

    A data set holds one scan a patient: with two, the patient could end up in two folds. The earlier scan is kept.
    """
    if not source.is_dir():
        raise DatasetError(f"{source} is not a folder; {LAYOUT}")
    folders: dict[str, Path] = {}
    failures: list[Failure] = []
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        match = FOLDER.fullmatch(folder.name)
        if match is None:
            if list_slices(folder):
                failures.append(Failure(folder.name, f"{folder.name}: not named TCGA_<site>_<patient>_<date>"))
            continue
        first = folders.setdefault(f"{match['site']}_{match['code']}", folder)
        if first is not folder:
            failures.append(Failure(folder.name, f"{folder.name}: the same patient as {first.name}, which is kept"))
    if not folders:
        raise DatasetError(f"no patient folders in {source}; {LAYOUT}")
    return list(folders.values()), failures


def fingerprint_of(folder: Path) -> str:
    """Hash the names and bytes of a folder's slices and masks, and the format they are written in."""
    digest = hashlib.sha256(f"lgg {FORMAT}".encode())
    for path, _ in list_slices(folder):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DatasetError(f"{folder.name}: cannot read {path.name}: {error.strerror}") from error
        digest.update(f"\n{path.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def entry_of(patient: str, *, slices: int, lesion_voxels: int, filled: list[str]) -> dict[str, Any]:
    """Describe a patient as the datalist does, its fold still to come."""
    match = FOLDER.fullmatch(patient)
    if match is None:
        raise DatasetError(f"{patient} is not named TCGA_<site>_<patient>_<date>")
    subject = f"sub-TCGA{match['site']}{match['code']}"
    return {
        "subject": subject,
        "site": match["site"],
        "fold": None,
        "image": [image_path(subject, sequence).as_posix() for sequence in SEQUENCES],
        "label": label_path(subject).as_posix(),
        "slices": slices,
        "lesion_voxels": lesion_voxels,
        "filled": filled,
        "source": patient,
    }


def read_record(out: Path, patient: str, fingerprint: str) -> dict[str, Any] | None:
    """Return the datalist entry of a patient that is prepared already from these very slices, else None."""
    entry = entry_of(patient, slices=0, lesion_voxels=0, filled=[])
    files = [Path(name) for name in (*entry["image"], entry["label"])]
    if not all((out / name).is_file() for file in files for name in (file, sidecar_path(file))):
        return None
    try:
        record = json.loads((out / sidecar_path(files[-1])).read_bytes())
        if record["SourceFingerprint"] != fingerprint:
            return None
        return entry_of(
            patient,
            slices=int(record["Slices"]),
            lesion_voxels=int(record["LesionVoxels"]),
            filled=list(record["FilledWithFLAIR"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not our record, or a damaged one: the patient is done again


def write_patient(out: Path, patient: LggPatient, fingerprint: str) -> dict[str, Any]:
    """Write a patient's volumes, mask and sidecars, the mask's sidecar, which says "done", last."""
    import numpy as np

    if patient.label is None:
        raise ValueError(f"{patient.patient} must be read with its masks to be written")
    # By pixels: where a sequence was not acquired, the publisher put FLAIR in its place.
    channels = dict(zip(SEQUENCES, patient.volume, strict=True))
    filled = [name for name in ("t1", "t1c") if np.array_equal(channels[name], channels["flair"])]
    lesion_voxels = int(np.count_nonzero(patient.label))
    entry = entry_of(patient.patient, slices=patient.label.shape[2], lesion_voxels=lesion_voxels, filled=filled)
    common = {"SpacingKnown": False, "SpacingNote": SPACING, "SourcePatient": patient.patient}
    label = out / entry["label"]
    record = sidecar_path(label)
    # First of all: a run killed half-way must not leave a record that vouches for a mixture of old and new files.
    remove(record)
    for name, path in zip(SEQUENCES, entry["image"], strict=True):
        write_volume(out / path, channels[name], patient.affine)
        write_json(sidecar_path(out / path), {**common, "CopyOfFLAIR": name in filled})
    write_volume(label, patient.label, patient.affine)
    write_json(
        record,
        {
            "Type": "Lesion",
            "Labels": LABELS,
            "Sources": [f"bids:raw:{entry['image'][1]}"],
            **common,
            "SourceFingerprint": fingerprint,
            "Slices": entry["slices"],
            "LesionVoxels": lesion_voxels,
            "FilledWithFLAIR": filled,
        },
    )
    return entry
