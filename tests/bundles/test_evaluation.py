"""Evaluating through the bundle's own command; every number is worked out a second time here."""

from __future__ import annotations

import csv
import json
import statistics

import nibabel as nib
import numpy as np
import pytest

from pipeline.formats.nifti import read_scan
from pipeline.predictor import Predictor

FOLD = 1


@pytest.fixture(scope="module")
def written(run_command, tiny_dataset, tmp_path_factory):
    """The table's rows by subject, and the summary."""
    folder = tmp_path_factory.mktemp("evaluation")
    run_command(
        *("-m", "monai.bundle", "run", "evaluating"),
        *("--config_file", "['configs/train.yaml','configs/evaluate.yaml']"),
        dataset_dir=tiny_dataset.folder,
        output_dir=folder,
        fold=FOLD,
        amp="false",  # float32, as the predictor computes
    )
    assert sorted(path.name for path in folder.iterdir()) == ["patients.csv", "summary.json"]
    with (folder / "patients.csv").open(newline="") as file:
        rows = {row.pop("subject"): row for row in csv.DictReader(file)}
    return rows, json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def masks(bundle, tiny_dataset):
    """Of each held-out patient the predictor's mask and the truth, on the scan's own voxels."""
    predictor = Predictor(bundle, device="cpu")
    found = {}
    for entry in tiny_dataset.held_out(FOLD):
        t1, flair, t1c = (tiny_dataset.folder / image for image in entry["image"])
        truth = np.asarray(nib.load(tiny_dataset.folder / entry["label"]).dataobj) > 0
        found[entry["subject"]] = predictor.predict(read_scan(flair, t1, t1c)).mask > 0, truth
    return found


def scores_of(prediction, truth):
    """Return the scores of two masks by their textbook definitions."""
    both, either = np.sum(prediction & truth), np.sum(prediction | truth)
    neither = np.sum(~prediction & ~truth)
    return {
        "dice": 2 * both / (prediction.sum() + truth.sum()),
        "iou": both / either,
        "precision": both / prediction.sum(),
        "recall": both / truth.sum(),
        "specificity": neither / (~truth).sum(),
        "pixel_accuracy": np.mean(prediction == truth),
    }


def test_every_held_out_patient_has_a_row_with_its_own_scores(written, masks):
    rows, _ = written
    assert list(rows) == ["sub-1", "sub-2", "sub-4"]
    for subject, (prediction, truth) in masks.items():
        row = rows[subject]
        assert int(row["true_voxels"]) == truth.sum()
        assert int(row["predicted_voxels"]) == prediction.sum()
        for name, score in scores_of(prediction, truth).items():
            assert float(row[name]) == pytest.approx(score, abs=0.5e-4), (subject, name)
    assert len({row["dice"] for row in rows.values()}) == len(rows)


def test_the_summary_averages_over_patients_and_pools_over_voxels(written, masks):
    _, summary = written
    scores = [scores_of(*pair) for pair in masks.values()]
    pooled = scores_of(
        *(np.concatenate([volume.ravel() for volume in side]) for side in zip(*masks.values(), strict=True))
    )
    assert summary["patients"] == 3
    for name in scores[0]:
        values = [score[name] for score in scores]
        assert summary["mean"][name] == pytest.approx(statistics.fmean(values))
        assert summary["median"][name] == pytest.approx(statistics.median(values))
        assert summary["minimum"][name] == pytest.approx(min(values))
        assert summary["pooled_over_voxels"][name] == pytest.approx(pooled[name])
