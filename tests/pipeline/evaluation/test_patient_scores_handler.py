"""The bundle's evaluation and ``ar2unet evaluate`` are one: the same table, the same summary."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from pipeline.evaluation.evaluate import evaluate_masks
from pipeline.training import handlers
from pipeline.training.handlers import PatientScoresHandler

MILLIMETRE = 2
VOXELS = {"sub-a": ([(1, 1, 1)], [(1, 1, 1), (1, 1, 2)]), "sub-b": ([(3, 4, 5)], [])}


@pytest.fixture
def run_evaluator(mask_of, make_affine):
    """Run a handler over the two patients; their labels lie on an oblique grid in mm, or on one nobody measured."""

    def run(handler, *, spacing_known=True):
        # A header keeps no more than float32.
        affine = make_affine("oblique").astype(np.float32) if spacing_known else np.diag([-1.0, -1, 1, 1])
        unit = MILLIMETRE if spacing_known else 0

        def evaluate(_engine, batch):
            outputs = []
            for entry in batch:
                prediction, truth = (torch.from_numpy(mask_of(*side))[None] for side in VOXELS[entry["subject"]])
                outputs.append(
                    {"pred": prediction, "label": MetaTensor(truth, affine=affine, meta={"xyzt_units": unit})}
                )
            return outputs

        engine = Engine(evaluate)
        handler.attach(engine)
        # Not in the order of the names, as a shuffled or distributed evaluation hands them out.
        engine.run([[{"subject": subject, "site": "CS"}] for subject in reversed(VOXELS)])
        return engine

    return run


@pytest.mark.parametrize("spacing_known", [True, False])
def test_both_write_the_same_table_and_summary(run_evaluator, save_mask, mask_of, tmp_path, spacing_known):
    run_evaluator(PatientScoresHandler(str(tmp_path / "bundle")), spacing_known=spacing_known)
    grid = {} if spacing_known else {"affine": np.diag([-1.0, -1, 1, 1]), "unit": "unknown"}
    for subject, sides in VOXELS.items():
        for side, voxels in zip(("pred", "true"), sides, strict=True):
            save_mask(f"{side}/{subject}_mask.nii.gz", mask_of(*voxels), **grid)
    sites = tmp_path / "participants.tsv"
    sites.write_text("participant_id\tsite\nsub-a\tCS\nsub-b\tCS\n")
    evaluate_masks(tmp_path / "pred", tmp_path / "true", tmp_path / "command", groups=sites)
    table, summary = ((tmp_path / "bundle" / name).read_text() for name in ("patients.csv", "summary.json"))
    assert table == (tmp_path / "command" / "patients.csv").read_text()
    expected = json.loads((tmp_path / "command" / "summary.json").read_text())
    assert expected.pop("left_out") == []
    assert json.loads(summary) == expected


def test_a_validation_during_training_measures_no_distances_and_writes_nothing(run_evaluator, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(handlers, "score_patient", lambda *_, **__: pytest.fail("measured what takes long"))
    engine = run_evaluator(PatientScoresHandler())
    assert list(engine.state.patient_counts) == ["sub-a", "sub-b"]
    assert engine.state.metrics["val_median_dice"] == pytest.approx((2 / 3 + 0) / 2)
    assert list(tmp_path.iterdir()) == []


def test_the_median_is_there_also_when_all_is_written(run_evaluator, tmp_path):
    engine = run_evaluator(PatientScoresHandler(str(tmp_path)))
    assert engine.state.metrics["val_median_dice"] == pytest.approx(1 / 3)
    assert engine.state.patient_counts["sub-a"].false_negative == 1
