"""Predicted masks against their truth: what ``ar2unet evaluate`` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import AR2UNetError, DatasetError
from pipeline.evaluation.pairing import LeftOut, MaskPair, find_by_subject, pair_masks, read_sites
from pipeline.formats.folders import make_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.evaluation.page import CasePicture
    from pipeline.evaluation.scoring import PatientScores
from pipeline.formats.nifti import Mask

__all__ = ["Evaluation", "choose_cases", "evaluate_masks", "write_evaluation"]

PAGE_FILE = "report.html"
CASES_SHOWN = 3  # worst and best ones each


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found and wrote.

    Attributes:
        patients: Their scores, by name.
        left_out: Patients that could not be scored, and why.
        notes: What the reader should know of patients that were scored all the same.
        summary: As ``summary.json`` has it.
        page: The HTML file.
    """

    patients: tuple[PatientScores, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    summary: dict[str, Any]
    page: Path


def evaluate_masks(
    prediction: Path,
    truth: Path,
    out: Path,
    *,
    groups: Path | None = None,
    images: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score predicted masks against their truth and write patients.csv, summary.json and report.html.

    Args:
        prediction: Folder of NIfTI masks, searched with everything below it, or one mask.
        truth: The same of the truth; patients are matched by name.
        out: Folder for the results, made where missing.
        groups: Each patient's site: ``participants.tsv`` or ``datalist.json``.
        images: Folder of scans for the pictures of the worst and best cases, matched by name.
        on_progress: Called with the patients done and their total.

    Raises:
        AR2UNetError: If no patient can be scored, or a result cannot be written.
    """
    if out.is_file():
        raise DatasetError(f"{out}: expected a folder for the results, got a file")
    pairs, left_out = pair_masks(prediction, truth)
    sites = {} if groups is None else read_sites(groups)
    scans = {} if images is None else find_by_subject(images, "_flair")
    patients: list[PatientScores] = []
    for done, pair in enumerate(pairs, start=1):
        try:
            patients.append(_score(pair, sites.get(pair.subject)))
        except AR2UNetError as error:
            left_out.append(LeftOut(pair.subject, str(error)))
        if on_progress is not None:
            on_progress(done, len(pairs))
    if not patients:
        raise DatasetError(_nothing_scored(left_out))
    left_out.sort(key=lambda each: each.subject)
    siteless = [patient.subject for patient in patients if patient.site is None]
    notes = [f"{groups}: no site for {', '.join(siteless)}"] if groups and siteless else []

    from pipeline.evaluation.tables import summarize

    summary = {**summarize(patients), "left_out": [asdict(each) for each in left_out]}
    pictures, not_drawn = _draw_cases(patients, {pair.subject: pair for pair in pairs}, scans, with_scans=bool(images))
    page = write_evaluation(out, patients, summary, pictures=pictures, left_out=left_out)
    return Evaluation(tuple(patients), tuple(left_out), (*notes, *not_drawn), summary, page)


def write_evaluation(
    out: Path,
    patients: Sequence[PatientScores],
    summary: Mapping[str, Any],
    *,
    pictures: Sequence[CasePicture] = (),
    left_out: Sequence[LeftOut] = (),
) -> Path:
    """Write patients.csv, summary.json and report.html and return the path of the last.

    Args:
        out: Folder for them, made where missing.
        patients: At least one.
        summary: Of them, as ``summarize`` returns it, or more.
        pictures: Of the worst and best cases.
        left_out: Patients that could not be scored.

    Raises:
        AR2UNetError: If a file cannot be written.
    """
    from pipeline.evaluation.page import write_page
    from pipeline.evaluation.tables import PATIENTS_FILE, SUMMARY_FILE, write_patients, write_summary

    make_folder(out)
    write_patients(out / PATIENTS_FILE, patients)
    write_summary(out / SUMMARY_FILE, summary)
    write_page(out / PAGE_FILE, patients, summary, pictures=pictures, left_out=left_out)
    return out / PAGE_FILE


def choose_cases(patients: Sequence[PatientScores]) -> list[tuple[PatientScores, str]]:
    """Return the worst and the best patients by Dice, none of them twice, each with "worst" or "best"."""
    ranked = sorted(patients, key=lambda patient: (patient.counts.dice, patient.subject))
    worst = ranked[:CASES_SHOWN]
    best = ranked[len(worst) :][: -CASES_SHOWN - 1 : -1]
    return [*((each, "worst") for each in worst), *((each, "best") for each in best)]


def _read(pair: MaskPair) -> tuple[Mask, Mask]:
    """Read the predicted and the true mask, once their headers have one grid."""
    from pipeline.formats.nifti import read_mask
    from pipeline.formats.nifti_header import check_same_grid, read_layout

    check_same_grid(read_layout(pair.prediction), read_layout(pair.truth))
    return read_mask(pair.prediction), read_mask(pair.truth)


def _score(pair: MaskPair, site: str | None) -> PatientScores:
    from pipeline.evaluation.scoring import score_patient

    predicted, true = _read(pair)
    # A spacing that only the truth states is the volume's: the voxels are the same.
    affine = None if true.spacing is None else true.affine
    return score_patient(pair.subject, predicted.mask, true.mask, affine=affine, site=site)


def _nothing_scored(left_out: Sequence[LeftOut]) -> str:
    if len(left_out) == 1:
        return left_out[0].reason
    return f"none of {len(left_out)} patients could be scored; the first: {left_out[0].reason}"


def _draw_cases(
    patients: Sequence[PatientScores],
    pairs: Mapping[str, MaskPair],
    scans: Mapping[str, Sequence[Path]],
    *,
    with_scans: bool,
) -> tuple[list[CasePicture], list[str]]:
    """Draw the worst and the best cases; also return which scans could not be drawn."""
    from pipeline.evaluation.page import CasePicture
    from pipeline.evaluation.pictures import draw_case

    pictures, notes = [], []
    for patient, kind in choose_cases(patients):
        pair = pairs[patient.subject]
        predicted, true = _read(pair)
        image = None
        if with_scans:
            try:
                image = _read_scan(pair, scans.get(patient.subject, ()))
            except AR2UNetError as error:
                notes.append(str(error))
        png = draw_case(predicted.mask, true.mask, true.affine, spacing=true.spacing, image=image)
        pictures.append(CasePicture(patient, png, kind))
    return pictures, notes


def _read_scan(pair: MaskPair, files: Sequence[Path]) -> NDArray[np.float32]:
    """Read the scan that lies on a truth's grid."""
    from pipeline.formats.nifti import read_scan
    from pipeline.formats.nifti_header import check_same_grid, read_layout

    if len(files) != 1:
        raise DatasetError(f"{pair.subject}: expected one scan for the picture, got {len(files)}")
    check_same_grid(read_layout(files[0]), read_layout(pair.truth))
    return read_scan(files[0]).flair
