"""Evaluating through the bundle's own command; every number is worked out a second time here."""

from __future__ import annotations

import csv
import json
import re
import statistics

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline.formats.nifti import read_scan
from pipeline.predictor import Predictor
from transforms.intensity import find_head

FOLD = 1


@pytest.fixture(scope="module")
def written(run_command, tiny_dataset, tmp_path_factory):
    """The table's rows by subject, the summary, and the page."""
    folder = tmp_path_factory.mktemp("evaluation")
    run_command(
        *("-m", "monai.bundle", "run", "evaluating"),
        *("--config_file", "['configs/train.yaml','configs/evaluate.yaml']"),
        dataset_dir=tiny_dataset.folder,
        output_dir=folder,
        fold=FOLD,
        amp="false",  # float32, as the predictor computes
    )
    assert sorted(path.name for path in folder.iterdir()) == ["patients.csv", "report.html", "summary.json"]
    with (folder / "patients.csv").open(newline="") as file:
        rows = {row.pop("subject"): row for row in csv.DictReader(file)}
    return rows, json.loads((folder / "summary.json").read_text()), (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def predicted(bundle, tiny_dataset):
    """Of each held-out patient scan, prediction and truth, on the scan's own voxels."""
    predictor = Predictor(bundle, device="cpu")
    found = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the command above: other sums would put a voxel into another bin
    for entry in tiny_dataset.held_out(FOLD):
        t1, flair, t1c = (tiny_dataset.folder / image for image in entry["image"])
        truth = np.asarray(nib.load(tiny_dataset.folder / entry["label"]).dataobj) > 0
        scan = read_scan(flair, t1, t1c)
        found[entry["subject"]] = scan, predictor.predict(scan), truth
    torch.set_num_threads(threads)
    return found


@pytest.fixture(scope="module")
def masks(predicted):
    """Of each held-out patient the predictor's mask and the truth."""
    return {subject: (prediction.mask > 0, truth) for subject, (_, prediction, truth) in predicted.items()}


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
    rows, _, _ = written
    assert list(rows) == ["sub-1", "sub-2", "sub-4"]
    for subject, (prediction, truth) in masks.items():
        row = rows[subject]
        assert int(row["true_voxels"]) == truth.sum()
        assert int(row["predicted_voxels"]) == prediction.sum()
        for name, score in scores_of(prediction, truth).items():
            assert float(row[name]) == pytest.approx(score, abs=0.5e-4), (subject, name)
    assert len({row["dice"] for row in rows.values()}) == len(rows)


def test_the_summary_averages_over_patients_and_pools_over_voxels(written, masks):
    _, summary, _ = written
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


def test_the_calibration_is_that_of_the_probabilities_inside_of_the_heads(written, predicted):
    _, summary, page = written
    probabilities, truth = [], []
    for scan, prediction, true in predicted.values():
        head = find_head(scan.flair)
        assert 0 < head.sum() < head.size
        probabilities += prediction.probabilities[head].tolist()
        truth += true[head].tolist()
    calibration, error = summary["calibration"], 0.0
    assert calibration["voxels"] == len(truth)
    for place, found in enumerate(calibration["bins"]):
        lower = place / 15 if place else -1  # the first bin holds 0, too
        inside = [n for n, value in enumerate(probabilities) if lower < value <= (place + 1) / 15]
        assert found["voxels"] == len(inside)
        if inside:
            mean, share = (statistics.fmean(values[n] for n in inside) for values in (probabilities, truth))
            assert found["mean_probability"] == pytest.approx(mean, abs=1e-6)
            assert found["lesion_share"] == pytest.approx(share)
            error += len(inside) / len(truth) * abs(mean - share)
    assert len(calibration["bins"]) == 15
    assert calibration["expected_calibration_error"] == pytest.approx(error, abs=1e-6)
    assert f"Expected calibration error in the head: {error:.4f}" in page


def test_the_page_needs_nothing_else_and_shows_the_worst_patient(written):
    rows, _, page = written
    worst = min(rows, key=lambda subject: float(rows[subject]["dice"]))
    captions = re.findall(r"<figcaption>(worst|best): (sub-\d), Dice", page)
    assert captions[0] == ("worst", worst)
    assert sorted(subject for _, subject in captions) == sorted(rows)
    references = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(references) >= 6
    assert all(reference.startswith("data:image/") for reference in references)
