"""The event handler that scores an evaluation of stages, subject by subject."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from ignite.engine import Engine, Events

from networks.atrophy_classifier import CLASSES
from pipeline.evaluation.classification import RESAMPLES, summarize_stages
from pipeline.formats.atomic import atomic_write

__all__ = ["SubjectScoresHandler"]


class SubjectScoresHandler:
    """Gather every subject's probabilities by name, once, whatever process it was evaluated in; score them together.

    After an evaluation ``engine.state.metrics`` holds ``val_auc_non_vs_any``, ``val_macro_auc``,
    ``val_balanced_accuracy`` and ``val_expected_calibration_error``, each only if it is defined for these subjects.

    Args:
        output_dir: Where to write ``subjects.csv`` and ``summary.json``; None writes nothing and takes no intervals.
        training_labels: Classes of the training subjects, for ``val_balanced_accuracy_for_shares``, the balanced
            accuracy of the class whose probability exceeds its share of them the most.
    """

    def __init__(self, output_dir: str | None = None, training_labels: Sequence[int] = ()) -> None:
        self.output_dir = output_dir
        self.training_labels = training_labels
        self.rows: dict[str, dict[str, Any]] = {}

    def attach(self, engine: Engine) -> None:
        """Gather at each iteration, score and write when the evaluation is complete."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._forget)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._gather)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _forget(self, _engine: Engine) -> None:
        self.rows = {}

    def _gather(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        for entry, result in zip(batch, output, strict=True):
            self.rows[entry["subject"]] = {
                "subject": entry["subject"],
                "stage": entry["stage"],
                "label": int(entry["label"]),
                "probabilities": [float(share) for share in result["pred"]],
            }

    def _finish(self, engine: Engine) -> None:
        parts: list[Any] = [self.rows]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, self.rows)
        rows = [row for _, row in sorted((name, row) for part in parts for name, row in part.items())]
        labels = np.array([row["label"] for row in rows])
        probabilities = np.array([row["probabilities"] for row in rows])
        counts = np.bincount(np.asarray(self.training_labels, dtype=np.int64), minlength=len(CLASSES))
        prior = counts / counts.sum() if counts.all() else None
        resamples = RESAMPLES if self.output_dir is not None else 0
        summary = summarize_stages(labels, probabilities, prior=prior, resamples=resamples)
        for name, figure in summary.items():
            if isinstance(figure, dict) and figure["value"] is not None:
                engine.state.metrics[f"val_{name}"] = figure["value"]
        first = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        if self.output_dir is not None and (first or torch.distributed.get_rank() == 0):
            _write(Path(self.output_dir), rows, {"classes": list(CLASSES), **summary})


def _write(folder: Path, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Write the table and the summary."""
    folder.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("subject", "stage", "label", "predicted", *(f"probability_{k}" for k in range(len(CLASSES)))))
    for row in rows:
        shares = row["probabilities"]
        predicted = int(np.argmax(shares))
        writer.writerow((row["subject"], row["stage"], row["label"], predicted, *(f"{share:.5f}" for share in shares)))
    for name, content in (("subjects.csv", table.getvalue()), ("summary.json", json.dumps(summary, indent=2) + "\n")):
        with atomic_write(folder / name) as file:
            file.write(content.encode())
