"""The page has what most needs a look on top, however many cases there are, and is one file that loads nothing."""

from __future__ import annotations

import re

from PIL import Image

from pipeline.cohort import page
from pipeline.cohort.folder import CohortFolder
from pipeline.cohort.rows import Row


def cases_in(text):
    return re.findall(r'<tr class="\w+" title="[^"]*"><td data-v="([^"]*)">', text)


def test_failed_cases_come_first_and_then_the_least_certain(tmp_path):
    dice = {"a": 0.9, "b": None, "c": 0.25, "d": 0.4}
    rows = [Row(name, "p", "done", expected_dice=value, review=value == 0.4) for name, value in dice.items()]
    rows.insert(1, Row("e", "x & y", "failed", "a <reason>"))
    page.write_page(tmp_path / "cohort.html", CohortFolder(tmp_path), [row.line() for row in rows], 6)
    text = (tmp_path / "cohort.html").read_text()
    assert cases_in(text) == ["e", "c", "d", "a", "b"]
    assert "4 of 6 scans segmented, 1 failed, 1 not reached yet" in text
    assert "1 of the masks are for review" in text
    assert "a &lt;reason&gt;" in text
    assert 'title="x &amp; y"' in text


def test_masks_for_review_are_marked_and_warnings_stand_where_reasons_do(tmp_path):
    rows = [
        Row("a", "p", "done", expected_dice=0.5, review=True, warnings="odd & noisy"),
        Row("b", "p", "done", expected_dice=0.8, review=False),
        Row("c", "p", "failed", "cut off"),
    ]
    page.write_page(tmp_path / "cohort.html", CohortFolder(tmp_path), [row.line() for row in rows], 3)
    lines = re.findall(r'<tr class="(\w+)".*?data-v="([^"]*)">[^<]*</td></tr>', (tmp_path / "cohort.html").read_text())
    assert lines == [("failed", "cut off"), ("review", "odd &amp; noisy"), ("done", "")]


def test_of_very_many_cases_it_has_those_that_most_need_a_look(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MAX_ROWS", 4)
    lines = [Row(f"c{n}", "p", "done", expected_dice=n / 10).line() for n in (5, 2, 7, 3, 9)]
    lines.append(Row("bad", "p", "failed", "reason").line())
    page.write_page(tmp_path / "cohort.html", CohortFolder(tmp_path), lines, 6)
    text = (tmp_path / "cohort.html").read_text()
    assert cases_in(text) == ["bad", "c2", "c3", "c5"]
    assert "5 of 6 scans segmented, 1 failed" in text
    assert "Below are the 4 that most need a look" in text


def test_pictures_of_the_least_certain_are_inside_and_small(tmp_path):
    lines = []
    for number in range(page.PICTURED + 3):
        folder = tmp_path / "cases" / f"c{number:02}"
        folder.mkdir(parents=True)
        Image.new("RGB", (1500, 900 + number), "gray").save(folder / "overlay.png")
        lines.append(Row(folder.name, "p", "done", expected_dice=number / 100).line())
    page.write_page(tmp_path / "cohort.html", CohortFolder(tmp_path), lines, len(lines))
    text = (tmp_path / "cohort.html").read_text()
    assert text.count("data:image/jpeg") == page.PICTURED
    assert len(text) < 100_000
    assert not re.search(r'(?:src|href)="(?!data:|cases/)', text)
