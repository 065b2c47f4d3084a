"""Finding the scans of a BIDS tree; the files are empty, for nothing but names is looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import DatasetError
from pipeline.formats.bids import find_scans, is_bids, sort_entities


@pytest.fixture
def make_tree(tmp_path):
    def make(*names: str) -> Path:
        for name in names:
            path = tmp_path / "tree" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path / "tree"

    return make


def anat(subject: str, *files: str, session: str | None = None) -> list[str]:
    parts = [subject] if session is None else [subject, session]
    return [f"{'/'.join(parts)}/anat/{'_'.join(parts)}_{file}" for file in files]


def found(tree, **options):
    """Return the names of each scan's FLAIR, t1 and t1c."""
    names = lambda path: None if path is None else path.name  # noqa: E731
    return [(names(scan.flair), names(scan.t1), names(scan.t1c)) for scan in find_scans(tree, **options).scans]


def test_a_flair_brings_the_t1w_before_and_after_contrast_of_its_session(make_tree):
    tree = make_tree(
        *anat("sub-02", "FLAIR.nii.gz", "T1w.nii.gz", "ce-gadolinium_T1w.nii.gz", "T2w.nii.gz", session="ses-b"),
        *anat("sub-02", "FLAIR.nii", session="ses-a"),
        *anat("sub-01", "FLAIR.nii.gz", "FLAIR.json", "ce-gd_T1w.nii.gz"),
    )
    assert found(tree) == [
        ("sub-01_FLAIR.nii.gz", None, "sub-01_ce-gd_T1w.nii.gz"),
        ("sub-02_ses-a_FLAIR.nii", None, None),
        ("sub-02_ses-b_FLAIR.nii.gz", "sub-02_ses-b_T1w.nii.gz", "sub-02_ses-b_ce-gadolinium_T1w.nii.gz"),
    ]
    scan = find_scans(tree).scans[2]
    assert (scan.subject, scan.session, scan.stem, scan.root) == ("sub-02", "ses-b", "sub-02_ses-b", tree)


def test_a_tree_without_sessions_has_none(make_tree):
    (scan,) = find_scans(make_tree(*anat("sub-1", "acq-3d_run-2_FLAIR.nii.gz"))).scans
    assert scan.session is None
    assert scan.entities == (("sub", "1"), ("acq", "3d"), ("run", "2"))


PARTNERS = {
    "the only one, whatever its acquisition and run": (["acq-mprage_run-3_T1w"], "acq-mprage_run-3_T1w"),
    "the one of acquisition and run": (["acq-a_run-1_T1w", "acq-a_run-2_T1w", "acq-b_run-2_T1w"], "acq-a_run-2_T1w"),
    "the only one of the run": (["acq-b_run-1_T1w", "acq-b_run-2_T1w"], "acq-b_run-2_T1w"),
    "a run with leading zeros": (["acq-b_run-01_T1w", "acq-b_run-02_T1w"], "acq-b_run-02_T1w"),
    "none of two of the run": (["acq-b_run-2_T1w", "acq-c_run-2_T1w"], None),
    "none of two other runs": (["acq-a_run-1_T1w", "acq-a_run-3_T1w"], None),
    "not the phase": (["acq-a_run-2_part-phase_T1w", "acq-a_run-2_part-mag_T1w"], "acq-a_run-2_part-mag_T1w"),
}


@pytest.mark.parametrize("kind", ["", "ce-gd_"])
@pytest.mark.parametrize(("candidates", "chosen"), PARTNERS.values(), ids=PARTNERS.keys())
def test_the_partner_is(make_tree, candidates, chosen, kind):
    # BIDS has ce behind acq.
    names = [name.replace("_run", f"_{kind}run") for name in candidates]
    tree = make_tree(*anat("sub-1", "acq-a_run-2_FLAIR.nii.gz", *(f"{name}.nii.gz" for name in names)))
    (scan,) = find_scans(tree).scans
    partner, other = (scan.t1c, scan.t1) if kind else (scan.t1, scan.t1c)
    assert other is None
    if chosen is None:
        assert partner is None
        (warning,) = scan.warnings
        assert "not clear" in warning
        assert all(name in warning for name in names)
    else:
        assert partner.name == f"sub-1_{chosen.replace('_run', f'_{kind}run')}.nii.gz"
        assert scan.warnings == ()


def test_what_lies_elsewhere_or_is_hidden_or_ignored_is_no_scan(make_tree):
    tree = make_tree(
        *anat("sub-1", "FLAIR.nii.gz", "acq-bad_FLAIR.nii.gz", "desc-x.nii.gz", "FLAIR.txt"),
        "sub-1/anat/._sub-1_run-2_FLAIR.nii.gz",
        "sub-1/anat/sub-2_FLAIR.nii.gz",
        "sub-1/anat/sub-1_ses-a_FLAIR.nii.gz",
        "sub-1/func/sub-1_FLAIR.nii.gz",
        "sub-3/anat/sub-3_FLAIR.nii.gz",
        "sub-4/anat/sub-4_FLAIR.nii.gz",
        "derivatives/other/sub-1/anat/sub-1_FLAIR.nii.gz",
        "sourcedata/sub-5/anat/sub-5_FLAIR.nii.gz",
        "code/sub-6/anat/sub-6_FLAIR.nii.gz",
        ".hidden/sub-7/anat/sub-7_FLAIR.nii.gz",
        "sub-1/anat/sub-1_run-9_FLAIR.nii.gz/inside",
    )
    (tree / ".bidsignore").write_text("# a comment\n\n*acq-bad*\n/sub-3/\nsub-4/anat/*_FLAIR.nii.gz\n")
    assert [name for name, _, _ in found(tree)] == ["sub-1_FLAIR.nii.gz"]


def test_a_file_that_is_there_twice_is_taken_once_with_a_warning(make_tree):
    (scan,) = find_scans(make_tree(*anat("sub-1", "FLAIR.nii.gz", "FLAIR.nii", "T1w.nii.gz"))).scans
    assert scan.flair.name == "sub-1_FLAIR.nii.gz"
    assert scan.warnings == ("sub-1_FLAIR.nii.gz is taken, not sub-1_FLAIR.nii of the same name",)


def test_who_has_no_flair_is_told(make_tree):
    tree = make_tree(
        *anat("sub-1", "T1w.nii.gz"),
        *anat("sub-2", "FLAIR.nii.gz", session="ses-a"),
        *anat("sub-2", "T1w.nii.gz", session="ses-b"),
        "sub-3/func/sub-3_bold.nii.gz",
    )
    without = find_scans(tree).without_flair
    assert [(missing.subject, missing.session) for missing in without] == [
        ("sub-1", None),
        ("sub-2", "ses-b"),
        ("sub-3", None),
    ]
    assert without[1].reason == "sub-2/ses-b: no sub-2_ses-b_*FLAIR.nii.gz in its anat"


def test_participants_are_chosen_with_or_without_the_prefix(make_tree):
    tree = make_tree(*(name for label in "123" for name in anat(f"sub-{label}", "FLAIR.nii.gz")))
    chosen = found(tree, participants=["3", "sub-1"])
    assert [name for name, _, _ in chosen] == ["sub-1_FLAIR.nii.gz", "sub-3_FLAIR.nii.gz"]


def test_a_participant_who_is_not_there_is_refused(make_tree):
    with pytest.raises(DatasetError, match=r"no participant sub-7, sub-9 among its 1$"):
        find_scans(make_tree(*anat("sub-1", "FLAIR.nii.gz")), participants=["9", "1", "7"])


def test_what_is_no_bids_tree_is_refused(make_tree, tmp_path):
    tree = make_tree("scan.nii.gz")
    assert not is_bids(tree)
    with pytest.raises(DatasetError, match="expected a BIDS tree with folders sub-<label>, got none"):
        find_scans(tree)
    with pytest.raises(DatasetError, match="cannot be read as a BIDS tree: No such file"):
        find_scans(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["dataset_description.json", "sub-1/anat/sub-1_FLAIR.nii.gz"])
def test_a_bids_tree_is_known_by_its_description_or_its_subjects(make_tree, name):
    assert is_bids(make_tree(name))


def test_entities_are_sorted_as_bids_has_them():
    entities = [
        ("foo", "1"),
        ("desc", "x"),
        ("label", "lesion"),
        ("run", "1"),
        ("ce", "gd"),
        ("ses", "a"),
        ("sub", "1"),
    ]
    assert [key for key, _ in sort_entities(entities)] == ["sub", "ses", "ce", "run", "label", "desc", "foo"]
