"""Cross-validation: what is said of a patient rests on other patients only."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from pipeline.engines.artefact import hash_file
from pipeline.evaluation.metrics import count_confusion

SHAPE = (24, 26, 8)


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("cross_validation")


@pytest.fixture(scope="module")
def cases(script):
    """Patients whose logits are three times too large; the network is surer of each than of the one before."""
    rng = np.random.default_rng(0)

    def make(number):
        head = np.zeros(SHAPE, dtype=bool)
        head[3:-3, 3:-3] = True
        logits = rng.normal(-6, 0.5, SHAPE)
        logits[8:16, 8:16, 2:6] += 6.2 + 0.3 * number
        truth = (rng.random(SHAPE) < 1 / (1 + np.exp(-logits))) & head
        logits = (3 * logits).astype(np.float32)
        return script.HeldOut(f"sub-{number}", "AB"[number % 2], number % 2, logits, logits > 0, truth, head)

    return [make(number) for number in range(10)]


def test_the_temperature_undoes_what_was_too_sure(script, cases):
    temperature, line = script.fit(cases)
    assert temperature == pytest.approx(3, rel=0.1)
    assert line.patients == 10
    assert line.review_below == 0.7


def test_every_patient_is_scored_once_and_by_the_mask_itself(script, cases):
    cases = [cases[0]._replace(mask=np.zeros_like(cases[0].mask)), *cases[1:]]  # all of it left out
    result = script.cross_validate(cases)
    assert sorted(row["subject"] for row in result["patients"]) == sorted(case.subject for case in cases)
    by_subject = {row["subject"]: row for row in result["patients"]}
    for case in cases:
        assert by_subject[case.subject]["dice"] == count_confusion(case.mask, case.truth).dice
        assert by_subject[case.subject]["fold"] == case.fold
    assert result["calibration_error"] < 0.7 * result["calibration_error_before"]
    assert result["predicted_dice"]["spearman"] > 0.5


def test_a_patients_own_truth_has_no_say_in_what_is_predicted_of_it(script, cases):
    before = {row["subject"]: row["predicted_dice"] for row in script.cross_validate(cases)["patients"]}
    changed = [cases[0]._replace(truth=~cases[0].truth & cases[0].head), *cases[1:]]
    after = {row["subject"]: row["predicted_dice"] for row in script.cross_validate(changed)["patients"]}
    assert after["sub-0"] == before["sub-0"]
    assert after["sub-1"] != before["sub-1"]


def test_the_table_names_every_input_and_the_json_is_plain(script, cases):
    result = script.cross_validate(cases)
    table = script.markdown_table({"three": result, "one": result})
    assert table.splitlines()[0] == "| figure | three | one |"
    assert f"| {result['summary']['pooled_over_voxels']['dice']:.4f} | " in table
    assert "| Dice, fold 1 (n) | " in table
    assert "| Dice, small lesions (n) | " in table
    json.dumps(result, allow_nan=False)


def test_the_patients_of_every_input_become_lines_of_a_table(script, cases, tmp_path):
    result = script.cross_validate(cases)
    script.write_patients(tmp_path / "cv.csv", {"three": result, "one": result})
    with (tmp_path / "cv.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["input"] for row in rows] == ["three"] * 10 + ["one"] * 10
    assert [row["subject"] for row in rows[:10]] == [row["subject"] for row in result["patients"]]
    assert float(rows[3]["dice"]) == pytest.approx(result["patients"][3]["dice"], abs=5e-5)
    with pytest.raises(script.AR2UNetError, match="cannot be written: No such file"):
        script.write_patients(tmp_path / "no folder" / "cv.csv", {"three": result})


def test_of_many_voxels_some_are_enough_for_the_temperature(script, cases, monkeypatch):
    given = []
    monkeypatch.setattr(script, "fit_temperature", lambda logits, truth: given.append((logits, truth)) or 3.0)
    monkeypatch.setattr(script, "ENOUGH", sum(case.head.sum() for case in cases) // 4)
    script.fit(cases)
    (logits, truth), first = given[0], cases[0]
    every_fourth = first.logits[first.head][::4]
    assert np.array_equal(logits[: len(every_fourth)], every_fourth)
    assert np.array_equal(truth[: len(every_fourth)], first.truth[first.head][::4])
    assert len(logits) <= 1.01 * script.ENOUGH


def test_each_fold_is_segmented_with_the_weights_given_for_it_and_not_with_the_shipped_ones(
    script, cases, tmp_path, monkeypatch, make_bundle_network
):
    import torch

    given = {}
    for fold in (0, 1):
        torch.save(make_bundle_network(seed=fold).state_dict(), tmp_path / f"{fold}.pt")
        given[fold] = hash_file(tmp_path / f"{fold}.pt")
    used = []

    def segment(data, fold, predictor, *, flair_alone):
        used.append((fold, flair_alone, predictor.weights_sha256))
        return [case for case in cases if case.fold == fold]

    monkeypatch.setattr(script, "predict_held_out", segment)
    monkeypatch.setattr("other_weights.installed_engines", tuple)  # test_other_weights.py exports the network
    assert script.main(["DATA", "--weights", f"0={tmp_path / '0.pt'}", f"1={tmp_path / '1.pt'}"]) == 0
    assert used == [(fold, alone, given[fold]) for fold in (0, 1) for alone in (False, True)]


def test_weights_that_are_not_there_end_in_one_line_and_exit_code_2(script, capsys):
    assert script.main(["DATA", "--weights", "0=gone.pt"]) == 2
    assert capsys.readouterr().err == "error: gone.pt must be the weights of a training, got no file\n"


def test_shipped_weights_carry_the_temperature(script, tmp_path):
    import torch

    from networks.ar2unet import AR2UNet

    network = AR2UNet(2, 3, 2, (4, 8)).eval()
    torch.save(network.state_dict(), tmp_path / "trained.pt")
    script.ship(tmp_path / "trained.pt", 1.6, tmp_path / "model.pt")
    image = torch.randn(1, 3, 16, 16)
    expected = network(image) / 1.6
    network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    torch.testing.assert_close(network(image), expected)
