"""Event handlers of training and evaluation: scores patient by patient, and what TensorBoard shows of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from scipy import ndimage
from torch.utils.tensorboard import SummaryWriter

from pipeline.evaluation.metrics import SCORE_NAMES, ConfusionCounts, count_confusion, summarize
from transforms.geometry import FLAIR_CHANNEL

__all__ = ["OverlayHandler", "PatientScoresHandler", "write_training_scalars"]

TRUTH_COLOR = (0.1, 0.9, 0.3)
PREDICTION_COLOR = (1.0, 0.45, 0.1)


class PatientScoresHandler:
    """Score every patient's volume by name, once, whatever process it was evaluated in.

    After an evaluation ``engine.state.patient_counts`` holds the confusion counts by
    subject, and ``engine.state.metrics`` the median Dice as ``val_median_dice``.

    Args:
        output_dir: Where to write ``patients.csv`` and ``summary.json``; None writes nothing.
        writer: Shows TensorBoard each patient's Dice; None shows nothing.
    """

    def __init__(self, output_dir: str | None = None, writer: SummaryWriter | None = None) -> None:
        self.output_dir = output_dir
        self.writer = writer
        self.counts: dict[str, ConfusionCounts] = {}

    def attach(self, engine: Engine) -> None:
        """Score at each iteration, gather and write when the evaluation is complete."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._forget)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _forget(self, _engine: Engine) -> None:
        self.counts = {}

    def _score(self, engine: Engine) -> None:
        for entry, output in _patients(engine):
            prediction, truth = output["pred"].cpu().numpy(), output["label"].cpu().numpy()
            self.counts[entry["subject"]] = count_confusion(prediction, truth)

    def _finish(self, engine: Engine) -> None:
        counts = dict(sorted(self._gathered().items()))
        summary = summarize(counts)
        engine.state.patient_counts = counts  # type: ignore[attr-defined]
        engine.state.metrics["val_median_dice"] = summary["median"]["dice"]
        if _rank() > 0:
            return
        if self.writer is not None:
            for subject, count in counts.items():
                self.writer.add_scalar(f"patient_dice/{subject}", count.dice, engine.state.epoch)
        if self.output_dir is not None:
            self._write(Path(self.output_dir), counts, summary)

    def _gathered(self) -> dict[str, ConfusionCounts]:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.counts
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, self.counts)
        # By subject, so a volume that two processes were handed still counts once.
        return {subject: count for part in parts for subject, count in part.items()}

    @staticmethod
    def _write(folder: Path, counts: dict[str, ConfusionCounts], summary: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "patients.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["subject", *SCORE_NAMES, "true_voxels", "predicted_voxels"])
            for subject, count in counts.items():
                scores = [f"{score:.4f}" for score in count.scores().values()]
                true = count.true_positive + count.false_negative
                table.writerow([subject, *scores, true, count.true_positive + count.false_positive])
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


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


def _rank() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return 0
