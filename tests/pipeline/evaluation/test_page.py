"""The HTML page needs nothing but itself and takes no name for markup."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from pipeline.evaluation.calibration import reliability, summarize_calibration
from pipeline.evaluation.page import CasePicture, write_page
from pipeline.evaluation.pairing import LeftOut
from pipeline.evaluation.tables import summarize

EVIL = '<script src="http://example.org/x.js">'
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Collects tags, what they refer to, and text; checks that tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.text, self.open = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def page(make_scores, tmp_path):
    """Write a page of seven patients, one of an unpleasant name."""
    names = [EVIL, *(f"sub-{n}" for n in range(6))]
    patients = [make_scores(name, 5 + n, n, 1, site=EVIL if n else "CS") for n, name in enumerate(names)]
    path = tmp_path / "report.html"
    pictures = [CasePicture(patients[0], b"first", "worst"), CasePicture(patients[3], b"second", "best")]
    write_page(path, patients, summarize(patients), pictures=pictures, left_out=[LeftOut("x", f"x: is bad {EVIL}")])
    text = path.read_text()
    page = Page(text)
    assert page.open == []
    return page


def test_everything_is_inside_the_page(page):
    assert page.references
    assert all(
        reference.startswith(("data:image/png;base64,", "data:image/svg+xml;base64,")) for reference in page.references
    )
    assert not {"script", "link", "iframe", "object"} & set(page.tags)


def test_a_name_is_text_and_never_markup(page):
    assert page.text.count(EVIL) >= 4  # left out, site, picture, patient
    assert "script" not in page.tags


def test_plots_pictures_and_who_was_left_out_are_there(page):
    assert sum(reference.startswith("data:image/svg") for reference in page.references) == 4
    assert sum(reference.startswith("data:image/png") for reference in page.references) == 2
    assert "Not scored: 1" in page.text


def test_patients_are_listed_the_worst_first(page):
    listed = page.text.partition("Patients, the worst first")[2]
    places = [listed.index(f"sub-{n}") for n in range(6)]
    assert places == sorted(places, reverse=True)


def test_without_sites_nothing_is_shown_by_site(make_scores, tmp_path):
    patients = [make_scores("a", 5)]
    write_page(tmp_path / "report.html", patients, summarize(patients))
    text = (tmp_path / "report.html").read_text()
    assert "By site" not in text
    assert text.count("data:image/svg") == 3


def test_a_specificity_below_1_is_never_rounded_to_it(make_scores, tmp_path):
    patients = [make_scores("a", 5, 3, 0, 99_997)]
    write_page(tmp_path / "report.html", patients, summarize(patients))
    assert "0.99997" in (tmp_path / "report.html").read_text()


def test_calibration_is_shown_where_it_is_known_and_nothing_else_changes(make_scores, tmp_path):
    patients = [make_scores("a", 5)]
    summary = summarize(patients)
    write_page(tmp_path / "without.html", patients, summary)
    # 0.25 promised of 1,200 voxels and nothing there.
    calibration = summarize_calibration(reliability([0.25] * 1200, [0] * 1200))
    write_page(tmp_path / "with.html", patients, {**summary, "calibration": calibration})
    without, page = ((tmp_path / f"{name}.html").read_text() for name in ("without", "with"))
    assert "alibration" not in without
    before, _, rest = page.partition("<h2>Calibration</h2>")
    section, next_heading, after = rest.partition("<h2>")
    assert "error in the head: 0.2500" in section
    assert "1,200 voxels" in section
    assert section.count("data:image/svg+xml") == 1
    assert before + next_heading + after == without
