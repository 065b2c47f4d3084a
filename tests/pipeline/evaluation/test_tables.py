"""The table and the summary of patients whose scores are known."""

from __future__ import annotations

import csv
import json
import math

import pytest

from pipeline.evaluation.lesions import LesionCounts
from pipeline.evaluation.surfaces import SurfaceDistances
from pipeline.evaluation.tables import METRICS, summarize, write_patients, write_summary


@pytest.fixture
def three(make_scores):
    """Dice 0.8 at one site; 0.5 and an empty truth, rightly found empty, at no known one."""
    return [
        make_scores("large", 80, 20, 20, 880, site="CS", distances_voxels=SurfaceDistances(hd95=3.0, mean=1.25)),
        make_scores("small", 1, 1, 1, 7),
        make_scores("none", 0, 0, 0, 10, lesions=LesionCounts(0, 0, 0, 0)),
    ]


def test_a_summary_weighs_patients_alike_and_pools_voxels_apart(three):
    summary = summarize(three)
    assert summary["patients"] == 3
    assert summary["mean"]["dice"] == pytest.approx(2.3 / 3)
    assert summary["median"]["dice"] == pytest.approx(0.8)
    assert summary["minimum"]["dice"] == pytest.approx(0.5)
    assert summary["maximum"]["dice"] == pytest.approx(1)
    assert summary["pooled_over_voxels"]["dice"] == pytest.approx(162 / 204)
    assert all(set(summary[part]) == set(METRICS) for part in ("mean", "median", "minimum", "maximum", "defined"))


def test_a_distance_is_summarised_over_those_who_have_one_and_their_number_is_said(three):
    summary = summarize(three)
    assert summary["mean"]["hd95_voxels"] == 3
    assert summary["defined"]["hd95_voxels"] == 1
    assert summary["mean"]["hd95_mm"] is None
    assert summary["defined"]["hd95_mm"] == 0
    assert summary["defined"]["dice"] == 3


def test_what_an_empty_mask_would_score_is_said(three):
    assert summarize(three)["pixel_accuracy_of_an_empty_mask"] == pytest.approx((0.9 + 0.8 + 1) / 3)


def test_each_site_has_a_summary_of_its_own(three):
    by_site = summarize(three)["by_site"]
    assert {site: group["patients"] for site, group in by_site.items()} == {"CS": 1, "unknown": 2}
    assert by_site["CS"]["mean"]["dice"] == pytest.approx(0.8)
    assert by_site["unknown"]["mean"]["dice"] == pytest.approx(0.75)


def test_lesion_sizes_are_terciles_of_the_patients_with_a_lesion(make_scores):
    sizes = [50, 110, 10, 90, 60, 30, 120, 20, 70, 40, 100, 80]
    patients = [make_scores(f"p{size}", size) for size in sizes] + [make_scores("empty", 0)]
    groups = summarize(patients)["by_lesion_size"]
    assert {name: (group["patients"], group["from"], group["to"]) for name, group in groups.items()} == {
        "none": (1, 0, 0),
        "small": (4, 10, 40),
        "medium": (4, 50, 80),
        "large": (4, 90, 120),
    }
    assert {group["unit"] for group in groups.values()} == {"voxels"}


def test_lesions_of_equal_size_stay_together(make_scores):
    groups = summarize([make_scores(f"p{n}", size) for n, size in enumerate([5, 5, 5, 5, 7])])["by_lesion_size"]
    assert {name: group["patients"] for name, group in groups.items()} == {"small": 4, "large": 1}


def test_sizes_are_compared_in_ml_only_where_all_are_known(make_scores):
    known = [make_scores("few_large_voxels", 10, voxel_ml=0.01), make_scores("many_small_voxels", 20, voxel_ml=0.001)]
    groups = summarize(known)["by_lesion_size"]
    assert (groups["small"]["to"], groups["large"]["to"]) == pytest.approx((0.02, 0.1))
    assert groups["small"]["unit"] == "ml"
    assert summarize([*known, make_scores("unknown", 5)])["by_lesion_size"]["small"]["unit"] == "voxels"


def test_intervals_are_of_mean_and_median_and_are_left_out_for_few_patients(make_scores):
    patients = [make_scores(f"p{n}", n, false_negative=10 - n, site="CS" if n > 7 else "DU") for n in range(1, 11)]
    summary = summarize(patients)
    for statistic in ("mean", "median"):
        low, high = summary["intervals"][statistic]["recall"]
        assert 0.1 < low < summary[statistic]["recall"] < high < 1
    assert summary["bootstrap"]["resamples"] == 10_000
    assert summary["by_site"]["DU"]["intervals"]["mean"]["recall"] is not None
    assert summary["by_site"]["CS"]["intervals"]["mean"]["recall"] is None  # three patients


def test_the_table_has_a_row_a_patient_and_leaves_empty_what_is_undefined(three, tmp_path):
    write_patients(tmp_path / "patients.csv", three)
    with (tmp_path / "patients.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["subject"] for row in rows] == ["large", "small", "none"]
    assert [row["site"] for row in rows] == ["CS", "", ""]
    assert [row["hd95_voxels"] for row in rows] == ["3.0", "", ""]
    assert rows[0]["hd95_mm"] == rows[0]["true_ml"] == ""
    assert rows[0]["true_voxels"] == "100"
    assert float(rows[1]["iou"]) == pytest.approx(1 / 3, abs=1e-6)
    assert list(rows[0]) == list(three[0].row())


def test_a_summary_is_read_back_as_it_was(three, tmp_path):
    summary = summarize(three)
    write_summary(tmp_path / "summary.json", summary)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_a_number_that_is_none_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_summary(tmp_path / "summary.json", {"mean": math.nan})
    assert list(tmp_path.iterdir()) == []
