from __future__ import annotations

import csv
import json
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from pipeline.datasets.dementia import prepare_dementia
from pipeline.datasets.dementia_slices import STAGES, Stage, published_files
from pipeline.datasets.dementia_subjects import MIN_CORRELATION, MIN_MARGIN, correlate_neighbours, recover_subjects
from pipeline.errors import DatasetError

UNPACK = Path(__file__).parents[4] / "shared" / "data" / "unpack.py"
ROWS, COLUMNS = 40, 52

# Two small stages. Of the first, text order of the test's numbers, and of those that train has of slice 26, by hand.
SMALL = (Stage(0, "NonDemented", "nonDem", 11, 25 * 11 + 9), Stage(2, "MildDemented", "mildDem", 3, 25 * 3 + 3))
ORDER = [10, 11, 2, 3, 4, 5, 6, 7, 8, 9, 1]
DIVIDED = [10, 2, 3, 4, 5, 6, 7, 8, 9]
SUBJECTS = [f"sub-NonDemented{n:03}" for n in range(1, 12)] + [f"sub-MildDemented{n:03}" for n in range(1, 4)]


def published_name(subject, k):
    """Where the publisher puts slice k, from 1, of a subject of the small stages."""
    stage, number = re.fullmatch(r"sub-(\w+?)(\d+)", subject).groups()
    position = int(number) - 1
    prefix, count, order = {"NonDemented": ("nonDem", 11, ORDER), "MildDemented": ("mildDem", 3, [2, 3, 1])}[stage]
    if k <= 25:
        return f"train/{stage}/{prefix}{(k - 1) * count + position}.jpg"
    in_train = DIVIDED if stage == "NonDemented" else order
    if k == 26 and order[position] in in_train:
        return f"train/{stage}/{prefix}{25 * count + in_train.index(order[position])}.jpg"
    return f"test/{stage}/{k}.jpg" if order[position] == 1 else f"test/{stage}/{k} ({order[position]}).jpg"


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The small stages as published; tests leave them as they are."""
    folder = tmp_path_factory.mktemp("dementia")
    rng = np.random.default_rng(4)
    for subject in SUBJECTS:
        # Each slice is like its neighbours; at the ends the filter would make them all but equal.
        smooth = gaussian_filter(rng.standard_normal((62, ROWS, COLUMNS)), (5, 1.5, 1.5))[15:47]
        pixels = (128 + 40 * smooth / smooth.std()).clip(0, 255).astype(np.uint8)
        for k in range(32):
            path = folder / published_name(subject, k + 1)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[k]).save(path, quality=95)
    return folder


@pytest.fixture
def source(made, tmp_path):
    """A copy of the small stages to break."""
    return shutil.copytree(made, tmp_path / "published")


def prepare(source, out, **changes):
    return prepare_dementia(source, out, **{"stages": SMALL, "folds": 3, **changes})


def entries_of(result):
    return json.loads(result.datalist.read_text())["training"]


def tree(root):
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image)


# --- what is written ---------------------------------------------------------------------------------


def test_every_slice_comes_back_to_its_subject_in_its_place(made, tmp_path):
    out = tmp_path / "DATA"
    result = prepare(made, out)
    assert (result.subjects, result.written, result.unchanged, result.failures) == (14, 14, 0, ())
    entries = entries_of(result)
    assert [entry["subject"] for entry in entries] == SUBJECTS
    for entry in entries:
        subject = entry["subject"]
        stage = subject[4:-3]
        assert entry == {
            "subject": subject,
            "fold": entry["fold"],
            "image": f"{subject}/anat/{subject}_T1w.nii.gz",
            "label": {"NonDemented": 0, "MildDemented": 2}[stage],
            "stage": stage,
            "slices": 32,
            "files": [published_name(subject, k) for k in range(1, 33)],
        }
        image = nib.load(out / entry["image"])
        expected = np.stack([pixels_of(made / file).T for file in entry["files"]], axis=-1)
        assert expected.shape == (COLUMNS, ROWS, 32)
        np.testing.assert_array_equal(np.asarray(image.dataobj), expected)
        assert image.get_data_dtype() == np.uint8
        assert nib.aff2axcodes(image.affine) == ("R", "P", "S")
        assert image.header.get_zooms() == (1, 1, 1)
        assert int(image.header["xyzt_units"]) == 0
        sidecar = json.loads((out / entry["image"].replace(".nii.gz", ".json")).read_text())
        assert sidecar["SpacingKnown"] is sidecar["LeftRightKnown"] is False
        assert "no voxel spacing" in sidecar["SpacingNote"]
        assert sidecar["SourceFiles"] == entry["files"]


def test_the_data_set_describes_itself_and_each_slice_with_the_publishers_split(made, tmp_path):
    out = tmp_path / "DATA"
    result = prepare(made, out, seed=5)
    datalist = json.loads(result.datalist.read_text())
    assert (datalist["folds"], datalist["seed"]) == (3, 5)
    assert datalist["labels"] == {"0": "NonDemented", "2": "MildDemented"}
    assert datalist["spacing"].startswith("unknown")
    assert datalist["certainty"]["smallest_margin"] == round(result.certainty.smallest_margin, 3)
    assert json.loads((out / "dataset_description.json").read_text())["DatasetType"] == "raw"
    assert (out / ".bidsignore").read_text() == "datalist.json\nslices.csv\n"
    table = [line.split("\t") for line in (out / "participants.tsv").read_text().splitlines()]
    assert (
        table[0]
        == ["participant_id", "stage", "label", "slices"]
        == list(json.loads((out / "participants.json").read_text()))
    )
    assert table[12] == ["sub-MildDemented001", "MildDemented", "2", "32"]
    assert "left" in (out / "README").read_text().lower()

    with (out / "slices.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    folds = {entry["subject"]: str(entry["fold"]) for entry in datalist["training"]}
    assert len(rows) == 14 * 32
    for row in rows:
        assert row["path"] == published_name(row["subject"], int(row["slice"]))
        assert row["split"] == row["path"].split("/")[0]
        assert (row["stage"], row["fold"]) == (row["subject"][4:-3], folds[row["subject"]])


def test_the_names_of_all_stages_are_those_published():
    names = [name for stage in STAGES for files in published_files(stage) for name in files]
    assert len(names) == len(set(names)) == 6400
    assert Counter(name.split("/")[0] for name in names) == {"train": 5121, "test": 1279}
    assert Counter(name.split("/")[1] for name in names if name.startswith("test/")) == {
        "NonDemented": 640,
        "VeryMildDemented": 448,
        "MildDemented": 179,
        "ModerateDemented": 12,
    }
    assert "test/NonDemented/26.jpg" in names
    assert "train/ModerateDemented/moderateDem51.jpg" in names


@pytest.mark.parametrize("seed", [0, 1])
def test_each_stage_is_spread_evenly_over_the_folds_by_chance(made, tmp_path, seed):
    entries = entries_of(prepare(made, tmp_path / "DATA", seed=seed))
    for stage in ("NonDemented", "MildDemented"):
        counts = Counter(entry["fold"] for entry in entries if entry["stage"] == stage)
        assert max(counts.values()) - min(counts[fold] for fold in range(3)) <= 1


def test_another_seed_puts_other_subjects_together(made, tmp_path):
    def together(seed):
        entries = entries_of(prepare(made, tmp_path / "DATA", seed=seed))
        return {frozenset(e["subject"] for e in entries if e["fold"] == fold) for fold in range(3)}

    assert together(0) == together(0) != together(1)


# --- runs after the first ----------------------------------------------------------------------------


def test_a_second_run_writes_nothing(made, tmp_path):
    out = tmp_path / "DATA"
    prepare(made, out)
    before = tree(out)
    result = prepare(made, out)
    assert (result.written, result.unchanged) == (0, 14)
    assert tree(out) == before


@pytest.mark.parametrize("lost", ["_T1w.nii.gz", "_T1w.json"])
def test_a_subject_whose_file_is_lost_is_done_again_and_only_it(made, tmp_path, lost):
    out = tmp_path / "DATA"
    prepare(made, out)
    before = tree(out)
    (out / "sub-NonDemented004" / "anat" / f"sub-NonDemented004{lost}").unlink()
    result = prepare(made, out)
    assert (result.written, result.unchanged) == (1, 13)
    assert {name: content for name, (content, _) in tree(out).items()} == {
        name: content for name, (content, _) in before.items()
    }


def test_a_subject_whose_slice_changed_is_done_again(source, tmp_path):
    out = tmp_path / "DATA"
    prepare(source, out)
    path = source / published_name("sub-MildDemented002", 9)
    Image.fromarray(pixels_of(path)).save(path, quality=90)
    result = prepare(source, out)
    assert (result.written, result.unchanged, result.failures) == (1, 13, ())
    volume = np.asarray(nib.load(out / "sub-MildDemented002/anat/sub-MildDemented002_T1w.nii.gz").dataobj)
    np.testing.assert_array_equal(volume[..., 8], pixels_of(path).T)


def test_a_run_that_breaks_off_leaves_no_record_that_vouches_for_the_old_volume(source, tmp_path, monkeypatch):
    out = tmp_path / "DATA"
    prepare(source, out)
    path = source / published_name("sub-MildDemented002", 9)
    before = path.read_bytes()
    Image.fromarray(pixels_of(path)).save(path, quality=90)

    def full_disk(path, *_):
        path.write_bytes(b"half a volume")
        raise DatasetError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.datasets.dementia.write_volume", full_disk)
        with pytest.raises(DatasetError, match="no space left"):
            prepare(source, out)
    path.write_bytes(before)
    assert prepare(source, out).written == 1


def test_progress_counts_reading_and_writing(made, tmp_path):
    calls = []
    prepare(made, tmp_path / "DATA", on_progress=lambda *call: calls.append(call))
    assert calls == [(n + 1, 28, subject) for n, subject in enumerate(SUBJECTS * 2)]


# --- what is not as published ------------------------------------------------------------------------


def swap(one, other):
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)


def at(number, k, stage="NonDemented"):
    return published_name(f"sub-{stage}{number:03}", k)


def noise(path, shape=(ROWS, COLUMNS)):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8)).save(path)


# What is done to the source; who is left out; what the first of their reasons says.
BREAKAGES = {
    "a missing slice": (lambda s: (s / at(3, 7)).unlink(), ["sub-NonDemented003"], f"{at(3, 7)} missing of its 32"),
    "two missing slices": (
        lambda s: [(s / at(3, 7)).unlink(), (s / at(3, 30)).unlink()],
        ["sub-NonDemented003"],
        f"{at(3, 7)} and 1 more missing",
    ),
    "a missing slice of those that divide train and test": (
        lambda s: (s / at(1, 26)).unlink(),
        ["sub-NonDemented001"],
        f"{at(1, 26)} missing",
    ),
    "a renamed slice": (
        lambda s: (s / at(5, 28)).rename(s / "test/NonDemented/brain.jpg"),
        ["sub-NonDemented005", "test/NonDemented/brain.jpg"],
        f"{at(5, 28)} missing",
    ),
    "a slice of another case": (
        lambda s: (s / at(5, 2)).rename(s / at(5, 2).replace(".jpg", ".JPG")),
        ["sub-NonDemented005", at(5, 2).replace(".jpg", ".JPG")],
        f"{at(5, 2)} missing",
    ),
    "a copy under another name": (
        lambda s: shutil.copy(s / at(2, 4), s / "train/NonDemented/nonDem5000.jpg"),
        ["train/NonDemented/nonDem5000.jpg"],
        f"not named as published, not used; the same image as {at(2, 4)}",
    ),
    "a copy over somebody else's": (
        lambda s: shutil.copy(s / at(2, 4), s / at(6, 4)),
        ["sub-NonDemented002", "sub-NonDemented006"],
        f"{at(2, 4)} is the same image as {at(6, 4)}",
    ),
    "a copy over the next slice": (
        lambda s: shutil.copy(s / at(2, 4), s / at(2, 5)),
        ["sub-NonDemented002"],
        f"{at(2, 4)} is the same image as {at(2, 5)}",
    ),
    "two subjects' slices exchanged": (
        lambda s: swap(s / at(8, 15), s / at(1, 15, "MildDemented")),
        ["sub-NonDemented008", "sub-MildDemented001"],
        f"{at(8, 14)} and {at(8, 15)} correlate at",
    ),
    "a subject's slices exchanged": (
        lambda s: swap(s / at(8, 31), s / at(8, 32)),
        ["sub-NonDemented008"],
        f"{at(8, 30)}, {at(8, 31)} and {at(8, 32)} are not in order",
    ),
    "the last slice of another subject": (
        lambda s: swap(s / at(9, 32), s / at(10, 32)),
        ["sub-NonDemented009", "sub-NonDemented010"],
        f"{at(9, 31)} and {at(9, 32)} correlate",
    ),
    "a foreign image under a published name": (
        lambda s: noise(s / at(4, 1)),
        ["sub-NonDemented004"],
        f"{at(4, 1)} and {at(4, 2)} correlate",
    ),
    "a black image": (
        lambda s: Image.new("L", (COLUMNS, ROWS)).save(s / at(4, 12)),
        ["sub-NonDemented004"],
        "correlate at 0.000, expected 0.965 or more of neighbours",
    ),
    "an image of another size": (
        lambda s: noise(s / at(4, 9), (ROWS, COLUMNS - 1)),
        ["sub-NonDemented004"],
        f"{at(4, 9)} is 51x40 pixels, its first slice 52x40",
    ),
    "a subject of another size": (
        lambda s: [noise(s / at(4, k), (ROWS, COLUMNS + 1)) for k in range(1, 33)],
        ["sub-NonDemented004"],
        "its slices are 53x40 pixels, expected 52x40 as most have",
    ),
    "a coloured image": (
        lambda s: noise(s / at(4, 9), (ROWS, COLUMNS, 3)),
        ["sub-NonDemented004"],
        f"{at(4, 9)} has pixels of kind RGB, expected 8-bit grey",
    ),
    "a truncated image": (
        lambda s: (s / at(4, 9)).write_bytes((s / at(4, 9)).read_bytes()[:400]),
        ["sub-NonDemented004"],
        f"{at(4, 9)} cannot be read (image file is truncated",
    ),
    "text under an image's name": (
        lambda s: (s / at(4, 9)).write_text("not a picture"),
        ["sub-NonDemented004"],
        f"{at(4, 9)} cannot be read (not a JPEG)",
    ),
    "a folder in an image's place": (
        lambda s: [(s / at(4, 9)).unlink(), (s / at(4, 9)).mkdir()],
        ["sub-NonDemented004"],
        f"{at(4, 9)} cannot be read: Is a directory",
    ),
    "a foreign folder": (
        lambda s: [(s / "test/Other").mkdir(), noise(s / "test/Other/photo.png")],
        ["test/Other/photo.png"],
        "test/Other/photo.png: not named as published",
    ),
    "a stage that is not there": (
        lambda s: [shutil.rmtree(s / split / "MildDemented") for split in ("train", "test")],
        ["MildDemented"],
        "MildDemented: none of its slices is there",
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES.values(), ids=BREAKAGES)
def test_what_is_not_as_published_is_named_and_the_others_are_done(source, tmp_path, breakage):
    damage, left_out, message = breakage
    damage(source)
    result = prepare(source, tmp_path / "DATA")
    assert sorted(failure.patient for failure in result.failures) == sorted(left_out)
    reasons = {failure.patient: failure.reason for failure in result.failures}
    assert message in reasons[left_out[0]]
    assert all(reason.startswith(patient) for patient, reason in reasons.items())
    kept = [subject for subject in SUBJECTS if subject not in left_out and subject[4:-3] not in left_out]
    entries = entries_of(result)
    assert [entry["subject"] for entry in entries] == kept
    assert all(e["files"] == [published_name(e["subject"], k) for k in range(1, 33)] for e in entries)


def test_hidden_files_and_files_that_are_no_images_are_passed_over(source, tmp_path):
    shutil.copy(source / at(1, 1), source / "train" / "._photo.jpg")
    (source / "train" / "NonDemented" / "readme.txt").write_text("hello")
    assert prepare(source, tmp_path / "DATA").failures == ()


def test_a_subject_that_another_is_nearly_as_much_alike_is_left_out(source, tmp_path):
    own, other = (np.stack([pixels_of(source / at(n, k)) for k in range(1, 33)]).astype(float) for n in (6, 7))
    for k in range(32):
        mixed = (0.97 * own[k] + 0.03 * other[k]).round().astype(np.uint8)
        Image.fromarray(mixed).save(source / at(7, k + 1), quality=95)
    failures = prepare(source, tmp_path / "DATA").failures
    assert [failure.patient for failure in failures] == ["sub-NonDemented006", "sub-NonDemented007"]
    assert "with those of sub-NonDemented007 at 0.9" in failures[0].reason


def test_the_certainty_is_that_of_the_pixels(made):
    volumes = {s: [pixels_of(made / published_name(s, k)).ravel() for k in range(1, 33)] for s in SUBJECTS}
    own = [np.corrcoef(v[k], v[k + 1])[0, 1] for v in volumes.values() for k in range(31)]
    between = {
        (a, b, k): np.corrcoef(volumes[a][k], volumes[b][k + 1])[0, 1]
        for a in SUBJECTS
        for b in SUBJECTS
        for k in range(31)
    }
    others = {key: value for key, value in between.items() if key[0] != key[1]}
    margins = [between[s, s, k] - value for (a, b, k), value in others.items() for s in (a, b)]
    certainty = recover_subjects(made, stages=SMALL).certainty
    assert certainty.lowest_own == pytest.approx(min(own), abs=1e-4)
    assert certainty.highest_other == pytest.approx(max(others.values()), abs=1e-4)
    assert certainty.smallest_margin == pytest.approx(min(margins), abs=1e-4)


def test_each_slice_is_compared_with_everybody_elses_next_and_previous_one():
    volumes = np.random.default_rng(2).integers(0, 256, (4, 3, 5, 6), np.uint8)
    own, other, rival, skipping = correlate_neighbours(list(volumes))
    for k in range(2):
        matrix = np.corrcoef(volumes[:, k].reshape(4, -1), volumes[:, k + 1].reshape(4, -1))[:4, 4:]
        np.testing.assert_allclose(own[k], np.diagonal(matrix), atol=1e-5)
        for s in range(4):
            values = {r: max(matrix[s, r], matrix[r, s]) for r in range(4) if r != s}
            assert other[k, s] == pytest.approx(max(values.values()), abs=1e-5)
            assert rival[k, s] == max(values, key=values.get)
    expected = [np.corrcoef(volume[0].ravel(), volume[2].ravel())[0, 1] for volume in volumes]
    np.testing.assert_allclose(skipping, [expected], atol=1e-5)


@pytest.mark.parametrize("name", ["nowhere", "empty", "file"])
def test_a_source_without_the_slices_is_refused_and_nothing_is_written(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"no published slices in .*; the data set holds train and test"):
        prepare(tmp_path / name, tmp_path / "DATA")
    assert not (tmp_path / "DATA").exists()


def test_fewer_than_two_folds_are_refused(made, tmp_path):
    with pytest.raises(DatasetError, match="folds must be at least 2, got 1"):
        prepare(made, tmp_path / "DATA", folds=1)


# --- the published data ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not UNPACK.is_file(), reason="the published dementia data are not there")
def test_all_6400_published_slices_are_given_to_the_right_subject(tmp_path):
    subprocess.run([sys.executable, UNPACK, "dementia", tmp_path], check=True, capture_output=True)
    with (UNPACK.parent / "dementia" / "subject_map.csv").open(newline="") as file:
        truth = {
            f"{row['kaggle_split']}/{row['class']}/{row['file']}": (row["subject"], int(row["slice"]))
            for row in csv.DictReader(file)
        }
    recovery = recover_subjects(tmp_path)
    assert recovery.failures == ()
    found = {
        file: (f"{s.stage}_{s.subject[-3:]}", k) for s in recovery.subjects for k, file in enumerate(s.files, start=1)
    }
    assert found == truth
    assert len(found) == 6400
    # The bounds lie well inside the gaps.
    assert recovery.certainty.lowest_own > MIN_CORRELATION + 0.01
    assert recovery.certainty.smallest_margin > 2 * MIN_MARGIN
    assert recovery.certainty.lowest_own > recovery.certainty.highest_other + 0.02

    # Of hundred pairs of slices exchanged by chance, none goes unseen.
    rng = random.Random(0)
    pairs = rng.sample(recovery.subjects, 20)
    for one, other in zip(pairs[::2], pairs[1::2], strict=True):
        k = rng.randrange(32)
        swap(tmp_path / one.files[k], tmp_path / other.files[k])
    broken = recover_subjects(tmp_path)
    assert {failure.patient for failure in broken.failures} == {subject.subject for subject in pairs}
