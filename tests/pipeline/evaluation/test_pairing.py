"""Whose mask a file is, and what becomes of files that have no partner."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import DatasetError
from pipeline.evaluation.pairing import MaskPair, find_by_subject, pair_masks, read_sites, subject_of


@pytest.fixture
def touch(tmp_path):
    """Make empty files below the test's folder."""

    def make(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("sub-01_label-lesion_mask.nii.gz", "sub-01"),
        ("sub-01_ses-2_FLAIR_mask.nii.gz", "sub-01"),
        ("sub-01.nii", "sub-01"),
        ("patient_4.nii.gz", "patient_4"),
        ("patient_4_mask.nii.gz", "patient_4"),
        ("patient_4_flair_mask.nii.gz", "patient_4"),
        ("patient_4_label-tumour_mask.NII.GZ", "patient_4"),
        ("unmask.nii.gz", "unmask"),
        ("_mask.nii.gz", "_mask"),
        ("version.2_mask.nii", "version.2"),
    ],
)
def test_a_patients_name_is_what_is_left_without_what_programs_add(name, subject):
    assert subject_of(Path("some_mask") / name) == subject


def test_masks_are_matched_by_name_through_trees_of_different_shape(touch):
    root = touch(
        "pred/a/a_mask.nii.gz",
        "pred/a/a_probabilities.nii.gz",
        "pred/sub-b_FLAIR_mask.nii.gz",
        "data/sub-b/anat/sub-b_FLAIR.nii.gz",
        "data/derivatives/manual/sub-b/anat/sub-b_label-lesion_mask.nii.gz",
        "data/a_mask.nii",
        "data/.trash/c_mask.nii.gz",
        "data/notes_mask.txt",
    )
    pairs, left_out = pair_masks(root / "pred", root / "data")
    assert pairs == [
        MaskPair("a", root / "pred/a/a_mask.nii.gz", root / "data/a_mask.nii"),
        MaskPair(
            "sub-b",
            root / "pred/sub-b_FLAIR_mask.nii.gz",
            root / "data/derivatives/manual/sub-b/anat/sub-b_label-lesion_mask.nii.gz",
        ),
    ]
    assert left_out == []


def test_without_any_file_named_mask_every_file_is_one(touch):
    root = touch("labels/a.nii.gz", "labels/b.nii")
    assert list(find_by_subject(root / "labels", "_mask")) == ["a", "b"]


def test_who_is_on_one_side_only_is_named_with_the_file(touch):
    root = touch("pred/a.nii", "pred/b.nii", "true/b.nii", "true/c.nii")
    pairs, left_out = pair_masks(root / "pred", root / "true")
    assert [pair.subject for pair in pairs] == ["b"]
    assert [each.subject for each in left_out] == ["a", "c"]
    assert "no true one" in left_out[0].reason
    assert "a.nii" in left_out[0].reason
    assert "no predicted one" in left_out[1].reason
    assert "c.nii" in left_out[1].reason


def test_a_patient_with_two_masks_counts_for_none(touch):
    root = touch("pred/sub-1_ses-1_mask.nii", "pred/sub-1_ses-2_mask.nii", "true/sub-1_mask.nii")
    pairs, (left_out,) = pair_masks(root / "pred", root / "true")
    assert pairs == []
    assert "a patient counts once, got 2" in left_out.reason
    assert "ses-1" in left_out.reason


def test_a_truth_is_never_its_own_prediction(touch):
    root = touch("true/a_mask.nii", "true/b_mask.nii")
    (root / "linked").symlink_to(root / "true")
    pairs, left_out = pair_masks(root / "linked", root / "true")
    assert pairs == []
    assert all("one file as both" in each.reason for each in left_out)


def test_two_files_are_a_pair_whatever_their_names(touch):
    root = touch("guess.nii.gz", "patient_label-lesion_mask.nii")
    pairs, _ = pair_masks(root / "guess.nii.gz", root / "patient_label-lesion_mask.nii")
    assert pairs == [MaskPair("patient", root / "guess.nii.gz", root / "patient_label-lesion_mask.nii")]


def test_what_cannot_be_paired_at_all_is_refused(touch):
    root = touch("pred/a.nii", "empty/readme.txt")
    for prediction, truth, words in (
        ("nowhere", "pred", "nowhere: expected a mask or a folder of masks, got no such"),
        ("pred/a.nii", "pred", "a file of predictions"),
        ("pred", "empty", "empty must hold NIfTI files"),
        ("x" * 300, "pred", "xxx"),
    ):
        with pytest.raises(DatasetError, match=words):
            pair_masks(root / prediction, root / truth)


def test_sites_come_from_a_participants_table(tmp_path):
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tage\tsite\nsub-1\t44\tCS\nsub-2\t51\tn/a\nsub-3\t60\tDU\n")
    assert read_sites(table) == {"sub-1": "CS", "sub-3": "DU"}


def test_sites_come_from_a_datalist(tmp_path):
    datalist = tmp_path / "datalist.json"
    entries = [{"subject": "sub-1", "site": "CS"}, {"subject": "sub-2"}, {"subject": "sub-3", "site": "DU"}]
    datalist.write_text(json.dumps({"training": entries}))
    assert read_sites(datalist) == {"sub-1": "CS", "sub-3": "DU"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("participants.tsv", "participant_id\tage\nsub-1\t44\n", "columns participant_id and site, got participant_id"),
        ("participants.tsv", "", "got none"),
        ("participants.tsv", "participant_id\tsite\na\tCS\na\tDU\n", "one site of a, got CS and DU"),
        ("datalist.json", "{", "expected a datalist"),
        ("datalist.json", "[]", "expected a datalist"),
        ("datalist.json", '{"training": [{"site": "CS"}]}', "no 'subject'"),
        ("datalist.json", '{"training": ["sub-1"]}', "no mapping"),
    ],
)
def test_another_file_of_sites_is_refused(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=words):
        read_sites(tmp_path / name)


def test_missing_or_binary_files_of_sites_are_refused(tmp_path):
    (tmp_path / "image.tsv").write_bytes(b"\xff\xfe\x00\x81")
    for name in ("none.tsv", "image.tsv"):
        with pytest.raises(DatasetError, match=name):
            read_sites(tmp_path / name)
