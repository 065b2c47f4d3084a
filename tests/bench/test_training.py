"""The benchmark of training: its table, its goals, its options, and a whole run of seconds."""

from __future__ import annotations

import json
import re

import pytest

SMALL = ["channels=[4,8,16]", "recurrences=1", "batch_size=1", "slices_per_patient=2", "slice_size=[16,32]"]
SMALL = [*SMALL, "num_workers=0", "warmup_iterations=1"]


@pytest.fixture
def script(load_script):
    return load_script("training")


@pytest.fixture
def trainings(script):
    make = script.Training
    return [
        make("ours", "bf16", (12, 3, 192, 208), 600, (1.0, 1.4, 1.1), (0.0, 0.1, 0.0), 9.0),
        make(script.PLAIN, "f32", (12, 3, 256, 256), 800, (8.0, 8.4), (0.4, 0.8), 1.0),
    ]


@pytest.fixture
def make_floor(load_script):
    return load_script("floor").Floor


@pytest.fixture
def floors(make_floor):
    return {"bf16": make_floor("bf16", 1200.0, ""), "f32": make_floor("f32", 200.0, "")}


def cells(table):
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_the_table_has_a_row_a_way_with_its_own_floor(script, trainings, floors):
    ours, plain = cells(script.training_table(trainings, floors, None))
    assert ours == {
        "way": "ours",
        "batch": "12 x 192 x 208 bf16",
        "slices a s": "10.0",
        "s a step": "1.10",
        "floor, s": "0.500",
        "times the floor": "2.20",
        "waiting": "2.8%",
        "times plain MONAI": "7.33",  # 36 slices in 3.6 s against 24 in 17.6 s
    }
    assert (plain["floor, s"], plain["times the floor"], plain["times plain MONAI"]) == ("4.00", "2.05", "1.00")


def test_on_a_gpu_the_share_of_its_matrix_rate_is_told(script, trainings, floors, make_floor):
    rows = cells(script.training_table(trainings, floors, make_floor("bf16", 2400.0, "")))
    assert [row["of the bf16 matrix rate"] for row in rows] == ["22.7%", "4.1%"]


@pytest.mark.parametrize(
    ("steps", "waits", "reached"),
    [
        ((1.0, 1.4, 1.1), (0.0, 0.1, 0.0), [True, False, True]),
        ((0.9, 0.9, 1.0), (0.0, 0.0, 0.0), [True, True, True]),
        ((0.9, 0.9, 0.9), (0.1, 0.1, 0.1), [True, True, False]),
        ((2.0, 2.0, 2.0), (0.0, 0.0, 0.0), [False, False, True]),
    ],
)
def test_goals_are_those_of_ours(script, trainings, floors, steps, waits, reached):
    ours = script.Training("ours", "bf16", (12, 3, 192, 208), 600, steps, waits, 9.0)
    goals = script.training_goals([ours, trainings[1]], floors)
    assert [goal.reached for goal in goals] == reached


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (["--iterations", "0"], "--iterations must be at least 1"),
        (["--warmup", "0"], "--warmup must be at least 1"),
        (["--patients", "0"], "--patients must be at least 1"),
        (["--set", "epochs=3"], "--set must be key=value"),
        (["--dataset_dir", "nowhere"], r"nowhere/datalist\.json must be a datalist"),
    ],
)
def test_bad_options_end_in_one_line_and_exit_code_2(script, prepared_dataset, capsys, change, reason):
    assert script.main(["--dataset_dir", str(prepared_dataset), "--device", "cpu", *change]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert re.search(reason, printed.err)


def test_a_gpu_that_is_not_there_is_refused(script, prepared_dataset, monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert script.main(["--dataset_dir", str(prepared_dataset), "--device", "cuda"]) == 2
    assert capsys.readouterr().err == "error: --device cuda needs a GPU that torch can use, found none\n"


def test_a_whole_run_trains_every_way_and_writes_table_json_and_plot(
    script, prepared_dataset, make_floor, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(script, "measure_floor", lambda precision, device: make_floor(precision, 1e12, "nothing"))
    written, drawn = tmp_path / "training.json", tmp_path / "training.png"
    options = ["--dataset_dir", str(prepared_dataset), "--device", "cpu", "--fold", "1", "--iterations", "2"]
    options += ["--plain_iterations", "1", "--warmup", "1", "--json", str(written), "--plot", str(drawn)]
    assert script.main([*options, "--set", *SMALL]) == 0
    result = json.loads(written.read_text())
    assert [training["setting"] for training in result["trainings"]] == [
        "ours",
        "plain MONAI, AR2-UNet",
        "plain MONAI, AttentionUnet",
    ]
    assert [training["shape"] for training in result["trainings"]] == [[2, 3, 16, 32], *[[2, 3, 256, 256]] * 2]
    assert [len(training["steps"]) for training in result["trainings"]] == [2, 1, 1]
    table = capsys.readouterr().out
    assert [row["way"] for row in cells(table.split("\n\n")[0])] == [t["setting"] for t in result["trainings"]]
    assert "| training, times plain MONAI | 6 |" in table
    assert drawn.read_bytes().startswith(b"\x89PNG")
