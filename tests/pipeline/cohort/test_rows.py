"""Rows as CSV has them."""

from __future__ import annotations

import csv

import pytest

from pipeline.cohort.rows import COLUMNS, Row, failed_row, row_of_report

REPORT = {
    "volume_ml": 12.5,
    "lesion_voxels": 340,
    "lesion_count": 2,
    "confidence": {"predicted_dice": 0.613, "review": True},
    "warnings": ["first, with a comma", "second"],
    "seconds": {"total": 1.25, "network": 1.0},
}


def cells(row):
    (line,) = csv.reader([row.line().decode().rstrip("\n")])
    return dict(zip(COLUMNS, line, strict=True))


def test_a_report_becomes_a_row_with_all_there_is_in_it():
    row = row_of_report("a", "x/a.nii", {**REPORT, "volume_interval_ml": [11.0, 13.75]}, ["found so"])
    assert cells(row) == {
        "case": "a",
        "path": "x/a.nii",
        "status": "done",
        "reason": "",
        "volume_ml": "12.5",
        "volume_low_ml": "11",
        "volume_high_ml": "13.75",
        "lesion_voxels": "340",
        "lesions": "2",
        "expected_dice": "0.613",
        "review": "yes",
        "warnings": "found so; first, with a comma; second",
        "seconds": "1.25",
    }


@pytest.mark.parametrize("missing", [{"volume_ml": None}, {"confidence": None}, {"volume_interval_ml": None}])
def test_what_is_unknown_is_an_empty_cell(missing):
    row = cells(row_of_report("a", "a.nii", {**REPORT, **missing}))
    assert row["volume_low_ml"] == row["volume_high_ml"] == ""
    assert (row["volume_ml"] == "") == ("volume_ml" in missing)
    assert (row["expected_dice"] == row["review"] == "") == ("confidence" in missing)


def test_a_reason_stays_on_one_line():
    row = cells(failed_row("a", "a.nii", "two\nlines,  and a comma"))
    assert (row["status"], row["reason"], row["lesions"]) == ("failed", "two lines, and a comma", "")


def test_bytes_that_are_no_characters_can_still_be_written():
    assert rb"a\udcff" in Row("a", "a\udcff", "done").line()
