"""From folders of masks to the three files, in process and as a user meets the command."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from pipeline.errors import AR2UNetError, DatasetError
from pipeline.evaluation.evaluate import evaluate_masks

FILES = ["patients.csv", "report.html", "summary.json"]


@pytest.fixture
def masks(save_mask, mask_of, tmp_path):
    """Two folders: of sub-a one of two voxels is found, of sub-b all, sub-c is empty and found empty."""
    truths = {"sub-a": [(1, 1, 1), (1, 1, 2)], "sub-b": [(5, 6, 2), (5, 7, 2), (6, 7, 2)], "sub-c": []}
    for subject, voxels in truths.items():
        found = voxels[:1] if subject == "sub-a" else voxels
        save_mask(f"true/{subject}/anat/{subject}_label-lesion_mask.nii.gz", mask_of(*voxels))
        save_mask(f"pred/{subject}_mask.nii.gz", mask_of(*found))
    return tmp_path


def rows_of(folder):
    with (folder / "patients.csv").open(newline="") as file:
        return {row["subject"]: row for row in csv.DictReader(file)}


def test_every_pair_is_scored_and_the_three_files_are_written(masks):
    done = []
    result = evaluate_masks(
        masks / "pred", masks / "true", masks / "out", on_progress=lambda *progress: done.append(progress)
    )
    assert sorted(path.name for path in (masks / "out").iterdir()) == FILES
    assert done == [(1, 3), (2, 3), (3, 3)]
    rows = rows_of(masks / "out")
    assert [float(row["dice"]) for row in rows.values()] == pytest.approx([2 / 3, 1, 1], abs=1e-6)
    assert float(rows["sub-a"]["hd95_mm"]) == pytest.approx(4.5 * 0.95)  # 0 and 4.5 mm
    assert float(rows["sub-b"]["true_ml"]) == pytest.approx(3 * 0.9 * 1.1 * 4.5 / 1000, abs=1e-6)
    assert json.loads((masks / "out" / "summary.json").read_text()) == result.summary
    assert result.summary["mean"]["dice"] == pytest.approx(8 / 9)
    assert (result.left_out, result.notes) == ((), ())


def test_sites_are_those_of_the_table_and_who_has_none_is_named(masks):
    table = masks / "participants.tsv"
    table.write_text("participant_id\tsite\nsub-a\tCS\nsub-c\tDU\n")
    result = evaluate_masks(masks / "pred", masks / "true", masks / "out", groups=table)
    assert [row["site"] for row in rows_of(masks / "out").values()] == ["CS", "", "DU"]
    assert set(result.summary["by_site"]) == {"CS", "DU", "unknown"}
    (note,) = result.notes
    assert "sub-b" in note


def test_a_bad_mask_is_named_and_the_others_are_scored(masks, save_mask, mask_of):
    moved = np.diag([0.9, 1.1, 4.5, 1.0])
    save_mask("pred/sub-a_mask.nii.gz", mask_of((1, 1, 1), shape=(11, 13, 6)))
    save_mask("pred/sub-b_mask.nii.gz", mask_of((1, 1, 1)) * 7)
    save_mask("pred/sub-d_mask.nii.gz", mask_of(), affine=moved)
    save_mask("true/sub-d_mask.nii.gz", mask_of())
    save_mask("true/sub-e_mask.nii.gz", mask_of())
    result = evaluate_masks(masks / "pred", masks / "true", masks / "out")
    assert [patient.subject for patient in result.patients] == ["sub-c"]
    reasons = {each.subject: each.reason for each in result.left_out}
    assert list(reasons) == ["sub-a", "sub-b", "sub-d", "sub-e"]
    for subject, words in (
        ("sub-a", "got shape (11, 13, 6)"),
        ("sub-b", "got 0, 7"),
        ("sub-d", "mm away"),
        ("sub-e", "no predicted one"),
    ):
        assert subject in reasons[subject]
        assert words in reasons[subject]
    listed = json.loads((masks / "out" / "summary.json").read_text())["left_out"]
    assert {each["subject"]: each["reason"] for each in listed} == reasons


def test_without_a_known_spacing_nothing_is_in_millimetres(save_mask, mask_of, tmp_path):
    grid = {"affine": np.diag([-1.0, -1, 1, 1]), "unit": "unknown"}
    pair = save_mask("p.nii", mask_of((1, 2, 3)), **grid), save_mask("t.nii", mask_of((1, 2, 5)), **grid)
    row = evaluate_masks(*pair, tmp_path / "out").patients[0].row()
    assert row["hd95_voxels"] == 2
    assert row["hd95_mm"] is row["true_ml"] is None


def test_worst_and_best_cases_are_drawn_once_each(masks):
    evaluate_masks(masks / "pred", masks / "true", masks / "out")
    page = (masks / "out" / "report.html").read_text()
    assert page.count("data:image/png") == 3  # of three patients all are among the worst, none among the best


def test_scans_are_drawn_below_the_outlines_and_a_missing_one_is_named(masks, save_mask, numbered_volume):
    for subject in ("sub-a", "sub-b"):
        save_mask(f"scans/{subject}_FLAIR.nii.gz", numbered_volume)
    plain = evaluate_masks(masks / "pred", masks / "true", masks / "plain")
    result = evaluate_masks(masks / "pred", masks / "true", masks / "out", images=masks / "scans")
    (note,) = result.notes
    assert note == "sub-c: expected one scan for the picture, got 0"
    assert result.page.stat().st_size > plain.page.stat().st_size


def test_if_nobody_can_be_scored_nothing_is_written(save_mask, mask_of, tmp_path):
    for side, value in (("pred", 1), ("true", 3)):
        for subject in ("a", "b"):
            save_mask(f"{side}/{subject}.nii", mask_of((1, 1, 1)) * value)
    with pytest.raises(DatasetError, match=r"none of 2 patients could be scored; the first: .*a\.nii.* got 0, 3"):
        evaluate_masks(tmp_path / "pred", tmp_path / "true", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_is_a_file_is_refused_before_the_work(masks):
    (masks / "out").write_text("taken")
    with pytest.raises(AR2UNetError, match="expected a folder for the results, got a file"):
        evaluate_masks(masks / "pred", masks / "true", masks / "out")
    assert (masks / "out").read_text() == "taken"


def test_the_command_prints_one_line_and_exits_with_0(ar2unet, masks):
    result = ar2unet("evaluate", "pred", "true", "-o", "out")
    assert (result.returncode, result.stderr) == (0, "")
    (line,) = result.stdout.strip().splitlines()
    assert line == "3 scored: Dice mean 0.889, median 1.000; out/report.html"


def test_the_command_names_each_one_left_out_and_exits_with_1(ar2unet, masks, save_mask, mask_of):
    save_mask("true/sub-e_mask.nii.gz", mask_of())
    (masks / "pred" / "sub-b_mask.nii.gz").write_bytes(b"nothing")
    result = ar2unet("evaluate", "pred", "true", "-o", "out")
    assert result.returncode == 1
    first, second, last = result.stderr.strip().splitlines()
    assert "sub-b" in first
    assert "sub-e" in second
    assert last == "ar2unet: 2 of 4 patients could not be scored, the others are"
    assert sorted(path.name for path in (masks / "out").iterdir()) == FILES


def test_the_command_refuses_what_holds_no_masks_and_exits_with_2(ar2unet, masks):
    result = ar2unet("evaluate", "pred", "nowhere", "-o", "out")
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("ar2unet: nowhere: expected a mask or a folder of masks")
    assert not (masks / "out").exists()
