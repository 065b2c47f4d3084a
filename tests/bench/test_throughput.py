"""What is made of the times and the memory of many scans, and the script from files to table, JSON and plot."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.case import Case
from pipeline.errors import ScanError
from pipeline.predictor import Prediction


@pytest.fixture
def script(load_script):
    return load_script("throughput")


class Predictor:
    """Finds nothing; its network takes as many seconds of a clock of its own as the scan has slices."""

    bundle, version, engine, weights_sha256 = Path("some_bundle"), "0.0.0", "stand-in", "0" * 64

    def __init__(self):
        self.clock = 0.0

    def prepare(self, scan):
        return scan

    def infer(self, prepared, *, on_progress=None):
        self.clock += prepared.spatial_shape[2]

    def finish(self, prepared, inferred):
        nothing = np.zeros(prepared.spatial_shape, np.uint8)
        seconds = {"preprocess": 0.1, "network": 0.2, "postprocess": 0.3}
        return Prediction(nothing, nothing.astype(np.float32), None, (), (), seconds)


@pytest.fixture
def scans(make_nifti):
    """Two scans, of 7 and of 5 slices."""
    volume = np.arange(12 * 14 * 5, dtype=np.int16).reshape(12, 14, 5)
    return [make_nifti("first.nii.gz"), make_nifti("second.nii.gz", volume=volume)]


@pytest.fixture
def result():
    """A run of 200 scans of 0.5 s that reaches everything, by a hair."""
    return {
        "engine": "stand-in",
        "segmented": 200,
        "network_seconds_per_scan": 0.45,
        "network_processor_seconds_per_scan": 0.88,
        "seconds_per_scan": 0.5,
        "intercept_seconds": 1.25,
        "r2": 0.999,
        "share_of_network_time": 0.9,
        "processor_seconds_per_scan": 0.98,
        "cores_taken_by_others": 0.03,
        "early": {"scan": 20, "bytes": 400e6},
        "late": {"scan": 200, "bytes": 420e6},
        "growth": 0.05,
        "peak_bytes": 1.99e9,
        "times": [1.25 + 0.5 * number for number in range(1, 201)],
        "memory": [400e6] * 199 + [420e6],
    }


def test_the_networks_own_time_is_that_of_infer_alone_once_a_pass(script, scans, monkeypatch):
    predictor = Predictor()
    clock = SimpleNamespace(perf_counter=lambda: predictor.clock, process_time=lambda: 1.5 * predictor.clock)
    monkeypatch.setattr(script, "time", clock)
    cases = [Case(scan, scan.parent) for scan in scans]
    monkeypatch.setattr("pipeline.case.time", clock)
    assert script.network_seconds(predictor, cases) == [(7 + 5, 1.5 * (7 + 5))] * script.PASSES
    assert predictor.clock == script.PASSES * 12


def test_every_round_counts_but_the_first_which_fills_the_stream(script, scans, tmp_path, monkeypatch):
    alone = iter([[(0.8, 2.0), (1.2, 3.0)], [(1.4, 2.0), (1.8, 5.0)]])
    monkeypatch.setattr(script, "network_seconds", lambda *_: next(alone))
    # Of each round the first scan takes 1 s and the second 3 s, but those of the first round take 50 s.
    ticks = iter([100.0, 150.0, 200.0, 201.0, 204.0, 205.0, 208.0, 209.0, 212.0])
    clock = SimpleNamespace(perf_counter=lambda: next(ticks), process_time=lambda: 0.0)
    monkeypatch.setattr(script, "time", clock)

    def segment_cases(_, cases):
        asked = list(cases)
        assert [case.flair for case in asked] == scans * 4
        assert [case.out for case in asked] == [tmp_path / "first", tmp_path / "second"] * 4
        return ((case, "its result") for case in asked)

    monkeypatch.setattr(script, "segment_cases", segment_cases)
    monkeypatch.setattr(script, "segment_case", lambda *_: None)
    result = script.measure(Predictor(), scans, 4, tmp_path)
    assert result["segmented"] == len(result["memory"]) == 8
    assert result["times"] == [50, 100, 101, 104, 105, 108, 109, 112]
    assert result["network_seconds_per_scan"] == pytest.approx(1.3 / 2)
    assert result["network_processor_seconds_per_scan"] == pytest.approx(3.0 / 2)
    assert result["seconds_per_scan"] == pytest.approx(np.polyfit(range(3, 9), result["times"][2:], 1)[0])
    assert result["share_of_network_time"] == pytest.approx(1.3 / 2 / result["seconds_per_scan"])


def test_memory_is_compared_between_the_20th_scan_and_the_200th_or_the_last(script, scans, tmp_path, monkeypatch):
    memory = iter(range(1000, 9000))
    monkeypatch.setattr(script, "resident_bytes", lambda: next(memory))
    monkeypatch.setattr(script, "network_seconds", lambda *_: [(1.0, 2.0)])
    monkeypatch.setattr(script, "segment_case", lambda *_: None)
    monkeypatch.setattr(script, "segment_cases", lambda _, cases: ((case, "its result") for case in cases))
    result = script.measure(Predictor(), scans, 120, tmp_path)
    assert result["early"] == {"scan": 20, "bytes": 1019}
    assert result["late"] == {"scan": 200, "bytes": 1199}
    assert result["growth"] == pytest.approx(180 / 1019)
    short = script.measure(Predictor(), scans, 3, tmp_path)
    assert (short["early"]["scan"], short["late"]["scan"]) == (6, 6)


def test_a_process_knows_its_own_memory_and_what_others_take(script):
    before = script.resident_bytes()
    with mmap.mmap(-1, 80_000_000) as more:  # from the system itself: an array may get memory that was freed before
        assert script.resident_bytes() - before == pytest.approx(0, abs=0.05 * len(more))  # not there before it is used
        more.write(bytes(len(more)))
        assert script.resident_bytes() - before == pytest.approx(len(more), rel=0.05)
    assert script.busy_seconds() > 0


@pytest.mark.parametrize(
    ("change", "reached"),
    [
        ({}, [True, True, True]),
        ({"share_of_network_time": 0.89}, [False, True, True]),
        ({"peak_bytes": 2.01e9}, [True, False, True]),
        ({"growth": 0.051}, [True, True, False]),
        ({"growth": -0.3}, [True, True, True]),
        ({"segmented": 199}, [True, True]),
    ],
)
def test_what_is_to_be_reached_is_held_against_what_was_measured(script, result, change, reached):
    assert [goal.reached for goal in script.goals({**result, **change})] == reached


def test_the_script_writes_table_json_and_plot(script, scans, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "Predictor", lambda bundle, engine: Predictor())
    out = tmp_path / "out"
    assert script.main([*map(str, scans), "--repeat", "3", "-o", str(out)]) == 0
    written = json.loads((out / "throughput.json").read_text())
    assert written["segmented"] == 6
    assert written["scans"] == ["first.nii.gz", "second.nii.gz"]
    assert sorted(written["times"]) == written["times"]
    assert written["machine"]["cores"] >= 1
    assert (out / "throughput.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "second" / "second_mask.nii.gz").is_file()
    printed = capsys.readouterr().out
    assert "| scans | 6 |" in printed
    assert "| share of pure network time | at least 90% |" in printed


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--repeat", "2"], "--repeat must be at least 3, got 2"),
        (["--bundle", "nowhere"], "nowhere must be a bundle"),
        (["first.nii.gz"], "SCAN must be of different names, got first, first, second"),
    ],
)
def test_bad_options_end_in_one_line_and_exit_code_2(script, scans, tmp_path, capsys, options, reason):
    assert script.main([*options, *map(str, scans), "-o", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {reason}")
    assert printed.err.count("\n") == 1


def test_a_bad_scan_is_named(script, scans, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "Predictor", lambda bundle, engine: Predictor())
    scans[1].write_bytes(b"nothing")
    assert script.main([*map(str, scans), "-o", str(tmp_path / "out")]) == 2
    assert "second.nii.gz" in capsys.readouterr().err
    monkeypatch.setattr(script, "segment_case", lambda *_: None)
    monkeypatch.setattr(script, "network_seconds", lambda *_: [(1.0, 2.0)])
    with pytest.raises(ScanError, match=r"second\.nii\.gz"):
        script.measure(Predictor(), scans, 3, tmp_path / "out")
