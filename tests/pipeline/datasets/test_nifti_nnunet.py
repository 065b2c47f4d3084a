"""nnU-Net folders, version 1 and 2, to the training contract."""

from __future__ import annotations

import json
import re

import nibabel as nib
import numpy as np
import pytest

from pipeline.datasets.nifti import Choices, check_nifti, prepare_nifti
from pipeline.errors import DatasetError
from pipeline.formats.nifti import read_mask, read_scan

SHAPE = (11, 13, 7)
V2 = {"channel_names": {"0": "T2", "1": "FLAIR", "2": "T1_Gd", "3": "T1"}, "labels": {"background": 0, "edema": 2}}


@pytest.fixture
def folder(tmp_path, make_affine):
    """Make a folder of cases, each with the channels of V2 and a mask of 0 and 2."""

    def make(*cases: str, description=V2, ending=".nii.gz", labels=(0, 2)):
        root = tmp_path / "Dataset042_Own"
        for place in ("imagesTr", "labelsTr"):
            (root / place).mkdir(parents=True)
        for number, case in enumerate(cases):
            random = np.random.default_rng(number)
            for channel in range(4):
                volume = random.permutation(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16)
                nib.save(nib.Nifti1Image(volume, make_affine("LPS")), root / f"imagesTr/{case}_{channel:04d}{ending}")
            mask = random.choice(np.array(labels, np.uint8), SHAPE)
            nib.save(nib.Nifti1Image(mask, make_affine("LPS")), root / f"labelsTr/{case}{ending}")
        (root / "dataset.json").write_text(json.dumps({"file_ending": ending, **description}))
        return root

    return make


def texts_of(checked):
    return [finding.text for finding in checked.findings]


def test_channels_go_where_their_names_say(folder, tmp_path):
    root = folder("case_001", "case_002")
    prepared = prepare_nifti(root, tmp_path / "out", folds=2)
    assert prepared.failures == ()
    entries = json.loads(prepared.datalist.read_text())["training"]
    assert [entry["subject"] for entry in entries] == ["sub-case001", "sub-case002"]
    assert [entry["source"] for entry in entries] == ["case_001", "case_002"]
    assert sorted(entry["fold"] for entry in entries) == [0, 1]
    for entry in entries:
        for image, channel in zip(entry["image"], (3, 1, 2), strict=True):  # t1, flair, t1c
            source = read_scan(root / f"imagesTr/{entry['source']}_{channel:04d}.nii.gz")
            np.testing.assert_array_equal(read_scan(tmp_path / "out" / image).image, source.image)
        mask = nib.load(root / f"labelsTr/{entry['source']}.nii.gz").get_fdata() == 2
        np.testing.assert_array_equal(read_mask(tmp_path / "out" / entry["label"]).mask, mask)


def test_a_folder_of_version_1_is_read_as_well(folder, tmp_path):
    description = {
        **{"modality": {"0": "flair", "1": "T2"}, "labels": {"0": "background", "2": "lesion"}},
        **{"name": "Own", "licence": "CC BY", "reference": "a paper", "numTraining": 3},
    }
    root = folder("a", "b", description=description)
    seen = []
    prepared = prepare_nifti(root, tmp_path / "out", folds=2, on_checked=seen.append)
    datalist = json.loads(prepared.datalist.read_text())
    assert [entry["filled"] for entry in datalist["training"]] == [["t1", "t1c"]] * 2
    assert datalist["name"] == "Own: FLAIR abnormality segmentation"
    assert (datalist["licence"], datalist["reference"]) == ("CC BY", "a paper")
    assert texts_of(seen[0]) == [f"{root / 'dataset.json'}: numTraining is 3, but imagesTr holds 2 cases"]


LABELS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}


@pytest.mark.parametrize(
    ("chosen", "lesion"), [(["whole"], {1, 2, 3}), (["core"], {2, 3}), (["1", "enhancing"], {1, 3}), (["2"], {2})]
)
def test_the_lesion_is_chosen_by_name_or_value(folder, tmp_path, chosen, lesion):
    root = folder("a", "b", description={**V2, "labels": LABELS}, labels=(0, 1, 2, 3))
    prepared = prepare_nifti(root, tmp_path / "out", folds=2, choices=Choices(lesion_labels=tuple(chosen)))
    for entry in json.loads(prepared.datalist.read_text())["training"]:
        values = nib.load(root / f"labelsTr/{entry['source']}.nii.gz").get_fdata()
        mask = read_mask(tmp_path / "out" / entry["label"]).mask
        np.testing.assert_array_equal(mask, np.isin(values, list(lesion)))


def test_another_choice_of_the_lesion_makes_everything_new(folder, tmp_path):
    root = folder("a", "b", description={**V2, "labels": LABELS}, labels=(0, 1, 2, 3))
    written = [
        prepare_nifti(root, tmp_path / "out", folds=2, choices=Choices(lesion_labels=(label,))).written
        for label in ("core", "whole", "whole")
    ]
    assert written == [2, 2, 0]


REFUSALS = {
    "no flair": (
        {"channel_names": {"0": "T1", "1": "T2"}},
        (),
        'no channel of channel_names is a FLAIR.*write "FLAIR"',
    ),
    "two flairs": ({"channel_names": {"0": "FLAIR", "1": "T2-FLAIR"}}, (), "expected one channel named flair, got two"),
    "no channels": ({"channel_names": ["FLAIR"]}, (), r'expected "channel_names": \{"0": "FLAIR", ...\}, got \[.FLAIR'),
    "several labels": ({"labels": LABELS}, (), r"got whole \(1\+2\+3\), core .*; --lesion-label NAME says"),
    "no labels": ({"labels": None}, (), 'expected "labels": .*, got None'),
    "background alone": ({"labels": {"background": 0}}, (), "expected one label beside the background, got none"),
    "labels of words": ({"labels": {"background": "zero"}}, (), "expected whole numbers as label values"),
    "an unknown label": ({"labels": LABELS}, ("tumour",), "--lesion-label: expected a whole number .*, got 'tumour'"),
    "a value without label": ({"labels": LABELS}, ("9",), "--lesion-label 9: expected labels of .'core', 'enhancing'"),
    "what is ignored": ({"labels": LABELS}, ("4",), "--lesion-label 4: expected labels of"),
    "another format": ({"file_ending": ".png"}, (), "expected a file_ending of .nii.gz or .nii, got '.png'"),
}


@pytest.mark.parametrize(("change", "chosen", "expected"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_the_description_leaves_open_is_refused(folder, change, chosen, expected):
    root = folder("a")
    (root / "dataset.json").write_text(json.dumps({**V2, **change}))
    with pytest.raises(DatasetError, match=expected):
        check_nifti(root, choices=Choices(lesion_labels=chosen))


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_a_description_that_is_none_is_refused(folder, content):
    root = folder("a")
    (root / "dataset.json").write_text(content)
    with pytest.raises(DatasetError, match=r"dataset.json: expected a JSON object as nnU-Net has it"):
        check_nifti(root)


def test_what_is_missing_or_misnamed_is_told(folder):
    root = folder("a", "b", "c", "d_1", "d-1", "ok", "_")
    for name in ("imagesTr/a_0001", "labelsTr/b", "imagesTr/c_0003", "imagesTr/ok_0000"):
        (root / f"{name}.nii.gz").unlink()
    (root / "imagesTr/e.nii.gz").touch()
    (root / "imagesTr/._a_0000.nii.gz").touch()
    (root / "labelsTr/f.nii.gz").touch()
    checked = check_nifti(root)
    assert [(finding.is_error, finding.text) for finding in checked.findings] == [
        (False, f"{root / 'imagesTr/e.nii.gz'}: expected a name like case_0000.nii.gz; it is passed over"),
        (True, "_: its name does not tell the patient"),
        (True, "a: its FLAIR, imagesTr/a_0001, is missing"),
        (True, "b: its mask, labelsTr/b, is missing"),
        (False, "c: its t1, channel 0003, is missing; FLAIR takes its place"),
        (True, "d_1: would be named sub-d1, as d-1 is"),
        (True, "f: its FLAIR, imagesTr/f_0001, is missing"),
    ]
    assert sorted(checked.entries) == ["sub-c", "sub-d1", "sub-ok"]


def test_what_was_left_undecided_is_no_mask(folder):
    root = folder("a", description={**V2, "labels": {"background": 0, "lesion": 2, "ignore": 3}}, labels=(0, 2, 3))
    (text,) = texts_of(check_nifti(root))
    assert re.search(r"labelsTr/a.nii.gz: expected the values 0, 2, got 0, 2, 3$", text)


@pytest.mark.parametrize(
    ("cases", "pattern", "expected"),
    [
        (
            ("BraTS-GLI-001-000", "BraTS-GLI-001-001", "BraTS-GLI-002-000"),
            r"GLI-(\d+)-",
            {"sub-001_ses-BraTSGLI001000", "sub-001_ses-BraTSGLI001001", "sub-002_ses-BraTSGLI002000"},
        ),
        (
            ("sub-1_ses-a", "sub-1_ses-b", "sub-2_ses-a_ce-gd"),
            None,
            {"sub-1_ses-a", "sub-1_ses-b", "sub-2_ses-a_acq-cegd"},
        ),
    ],
)
def test_the_visits_of_a_patient_stay_in_one_fold(folder, tmp_path, cases, pattern, expected):
    root, out = folder(*cases, ending=".nii"), tmp_path / "out"
    prepared = prepare_nifti(root, out, folds=2, choices=Choices(patient_pattern=pattern))
    first, second, third = json.loads(prepared.datalist.read_text())["training"]
    assert {entry["subject"] for entry in (first, second, third)} == expected
    assert first["patient"] == second["patient"] != third["patient"]
    assert first["fold"] == second["fold"] != third["fold"]
    assert len((out / "participants.tsv").read_text().splitlines()) == 3


def test_options_that_do_not_fit_are_refused(folder):
    root = folder("a")
    for pattern, expected in (("(", "expected a regular expression"), ("a", "expected a group")):
        with pytest.raises(DatasetError, match=f"--patient-pattern: {expected}"):
            check_nifti(root, choices=Choices(patient_pattern=pattern))
    with pytest.raises(DatasetError, match="--masks goes with a BIDS tree"):
        check_nifti(root, choices=Choices(masks="manual"))
    assert texts_of(check_nifti(root, choices=Choices(patient_pattern="(z)"))) == [
        "a: its name does not tell the patient by '(z)'"
    ]
