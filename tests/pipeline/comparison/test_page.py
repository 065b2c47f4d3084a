"""What a comparison's page and its line say, and to which visit each figure belongs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.comparison.change import Amount, NewLesion, Overlap, measure_change
from pipeline.comparison.compare import Found, Visit
from pipeline.comparison.content import build_content
from pipeline.comparison.page import describe_category, write_page
from pipeline.comparison.registration import Registration
from pipeline.formats.scan import Scan

BEFORE = Amount(1000, 1, 10.0, (8.0, 12.5), 300.0)
AFTER = Amount(1600, 3, 16.0, (13.0, 19.75), 330.0)
NEW = (NewLesion(70, 0.7, 21.5, (1.0, 2.0, 3.0)), NewLesion(4, 0.04, 9.0, (4.0, 5.0, 6.0)))


@pytest.fixture
def make_content():
    """Gather a comparison whose figures all differ."""

    def make(before=BEFORE, after=AFTER, new=(), *, doubts=(), registered=True):
        scan = Scan(np.zeros((1, 5, 6, 7), np.float32), np.diag([-2.0, -2.5, 2.0, 1.0]), (2.0, 2.5, 2.0), "x.nii")
        found = [
            Found(Visit(Path(f"<{name}>.nii.gz")), scan, np.zeros((5, 6, 7), bool), Path("mask.nii"), amount, None, ())
            for name, amount in (("first", before), ("second", after))
        ]
        registration = Registration(np.eye(4), 4.25, 6.5, 1.75 if registered else None, 0.875, 0.93, doubts)
        change = measure_change(before, after, new, is_registered=not doubts)
        overlap = Overlap(stable=900, new=700, resolved=100)
        return build_content((found[0], found[1]), registration, change, overlap, new, 90, doubts, "motion.tfm")

    return make


@pytest.fixture
def read_page(tmp_path):
    """Write the page of a comparison; its source comes back, and the cells of its tables by their first one."""

    def read(content):
        write_page(tmp_path / "compare.html", content, b"the picture")
        source = (tmp_path / "compare.html").read_text()
        rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", source)]
        return source, {cells[0]: cells[1:] for cells in rows}

    return read


def test_each_figure_stands_in_the_column_of_its_visit(make_content, read_page):
    source, rows = read_page(make_content(new=NEW))
    assert rows["volume (ml)"] == ["10.0", "16.0", "+6.0", "+60 %"]
    assert rows["interval of the volume (ml)"][:2] == ["8.0 to 12.5", "13.0 to 19.8"]
    assert rows["sum of products of diameters (mm²)"] == ["300", "330", "", "+10 %"]
    assert rows["voxels"][:2] == ["1,000", "1,600"]
    assert rows["lesions"][:2] == ["1", "3"]
    assert (rows["at both visits"], rows["AFTER only"], rows["BEFORE only"]) == (["9.0"], ["7.0"], ["1.0"])
    assert rows["1"] == ["70", "0.70", "21.5", "yes"]
    assert rows["2"] == ["4", "0.04", "9.0", "no"]
    assert (rows["rotation (degrees)"], rows["shift of the middle of the volume (mm)"]) == (["4.25"], ["6.50"])
    assert (rows["correlation inside both heads"], rows["overlap of the heads (Dice)"]) == (["0.88"], ["0.93"])
    assert source.index("BEFORE: &lt;first&gt;.nii.gz") < source.index("AFTER: &lt;second&gt;.nii.gz")
    assert "90 days lie between them" in source
    assert "<first>" not in source


def test_without_a_spacing_the_page_counts_voxels(make_content, read_page):
    nothing = {"volume_ml": None, "interval_ml": None, "product_mm2": None}
    content = make_content(
        *(Amount(amount.voxels, amount.lesion_count, **nothing) for amount in (BEFORE, AFTER)), registered=False
    )
    content["change"]["overlap"] |= {f"{name}_ml": None for name in ("stable", "new", "resolved")}
    source, rows = read_page(content)
    assert rows["volume (ml)"] == ["–"] * 4
    assert rows["voxels"] == ["1,000", "1,600", "", "+60 %"]
    assert (rows["at both visits"], rows["AFTER only"], rows["BEFORE only"]) == (["900"], ["700"], ["100"])
    assert "not registered" in source


def test_a_change_that_may_be_none_is_said_to_be(make_content, read_page):
    apart = make_content()
    assert describe_category(apart) == "progression"
    assert "lie apart" in read_page(apart)[0]
    near = make_content(after=Amount(1600, 3, 16.0, (11.0, 21.0), 330.0))
    assert describe_category(near) == "progression, not distinguishable from no change"
    assert "Not distinguishable from no change" in read_page(near)[0]
    unknown = make_content(after=Amount(1600, 3, 16.0, None, 330.0))
    assert describe_category(unknown) == "progression"
    assert "is not known" in read_page(unknown)[0]


def test_another_category_by_diameters_and_doubts_are_said(make_content, read_page):
    content = make_content(doubts=("they do not fit",))
    assert describe_category(content).startswith("progression, DOUBTFUL")
    source, rows = read_page(content)
    assert "By the product of diameters it would be: stable." in source
    assert "they do not fit" in source
    assert rows["doubtful"] == ["yes"]
    nothing = Amount(0, 0, 0.0, None, 0.0)
    assert describe_category(make_content(nothing, nothing)) == "no lesion at either visit"
    assert describe_category(make_content(nothing)) == "no category"
