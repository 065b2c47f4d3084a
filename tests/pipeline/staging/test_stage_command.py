from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest


@pytest.fixture
def stage(bundle, tmp_path):
    """Run the command on the made-up bundle."""

    def run(*arguments):
        code = "from pipeline.cli import main; main()"
        command = [sys.executable, "-c", code, "stage", *map(str, arguments), "--bundle", str(bundle)]
        environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)

    return run


def test_one_slice_gives_one_line(stage, save_slice, brain):
    done = stage(save_slice(brain[9], "my slice.png"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith("my slice.png: ")
    assert "CDR" in done.stdout
    assert "not a diagnosis" in done.stdout


def test_several_files_get_a_folder_each_and_a_bad_one_stops_none(stage, save_slice, brain, tmp_path):
    files = [
        save_slice(brain[9], "good.png"),
        save_slice(brain[9][:99], "bad.png"),
        save_slice(np.ascontiguousarray(brain[9, ::-1]), "odd.png"),
    ]
    done = stage(*files, "-o", tmp_path / "out")
    assert done.returncode == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"good", "odd"}
    assert json.loads((tmp_path / "out" / "good" / "stage.json").read_text())["plausible"]
    first, second, third = done.stderr.splitlines()
    assert "bad.png: expected a brain-extracted T1" in first
    assert "odd.png: This does not look like" in second
    assert third == "ar2unet: 1 of 3 files failed, the others are done"


@pytest.mark.parametrize("arguments", [["none.png"], ["none.png", "nor_this.png"]])
def test_nothing_readable_is_a_line_and_exit_code_2(stage, arguments):
    done = stage(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "no such file" in done.stderr


def test_results_of_one_name_are_refused_before_anything_is_done(stage, save_slice, brain, tmp_path):
    done = stage(save_slice(brain[9], "same.png"), save_slice(brain[9], "same.jpg"), "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "two files are named same" in done.stderr
    assert not (tmp_path / "out").exists()
