from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.lgg import prepare_lgg
from pipeline.errors import DatasetError

FIRST, SECOND, THIRD = "TCGA_CS_4941_19960909", "TCGA_DU_5849_19950405", "TCGA_HT_A61B_19991127"
REPOSITORY = Path(__file__).parents[3]
UNPACK = REPOSITORY.parent / "shared" / "data" / "unpack.py"


def tree(root):
    """Every file below a folder: its path, bytes and time of change."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def contents(root):
    return {name: content for name, (content, _) in tree(root).items()}


def test_the_written_files_hold_the_slices_and_say_that_spacing_is_unknown(make_patient, kaggle_3m, tmp_path):
    made = make_patient(copies=(2,))
    out = tmp_path / "DATA"
    result = prepare_lgg(kaggle_3m, out)
    assert (result.subjects, result.written, result.unchanged, result.failures) == (1, 1, 0, ())

    (entry,) = json.loads(result.datalist.read_text())["training"]
    assert entry == {
        "subject": "sub-TCGACS4941",
        "site": "CS",
        "fold": entry["fold"],
        "image": [
            "sub-TCGACS4941/anat/sub-TCGACS4941_T1w.nii.gz",
            "sub-TCGACS4941/anat/sub-TCGACS4941_FLAIR.nii.gz",
            "sub-TCGACS4941/anat/sub-TCGACS4941_ce-gadolinium_T1w.nii.gz",
        ],
        "label": "derivatives/manual/sub-TCGACS4941/anat/sub-TCGACS4941_label-lesion_mask.nii.gz",
        "slices": 11,
        "lesion_voxels": np.count_nonzero(made.masks),
        "filled": ["t1c"],
        "source": FIRST,
    }
    expected = [*np.moveaxis(made.slices, -1, 0), made.masks // 255]
    for name, pixels in zip([*entry["image"], entry["label"]], expected, strict=True):
        image = nib.load(out / name)
        np.testing.assert_array_equal(np.asarray(image.dataobj), pixels.transpose(2, 1, 0))
        assert image.get_data_dtype() == np.uint8
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        assert image.header.get_zooms() == (1, 1, 1)
        assert int(image.header["xyzt_units"]) == 0
        assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == 2
        np.testing.assert_array_equal(image.get_qform(), image.get_sform())
        sidecar = json.loads((out / name.replace(".nii.gz", ".json")).read_text())
        assert sidecar["SpacingKnown"] is False
        assert "no voxel spacing" in sidecar["SpacingNote"]
    assert json.loads((out / entry["image"][0].replace(".nii.gz", ".json")).read_text())["CopyOfFLAIR"] is False
    assert json.loads((out / entry["image"][2].replace(".nii.gz", ".json")).read_text())["CopyOfFLAIR"] is True


def test_the_data_set_describes_itself(make_patient, kaggle_3m, tmp_path):
    for name in (FIRST, SECOND):
        make_patient(name)
    out = tmp_path / "DATA"
    datalist = json.loads(prepare_lgg(kaggle_3m, out, folds=3, seed=5).datalist.read_text())

    assert (datalist["folds"], datalist["seed"]) == (3, 5)
    assert "CC BY-NC-SA 4.0 (not confirmed)" in datalist["licence"]
    assert datalist["spacing"].startswith("unknown")
    assert json.loads((out / "dataset_description.json").read_text())["DatasetType"] == "raw"
    assert json.loads((out / "derivatives/manual/dataset_description.json").read_text())["DatasetType"] == "derivative"
    assert (out / ".bidsignore").read_text() == "datalist.json\n"
    table = [line.split("\t") for line in (out / "participants.tsv").read_text().splitlines()]
    assert [row[:2] for row in table] == [
        ["participant_id", "site"],
        ["sub-TCGACS4941", "CS"],
        ["sub-TCGADU5849", "DU"],
    ]
    assert set(json.loads((out / "participants.json").read_text())) == set(table[0])
    assert "not confirmed" in (out / "README").read_text()


def test_one_broken_patient_is_named_and_the_others_are_done(make_patient, kaggle_3m, tmp_path, breakage):
    damage, message = breakage
    damage(make_patient(FIRST))
    make_patient(SECOND)
    make_patient(THIRD)
    calls = []
    result = prepare_lgg(kaggle_3m, tmp_path / "DATA", on_progress=lambda *call: calls.append(call))

    assert [failure.patient for failure in result.failures] == [FIRST]
    assert result.failures[0].reason.startswith(FIRST)
    assert re.search(message, result.failures[0].reason)
    assert result.subjects == result.written == 2
    entries = json.loads(result.datalist.read_text())["training"]
    assert [entry["source"] for entry in entries] == [SECOND, THIRD]
    assert calls == [(1, 3, FIRST), (2, 3, SECOND), (3, 3, THIRD)]


def test_a_second_folder_of_one_patient_fails_and_the_earlier_scan_is_kept(make_patient, kaggle_3m, tmp_path):
    make_patient("TCGA_CS_4941_19990101")
    make_patient(FIRST)
    result = prepare_lgg(kaggle_3m, tmp_path / "DATA")
    assert [failure.patient for failure in result.failures] == ["TCGA_CS_4941_19990101"]
    assert f"the same patient as {FIRST}" in result.failures[0].reason
    assert [entry["source"] for entry in json.loads(result.datalist.read_text())["training"]] == [FIRST]


def test_a_folder_of_slices_by_another_name_fails_and_an_empty_one_is_passed_over(make_patient, kaggle_3m, tmp_path):
    make_patient(FIRST)
    make_patient("my own scan")
    (kaggle_3m / "pictures").mkdir()
    result = prepare_lgg(kaggle_3m, tmp_path / "DATA")
    assert [failure.patient for failure in result.failures] == ["my own scan"]


def test_slices_under_another_patients_folder_name_fail(make_patient, kaggle_3m, tmp_path):
    made = make_patient(FIRST)
    made.folder.rename(kaggle_3m / SECOND)
    (failure,) = prepare_lgg(kaggle_3m, tmp_path / "DATA").failures
    assert failure.reason == f"{SECOND}: its slices are those of {FIRST}"


@pytest.mark.parametrize("source", ["nowhere", "kaggle_3m", "kaggle_3m/data.csv"])
def test_a_source_without_patients_is_refused_and_nothing_is_written(kaggle_3m, tmp_path, source):
    with pytest.raises(DatasetError, match="kaggle_3m holds one folder a patient, such as TCGA_CS_4941_19960909"):
        prepare_lgg(tmp_path / source, tmp_path / "DATA")
    assert not (tmp_path / "DATA").exists()


def test_fewer_than_two_folds_are_refused_before_anything_is_written(patient, kaggle_3m, tmp_path):
    with pytest.raises(DatasetError, match="folds must be at least 2, got 1"):
        prepare_lgg(kaggle_3m, tmp_path / "DATA", folds=1)
    assert not (tmp_path / "DATA").exists()


def test_a_data_root_that_cannot_be_written_ends_the_run_and_blames_no_patient(patient, kaggle_3m, tmp_path):
    (tmp_path / "DATA").write_text("a file, not a folder")
    with pytest.raises(DatasetError, match=r"cannot write .*DATA"):
        prepare_lgg(kaggle_3m, tmp_path / "DATA")


# --- again, interrupted, reproducible ---


def test_a_second_run_writes_nothing(make_patient, kaggle_3m, tmp_path):
    for name in (FIRST, SECOND):
        make_patient(name)
    prepare_lgg(kaggle_3m, tmp_path / "DATA")
    before = tree(tmp_path / "DATA")
    result = prepare_lgg(kaggle_3m, tmp_path / "DATA")
    assert (result.subjects, result.written, result.unchanged) == (2, 0, 2)
    assert tree(tmp_path / "DATA") == before


def test_two_runs_give_the_same_bytes(make_patient, kaggle_3m, tmp_path):
    for name in (FIRST, SECOND, THIRD):
        make_patient(name)
    for out in ("one", "two"):
        prepare_lgg(kaggle_3m, tmp_path / out)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_changed_slice_has_its_patient_done_again_and_no_other(make_patient, kaggle_3m, tmp_path, write_tiff):
    changed = make_patient(FIRST)
    make_patient(SECOND)
    out = tmp_path / "DATA"
    prepare_lgg(kaggle_3m, out)
    write_tiff(changed.slice_path(10), (6, 7, 3), 77)

    result = prepare_lgg(kaggle_3m, out)

    assert (result.written, result.unchanged) == (1, 1)
    flair = np.asarray(nib.load(out / "sub-TCGACS4941/anat/sub-TCGACS4941_FLAIR.nii.gz").dataobj)
    assert (flair[:, :, 9] == 77).all()
    prepare_lgg(kaggle_3m, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")


def test_an_image_done_again_is_swapped_whole_and_never_written_into(patient, kaggle_3m, tmp_path, write_tiff):
    prepare_lgg(kaggle_3m, tmp_path / "DATA")
    flair, before = tmp_path / "DATA/sub-TCGACS4941/anat/sub-TCGACS4941_FLAIR.nii.gz", tmp_path / "before"
    before.hardlink_to(flair)  # a second name of the old file, as a reader that has it open
    content = before.read_bytes()
    write_tiff(patient.slice_path(10), (6, 7, 3), 77)
    prepare_lgg(kaggle_3m, tmp_path / "DATA")
    assert before.read_bytes() == content != flair.read_bytes()


@pytest.mark.parametrize("lost", ["*_T1w.nii.gz", "*_mask.nii.gz", "*_FLAIR.json"])
def test_a_lost_output_has_its_patient_done_again(patient, kaggle_3m, tmp_path, lost):
    prepare_lgg(kaggle_3m, tmp_path / "DATA")
    before = contents(tmp_path / "DATA")
    next((tmp_path / "DATA").rglob(lost)).unlink()
    assert prepare_lgg(kaggle_3m, tmp_path / "DATA").written == 1
    assert contents(tmp_path / "DATA") == before


@pytest.mark.parametrize("record", [b"", b"[]", b"{}", b'{"SourceFingerprint": '])
def test_a_damaged_record_has_its_patient_done_again(patient, kaggle_3m, tmp_path, record):
    prepare_lgg(kaggle_3m, tmp_path / "DATA")
    before = contents(tmp_path / "DATA")
    next((tmp_path / "DATA").rglob("*_mask.json")).write_bytes(record)
    assert prepare_lgg(kaggle_3m, tmp_path / "DATA").written == 1
    assert contents(tmp_path / "DATA") == before


def test_another_seed_changes_the_folds_and_no_image(make_patient, kaggle_3m, tmp_path):
    for name in (FIRST, SECOND, THIRD):
        make_patient(name)
    prepare_lgg(kaggle_3m, tmp_path / "DATA", seed=0)
    before = tree(tmp_path / "DATA")
    assert prepare_lgg(kaggle_3m, tmp_path / "DATA", seed=1).written == 0
    after = tree(tmp_path / "DATA")
    assert {name for name in before if before[name] != after[name]} == {"datalist.json"}


# A fresh run writes 8 files of the patient and 8 of the data set, each reaching the disk once.
@pytest.mark.parametrize("writes", range(16))
def test_a_run_killed_at_any_write_leaves_whole_files_only_and_the_next_run_finishes(
    patient, kaggle_3m, tmp_path, writes
):
    out = tmp_path / "DATA"
    prepare_lgg(kaggle_3m, tmp_path / "whole")
    killed = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from pipeline.datasets.lgg import prepare_lgg\n"
        "source, out, writes = sys.argv[1:]\n"
        "left, fsync = [int(writes)], os.fsync\n"
        "def die(file):\n"
        "    left[0] -= 1\n"
        "    os._exit(9) if left[0] < 0 else fsync(file)\n"
        "os.fsync = die\n"
        "prepare_lgg(Path(source), Path(out))\n"
    )
    command = [sys.executable, "-c", killed, str(kaggle_3m), str(out), str(writes)]
    assert subprocess.run(command, cwd=REPOSITORY, check=False).returncode == 9

    whole = contents(tmp_path / "whole")
    finished = {name: content for name, content in contents(out).items() if not name.endswith(".partial")}
    assert len(finished) == writes
    assert finished.items() <= whole.items()
    prepare_lgg(kaggle_3m, out)
    assert contents(out) == whole


def test_a_run_killed_while_redoing_a_patient_never_vouches_for_a_mixture(
    patient, kaggle_3m, tmp_path, monkeypatch, write_tiff
):
    out, original, fsync = tmp_path / "DATA", patient.slice_path(1).read_bytes(), os.fsync
    prepare_lgg(kaggle_3m, out)
    before = contents(out)
    write_tiff(patient.slice_path(1), (6, 7, 3), 77)
    calls = []

    def interrupt_at_the_third(file):
        calls.append(file)
        if len(calls) == 3:
            raise KeyboardInterrupt
        fsync(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", interrupt_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            prepare_lgg(kaggle_3m, out)
    assert not list(out.rglob("*.partial"))

    patient.slice_path(1).write_bytes(original)  # the old fingerprint is right again, but one image is the new one
    assert prepare_lgg(kaggle_3m, out).written == 1
    assert contents(out) == before


# --- the real thing ---


@pytest.mark.skipif(not UNPACK.is_file(), reason="the packed LGG data does not lie beside the repository")
def test_two_published_patients_come_out_whole(tmp_path):
    subprocess.run([sys.executable, str(UNPACK), "lgg", str(tmp_path), "--patients", "2"], check=True)
    result = prepare_lgg(tmp_path / "kaggle_3m", tmp_path / "DATA")
    assert result.failures == ()
    entries = json.loads(result.datalist.read_text())["training"]
    assert len(entries) == 2
    for entry in entries:
        folder = tmp_path / "kaggle_3m" / entry["source"]
        masks = [np.asarray(Image.open(path)) for path in folder.glob("*_mask.tif")]
        assert entry["slices"] == len(masks)
        assert entry["lesion_voxels"] == sum(np.count_nonzero(mask) for mask in masks)
        top = np.asarray(Image.open(folder / f"{entry['source']}_{len(masks)}.tif"))
        for channel, name in enumerate(entry["image"]):
            volume = np.asarray(nib.load(tmp_path / "DATA" / name).dataobj)
            np.testing.assert_array_equal(volume[:, :, -1].T, top[..., channel])
