"""A cohort in one process: what is done, what is done again, and what its table and page say."""

from __future__ import annotations

import csv
import html.parser
import json
import os
import re
import shutil
import threading

import pytest

from pipeline.cohort.finding import FoundScan, find_cases
from pipeline.cohort.folder import CohortFolder, open_folder
from pipeline.cohort.keys import Settings
from pipeline.cohort.running import run_cohort
from pipeline.cohort.segmenting import Segmenter
from pipeline.errors import BundleError

# Both roads lead to the same masks, which other tests make sure of.
pytestmark = pytest.mark.parametrize("make_predictor", ["fast road"], indirect=True)


@pytest.fixture
def run(make_predictor, bundle, tmp_path):
    """Run a cohort with a network that finds what is bright; the summary comes back, and the cases it segmented."""
    predictor = make_predictor()

    def run(source, out=tmp_path / "out", *, cases=None, settings=None, **options):
        segmented = []
        infer = predictor.road.infer
        predictor.road.infer = lambda *arguments: segmented.append(1) or infer(*arguments)
        try:
            with open_folder(out) as folder:
                work = Segmenter(folder, settings or Settings(bundle), predictor).segment_all
                summary = run_cohort(folder, cases or find_cases(source, out), work, **options)
        finally:
            predictor.road.infer = infer
        assert len(segmented) <= summary.total
        return summary, len(segmented)

    return run


def rows(summary):
    with summary.table.open(newline="") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def test_every_scan_is_a_row_and_a_bad_one_stops_nothing(run, scans, tmp_path):
    failures, progress = [], []
    summary, segmented = run(
        scans, on_failure=lambda row: failures.append(row.path), on_progress=lambda *at: progress.append(at)
    )
    assert (summary.total, summary.segmented, summary.unchanged, summary.failed, segmented) == (7, 5, 0, 2, 5)
    table = rows(summary)
    assert list(table) == ["site0_cut", "site0_p0", "site0_p2", "site0_p4", "site1_p1", "site1_p3", "site1_text.nii"]
    assert sorted(failures) == ["site0/cut.nii.gz", "site1/text.nii"]
    assert sorted(progress) == [(n, 7) for n in range(1, 8)]
    for name, row in table.items():
        folder = tmp_path / "out" / "cases" / name
        if row["path"] in failures:
            assert row["status"] == "failed"
            assert row["reason"].startswith(row["path"])
            assert not folder.exists()
            continue
        report = json.loads((folder / "report.json").read_text())
        assert (row["status"], row["reason"]) == ("done", "")
        assert int(row["lesion_voxels"]) == report["lesion_voxels"]
        assert float(row["volume_ml"]) == pytest.approx(report["volume_ml"])
        assert float(row["seconds"]) == report["seconds"]["total"]
    assert len({row["lesion_voxels"] for row in table.values()}) == 6, "each scan has a lesion of its own size"


def test_started_again_it_does_what_is_missing_or_changed_alone(run, scans, write_scan, tmp_path):
    run(scans)
    assert run(scans)[1] == 0
    cases = tmp_path / "out" / "cases"
    untouched = (cases / "site1_p1" / "record.json").stat().st_mtime_ns

    before = rows(run(scans)[0])["site0_p0"]["lesion_voxels"]
    times = (scans / "site0" / "p0.nii.gz").stat()
    write_scan(scans / "site0" / "p0.nii.gz", 7)
    os.utime(scans / "site0" / "p0.nii.gz", ns=(times.st_atime_ns, times.st_mtime_ns))
    (cases / "site0_p2" / "p2_mask.nii.gz").unlink()
    write_scan(scans / "site0" / "cut.nii.gz", 8)
    summary, segmented = run(scans)
    assert segmented == 3
    assert (summary.segmented, summary.unchanged, summary.failed) == (3, 3, 1)
    assert rows(summary)["site0_p0"]["lesion_voxels"] != before
    assert (cases / "site0_p2" / "p2_mask.nii.gz").exists()
    assert (cases / "site1_p1" / "record.json").stat().st_mtime_ns == untouched


def test_other_options_or_another_bundle_do_everything_again(run, scans, bundle, tmp_path):
    run(scans)
    assert run(scans, settings=Settings(bundle, with_probabilities=True))[1] == 5
    assert len(list((tmp_path / "out").rglob("*_probabilities.nii.gz"))) == 5
    assert run(scans, settings=Settings(bundle))[1] == 5
    assert not list((tmp_path / "out").rglob("*_probabilities.nii.gz"))
    with (bundle / "configs" / "metadata.json").open("a") as file:
        file.write("\n")
    assert run(scans)[1] == 5


def test_each_sequence_reaches_its_role_and_each_option_its_file(run, write_scan, bundle, tmp_path):
    for number, sequence in enumerate(("flair", "t1", "t1c")):
        write_scan(tmp_path / "scans" / f"x_{sequence}.nii.gz", number)
    summary, segmented = run(tmp_path / "scans", settings=Settings(bundle, with_probabilities=True, with_mesh=True))
    assert (summary.total, segmented) == (1, 1)
    (report,) = (tmp_path / "out" / "cases").rglob("report.json")
    inputs = {"flair": "x_flair.nii.gz", "t1": "x_t1.nii.gz", "t1c": "x_t1c.nii.gz"}
    assert json.loads(report.read_text())["inputs"] == inputs
    assert {"x_flair_mask.nii.gz", "x_flair_probabilities.nii.gz", "x_flair_lesion.stl"} <= {
        path.name for path in report.parent.iterdir()
    }


def test_the_results_of_a_scan_that_is_damaged_now_do_not_stay(run, scans, tmp_path):
    run(scans)
    assert (tmp_path / "out" / "cases" / "site0_p0").exists()
    (scans / "site0" / "p0.nii.gz").write_bytes(b"gone bad")
    summary, _ = run(scans)
    assert rows(summary)["site0_p0"]["status"] == "failed"
    assert not (tmp_path / "out" / "cases" / "site0_p0").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BundleError("weights that do not fit")])
def test_whatever_ends_a_run_early_the_table_says_what_was_done_and_the_rest_follows(run, scans, error, results_of):
    def stop(done, total):
        if done == 4:
            raise error

    out = scans.parent / "stopped"
    with pytest.raises(type(error)) as stopped:
        run(scans, out, on_progress=stop)
    # Nobody writes any more, although the exception, and with it every frame that it came through, is still there.
    assert stopped.tb is not None
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("prepare", "finish"))]
    with (out / "cohort.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 4
    assert "3 not reached yet" in (out / "cohort.html").read_text()
    run(scans, out)
    run(scans, scans.parent / "undisturbed")
    assert results_of(out) == results_of(scans.parent / "undisturbed")


def test_an_interrupt_between_a_cases_place_and_the_table_does_not_lose_its_row(run, scans, monkeypatch):
    commit = CohortFolder.commit

    def commit_and_interrupt(self, *args):
        commit(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(CohortFolder, "commit", commit_and_interrupt)
    out = scans.parent / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run(scans, out)
    (place,) = (out / "cases").iterdir()
    with (out / "cohort.csv").open(newline="") as file:
        segmented = [row["case"] for row in csv.DictReader(file) if row["status"] != "failed"]
    assert segmented == [place.name]


def test_what_nobody_foresaw_is_a_row_as_well(run, scans, monkeypatch):
    import pipeline.cohort.segmenting as segmenting

    finish = segmenting.finish_case

    def fall_over(predictor, ready, inferred):
        if ready.case.name == "p2":
            raise ZeroDivisionError("a fault of ours")
        return finish(predictor, ready, inferred)

    monkeypatch.setattr(segmenting, "finish_case", fall_over)
    summary, _ = run(scans)
    assert rows(summary)["site0_p2"]["reason"] == "unexpected ZeroDivisionError: a fault of ours"
    assert summary.segmented == 4


def test_a_place_that_is_taken_is_a_row(run, scans, tmp_path):
    taken = tmp_path / "out" / "cases" / "site0_p0"
    taken.mkdir(parents=True)
    (taken / "thesis.txt").touch()
    summary, _ = run(scans)
    assert "something else than a cohort's results" in rows(summary)["site0_p0"]["reason"]
    assert (summary.segmented, summary.failed) == (4, 3)


def test_a_problem_of_finding_is_a_row_without_an_attempt(run, found):
    cases = [found("good"), FoundScan("bad", "sub-1", None, problem="no FLAIR here")]
    summary, segmented = run(None, cases=cases)
    assert rows(summary)["bad"]["reason"] == "no FLAIR here"
    assert segmented == 1


class Page(html.parser.HTMLParser):
    """Collects the rows of the table and all links."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.links, self.keys = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "tr" and "class" in attributes:
            self.rows.append(attributes["class"])
        if tag == "td":
            self.keys.append(attributes["data-v"])
        if tag == "a":
            self.links.append(attributes["href"])


def test_the_page_links_every_case_and_has_the_failed_ones_on_top(run, scans, tmp_path):
    (scans / "site0" / "p0.nii.gz").rename(scans / "site0" / "<b> & é.nii.gz")
    summary, _ = run(scans)
    text = summary.page.read_text()
    page = Page(text)
    assert page.rows[:2] == ["failed", "failed"]
    assert len(page.rows) == 7
    assert len(set(page.links)) == 5
    assert all((tmp_path / "out" / re.sub("%C3%A9", "é", link)).is_file() for link in page.links)
    assert "<b>" not in text
    assert "7 scans segmented, 2 failed" in text
    assert text.count("data:image/jpeg") == 5
    assert "script-src 'sha256-" in text


def test_a_bids_tree_gets_a_derivative_that_follows_its_inputs(run, write_scan, tmp_path):
    root, out = tmp_path / "bids", tmp_path / "out"
    for subject in ("01", "02"):
        write_scan(root / f"sub-{subject}" / "anat" / f"sub-{subject}_FLAIR.nii.gz", int(subject))
    (root / "dataset_description.json").write_text('{"Name": "heads", "BIDSVersion": "1.10.0"}')
    (root / "sub-03" / "anat").mkdir(parents=True)
    summary, _ = run(root, bids_root=root)
    assert (summary.segmented, summary.failed) == (2, 1)
    mask = out / "sub-01" / "anat" / "sub-01_label-lesion_mask.nii.gz"
    assert mask.read_bytes() == (out / "cases" / "sub-01" / "sub-01_FLAIR_mask.nii.gz").read_bytes()
    assert {"cases", "cohort.csv", "cohort.html", ".cohort"} <= set((out / ".bidsignore").read_text().split())

    assert run(root, bids_root=root)[1] == 0
    mask.unlink()
    assert run(root, bids_root=root)[1] == 1
    assert mask.exists()
    (root / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz").write_bytes(b"damaged")
    run(root, bids_root=root)
    assert not list((out / "sub-01").rglob("*.*"))
    assert list((out / "sub-02").rglob("*.nii.gz"))


def test_what_was_odd_about_finding_a_scan_is_in_its_row(run, write_scan, tmp_path):
    anat = tmp_path / "bids" / "sub-01" / "anat"
    write_scan(anat / "sub-01_FLAIR.nii", 1)
    write_scan(anat / "sub-01_FLAIR.nii.gz", 2)
    summary, _ = run(tmp_path / "bids", bids_root=tmp_path / "bids")
    assert "sub-01_FLAIR.nii.gz is taken, not sub-01_FLAIR.nii of the same name" in rows(summary)["sub-01"]["warnings"]


def test_the_surface_in_a_derivative_follows_its_inputs_as_well(run, write_scan, bundle, tmp_path):
    root, out, settings = tmp_path / "bids", tmp_path / "out", Settings(bundle, with_mesh=True)
    flair = write_scan(root / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz")
    run(root, bids_root=root, settings=settings)
    (surface,) = (out / "sub-01").rglob("*.stl")
    surface.unlink()
    assert run(root, bids_root=root, settings=settings)[1] == 1
    assert surface.exists()
    flair.write_bytes(b"damaged")
    run(root, bids_root=root, settings=settings)
    assert not list((out / "sub-01").rglob("*.*"))


def test_a_scan_whose_place_is_taken_leaves_nothing_in_the_derivative(run, write_scan, bundle, tmp_path):
    root, out = tmp_path / "bids", tmp_path / "out"
    write_scan(root / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz")
    run(root, bids_root=root, settings=Settings(bundle))
    (place,) = (out / "cases").iterdir()
    shutil.rmtree(out)
    place.mkdir(parents=True)
    (place / "theirs.txt").touch()
    summary, _ = run(root, bids_root=root, settings=Settings(bundle))
    (row,) = rows(summary).values()
    assert "holds something else than a cohort's results" in row["reason"]
    assert not (out / "sub-01").exists()
