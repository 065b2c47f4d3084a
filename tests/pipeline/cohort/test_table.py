"""The table keeps the order of the cases and is written seldom enough."""

from __future__ import annotations

import csv
import tracemalloc

import pytest

from pipeline.cohort.finding import FoundScan
from pipeline.cohort.rows import Row
from pipeline.cohort.table import INTERVAL, LARGEST_SHARE, Table


def cases(count):
    return [FoundScan(f"c{n}", f"c{n}.nii", None) for n in range(count)]


def rows_of(path):
    with path.open(newline="") as file:
        return [row["case"] for row in csv.DictReader(file)]


def test_rows_stand_in_the_order_in_which_the_cases_were_found(tmp_path):
    table = Table(tmp_path / "cohort.csv", cases(5))
    for number in (3, 0, 4):
        table.add(Row(f"c{number}", "p", "done"))
    table.write()
    assert rows_of(table.path) == ["c0", "c3", "c4"]
    assert len(table) == 3


@pytest.mark.parametrize("cost", [0.001, 3.0])
def test_the_table_is_written_at_intervals_that_grow_with_what_writing_costs(tmp_path, monkeypatch, cost):
    now, written = 0.0, []
    table = Table(tmp_path / "cohort.csv", cases(2000), clock=lambda: now)

    def write():
        nonlocal now
        now += cost
        written.append(now)

    monkeypatch.setattr(Table, "write", lambda self: write())
    for number in range(2000):
        now += 1.0
        table.add(Row(f"c{number}", "p", "done"))
    assert 0 < cost * len(written) / now <= LARGEST_SHARE * 1.05
    assert written[1] - written[0] >= INTERVAL


def test_a_hundred_thousand_rows_take_little_memory(tmp_path):
    some = cases(2000)
    tracemalloc.start()
    table = Table(tmp_path / "cohort.csv", some)
    for each in some:
        table.add(Row(each.name, each.place, "done", "", 12.345, 11.0, 13.0, 12345, 3, 0.87, False, "", 1.234))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / 2000 < 500  # bytes a row: 50 MB for a hundred thousand
