"""What is a scan and what is not, and what each is called."""

from __future__ import annotations

import os

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset

from pipeline.cohort.finding import MAX_NAME, find_cases
from pipeline.errors import ScanError


@pytest.fixture
def tree(tmp_path):
    """Make files, empty ones unless a content is given, and return the folder that they lie in."""

    def make(*places, content=b""):
        root = tmp_path / "tree"
        for place in places:
            path = root / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return root

    return make


def write_dicom(path, study):
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.StudyInstanceUID = "1.2.840.10008.5.1.4.1.1.4", "1.2.3", study
    dataset.save_as(path, enforce_file_format=True)


def places(root, out=None, **labels):
    return [case.place for case in find_cases(root, out or root / "out", **labels)]


def test_every_kind_of_volume_is_found_in_the_order_of_its_place(tree):
    names = ["b/x.nii", "a/z.NII.GZ", "a/y.nrrd", "c.mha", "c/d/e/f.nhdr", "m.mhd", "study.zip", "lgg/p_1.tif"]
    root = tree(*names)
    assert places(root) == sorted([*names[:-1], "lgg"])


@pytest.mark.parametrize(
    "name",
    [
        "x_mask.nii.gz",
        "x_probabilities.nii.gz",
        "sub-1_label-lesion_mask.nii.gz",
        "sub-1_label-lesion_desc-a.nii.gz",
        "x_seg.nii",
        "mask.nii.gz",
        "sub-1_T1w.nii.gz",
        "sub-1_T2w.nii.gz",
        "sub-1_PDw.nii.gz",
        "sub-1_dwi.nii.gz",
        "sub-1_SWI.nii.gz",
        "x_lesion.nrrd",
        "sub-1_bold.nii.gz",
        ".hidden.nii.gz",
        ".cache/x.nii.gz",
        "derivatives/a/x.nii.gz",
        "labelsTr/x.nii.gz",
        "older/.cohort/lock",
        "x.txt",
        "photo.tif",
        "out/cases/x/x_flair.nii.gz",
    ],
)
def test_what_is_no_scan_is_left_out(tree, name):
    assert places(tree(name, "good.nii.gz")) == ["good.nii.gz"]


def test_results_of_another_cohort_are_not_searched(tree):
    root = tree("older/.cohort/lock", "older/cases/x/scan.nii.gz", "good.nii.gz")
    assert places(root) == ["good.nii.gz"]


def test_a_flair_takes_its_partners_and_only_those_of_its_own_name_and_folder(tree):
    root = tree("a/X_t1.nii.gz", "a/X_flair.nii.gz", "a/X_t1c.nii.gz", "a/Y_flair.nii.gz", "b/X_flair.nii.gz")
    first, second, third = find_cases(root, root / "out")
    assert (first.flair.name, first.t1.name, first.t1c.name) == ("X_flair.nii.gz", "X_t1.nii.gz", "X_t1c.nii.gz")
    assert (second.place, second.t1, second.t1c) == ("a/Y_flair.nii.gz", None, None)
    assert (third.place, third.t1, third.t1c) == ("b/X_flair.nii.gz", None, None)


def test_a_t1_without_flair_is_a_row_that_says_so(tree):
    root = tree("a/X_t1c.nii.gz", "good.nii.gz")
    first, second = find_cases(root, root / "out")
    assert first.problem == "a/X_t1c.nii.gz: expected X_flair beside it, found none"
    assert second.problem is None


def test_a_study_is_the_folder_above_all_its_series(tmp_path):
    root = tmp_path / "dicom"
    for place, study in (("p1/v1/flair/0", "1.1"), ("p1/v1/t1/0", "1.1"), ("p1/v2/0", "1.2"), ("p2/deep/a/0", "1.3")):
        write_dicom(root / place, study)
        (root / place).with_name("notes.txt").write_text("nothing")
    assert places(root) == ["p1/v1", "p1/v2", "p2/deep/a"]


def test_series_of_several_studies_side_by_side_are_taken_apart(tmp_path):
    root = tmp_path / "dicom"
    for place, study in (("a_flair/0", "1.1"), ("a_t1/0", "1.1"), ("b_flair/0", "1.2")):
        write_dicom(root / place, study)
    assert places(root) == ["a_flair", "a_t1", "b_flair"]


def test_a_copy_of_a_study_does_not_swallow_the_others(tmp_path):
    root = tmp_path / "dicom"
    for place, study in (("old/s/a/0", "1.1"), ("old/s/b/0", "1.1"), ("new/s/a/0", "1.1"), ("new/other/0", "1.2")):
        write_dicom(root / place, study)
    assert places(root) == ["new/other", "new/s", "old"]


def test_a_dicom_segmentation_of_ours_is_no_study(tmp_path, tree):
    root = tree("good.nii.gz")
    write_dicom(root / "study_seg.dcm", "1.1")
    assert places(root) == ["good.nii.gz"]


def test_the_root_itself_may_be_the_study(tmp_path):
    write_dicom(tmp_path / "patient 7" / "0", "1.1")
    (case,) = find_cases(tmp_path / "patient 7", tmp_path / "out")
    assert (case.name, case.place, case.flair) == ("patient-7", "patient 7", tmp_path / "patient 7")


def test_results_among_the_slices_of_a_study_are_refused(tmp_path):
    write_dicom(tmp_path / "patient" / "0", "1.1")
    with pytest.raises(ScanError, match="outside of the study"):
        find_cases(tmp_path / "patient", tmp_path / "patient" / "out")


def test_a_name_tells_the_place_and_is_safe_as_a_folder(tree):
    root = tree("a b/ü&x.nii.gz", "a b/c/-y.nrrd", "c.nii.gz", "...nii.gz.nii")
    assert [case.name for case in find_cases(root, root / "out")] == ["a-b_c_-y.nrrd", "a-b_ü-x", "c"]


def test_names_that_would_be_equal_are_told_apart_and_stay_as_they_are(tree):
    root = tree("a/b.nii.gz", "a_b.nii.gz", "A_B.nii.gz", "other.nii.gz")
    names = {case.place: case.name for case in find_cases(root, root / "out")}
    assert names["other.nii.gz"] == "other"
    assert len({name.casefold() for name in names.values()}) == 4
    assert all(len(names[place]) == len("a_b-") + 8 for place in names if place != "other.nii.gz")
    tree("later.nii.gz")
    assert names.items() <= {case.place: case.name for case in find_cases(root, root / "out")}.items()


def test_names_that_differ_by_case_alone_are_told_apart(tree):
    root = tree("patient/x.nii.gz", "Patient/x.nii.gz")  # one folder where the file system does not know case
    names = [case.name for case in find_cases(root, root / "out")]
    assert len({name.casefold() for name in names}) == 2


def test_a_long_name_is_cut_and_still_its_own(tree):
    long = "x" * 100 + "/" + "y" * 100
    root = tree(f"{long}1.nii.gz", f"{long}2.nii.gz")
    names = [case.name for case in find_cases(root, root / "out")]
    assert len(set(names)) == 2
    assert max(map(len, names)) <= MAX_NAME


def test_a_name_of_bytes_that_are_no_characters_is_found(tmp_path):
    root = tmp_path / "tree"
    root.mkdir()
    with open(os.fsencode(root) + b"/a\xff.nii.gz", "wb"):  # noqa: PTH123
        pass
    (case,) = find_cases(root, tmp_path / "out")
    assert case.name == "a-udcff"
    assert case.flair.exists()


def test_a_bids_tree_is_searched_as_bids(tree):
    root = tree(
        "dataset_description.json",
        "sub-01/ses-a/anat/sub-01_ses-a_FLAIR.nii.gz",
        "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
        "sub-01/ses-b/anat/sub-01_ses-b_T1w.nii.gz",
        "sub-02/anat/sub-02_FLAIR.nii.gz",
        "sub-02/anat/sub-02_ce-gadolinium_T1w.nii.gz",
        "sourcedata/x.nii.gz",
        content=b"{}",
    )
    first, second, third = find_cases(root, root / "derivatives" / "out")
    assert (first.name, first.t1.name, first.t1c) == ("sub-01_ses-a", "sub-01_ses-a_T1w.nii.gz", None)
    assert (second.place, second.flair) == ("sub-01/ses-b", root / "sub-01" / "ses-b")
    assert "no sub-01_ses-b_*FLAIR.nii.gz" in second.problem
    assert (third.name, third.t1, third.t1c.name) == ("sub-02", None, "sub-02_ce-gadolinium_T1w.nii.gz")
    assert places(root, participants=["02"]) == [third.place]
    assert places(root, sessions=["ses-a"]) == [first.place]


@pytest.mark.parametrize(("name", "words"), [("none", "got nothing"), ("file", "got a file"), ("empty", "found none")])
def test_a_folder_without_scans_is_refused(tmp_path, name, words):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ScanError, match=words):
        find_cases(tmp_path / name, tmp_path / "out")


def test_labels_outside_of_bids_are_refused(tree):
    with pytest.raises(ScanError, match="go with BIDS"):
        places(tree("a.nii.gz"), participants=["01"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_cannot_be_read_is_a_row(tree):
    root = tree("a.nii.gz", "locked/b.nii.gz")
    (root / "locked").chmod(0)
    try:
        _, case = find_cases(root, root / "out")
    finally:
        (root / "locked").chmod(0o755)
    assert "locked: cannot be read" in case.problem
