"""Event handlers of training and evaluation: scores patient by patient, and what TensorBoard shows of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from scipy import ndimage
from torch.utils.tensorboard import SummaryWriter

from pipeline.evaluation.metrics import ConfusionCounts, count_confusion
from pipeline.evaluation.scoring import PatientScores, score_patient
from pipeline.evaluation.tables import PATIENTS_FILE, SUMMARY_FILE, summarize, write_patients, write_summary
from transforms.geometry import FLAIR_CHANNEL, known_spacing

__all__ = ["OverlayHandler", "PatientScoresHandler", "write_training_scalars"]

Result = TypeVar("Result")

UNIT_MASK = 0b111  # the bits of NIfTI's xyzt_units that name the spatial unit
TRUTH_COLOR = (0.1, 0.9, 0.3)
PREDICTION_COLOR = (1.0, 0.45, 0.1)


class PatientScoresHandler:
    """Score every patient's volume by name, once, whatever process it was evaluated in.

    After an evaluation ``engine.state.patient_counts`` holds the confusion counts by
    subject, and ``engine.state.metrics`` the median Dice as ``val_median_dice``.

    Args:
        output_dir: Where to write ``patients.csv`` and ``summary.json``, as ``ar2unet evaluate`` does; None writes
            nothing and leaves out the scores that take long, as a validation during training does.
        writer: Shows TensorBoard each patient's Dice; None shows nothing.
    """

    def __init__(self, output_dir: str | None = None, writer: SummaryWriter | None = None) -> None:
        self.output_dir = output_dir
        self.writer = writer
        self.counts: dict[str, ConfusionCounts] = {}
        self.scores: dict[str, PatientScores] = {}

    def attach(self, engine: Engine) -> None:
        """Score at each iteration, gather and write when the evaluation is complete."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._forget)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _forget(self, _engine: Engine) -> None:
        self.counts, self.scores = {}, {}

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

    def _finish(self, engine: Engine) -> None:
        counts, scores = _gathered(self.counts), _gathered(self.scores)
        engine.state.patient_counts = counts  # type: ignore[attr-defined]
        engine.state.metrics["val_median_dice"] = statistics.median(count.dice for count in counts.values())
        if _rank() > 0:
            return
        if self.writer is not None:
            for subject, count in counts.items():
                self.writer.add_scalar(f"patient_dice/{subject}", count.dice, engine.state.epoch)
        if self.output_dir is not None:
            folder, patients = Path(self.output_dir), list(scores.values())
            folder.mkdir(parents=True, exist_ok=True)
            write_patients(folder / PATIENTS_FILE, patients)
            write_summary(folder / SUMMARY_FILE, summarize(patients))


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


def _affine_in_mm(volume: Any) -> NDArray[np.float64] | None:
    """Return a volume's affine to mm; None where its file does not know its spacing."""
    unit = volume.meta.get("xyzt_units")
    if unit is None:
        return None
    affine = np.asarray(volume.affine, dtype=np.float64)
    spacing = known_spacing(affine, int(unit) & UNIT_MASK)
    if spacing is None:
        return None
    to_mm = spacing[0] / float(np.linalg.norm(affine[:3, 0]))
    return np.diag([to_mm, to_mm, to_mm, 1.0]) @ affine


def _rank() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return 0
