"""``pipeline.training.entries``: what a config reads before it starts."""

from __future__ import annotations

import json

import pytest

from pipeline.errors import DatasetError
from pipeline.training.entries import as_flag, datalist_entries, finished_epochs, folder_entries, latest_checkpoint


@pytest.fixture
def scan_folder(tmp_path):
    """Make a folder of empty files."""

    def make(*names):
        for name in names:
            (tmp_path / name).touch()
        return tmp_path

    return make


def test_a_file_without_a_sequence_is_a_flair_scan(scan_folder):
    folder = scan_folder("b.nii.gz", "a.nii", "notes.txt", "c.nii.json")
    assert folder_entries(folder) == [
        {"subject": "a", "flair": str(folder / "a.nii"), "image": str(folder / "a.nii")},
        {"subject": "b", "flair": str(folder / "b.nii.gz"), "image": str(folder / "b.nii.gz")},
    ]


def test_the_sequences_of_a_scan_come_in_the_order_of_the_channels(scan_folder):
    folder = scan_folder("x_t1c.nii.gz", "x_flair.nii.gz", "x_t1.nii.gz")
    (entry,) = folder_entries(folder)
    assert entry["subject"] == "x"
    assert entry["flair"] == str(folder / "x_flair.nii.gz")
    assert entry["image"] == [str(folder / f"x_{name}.nii.gz") for name in ("t1", "flair", "t1c")]


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        (("flair",), ("flair", "flair", "flair")),
        (("flair", "t1"), ("t1", "flair", "flair")),
        (("flair", "t1c"), ("flair", "flair", "t1c")),
    ],
)
def test_a_missing_sequence_is_replaced_by_flair(scan_folder, present, expected):
    folder = scan_folder(*(f"x_{name}.nii" for name in present))
    (entry,) = folder_entries(folder)
    assert entry["image"] == [str(folder / f"x_{name}.nii") for name in expected]


def test_a_name_may_hold_underscores_of_its_own(scan_folder):
    folder = scan_folder("case_7_flair.nii.gz", "case_8.nii.gz", "_t1.nii.gz")
    assert [entry["subject"] for entry in folder_entries(folder)] == ["_t1", "case_7", "case_8"]


def test_t1_without_flair_is_refused(scan_folder):
    folder = scan_folder("x_t1.nii.gz", "x_t1c.nii.gz")
    with pytest.raises(DatasetError, match=r"holds x_t1 but no x_flair\.nii\.gz"):
        folder_entries(folder)


def test_a_scan_with_and_without_a_sequence_in_its_name_is_refused(scan_folder):
    folder = scan_folder("x.nii.gz", "x_flair.nii.gz")
    with pytest.raises(DatasetError, match=r"holds both x\.nii\.gz and x_<sequence>\.nii\.gz; keep one"):
        folder_entries(folder)


def test_a_folder_without_scans_is_refused(scan_folder):
    folder = scan_folder("scan.dcm")
    with pytest.raises(DatasetError, match=r"must hold X\.nii\.gz or X_flair\.nii\.gz files, found none"):
        folder_entries(folder)


def test_a_fold_is_held_out_and_the_others_train(tiny_dataset):
    training = datalist_entries(tiny_dataset.folder, 1, "training")
    validation = datalist_entries(tiny_dataset.folder, 1, "validation")
    assert [entry["subject"] for entry in training] == ["sub-0", "sub-3", "sub-5"]
    assert [entry["subject"] for entry in validation] == ["sub-1", "sub-2", "sub-4"]
    folder = tiny_dataset.folder.resolve()
    assert validation[0]["image"] == [str(folder / f"sub-1/{name}.nii.gz") for name in ("t1", "flair", "t1c")]
    assert validation[0]["label"] == str(folder / "derivatives/sub-1_mask.nii.gz")


def test_fold_minus_one_trains_on_all_and_holds_out_none(tiny_dataset):
    assert len(datalist_entries(tiny_dataset.folder, -1, "training")) == 6
    assert datalist_entries(tiny_dataset.folder, -1, "validation") == []


@pytest.mark.parametrize(("fold", "folds"), [(7, (0, 1)), (-2, (0, 1))])
def test_a_fold_that_does_not_exist_is_named_with_those_that_do(tmp_path, fold, folds):
    write_datalist(tmp_path, *({"subject": f"s{number}", "fold": number} for number in folds))
    with pytest.raises(DatasetError, match=rf"nothing for validation with fold {fold}; its folds are \[0, 1\]"):
        datalist_entries(tmp_path, fold, "validation")


def test_a_split_that_leaves_nothing_to_train_on_is_refused(tmp_path):
    write_datalist(tmp_path, {"subject": "s0", "fold": 0})
    with pytest.raises(DatasetError, match="nothing for training with fold 0"):
        datalist_entries(tmp_path, 0, "training")


def test_a_patient_in_two_folds_is_named(tmp_path):
    write_datalist(tmp_path, {"subject": "s0", "fold": 0}, {"subject": "s0", "fold": 1, "image": ["other.nii.gz"]})
    with pytest.raises(DatasetError, match="subject s0 is in fold 0 and in fold 1"):
        datalist_entries(tmp_path, 0, "training")


@pytest.mark.parametrize("content", [None, "{", '{"validation": []}'])
def test_a_folder_without_a_datalist_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "datalist.json").write_text(content)
    with pytest.raises(DatasetError, match="must be a datalist as 'ar2unet prepare' writes it"):
        datalist_entries(tmp_path, 0, "training")


def write_datalist(folder, *entries):
    whole = [{"image": [f"{entry['subject']}.nii.gz"], "label": None, **entry} for entry in entries]
    for entry in whole:
        entry["label"] = entry["image"][0].replace(".nii", "_mask.nii")
    (folder / "datalist.json").write_text(json.dumps({"training": whole}))


def test_the_latest_checkpoint_is_that_of_the_highest_epoch_and_not_of_the_last_name(scan_folder):
    folder = scan_folder(
        "checkpoint_epoch=9.pt", "checkpoint_epoch=100.pt", "checkpoint_epoch=20.pt", "model_epoch=.pt"
    )
    assert latest_checkpoint(folder) == str(folder / "checkpoint_epoch=100.pt")
    assert finished_epochs(folder) == 100


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="must hold a checkpoint to resume from, found none"):
        latest_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("value", "expected"), [(True, True), (False, False), ("true", True), ("false", False), ("True", True)]
)
def test_a_flag_of_the_command_line_means_what_it_says(value, expected):
    assert as_flag(value) is expected


@pytest.mark.parametrize("value", ["yes", "", 1, None])
def test_a_flag_that_is_neither_true_nor_false_is_refused(value):
    with pytest.raises(ValueError, match="a flag must be true or false, got"):
        as_flag(value)
