"""One's own NIfTI images with masks, as a BIDS tree or an nnU-Net folder, to the training contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.datasets.datalist import (
    SEQUENCES,
    Failure,
    PreparedDataset,
    write_dataset_files,
)
from pipeline.datasets.nifti_bids import find_bids_pairs
from pipeline.datasets.nifti_checks import read_pair
from pipeline.datasets.nifti_nnunet import find_nnunet_pairs
from pipeline.datasets.nifti_pairs import Choices, Finding, Pair, Source
from pipeline.datasets.nifti_records import LABELS, SITE, fingerprint, read_record, write_sample
from pipeline.datasets.splits import SplitPatient, assign_folds, check_no_leak
from pipeline.errors import DatasetError
from pipeline.formats.bids import is_bids
from pipeline.formats.nifti_header import printable

__all__ = ["CheckedDataset", "Choices", "Finding", "check_nifti", "prepare_nifti"]

LAYOUTS = (
    "expected a BIDS tree (sub-<label>/anat/*_FLAIR.nii.gz, masks in derivatives/<name>) "
    "or an nnU-Net folder (dataset.json, imagesTr, labelsTr)"
)
NO_CHOICES = Choices()
NOT_STATED = "not stated"
PROCESSING = "put t1 and t1c onto the grid of the FLAIR, and FLAIR in the place of what is missing"


@dataclass(frozen=True)
class CheckedDataset:
    """What a check found.

    Attributes:
        source: The pairs, and what their masks mean.
        entries: The datalist's entry of each pair that can be prepared, by subject; None where it has yet to be.
        findings: All that is not as it should be.
    """

    source: Source
    entries: Mapping[str, dict[str, Any] | None]
    findings: tuple[Finding, ...]


def check_nifti(
    folder: Path,
    *,
    out: Path | None = None,
    choices: Choices = NO_CHOICES,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> CheckedDataset:
    """Find the scans of a folder with their masks and read each of them, writing nothing.

    Args:
        folder: A BIDS tree or an nnU-Net folder.
        out: Where they were prepared before: what has not changed since is not read again.
        choices: What only its owner can say of the data set.
        on_progress: Called after each scan with scans done, scans in all, and the scan's name.

    Raises:
        DatasetError: If the folder is neither, or it or an option does not say what is what.
    """
    source = _find_pairs(folder, choices)
    findings = list(source.findings)
    entries: dict[str, dict[str, Any] | None] = {}
    seen: dict[str, Pair] = {}
    for done, pair in enumerate(source.pairs, start=1):
        record = None if out is None else read_record(out, pair, fingerprint(pair, source.scheme))
        if record is not None:
            entry, digest = record
            if not entry["lesion_voxels"]:
                findings.append(Finding(pair.subject, f"{pair.source}: no lesion in the mask", is_error=False))
        else:
            entry, (sample, problems) = None, read_pair(pair, source.scheme)
            findings += problems
            digest = "" if sample is None else sample.flair_sha256
        if digest:
            first = seen.setdefault(digest, pair)
            if first is pair:
                entries[pair.subject] = entry
            else:
                text = f"{pair.source}: the very voxels of {first.source}, which is kept"
                findings.append(Finding(pair.subject, text))
        if on_progress is not None:
            on_progress(done, len(source.pairs), pair.source)
    return CheckedDataset(source, entries, tuple(findings))


def prepare_nifti(
    folder: Path,
    out: Path,
    *,
    folds: int = 5,
    seed: int = 0,
    choices: Choices = NO_CHOICES,
    on_checked: Callable[[CheckedDataset], None] | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> PreparedDataset:
    """Bring one's own scans with masks to the data contract, and split their patients into folds.

    All is checked before anything is written. A scan with an error is left out and named in the result. A scan whose
    files have not changed since is left alone, so a second run writes nothing. All scans of a patient are in one fold.
    Nothing is ever deleted: scans of an earlier run stay in ``out``, but out of the datalist.

    Args:
        folder: A BIDS tree or an nnU-Net folder.
        out: The data root to write to, not in ``folder``; made if needed.
        folds: Number of patient-wise folds.
        seed: Of the split.
        choices: What only its owner can say of the data set.
        on_checked: Called once with what the check found, before anything is written.
        on_progress: Called with scans done, scans in all, and the scan's name, in the check and again in the writing.

    Raises:
        DatasetError: If the folder is neither, fewer patients than folds are without an error, ``folds`` is below 2,
            or ``out`` lies in ``folder`` or cannot be written.
    """
    if folds < 2:
        raise DatasetError(f"folds must be at least 2, got {folds}")
    if out.resolve().is_relative_to(folder.resolve()):
        raise DatasetError(f"{printable(out)}: the prepared data must lie outside of {printable(folder)}")
    checked = check_nifti(folder, out=out, choices=choices, on_progress=on_progress)
    if on_checked is not None:
        on_checked(checked)
    patients = {pair.patient for pair in checked.source.pairs if pair.subject in checked.entries}
    if len(patients) < folds:
        raise DatasetError(
            f"{printable(folder)}: expected at least {folds} patients for {folds} folds, got {len(patients)} "
            "without an error; --folds takes fewer"
        )
    failures = [Failure(finding.subject, finding.text) for finding in checked.findings if finding.is_error]
    scheme, entries, written = checked.source.scheme, [], 0
    pairs = [pair for pair in checked.source.pairs if pair.subject in checked.entries]
    for done, pair in enumerate(pairs, start=1):
        entry = checked.entries[pair.subject]
        if entry is None:
            sample, problems = read_pair(pair, scheme)  # once more: all of them together need not fit into memory
            if sample is None:
                failures += [Failure(problem.subject, problem.text) for problem in problems]
                continue
            entry = write_sample(out, pair, sample, fingerprint(pair, scheme))
            written += 1
        entries.append(entry)
        if on_progress is not None:
            on_progress(done, len(pairs), pair.source)
    _assign(entries, folds=folds, seed=seed)
    header, authors = _header(folder, checked.source.description)
    write_dataset_files(out, entries, {**header, "seed": seed, "folds": folds}, authors=authors, processing=PROCESSING)
    return PreparedDataset(out / "datalist.json", len(entries), written, len(entries) - written, tuple(failures))


def _find_pairs(folder: Path, choices: Choices) -> Source:
    if (folder / "imagesTr").is_dir() and (folder / "dataset.json").is_file():
        if choices.masks is not None:
            raise DatasetError(f"{printable(folder)}: --masks goes with a BIDS tree, got an nnU-Net folder")
        return find_nnunet_pairs(folder, choices.lesion_labels, choices.patient_pattern)
    if not folder.is_dir() or not is_bids(folder):
        raise DatasetError(f"{printable(folder)}: {LAYOUTS}")
    if choices.patient_pattern is not None:
        raise DatasetError(f"{printable(folder)}: --patient-pattern goes with an nnU-Net folder, got a BIDS tree")
    return find_bids_pairs(folder, choices.lesion_labels, choices.masks)


def _assign(entries: Sequence[dict[str, Any]], *, folds: int, seed: int) -> None:
    """Give each entry its fold, the same to all scans of a patient."""
    voxels: dict[str, int] = {}
    for entry in entries:
        voxels[entry["patient"]] = voxels.get(entry["patient"], 0) + entry["lesion_voxels"]
    fold_of = assign_folds((SplitPatient(name, SITE, size) for name, size in voxels.items()), folds=folds, seed=seed)
    for entry in entries:
        entry["fold"] = fold_of[entry["patient"]]
    check_no_leak(entries)


def _header(folder: Path, description: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the datalist's top level and the authors, from what the source says of itself."""
    stated = {str(key).lower(): value for key, value in description.items()}

    def first(*keys: str, default: str = NOT_STATED) -> str:
        return next((" ".join(str(stated[key]).split()) for key in keys if stated.get(key)), default)

    name = first("name", default=folder.resolve().name)
    authors = stated.get("authors")
    header = {
        "name": f"{name}: FLAIR abnormality segmentation",
        "source": f"one's own images, folder {printable(Path(folder.resolve().name))}",
        "reference": first("reference", "howtoacknowledge", "datasetdoi"),
        "licence": first("license", "licence"),
        "spacing": "as each file states it",
        "channels": {str(channel): sequence for channel, sequence in enumerate(SEQUENCES)},
        "labels": LABELS,
    }
    return header, [str(author) for author in authors] if isinstance(authors, list) else []
