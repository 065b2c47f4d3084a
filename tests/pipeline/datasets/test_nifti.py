"""One's own BIDS tree to the training contract, from its check to a training that takes it."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.datasets.lgg import prepare_lgg
from pipeline.datasets.nifti import Choices, _assign, check_nifti, prepare_nifti
from pipeline.errors import DatasetError
from pipeline.formats.nifti import read_mask, read_scan
from pipeline.formats.resampling import resample_onto
from pipeline.predictor import SEGMENTATION_BUNDLE

VALIDATOR = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent)) or shutil.which(
    "bids-validator-deno"
)
needs_validator = pytest.mark.skipif(VALIDATOR is None, reason="bids-validator-deno (PyPI) is not installed")

# Subject, shape, orientation and voxel sizes in mm: no two of anything are equal.
SCANS = {
    "sub-1": ((42, 52, 9), "RAS", (1.1, 1.2, 5.0)),
    "sub-2": ((46, 9, 40), "PSR", (1.0, 3.9, 1.3)),
    "sub-3": ((38, 50, 8), "oblique", (1.4, 1.25, 6.0)),
}


@pytest.fixture
def save(make_affine):
    """Write a volume, by default on an RAS grid of 1.1 x 1.2 x 5 mm."""

    def write(path, volume, orientation="RAS", spacing=(1.1, 1.2, 5.0), *, unit="mm", shift=0.0):
        affine = make_affine(orientation, spacing)
        affine[:3, 3] += shift
        image = nib.Nifti1Image(volume, affine)
        image.header.set_xyzt_units(unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)
        return path

    return write


@pytest.fixture
def made(make_head):
    """Make FLAIR, T1w and post-contrast T1w, int16, and the mask of a lesion that is bright in FLAIR."""

    def make(shape, seed=0):
        center = tuple(0.5 * size for size in shape)
        head, inside = make_head(shape, center, tuple(0.4 * size for size in shape))
        flair, grid = head.astype(np.int16) + seed, np.stack(np.indices(shape), axis=-1)
        lesion = inside & ((((grid - center) / (0.15 * np.array(shape))) ** 2).sum(axis=-1) <= 1)
        return {
            "FLAIR": np.where(lesion, 250, flair).astype(np.int16),
            "T1w": (200 - flair).astype(np.int16),
            "ce-gd_T1w": (flair // 2 + 7).astype(np.int16),
            "mask": lesion.astype(np.uint8),
        }

    return make


@pytest.fixture
def tree(tmp_path, save, made):
    """Three patients: the first with all sequences, the second with FLAIR and T1w, the third with FLAIR alone."""
    root = tmp_path / "study"
    for number, (subject, (shape, *grid)) in enumerate(SCANS.items()):
        volumes = made(shape, number)
        for name in ("FLAIR", "T1w", "ce-gd_T1w")[: 3 - number]:
            save(root / subject / "anat" / f"{subject}_{name}.nii.gz", volumes[name], *grid)
        save(mask_path(root, subject), volumes["mask"], *grid)
    return root


def flair_path(root, subject="sub-1"):
    return root / subject / "anat" / f"{subject}_FLAIR.nii.gz"


def mask_path(root, subject="sub-1", folder="rater1"):
    return root / "derivatives" / folder / subject / "anat" / f"{subject}_label-lesion_mask.nii.gz"


def entries_of(out):
    return {entry["subject"]: entry for entry in json.loads((out / "datalist.json").read_text())["training"]}


def texts_of(checked, *, errors=None):
    return [finding.text for finding in checked.findings if errors in (None, finding.is_error)]


def times_below(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_every_scan_keeps_its_voxels_its_affine_and_its_spacing(tree, tmp_path):
    prepared = prepare_nifti(tree, tmp_path / "out", folds=2)
    assert (prepared.subjects, prepared.written, prepared.failures) == (3, 3, ())
    entries = entries_of(tmp_path / "out")
    for subject, (shape, _, spacing) in SCANS.items():
        source, entry = read_scan(flair_path(tree, subject)), entries[subject]
        scan = read_scan(tmp_path / "out" / entry["image"][1])
        np.testing.assert_array_equal(scan.image, source.image)
        np.testing.assert_allclose(scan.affine, source.affine, atol=1e-4)
        assert scan.spacing == pytest.approx(spacing, abs=1e-5)
        mask, truth = read_mask(tmp_path / "out" / entry["label"]), read_mask(mask_path(tree, subject))
        np.testing.assert_array_equal(mask.mask, truth.mask)
        np.testing.assert_allclose(mask.affine, source.affine, atol=1e-4)
        assert entry["lesion_voxels"] == truth.mask.sum() > 0
        assert entry["slices"] == min(shape)  # the thick ones are axial
        assert nib.load(tmp_path / "out" / entry["image"][1]).get_data_dtype() == np.int16


def test_the_datalist_is_the_contracts(tree, tmp_path):
    prepare_nifti(tree, tmp_path / "out", folds=3)
    entry = entries_of(tmp_path / "out")["sub-2"]
    assert entry["image"] == [f"sub-2/anat/sub-2_{name}.nii.gz" for name in ("T1w", "FLAIR", "ce-gadolinium_T1w")]
    assert entry["label"] == "derivatives/manual/sub-2/anat/sub-2_label-lesion_mask.nii.gz"
    assert (entry["site"], entry["patient"], entry["source"]) == ("unknown", "sub-2", "sub-2")
    assert {entry["fold"] for entry in entries_of(tmp_path / "out").values()} == {0, 1, 2}


def test_a_sequence_that_is_missing_is_replaced_by_flair(tree, tmp_path):
    prepare_nifti(tree, tmp_path / "out", folds=2)
    for subject, entry in entries_of(tmp_path / "out").items():
        t1, flair, t1c = (read_scan(tmp_path / "out" / image).image for image in entry["image"])
        filled = {"sub-1": [], "sub-2": ["t1c"], "sub-3": ["t1", "t1c"]}[subject]
        assert entry["filled"] == filled
        assert [name for name, image in (("t1", t1), ("t1c", t1c)) if np.array_equal(image, flair)] == filled
    sidecar = json.loads((tmp_path / "out" / "sub-2/anat/sub-2_ce-gadolinium_T1w.json").read_text())
    assert (sidecar["CopyOfFLAIR"], sidecar["ResampledOntoFLAIR"], sidecar["SpacingKnown"]) == (True, False, True)


def test_a_sequence_on_another_grid_is_resampled(tree, tmp_path, made):
    path = tree / "sub-3/anat/sub-3_acq-other_T1w.nii.gz"  # the only one, so it is the partner
    affine = read_scan(flair_path(tree, "sub-3")).affine.copy()
    affine[:3, :3] *= 0.9
    image = nib.Nifti1Image(made((50, 60, 11))["T1w"], affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    prepare_nifti(tree, tmp_path / "out", folds=2)
    expected = resample_onto(read_scan(path), read_scan(flair_path(tree, "sub-3")))
    t1 = read_scan(tmp_path / "out/sub-3/anat/sub-3_T1w.nii.gz")
    np.testing.assert_array_equal(t1.image[0], expected)
    assert json.loads((tmp_path / "out/sub-3/anat/sub-3_T1w.json").read_text())["ResampledOntoFLAIR"] is True


def test_an_unknown_spacing_stays_unknown(tree, tmp_path, save, made):
    volumes = made((40, 44, 10), 9)
    save(flair_path(tree, "sub-4"), volumes["FLAIR"].astype(np.float32) / 3, "LPS", (1.0, 1.0, 1.0), unit="unknown")
    save(mask_path(tree, "sub-4"), volumes["mask"], "LPS", (1.0, 1.0, 1.0), unit="unknown")
    prepare_nifti(tree, tmp_path / "out", folds=2)
    scan = read_scan(tmp_path / "out/sub-4/anat/sub-4_FLAIR.nii.gz")
    assert scan.spacing is None
    np.testing.assert_array_equal(scan.image, read_scan(flair_path(tree, "sub-4")).image)


def test_without_a_spacing_a_sequence_on_another_grid_is_an_error(tree, save, made):
    shape, unknown = (40, 44, 10), {"orientation": "LPS", "spacing": (1.0, 1.0, 1.0), "unit": "unknown"}
    volumes = made(shape, 9)
    save(flair_path(tree, "sub-4"), volumes["FLAIR"], **unknown)
    save(mask_path(tree, "sub-4"), volumes["mask"], **unknown)
    t1 = flair_path(tree, "sub-4").with_name("sub-4_T1w.nii.gz")
    save(t1, volumes["T1w"], **unknown)
    assert "sub-4" in check_nifti(tree).entries
    save(t1, made((40, 44, 12), 9)["T1w"], "LPS", (1.0, 1.0, 1.0))
    checked = check_nifti(tree)
    assert "sub-4" not in checked.entries
    (text,) = texts_of(checked, errors=True)
    assert re.search(r"sub-4_T1w.nii.gz: expected the voxel grid of .*, got shape \(40, 44, 12\)", text)


def test_the_slices_are_counted_along_the_axis_closest_to_feet_to_head(tree, tmp_path, save, made):
    volumes = made((40, 9, 44), 9)
    thick = np.diag([-1.0, 6.0, 1.1, 1.0])
    thick[:3, :3] = [[-1, 0, 0], [0, 5.7, -0.35], [0, 1.9, 1.04]]  # coronal, tilted: 6 mm slices that lead upwards, too
    for path, name in ((flair_path(tree, "sub-4"), "FLAIR"), (mask_path(tree, "sub-4"), "mask")):
        save(path, volumes[name])
        image = nib.Nifti1Image(volumes[name], thick)
        image.header.set_xyzt_units("mm")
        nib.save(image, path)
    prepare_nifti(tree, tmp_path / "out", folds=2)
    assert entries_of(tmp_path / "out")["sub-4"]["slices"] == 44


def test_all_scans_of_a_patient_are_in_one_fold(tree, tmp_path, save, made):
    for number in range(4):
        volumes, name = made((42, 52, 9), 20 + number), f"sub-9_ses-{number}"
        save(tree / f"sub-9/ses-{number}/anat/{name}_FLAIR.nii.gz", volumes["FLAIR"])
        folder = tree / f"derivatives/rater1/sub-9/ses-{number}/anat"
        save(folder / f"{name}_label-lesion_mask.nii.gz", volumes["mask"])
    prepare_nifti(tree, tmp_path / "out", folds=3)
    entries = entries_of(tmp_path / "out")
    visits = [entry for entry in entries.values() if entry["patient"] == "sub-9"]
    assert [entry["subject"] for entry in visits] == [f"sub-9_ses-{number}" for number in range(4)]
    assert len({entry["fold"] for entry in visits}) == 1
    assert visits[2]["image"][0] == "sub-9/ses-2/anat/sub-9_ses-2_T1w.nii.gz"
    rows = (tmp_path / "out" / "participants.tsv").read_text().splitlines()
    assert [row.split("\t")[0] for row in rows] == ["participant_id", "sub-1", "sub-2", "sub-3", "sub-9"]
    assert rows[4].split("\t")[2] == "36"


def test_lesions_large_and_small_are_spread_over_the_folds_by_the_seed():
    found = set()
    for seed in range(12):
        entries = [
            {"subject": f"sub-{n}", "patient": f"sub-{n}", "image": [f"{n}"], "lesion_voxels": voxels}
            for n, voxels in enumerate((9000, 10, 8000, 20))
        ]
        _assign(entries, folds=2, seed=seed)
        assert entries[0]["fold"] != entries[2]["fold"]
        found.add(tuple(entry["fold"] for entry in entries))
    assert len(found) > 1


def test_what_the_source_says_of_itself_is_passed_on(tree, tmp_path):
    said = {"Name": "heads", "License": "CC BY 4.0", "Authors": ["A. One", "B. Two"], "HowToAcknowledge": "cite\n us"}
    (tree / "dataset_description.json").write_text(json.dumps(said))
    prepare_nifti(tree, tmp_path / "out", folds=2, seed=7)
    datalist = json.loads((tmp_path / "out" / "datalist.json").read_text())
    assert (datalist["licence"], datalist["reference"], datalist["seed"]) == ("CC BY 4.0", "cite us", 7)
    assert datalist["name"].startswith("heads: ")
    description = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    assert (description["License"], description["Authors"]) == (said["License"], said["Authors"])


def test_a_second_run_writes_nothing_and_a_changed_file_is_done_again(tree, tmp_path, save, made):
    out = tmp_path / "out"
    prepare_nifti(tree, out, folds=2)
    before = times_below(out)
    assert (prepared := prepare_nifti(tree, out, folds=2)).written == 0
    assert prepared.unchanged == 3
    assert times_below(out) == before
    save(mask_path(tree), np.zeros((42, 52, 9), np.uint8))
    seen = []
    assert prepare_nifti(tree, out, folds=2, on_checked=seen.append).written == 1
    assert entries_of(out)["sub-1"]["lesion_voxels"] == 0
    assert texts_of(seen[0]) == [f"sub-1: {mask_path(tree)}: no lesion in the mask"]
    # An empty mask is told of again, though nothing is read again.
    assert prepare_nifti(tree, out, folds=2, on_checked=seen.append).written == 0
    assert texts_of(seen[1]) == ["sub-1: no lesion in the mask"]


@pytest.mark.parametrize("name", ["FLAIR.nii.gz", "T1w.json", "ce-gadolinium_T1w.nii.gz", "label-lesion_mask.nii.gz"])
def test_a_scan_of_which_a_file_is_lost_is_done_again(tree, tmp_path, name):
    out = tmp_path / "out"
    prepare_nifti(tree, out, folds=2)
    (lost,) = out.rglob(f"sub-2_{name}")
    content = lost.read_bytes()
    lost.unlink()
    assert prepare_nifti(tree, out, folds=2).written == 1
    assert lost.read_bytes() == content


def test_a_run_that_was_killed_half_way_is_taken_up(tree, tmp_path, monkeypatch):
    from pipeline.datasets import nifti_records

    write = nifti_records.write_volume

    def fail_at_the_second(path, *arguments, **keywords):
        if "sub-2" in path.name and "T1w" in path.name:
            raise KeyboardInterrupt
        write(path, *arguments, **keywords)

    monkeypatch.setattr(nifti_records, "write_volume", fail_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        prepare_nifti(tree, tmp_path / "out", folds=2)
    monkeypatch.undo()
    assert (prepared := prepare_nifti(tree, tmp_path / "out", folds=2)).written == 2
    assert prepared.unchanged == 1
    prepare_nifti(tree, tmp_path / "whole", folds=2)
    for path in (tmp_path / "whole").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes()


def test_what_was_broken_off_is_not_vouched_for_by_an_older_record(tree, tmp_path, monkeypatch, made):
    from pipeline.datasets import nifti_records

    prepare_nifti(tree, tmp_path / "out", folds=2)
    before = flair_path(tree).read_bytes()
    with_another_voxel(flair_path(tree))
    write = nifti_records.write_json

    def fail_at_the_record(path, content):
        if path.name.endswith("_mask.json"):
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(nifti_records, "write_json", fail_at_the_record)
    with pytest.raises(KeyboardInterrupt):
        prepare_nifti(tree, tmp_path / "out", folds=2)
    monkeypatch.undo()
    flair_path(tree).write_bytes(before)  # the files of before, but half of what is prepared is of the others
    assert prepare_nifti(tree, tmp_path / "out", folds=2).written == 1
    prepared = read_scan(tmp_path / "out/sub-1/anat/sub-1_FLAIR.nii.gz")
    np.testing.assert_array_equal(prepared.image[0], made((42, 52, 9))["FLAIR"])


def with_another_voxel(path):
    image = nib.load(path)
    volume = np.asarray(image.dataobj).copy()
    volume[3, 4, 5] += 1
    nib.save(nib.Nifti1Image(volume, image.affine, image.header), path)


def with_a_damaged_checksum(path):
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(bytes(content))


def with_nan(path):
    image = nib.load(path)
    volume = image.get_fdata(dtype=np.float32)
    volume[3, 4, 5] = np.nan
    nib.save(nib.Nifti1Image(volume, image.affine), path)


FAULTS = {
    "NaN in the image": (lambda tree, _: with_nan(flair_path(tree)), "FLAIR.nii.gz: expected finite .* got 1 NaN"),
    "NaN in the mask": (lambda tree, _: with_nan(mask_path(tree)), "mask.nii.gz: expected the values .* got 1 NaN"),
    "another shape": (
        lambda tree, save: save(mask_path(tree), np.ones((42, 52, 8), np.uint8)),
        r"mask.nii.gz: expected the voxel grid of .*, shape \(42, 52, 9\), got shape \(42, 52, 8\)",
    ),
    "another place": (
        lambda tree, save: save(mask_path(tree), np.ones((42, 52, 9), np.uint8), shift=1.0),
        "mask.nii.gz: expected the voxel grid of .* within 0.1 mm, got voxels up to 1.73 mm away",
    ),
    "a third value": (
        lambda tree, save: save(mask_path(tree), np.arange(42 * 52 * 9).reshape(42, 52, 9).astype(np.uint8) % 3),
        "mask.nii.gz: expected the values 0, 1, got 0, 1, 2; --lesion-label VALUE names",
    ),
    "fractions": (
        lambda tree, save: save(mask_path(tree), np.linspace(0, 1, 42 * 52 * 9, dtype=np.float32).reshape(42, 52, 9)),
        r"mask.nii.gz: expected the values 0, 1, got 0, .*\.\.\. \(19,656 values\)",
    ),
    "a truncated mask": (
        lambda tree, _: mask_path(tree).write_bytes(mask_path(tree).read_bytes()[:-30]),
        "mask.nii.gz: expected a complete gzip file",
    ),
    "a damaged mask": (lambda tree, _: with_a_damaged_checksum(mask_path(tree)), "mask.nii.gz: expected intact gzip"),
    "a T1w of another place": (
        lambda tree, save: save(tree / "sub-1/anat/sub-1_T1w.nii.gz", np.arange(19656.0).reshape(42, 52, 9), shift=99),
        "T1w.nii.gz: expected at least 50% of the FLAIR's voxels inside of it, got 0%",
    ),
    "no mask": (lambda tree, _: mask_path(tree).unlink(), "no mask of it .* in derivatives"),
    "no FLAIR": (lambda tree, _: flair_path(tree).unlink(), r"no sub-1_\*FLAIR.nii.gz in its anat"),
    "two masks": (
        lambda tree, _: shutil.copytree(tree / "derivatives/rater1", tree / "derivatives/rater2"),
        "not clear: rater1/sub-1/anat/.*, rater2/sub-1/.*; --masks FOLDER",
    ),
}


@pytest.mark.parametrize(("damage", "expected"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_found(tree, save, damage, expected):
    damage(tree, save)
    checked = check_nifti(tree)
    assert re.search(f"sub-1: .*{expected}", texts_of(checked, errors=True)[0])
    assert "sub-1" not in checked.entries
    assert ("sub-3" in checked.entries) == ("rater2" not in expected)


def test_all_findings_are_told_before_anything_is_written(tree, tmp_path, save):
    with_nan(flair_path(tree))
    with_nan(mask_path(tree))
    save(mask_path(tree, "sub-2"), np.full((46, 9, 40), 7, np.uint8), *SCANS["sub-2"][1:])
    save(mask_path(tree, "sub-3"), np.zeros((38, 50, 8), np.uint8), *SCANS["sub-3"][1:])
    shutil.copytree(tree / "sub-1", tree / "sub-5")
    for number, subject in enumerate(("sub-6", "sub-7", "sub-8")):  # the first two are one
        folder = save(flair_path(tree, subject), np.arange(19656.0).reshape(42, 52, 9) ** (1 + number // 2)).parent
        save(mask_path(tree, subject), np.ones((42, 52, 9), np.uint8))
        assert folder.is_dir()
    seen = []

    def look(checked):
        seen.append(checked)
        assert not (tmp_path / "out").exists()

    prepared = prepare_nifti(tree, tmp_path / "out", folds=2, on_checked=look)
    assert [finding.subject for finding in seen[0].findings if finding.is_error] == [
        "sub-5", "sub-1", "sub-1", "sub-2", "sub-7",
    ]  # fmt: skip
    assert texts_of(seen[0], errors=False) == [f"sub-3: {mask_path(tree, 'sub-3')}: no lesion in the mask"]
    assert texts_of(seen[0])[-1] == "sub-7: the very voxels of sub-6, which is kept"
    assert sorted(entries_of(tmp_path / "out")) == ["sub-3", "sub-6", "sub-8"]
    assert {failure.patient for failure in prepared.failures} == {"sub-1", "sub-2", "sub-5", "sub-7"}


def test_another_value_can_be_the_lesion(tree, tmp_path, save):
    values = np.arange(19656).reshape(42, 52, 9) % 5
    save(mask_path(tree), values.astype(np.uint8))
    prepare_nifti(tree, tmp_path / "out", folds=2, choices=Choices(lesion_labels=("2", "4")))
    mask = read_mask(tmp_path / "out" / entries_of(tmp_path / "out")["sub-1"]["label"]).mask
    np.testing.assert_array_equal(mask, (values == 2) | (values == 4))


def test_fractions_are_no_labels_whichever_is_the_lesion(tree, save):
    save(mask_path(tree), np.linspace(0, 4, 19656, dtype=np.float32).reshape(42, 52, 9))
    (text,) = texts_of(check_nifti(tree, choices=Choices(lesion_labels=("2",))), errors=True)
    assert "mask.nii.gz: expected whole numbers, got 0, 0.000203511, " in text


def test_a_mask_that_is_scaled_means_what_its_header_says(tree, tmp_path):
    truth = read_mask(mask_path(tree)).mask
    image = nib.load(mask_path(tree))
    stored = nib.Nifti1Image((3 - 2 * truth).astype(np.uint8), image.affine, image.header)
    nib.save(stored, mask_path(tree))
    content = bytearray(gzip.decompress(mask_path(tree).read_bytes()))
    content[112:120] = np.array([-0.5, 1.5], "<f4").tobytes()  # scl_slope, scl_inter: 3 is 0, and 1 is 1
    mask_path(tree).write_bytes(gzip.compress(content))
    prepare_nifti(tree, tmp_path / "out", folds=2)
    found = read_mask(tmp_path / "out" / entries_of(tmp_path / "out")["sub-1"]["label"]).mask
    np.testing.assert_array_equal(found, truth)


def test_masks_are_taken_from_the_folder_that_is_named(tree, tmp_path, save):
    shutil.copytree(tree / "derivatives/rater1", tree / "derivatives/rater2")
    save(mask_path(tree, folder="rater2"), np.ones((42, 52, 9), np.uint8))
    prepare_nifti(tree, tmp_path / "out", folds=2, choices=Choices(masks="rater2"))
    assert entries_of(tmp_path / "out")["sub-1"]["lesion_voxels"] == 42 * 52 * 9
    with pytest.raises(DatasetError, match="expected a folder 'rater3', got rater1, rater2"):
        check_nifti(tree, choices=Choices(masks="rater3"))


def test_masks_of_this_very_program_are_no_truth(tree):
    shutil.copytree(tree / "derivatives/rater1", tree / "derivatives/predicted")
    description = {"GeneratedBy": [{"Name": "ar2unet"}]}
    (tree / "derivatives/predicted/dataset_description.json").write_text(json.dumps(description))
    checked = check_nifti(tree)
    assert len(checked.entries) == 3
    assert texts_of(checked) == [
        f"{tree / 'derivatives/predicted'}: made by ar2unet itself, so its masks are not taken"
    ]


def test_a_mask_without_a_label_will_do_but_not_that_of_the_brain(tree, save):
    anat = mask_path(tree).parent
    mask_path(tree).rename(anat / "sub-1_mask.nii.gz")
    save(anat / "sub-1_desc-brain_mask.nii.gz", np.ones((42, 52, 9), np.uint8))
    save(anat / "sub-1_label-WM_mask.nii.gz", np.ones((42, 52, 9), np.uint8))
    save(mask_path(tree, "sub-0"), np.ones((42, 52, 9), np.uint8))
    checked = check_nifti(tree)
    assert checked.source.pairs[0].label.name == "sub-1_mask.nii.gz"
    assert texts_of(checked) == [f"{mask_path(tree, 'sub-0')}: a mask without a FLAIR"]


def test_each_run_takes_its_own_mask(tree, save, made):
    for run in (1, 2, 3):
        volumes = made((42, 52, 9), run + 30)
        save(tree / f"sub-8/anat/sub-8_run-{run}_FLAIR.nii.gz", volumes["FLAIR"])
        entity = f"run-{run}_" if run < 3 else ""
        save(mask_path(tree).parents[2] / f"sub-8/anat/sub-8_{entity}label-lesion_mask.nii.gz", volumes["mask"])
    checked = check_nifti(tree)
    pairs = {pair.subject: pair.label.name for pair in checked.source.pairs if pair.patient == "sub-8"}
    assert pairs == {f"sub-8_run-{run}": f"sub-8_run-{run}_label-lesion_mask.nii.gz" for run in (1, 2)}
    assert texts_of(checked) == ["sub-8_run-3: no mask of it (*_label-lesion_mask.nii.gz) in derivatives"]


def test_what_cannot_be_prepared_at_all_is_refused(tree, tmp_path):
    for out in (tree, tree / "derivatives" / "prepared"):
        with pytest.raises(DatasetError, match=r"must lie outside of .*study$"):
            prepare_nifti(tree, out, folds=2)
    with pytest.raises(DatasetError, match=r"expected at least 5 patients for 5 folds, got 3 without an error"):
        prepare_nifti(tree, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DatasetError, match="folds must be at least 2, got 1"):
        prepare_nifti(tree, tmp_path / "out", folds=1)
    with pytest.raises(DatasetError, match=r"expected a BIDS tree .* or an nnU-Net folder"):
        check_nifti(tree / "sub-1")
    with pytest.raises(DatasetError, match="--patient-pattern goes with an nnU-Net folder"):
        check_nifti(tree, choices=Choices(patient_pattern="(.)"))
    with pytest.raises(DatasetError, match=r"--lesion-label: expected a whole number from 1 .*, got '0'"):
        check_nifti(tree, choices=Choices(lesion_labels=("0",)))


@pytest.mark.filterwarnings(
    # MONAI's EarlyStopHandler names arguments as ignite did before 0.5.5.
    "ignore:'(min_delta|cumulative_delta)' is deprecated:DeprecationWarning",
)
def test_training_takes_the_result(tree, tmp_path, monkeypatch, save):
    import torch
    from monai.bundle import ConfigWorkflow
    from monai.utils import set_determinism

    # A patient without a lesion, too.
    save(mask_path(tree, "sub-3"), np.zeros((38, 50, 8), np.uint8), *SCANS["sub-3"][1:])
    prepare_nifti(tree, tmp_path / "out", folds=2)
    entries = list(entries_of(tmp_path / "out").values())
    held_out = next(fold for fold in (0, 1) if sum(entry["fold"] == fold for entry in entries) == 1)
    monkeypatch.chdir(SEGMENTATION_BUNDLE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = {
        **{"dataset_dir": str(tmp_path / "out"), "output_dir": str(tmp_path / "run"), "fold": held_out, "epochs": 1},
        **{"channels": [4, 8, 16], "recurrences": 1, "batch_size": 1, "slice_size": [32, 48], "val_interval": 1},
        **{"num_workers": 0, "warmup_iterations": 1, "network_def#backbone": "none"},
    }
    workflow = ConfigWorkflow("configs/train.yaml", logging_file=False, workflow_type="train", **settings)
    try:
        workflow.initialize()
        workflow.run()
    finally:
        workflow.parser.get_parsed_content("writer").close()
        set_determinism(None)
    assert workflow.trainer.state.iteration == 2
    assert (tmp_path / "run" / "model_best.pt").is_file()


def run(*arguments):
    """Run the command; return its exit code and what it said on stdout and stderr, neither a traceback."""
    finished = subprocess.run(
        [sys.executable, "-c", "from pipeline.cli import main; main()", "prepare", "nifti", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in finished.stderr
    return finished.returncode, finished.stdout.splitlines(), finished.stderr.splitlines()


def test_the_command_lists_errors_and_warnings_and_does_the_rest(tree, tmp_path, save):
    out = tmp_path / "out"
    done = f"3 scans in {out}/datalist.json (3 written, 0 already there)"
    assert run(tree, "-o", out, "--folds", 2) == (0, [done], [])
    with_nan(flair_path(tree))
    save(mask_path(tree, "sub-3"), np.zeros((38, 50, 8), np.uint8), *SCANS["sub-3"][1:])
    done = f"2 scans in {out}/datalist.json (1 written, 1 already there)"
    options = {("--check",): "2 scans can be trained on", ("-o", out, "--folds", 2): done}
    for arguments, expected in options.items():
        code, said, (error, warning, last) = run(tree, *arguments)
        assert (code, said) == (1, [expected])
        assert error.startswith(f"ar2unet: error: sub-1: {flair_path(tree)}: expected finite intensities")
        assert warning == f"ar2unet: warning: sub-3: {mask_path(tree, 'sub-3')}: no lesion in the mask"
        assert last == "ar2unet: 1 scans are left out for their errors"


def test_the_command_refuses_wrong_usage(tree, tmp_path):
    line = "ar2unet: -o OUTPUT is missing: the folder for the results, or --check to write nothing"
    assert run(tree) == (2, [], [line])
    code, _, (line,) = run(tmp_path, "--check")
    assert (code, line.startswith(f"ar2unet: {tmp_path}: expected a BIDS tree")) == (2, True)


@needs_validator
@pytest.mark.parametrize("part", [".", "derivatives/manual"])
@pytest.mark.parametrize("publisher", ["lgg", "nifti"])
def test_the_validator_finds_no_error_in_what_was_prepared(tree, patient, make_patient, tmp_path, publisher, part):
    if publisher == "nifti":
        prepare_nifti(tree, tmp_path / "out", folds=2)
    else:
        make_patient("TCGA_DU_5849_19950405", copies=(0,))
        prepare_lgg(patient.folder.parent, tmp_path / "out", folds=2)
    finished = subprocess.run(
        [VALIDATOR, "--format", "json", tmp_path / "out" / part], capture_output=True, text=True, check=False
    )
    issues = json.loads(finished.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
