"""Event handlers of training and evaluation: scores patient by patient, and what TensorBoard shows of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from scipy import ndimage
from torch.utils.tensorboard import SummaryWriter

from pipeline.evaluation.calibration import ReliabilityBins, reliability, summarize_calibration
from pipeline.evaluation.evaluate import choose_cases, write_evaluation
from pipeline.evaluation.metrics import ConfusionCounts, count_confusion
from pipeline.evaluation.page import CasePicture
from pipeline.evaluation.pictures import draw_case
from pipeline.evaluation.scoring import PatientScores, score_patient
from pipeline.evaluation.tables import summarize
from transforms.geometry import FLAIR_CHANNEL, known_spacing
from transforms.intensity import find_head, replace_nonfinite

__all__ = ["OverlayHandler", "PatientScoresHandler", "write_training_scalars"]

Result = TypeVar("Result")

LESION_CHANNEL = 1  # of the probabilities; 0 is background
UNIT_MASK = 0b111  # the bits of NIfTI's xyzt_units that name the spatial unit
TRUTH_COLOR = (0.1, 0.9, 0.3)
PREDICTION_COLOR = (1.0, 0.45, 0.1)


@dataclass(frozen=True)
class _Case:
    """What the picture of a patient needs: masks and FLAIR ``(I, J, K)``, and where their voxels lie."""

    prediction: NDArray[np.bool_]
    truth: NDArray[np.bool_]
    flair: NDArray[np.float32] | None
    affine: NDArray[np.float64]
    spacing: tuple[float, float, float] | None

    def draw(self) -> bytes:
        return draw_case(self.prediction, self.truth, self.affine, spacing=self.spacing, image=self.flair)


class PatientScoresHandler:
    """Score every patient's volume by name, once, whatever process it was evaluated in.

    After an evaluation ``engine.state.patient_counts`` holds the confusion counts by
    subject, and ``engine.state.metrics`` the median Dice as ``val_median_dice``.

    Everything lies on the scan's own voxels. What is written is fuller with two more keys: ``scan``, the
    image as it was read, is drawn below the worst and best cases; with ``probabilities`` ``(2, I, J, K)``
    besides it, calibration is measured in the head.

    Args:
        output_dir: Where to write ``patients.csv``, ``summary.json`` and ``report.html``, as ``ar2unet evaluate``
            does; None writes nothing and leaves out what takes long, as a validation during training does.
        writer: Shows TensorBoard each patient's Dice; None shows nothing.
    """

    def __init__(self, output_dir: str | None = None, writer: SummaryWriter | None = None) -> None:
        self.output_dir = output_dir
        self.writer = writer
        self.counts: dict[str, ConfusionCounts] = {}
        self.scores: dict[str, PatientScores] = {}
        self.bins: dict[str, ReliabilityBins] = {}
        self.cases: dict[str, _Case] = {}

    def attach(self, engine: Engine) -> None:
        """Score at each iteration, gather and write when the evaluation is complete."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._forget)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _forget(self, _engine: Engine) -> None:
        self.counts, self.scores, self.bins, self.cases = {}, {}, {}, {}

    def _score(self, engine: Engine) -> None:
        for entry, output in _patients(engine):
            subject = entry["subject"]
            prediction, truth = output["pred"].cpu().numpy()[0], output["label"].cpu().numpy()[0]
            if self.output_dir is None:
                self.counts[subject] = count_confusion(prediction, truth)
                continue
            affine = _affine_in_mm(output["label"])
            scores = score_patient(subject, prediction, truth, affine=affine, site=entry.get("site"))
            self.scores[subject], self.counts[subject] = scores, scores.counts
            flair = _flair(entry["scan"]) if "scan" in entry else None
            if flair is not None and "probabilities" in output:
                probabilities = output["probabilities"][LESION_CHANNEL].cpu().numpy()
                self.bins[subject] = reliability(probabilities, truth, find_head(flair))
            case = _Case(prediction > 0, truth > 0, flair, *_affine_and_spacing(output["label"]))
            self._keep_case(subject, case)

    def _keep_case(self, subject: str, case: _Case) -> None:
        """Keep a patient's case if it may be drawn in the end, and forget those that no longer may."""
        # Who is among the worst or best of all processes is so among the patients of this one, too.
        may_be_drawn = {patient.subject for patient, _ in choose_cases(list(self.scores.values()))}
        cases = {**self.cases, subject: case}
        self.cases = {name: cases[name] for name in cases if name in may_be_drawn}

    def _finish(self, engine: Engine) -> None:
        counts, scores, bins = _gathered(self.counts), _gathered(self.scores), _gathered(self.bins)
        engine.state.patient_counts = counts  # type: ignore[attr-defined]
        engine.state.metrics["val_median_dice"] = statistics.median(count.dice for count in counts.values())
        chosen = choose_cases(list(scores.values()))
        # Each process draws its own patients: a picture is a thousandth of the volumes to send.
        drawn = _gathered(
            {
                patient.subject: self.cases[patient.subject].draw()
                for patient, _ in chosen
                if patient.subject in self.cases
            }
        )
        if _rank() > 0:
            return
        if self.writer is not None:
            for subject, count in counts.items():
                self.writer.add_scalar(f"patient_dice/{subject}", count.dice, engine.state.epoch)
        if self.output_dir is not None:
            patients = list(scores.values())
            summary = summarize(patients)
            if bins:
                summary["calibration"] = summarize_calibration(reduce(add, bins.values()))
            pictures = [CasePicture(patient, drawn[patient.subject], kind) for patient, kind in chosen]
            write_evaluation(Path(self.output_dir), patients, summary, pictures=pictures)


class OverlayHandler:
    """Show TensorBoard the slice with the most lesion of some patients: truth in green, prediction in orange.

    Args:
        writer: Shows the pictures.
        patients: How many of the first patients to show.
    """

    def __init__(self, writer: SummaryWriter, patients: int = 6) -> None:
        self.writer = writer
        self.patients = patients

    def attach(self, engine: Engine) -> None:
        """Draw when a patient's volume has been evaluated."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._draw)

    def _draw(self, engine: Engine) -> None:
        if engine.state.iteration > self.patients:
            return
        for entry, output in _patients(engine):
            image, truth, prediction = (
                np.asarray(volume.cpu()) for volume in (output["image"], output["label"], output["pred"])
            )
            picture = draw_overlay_slice(image[FLAIR_CHANNEL], truth[0] > 0, prediction[0] > 0)
            self.writer.add_image(f"overlay/{entry['subject']}", picture, engine.state.epoch, dataformats="HWC")


def draw_overlay_slice(
    flair: NDArray[np.floating], truth: NDArray[np.bool_], prediction: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Draw the outlines of two masks on the slice that holds the most of the first (or else of the second).

    Args:
        flair: Volume ``(I, J, K)``, axes to the left, posterior and superior.
        truth: Mask of the same shape.
        prediction: Mask of the same shape.

    Returns:
        Picture ``(J, I, 3)`` in 0 to 1, the patient's right on its left.
    """
    index = int((truth if truth.any() else prediction).sum(axis=(0, 1)).argmax())
    low, high = np.percentile(flair, [1, 99.5])
    grey = np.clip((flair[..., index].T - low) / max(float(high - low), 1e-6), 0, 1)
    picture = np.repeat(grey[..., None], 3, axis=2).astype(np.float32)
    for mask, color in ((truth, TRUTH_COLOR), (prediction, PREDICTION_COLOR)):
        inside = mask[..., index].T
        picture[inside & ~ndimage.binary_erosion(inside)] = color
    return picture


def write_training_scalars(engine: Engine, writer: SummaryWriter) -> None:
    """Write a training iteration's loss and learning rate; an ``iteration_event_writer`` of MONAI's handler."""
    step = engine.state.iteration
    output: Any = engine.state.output
    loss = output[0]["loss"] if isinstance(output, list) else output["loss"]
    writer.add_scalar("train_loss", float(loss), step)
    writer.add_scalar("learning_rate", engine.optimizer.param_groups[0]["lr"], step)  # type: ignore[attr-defined]


def _patients(engine: Engine) -> Iterator[tuple[Any, Any]]:
    """Yield what went into and came out of an evaluator's iteration, patient by patient."""
    batch: Any = engine.state.batch
    output: Any = engine.state.output
    return zip(batch, output, strict=True)


def _gathered(results: dict[str, Result]) -> dict[str, Result]:
    """Return what all processes have of each subject, sorted by subject."""
    parts: list[Any] = [results]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        parts = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, results)
    # By subject, so a volume that two processes were handed still counts once.
    return dict(sorted({subject: result for part in parts for subject, result in part.items()}.items()))


def _flair(scan: Any) -> NDArray[np.float32]:
    """Return the FLAIR ``(I, J, K)``, finite, of a scan with one channel or three."""
    flair = scan[FLAIR_CHANNEL if len(scan) > FLAIR_CHANNEL else 0].cpu().numpy()
    # A copy, so that the other channels need not be kept with it.
    return replace_nonfinite(np.array(flair, dtype=np.float32))


def _affine_and_spacing(volume: Any) -> tuple[NDArray[np.float64], tuple[float, float, float] | None]:
    """Return a volume's affine in its file's unit, and its voxel sizes in mm, None where the file knows none."""
    affine, unit = np.asarray(volume.affine, dtype=np.float64), volume.meta.get("xyzt_units")
    return affine, None if unit is None else known_spacing(affine, int(unit) & UNIT_MASK)


def _affine_in_mm(volume: Any) -> NDArray[np.float64] | None:
    """Return a volume's affine to mm; None where its file does not know its spacing."""
    affine, spacing = _affine_and_spacing(volume)
    if spacing is None:
        return None
    to_mm = spacing[0] / float(np.linalg.norm(affine[:3, 0]))
    return np.diag([to_mm, to_mm, to_mm, 1.0]) @ affine


def _rank() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return 0
