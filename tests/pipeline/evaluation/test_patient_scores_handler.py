"""The bundle's evaluation and ``ar2unet evaluate`` are one: the same table, the same summary."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from pipeline.evaluation.calibration import reliability, summarize_calibration
from pipeline.evaluation.evaluate import evaluate_masks
from pipeline.training import handlers
from pipeline.training.handlers import PatientScoresHandler
from transforms.intensity import find_head

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


SHUFFLED = (4, 0, 7, 2, 8, 5, 1, 6, 3)  # patient n is the n-th best


@pytest.fixture
def heads(make_head, make_affine):
    """Of patient n the scan of t1, flair and t1c, truth, prediction and probabilities, each (C, I, J, K)."""
    affine = make_affine("oblique")

    def make(number):
        flair, _ = make_head()
        flair += number
        random = np.random.default_rng(number)
        truth = np.zeros(flair.shape, dtype=np.uint8)
        truth[10:26, 20:34, 3:6] = 1
        lesion = np.where(truth, 0.7, 0.1) + random.uniform(0, 0.3, flair.shape)
        volumes = {
            "scan": np.stack([random.random(flair.shape), flair, -flair]),
            "label": truth[None],
            "pred": np.roll(truth, number, axis=0)[None],
            "probabilities": np.stack([1 - lesion, lesion]).astype(np.float32),
        }
        return {
            name: MetaTensor(torch.from_numpy(volume), affine=affine, meta={"xyzt_units": MILLIMETRE})
            for name, volume in volumes.items()
        }

    patients = [make(number) for number in range(len(SHUFFLED))]

    def run(handler, numbers=SHUFFLED):
        engine = Engine(lambda _engine, batch: [patients[int(entry["subject"][-1])] for entry in batch])
        handler.attach(engine)
        engine.run([[{"subject": f"sub-{number}", "scan": patients[number]["scan"]}] for number in numbers])

    return patients, run


def test_calibration_is_pooled_over_the_heads_as_flair_shows_them(heads, tmp_path):
    patients, run = heads
    run(PatientScoresHandler(str(tmp_path)), numbers=(2, 0))
    pairs = []
    for number in (0, 2):
        head = find_head(np.asarray(patients[number]["scan"][1], dtype=np.float32))
        assert head.sum() < head.size / 2
        pairs.append([np.asarray(patients[number][name])[-1][head] for name in ("probabilities", "label")])
    expected = summarize_calibration(reliability(*(np.concatenate(side) for side in zip(*pairs, strict=True))))
    found = json.loads((tmp_path / "summary.json").read_text())["calibration"]
    assert found["expected_calibration_error"] == pytest.approx(expected["expected_calibration_error"])
    assert [each["voxels"] for each in found["bins"]] == [each["voxels"] for each in expected["bins"]]


def test_the_three_worst_and_best_are_drawn_on_their_own_flair_and_no_others_are_kept(heads, monkeypatch, tmp_path):
    patients, run = heads
    kept, drawn = [], []

    def draw(prediction, truth, _affine, *, spacing, image):
        drawn.append((prediction, truth, spacing, image))
        return b"picture"

    class Watched(PatientScoresHandler):
        def _keep_case(self, subject, case):
            super()._keep_case(subject, case)
            kept.append(len(self.cases))

    monkeypatch.setattr(handlers, "draw_case", draw)
    run(Watched(str(tmp_path)))
    assert kept == [1, 2, 3, 4, 5, 6, 6, 6, 6]
    chosen = (8, 7, 6, 0, 1, 2)
    for number, (prediction, truth, spacing, image) in zip(chosen, drawn, strict=True):
        np.testing.assert_array_equal(image, np.asarray(patients[number]["scan"][1], dtype=np.float32))
        np.testing.assert_array_equal(prediction, np.asarray(patients[number]["pred"][0]) > 0)
        np.testing.assert_array_equal(truth, np.asarray(patients[number]["label"][0]) > 0)
        assert spacing == pytest.approx((0.9, 1.1, 4.5))
    page = (tmp_path / "report.html").read_text()
    places = [page.index(f"{'worst' if n > 5 else 'best'}: sub-{n}, Dice") for n in chosen]
    assert places == sorted(places)


def test_two_processes_write_together_what_one_does(heads, monkeypatch, tmp_path):
    _, run = heads
    run(PatientScoresHandler(str(tmp_path / "one")))
    # Threads stand in for the processes; patient 3 was handed to both, to make their shares equal.
    shares, barrier, own = {0: (8, 3, 6, 1, 0), 1: (4, 7, 3, 5, 2)}, threading.Barrier(2, timeout=60), threading.local()
    slots, failed = [None, None], []

    def all_gather_object(parts, part):
        slots[own.rank] = part
        barrier.wait()
        parts[:] = slots
        barrier.wait()

    def process(rank):
        own.rank = rank
        try:
            run(PatientScoresHandler(str(tmp_path / "two" / str(rank))), numbers=shares[rank])
        except BaseException as error:
            failed.append(error)
            barrier.abort()

    for name, stand_in in (
        ("is_initialized", lambda: True),
        ("get_world_size", lambda: 2),
        ("get_rank", lambda: own.rank),
        ("all_gather_object", all_gather_object),
    ):
        monkeypatch.setattr(torch.distributed, name, stand_in)
    threads = [threading.Thread(target=process, args=(rank,)) for rank in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["0"]
    for name in ("patients.csv", "summary.json", "report.html"):
        assert (tmp_path / "two" / "0" / name).read_text() == (tmp_path / "one" / name).read_text(), name
