"""The four-class dementia data: the publisher's single slices to one T1w volume a subject, and subject-wise folds.

Source: the slices published on Kaggle as ``tourist55/alzheimers-dataset-4-class-of-images``, in ``train`` and ``test``
with the same subjects on both sides. Whose slice is whose is recovered in ``dementia_subjects.py``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.datasets.datalist import (
    BIDS_VERSION,
    PreparedDataset,
    image_path,
    remove,
    sidecar_path,
    write_atomically,
    write_json,
    write_volume,
)
from pipeline.datasets.dementia_slices import STAGES, DementiaSubject, Stage
from pipeline.datasets.dementia_subjects import Certainty, recover_subjects
from pipeline.datasets.splits import SplitPatient, assign_folds, check_no_leak
from pipeline.errors import DatasetError

__all__ = ["PreparedDementia", "prepare_dementia"]

# Part of each fingerprint: raise it when what is written from the same slices changes, and every subject is redone.
FORMAT = 1

SPACING = "unknown: the published slices carry no voxel spacing; the 1 in the header is a placeholder, not a millimetre"
LEFT_AND_RIGHT = (
    "not published: taken from the asymmetry of all subjects together, whose frontal lobe reaches further forward on "
    "one side and whose occipital lobe further back on the other, as the right and the left one of most people do"
)
# Columns run to the patient's right, as far as is known (see above); rows to posterior, slices upwards.
AXIS_SIGNS = (1.0, -1.0, 1.0)
DESCRIPTION = {
    "name": "Dementia stages, four classes of T1-weighted slices",
    "source": "Kaggle tourist55/alzheimers-dataset-4-class-of-images; origin of the scans not stated",
    "licence": "not known: look at the data set's page before passing anything on",
    "spacing": SPACING,
    "left_and_right": LEFT_AND_RIGHT,
    "channels": {"0": "t1"},
}
PARTICIPANTS = {
    "participant_id": "The subject's folder",
    "stage": "The publisher's class of the subject's slices",
    "label": "The stage by severity, 0 (non demented) to 3 (moderate)",
    "slices": "Number of adjacent axial slices",
}
COLUMNS = ("path", "split", "subject", "slice", "stage", "fold")


@dataclass(frozen=True)
class PreparedDementia(PreparedDataset):
    """What the preparation did, and how certain it is whose slices are whose; None where no subject was recovered."""

    certainty: Certainty | None


def prepare_dementia(
    source: Path,
    out: Path,
    *,
    folds: int = 5,
    seed: int = 0,
    stages: Sequence[Stage] = STAGES,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> PreparedDementia:
    """Recover the subjects of the published slices, write a volume each, and split the subjects into folds.

    Writes ``sub-<id>/anat/sub-<id>_T1w.nii.gz``, ``datalist.json`` and ``slices.csv``, which has the published path,
    the publisher's split, subject and fold of every slice: with it the publisher's split and splits by slice can be
    told from ours. A subject whose slices have not changed since is left alone, so a second run writes nothing. The
    same slices, folds and seed always give the same bytes. Nothing is ever deleted: subjects of an earlier run stay in
    ``out``, but out of the datalist.

    Args:
        source: The published folder, with ``train`` and ``test``.
        out: The data root to write to; made if needed.
        folds: Number of subject-wise folds, each stage spread evenly over them.
        seed: Of the split.
        stages: The published sizes.
        on_progress: Called after each subject is read, and again after it is written, with steps done, steps in all,
            and the subject's name.

    Returns:
        What was done. A subject that cannot be recovered with certainty is among the failures, the others are done.

    Raises:
        DatasetError: If ``source`` has none of the published slices, ``folds`` is below 2, or ``out`` cannot be
            written.
    """
    if folds < 2:
        raise DatasetError(f"folds must be at least 2, got {folds}")
    report = on_progress or (lambda done, total, name: None)
    steps = 2 * sum(stage.subjects for stage in stages)
    recovery = recover_subjects(source, stages=stages, on_progress=lambda done, _, name: report(done, steps, name))
    # All weigh the same, so that chance alone orders the subjects of a stage.
    fold_of = assign_folds(
        (SplitPatient(subject.subject, subject.stage, 1) for subject in recovery.subjects), folds=folds, seed=seed
    )
    written = 0
    for done, subject in enumerate(recovery.subjects, start=1):
        written += write_subject(out, subject)
        report(steps // 2 + done, steps, subject.subject)
    entries = [entry_of(subject, fold_of[subject.subject]) for subject in recovery.subjects]
    check_no_leak({key: entry[key] for key in ("subject", "image", "fold")} for entry in entries)
    labels = {str(stage.label): stage.folder for stage in stages}
    # Rounded: the last digits depend on who multiplies.
    certainty = recovery.certainty and {key: round(value, 3) for key, value in recovery.certainty._asdict().items()}
    write_files(out, entries, {**DESCRIPTION, "labels": labels, "certainty": certainty, "seed": seed, "folds": folds})
    return PreparedDementia(
        out / "datalist.json", len(entries), written, len(entries) - written, recovery.failures, recovery.certainty
    )


def entry_of(subject: DementiaSubject, fold: int) -> dict[str, Any]:
    """Describe a subject as the datalist does; ``files`` are its published slices, slice 1 first."""
    return {
        "subject": subject.subject,
        "fold": fold,
        "image": image_path(subject.subject, "t1").as_posix(),
        "label": subject.label,
        "stage": subject.stage,
        "slices": len(subject.files),
        "files": list(subject.files),
    }


def write_subject(out: Path, subject: DementiaSubject) -> bool:
    """Write a subject's volume, then its sidecar, which says "done"; return False where both are there already."""
    import numpy as np

    image = out / image_path(subject.subject, "t1")
    record = sidecar_path(image)
    fingerprint = f"dementia {FORMAT} {subject.fingerprint}"
    if image.is_file() and read_fingerprint(record) == fingerprint:
        return False
    # First of all: a run killed half-way must not leave a record that vouches for another run's volume.
    remove(record)
    # (slices, rows, columns) to (columns, rows, slices); contiguous for NIfTI, whose first axis runs fastest.
    write_volume(image, subject.slices.transpose(2, 1, 0), np.diag([*AXIS_SIGNS, 1.0]))
    write_json(
        record,
        {
            "SpacingKnown": False,
            "SpacingNote": SPACING,
            "LeftRightKnown": False,
            "LeftRightNote": LEFT_AND_RIGHT,
            "Stage": subject.stage,
            "SourceFiles": list(subject.files),
            "SourceFingerprint": fingerprint,
        },
    )
    return True


def read_fingerprint(record: Path) -> str | None:
    """Return what a sidecar says its volume was made from, None if there is no such sidecar."""
    try:
        return str(json.loads(record.read_bytes())["SourceFingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not our record, or a damaged one: the subject is done again


def write_files(out: Path, entries: Sequence[Mapping[str, Any]], header: Mapping[str, Any]) -> None:
    """Write what describes the data set as a whole: BIDS' files, ``slices.csv``, and ``datalist.json`` last."""
    readme = (
        f"# {header['name']}\n\nSource: {header['source']}.\nLicence: {header['licence']}.\n\n"
        f"Voxel spacing: {header['spacing']}.\n\nLeft and right: {header['left_and_right']}.\n\n"
        "`datalist.json` lists each subject's volume, its stage, its published slices and the fold it belongs to; a\n"
        "subject is in one fold only. `slices.csv` lists the same slice by slice, with the publisher's split.\n"
    )
    table = [PARTICIPANTS, *([e["subject"], e["stage"], str(e["label"]), str(e["slices"])] for e in entries)]
    slices = io.StringIO()
    writer = csv.writer(slices, lineterminator="\n")
    writer.writerow(COLUMNS)
    for entry in entries:
        for number, path in enumerate(entry["files"], start=1):
            split = path.partition("/")[0]
            writer.writerow((path, split, entry["subject"], number, entry["stage"], entry["fold"]))

    write_atomically(out / "README", readme.encode())
    write_atomically(out / ".bidsignore", b"datalist.json\nslices.csv\n")
    write_json(
        out / "dataset_description.json",
        {
            "Name": header["name"],
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "raw",
            "License": header["licence"],
            "ReferencesAndLinks": [header["source"]],
            "GeneratedBy": [
                {"Name": "ar2unet prepare", "Description": "stacked the published slices; nothing resampled"}
            ],
        },
    )
    write_json(out / "participants.json", {name: {"Description": text} for name, text in PARTICIPANTS.items()})
    write_atomically(out / "participants.tsv", "".join("\t".join(row) + "\n" for row in table).encode())
    write_atomically(out / "slices.csv", slices.getvalue().encode())
    write_json(out / "datalist.json", {**header, "training": list(entries)})
