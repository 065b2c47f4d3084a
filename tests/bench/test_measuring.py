"""What the benchmarks share: tables, lines, goals, the machine, files, and options."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def script(load_script):
    return load_script("measuring")


@pytest.fixture
def floor(load_script):
    return load_script("floor").Floor("bf16", 1234.5e9, "3x3 convolution of 4 x 256 x 64 x 64")


# --- tables ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123456, "0.0123"),
        (0.00999999, "0.0100"),
        (1.0, "1.00"),
        (99.96, "100"),
        (-2.345, "-2.35"),
        (123456.7, "123,000"),
        (0, "0"),
    ],
)
def test_a_number_has_three_significant_digits_and_no_exponent(script, value, text):
    assert script.significant(value) == text


def test_columns_of_numbers_are_aligned_to_the_right_and_nothing_is_a_dash(script):
    table = script.markdown_table(
        ["way", "s", "share", "n"], [["ours", 0.5, "12 %", 3], ["plain 2", None, "7.5%", "a"]]
    )
    assert table.splitlines() == [
        "| way | s | share | n |",
        "| --- | ---: | ---: | --- |",
        "| ours | 0.500 | 12 % | 3 |",
        "| plain 2 | – | 7.5% | a |",
    ]


def test_a_row_of_another_length_is_refused(script):
    with pytest.raises(ValueError, match="a row must have 2 cells, got 1"):
        script.markdown_table(["a", "b"], [[1, 2], [3]])


def test_a_goal_says_whether_it_is_reached(script):
    goals = [script.Goal("forward", "85%", "90%", True), script.Goal("help", "0.3 s", "0.4 s", False)]
    assert [line.split(" | ")[-1] for line in script.goals_table(goals).splitlines()[2:]] == ["yes |", "no |"]


# --- lines -------------------------------------------------------------------------------------------


def test_a_line_has_the_slope_and_intercept_of_its_points(script):
    line = script.fit_line([1, 2, 4], [5.0, 7.0, 11.0])
    assert (line.slope, line.intercept, line.r2) == pytest.approx((2, 3, 1))
    assert script.fit_line([0, 1, 2], [0.0, 2.0, 1.0]).r2 == pytest.approx(0.25)


def test_points_of_equal_height_are_a_flat_line(script):
    line = script.fit_line([1, 2, 3], [4.0, 4.0, 4.0])
    assert (line.slope, line.intercept, line.r2) == (0, 4, 1)


# --- the machine and files ---------------------------------------------------------------------------


def test_the_machine_is_described_with_its_versions_and_in_plain_json(script, floor, tmp_path):
    machine = script.describe_machine()
    assert machine["cores"] >= 1
    assert machine["packages"]["torch"] == script.metadata.version("torch")
    line = script.machine_line(machine, [floor])
    assert machine["date"] in line
    assert "bf16 1,234 GFLOP/s (3x3 convolution of 4 x 256 x 64 x 64)" in line
    script.write_json(tmp_path / "results.json", {"answer": 42}, machine, [floor])
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["answer"] == 42
    assert written["machine"] == machine
    assert written["floors"][0]["rate"] == floor.rate


def test_a_machine_without_linux_files_is_described_too(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "PROCESSOR_FILE", tmp_path / "none")
    machine = script.describe_machine()
    assert machine["processor"]
    assert machine["instructions"] == []
    assert "()" not in script.machine_line(machine)


def test_a_figure_is_written_and_a_bad_path_is_told(script, tmp_path):
    figure = script.new_figure()
    bars, line = figure.subplots(1, 2)
    script.draw_bars(bars, {"ours": 1.5, "plain": 4.5}, "s", floor=1.0)
    assert [bar.get_width() for bar in bars.patches] == [1.5, 4.5]
    script.draw_line(line, [1, 3], [2.0, 6.0], script.Line(2.0, 0.5, 1.0), "slices")
    assert list(line.lines[1].get_ydata()) == [0.5, 6.5]
    script.save_figure(figure, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    for path in (tmp_path / "none" / "figure.png", tmp_path / "figure.doc"):
        with pytest.raises(script.AR2UNetError, match="cannot be written"):
            script.save_figure(figure, path)


# --- options -----------------------------------------------------------------------------------------


def test_the_first_option_below_its_least_value_is_named(script):
    script.check_at_least(1, runs=1, patients=None)
    with pytest.raises(script.AR2UNetError, match="--slices must be at least 1, got 0"):
        script.check_at_least(1, runs=2, slices=0, warmup=-1)


def test_channels_are_whole_numbers_with_commas(script):
    assert script.parse_channels("8,16,32") == (8, 16, 32)


@pytest.mark.parametrize("text", ["8", "8,", "8,x", "0,8", "", "8;16"])
def test_other_channels_are_refused(script, text):
    with pytest.raises(script.AR2UNetError, match="--channels must be at least two whole numbers"):
        script.parse_channels(text)
