from __future__ import annotations

import csv
import json
import subprocess
import sys
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom
from typer.testing import CliRunner

from pipeline.cli.leakage import app
from pipeline.datasets import leakage as leakage_module
from pipeline.datasets.dementia_slices import STAGES, published_files
from pipeline.datasets.image_list import ListedImage, read_image_list
from pipeline.datasets.leakage import NearDuplicate, averaging, find_leakage
from pipeline.errors import DatasetError

UNPACK = Path(__file__).parents[4] / "shared" / "data" / "unpack.py"
ROWS, COLUMNS = 90, 71


def texture(seed, shape=(ROWS, COLUMNS)):
    """A picture like no other: bright in the middle, as all are, with a fine pattern of its own."""
    rng = np.random.default_rng(seed)
    middle = np.exp(-sum(axis**2 for axis in np.meshgrid(*(np.linspace(-2, 2, n) for n in shape), indexing="ij")))
    pattern = gaussian_filter(rng.standard_normal(shape), 1.5)
    return 120 * middle + 25 * pattern / pattern.std() + 90


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, **options)
    return path


@pytest.fixture
def make_image(tmp_path):
    """Write a picture and list it; by default one of its own."""

    def make(name, split, pixels=None, *, subject=None, **options):
        pixels = texture(zlib.crc32(name.encode())) if pixels is None else pixels
        return ListedImage(name, save(tmp_path / name, pixels, **options), split, subject)

    return make


# --- what counts as nearly the same ------------------------------------------------------------------

COPIES = {
    "the same": lambda pixels: pixels,
    "darker": lambda pixels: 0.4 * pixels + 10,
    "smaller": lambda pixels: zoom(pixels, (0.8, 0.9), order=1),
    "noisy": lambda pixels: pixels + np.random.default_rng(0).normal(0, 5, pixels.shape),
    "coloured": lambda pixels: np.stack([pixels, pixels, 0.9 * pixels], axis=-1),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize(("suffix", "options"), [(".png", {}), (".jpg", {"quality": 60})])
def test_a_changed_copy_in_another_split_is_found_and_nothing_else(make_image, copy, suffix, options):
    images = [
        make_image("a.png", "train", texture(1)),
        make_image("b.png", "train", texture(2)),
        make_image(f"c{suffix}", "test", copy(texture(2)), **options),
        make_image("d.png", "test", texture(3)),
    ]
    leakage = find_leakage(images)
    assert leakage.found
    assert {(near.image, near.other) for near in leakage.near_duplicates} == {
        ("b.png", f"c{suffix}"),
        (f"c{suffix}", "b.png"),
    }
    near = next(near for near in leakage.near_duplicates if near.image == "b.png")
    assert (near.split, near.other_split) == ("train", "test")
    assert (leakage.groups, leakage.shared_groups) == (3, 1)
    assert leakage.images == {"test": 2, "train": 2}


def test_a_copy_of_sixteen_bits_is_compared_with_all_of_them(make_image, tmp_path):
    Image.fromarray((200 * texture(2)).astype(np.uint16)).save(tmp_path / "deep.png")
    images = [make_image("a.png", "train", texture(2)), ListedImage("deep.png", tmp_path / "deep.png", "test", None)]
    leakage = find_leakage(images)
    assert {near.image for near in leakage.near_duplicates} == {"a.png", "deep.png"}
    assert leakage.failures == ()


def test_a_copy_in_the_same_split_is_no_leakage(make_image):
    images = [make_image("a.png", "train", texture(1)), make_image("b.png", "train", texture(1) + 3)]
    leakage = find_leakage([*images, make_image("c.png", "test", texture(2))])
    assert not leakage.found
    assert (leakage.groups, leakage.shared_groups) == (2, 0)
    assert leakage.nearest_elsewhere == 1  # only c has nobody in its own split


def test_a_subject_in_two_splits_is_leakage_even_if_its_images_differ_or_are_lost(make_image, tmp_path):
    images = [
        make_image("a.png", "train", subject="one"),
        make_image("b.png", "train", subject="two"),
        make_image("c.png", "validation", subject="three"),
        make_image("d.png", "validation", subject="two"),
        ListedImage("lost.png", tmp_path / "lost.png", "test", "one"),
    ]
    leakage = find_leakage(images)
    assert leakage.found
    assert leakage.near_duplicates == ()
    assert leakage.subjects == 3
    assert leakage.shared_subjects == {"one": ("test", "train"), "two": ("train", "validation")}
    assert [failure.patient for failure in leakage.failures] == ["lost.png"]
    assert leakage.images == {"test": 0, "train": 2, "validation": 2}


def test_images_are_grouped_by_chains_of_near_duplicates(make_image):
    frames = gaussian_filter(np.random.default_rng(5).standard_normal((30, ROWS, COLUMNS)), (4, 1.5, 1.5))
    chain = 120 + 30 * frames[[8, 10, 12, 14]] / frames.std()  # each is like the next, the first not like the last
    images = [make_image(f"{n}.png", split, chain[n]) for n, split in enumerate(("train", "train", "train", "test"))]
    leakage = find_leakage([*images, make_image("other.png", "test")])
    assert {near.image for near in leakage.near_duplicates} <= {"1.png", "2.png", "3.png"}
    assert (leakage.groups, leakage.shared_groups) == (2, 1)


@pytest.mark.parametrize("block", [1, 3, 512])
def test_all_numbers_are_those_of_comparing_every_pair(make_image, monkeypatch, block):
    monkeypatch.setattr(leakage_module, "BLOCK", block)
    rng = np.random.default_rng(6)
    bases = [texture(seed) for seed in range(4)]
    # Three of each base, more or less alike; two of them in one split.
    images = [
        make_image(f"{n}.png", ("x", "y")[n // 4 % 2], (1 - mix) * bases[n % 4] + mix * texture(50 + n))
        for n, mix in enumerate(rng.uniform(0, 0.6, 12))
    ]
    details = np.stack(
        [leakage_module.fine_detail(leakage_module.read_pixels(image), image.name) for image in images]
    ).astype(float)
    near, nearest_elsewhere = {}, 0
    for i, image in enumerate(images):
        others = sorted(((details[i] @ details[j], j) for j in range(12) if j != i), reverse=True)
        nearest_elsewhere += images[others[0][1]].split != image.split
        best = next((value, j) for value, j in others if images[j].split != image.split)
        if best[0] >= 0.6:
            near[image.name] = (images[best[1]].name, pytest.approx(best[0], abs=1e-5))
    leakage = find_leakage(images, similarity=0.6)
    assert 0 < len(near) < 12
    assert {n.image: (n.other, n.correlation) for n in leakage.near_duplicates} == near
    assert leakage.nearest_elsewhere == nearest_elsewhere
    groups = [{i} for i in range(12)]
    for i, j in np.argwhere(details @ details.T >= 0.6):
        joined = groups[i] | groups[j]
        for member in joined:
            groups[member] = joined
    distinct = {frozenset(group) for group in groups}
    assert 4 < len(distinct) < 12
    assert leakage.groups == len(distinct)
    assert leakage.shared_groups == sum(len({images[i].split for i in group}) > 1 for group in distinct)
    correlations = [n.correlation for n in leakage.near_duplicates]
    assert correlations == sorted(correlations, reverse=True)


# --- volumes -----------------------------------------------------------------------------------------


def save_volume(path, voxels, codes="RAS"):
    image = nib.Nifti1Image(voxels.astype(np.float32), np.eye(4))
    axes = nib.orientations.axcodes2ornt(codes)
    nib.save(image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), axes)), path)
    return path


def test_a_volume_stored_along_other_axes_is_found(tmp_path):
    shape = (41, 37, 33)
    images = [
        ListedImage("a", save_volume(tmp_path / "a.nii.gz", texture(1, shape)), "0", None),
        ListedImage("b.nii", save_volume(tmp_path / "b.nii", texture(2, shape)), "0", None),
        ListedImage("c.nii.gz", save_volume(tmp_path / "c.nii.gz", 3 * texture(2, shape), "PIL"), "1", None),
        ListedImage("d.nii.gz", save_volume(tmp_path / "d.nii.gz", texture(4, (*shape, 1, 2))), "1", None),
    ]
    images[0] = images[0]._replace(name="a.nii.gz")
    leakage = find_leakage(images)
    assert {near.image for near in leakage.near_duplicates} == {"b.nii", "c.nii.gz"}
    assert leakage.failures == ()


def test_a_volume_of_one_slice_is_compared_with_slices_and_other_volumes_are_not(make_image, tmp_path):
    flat = texture(1)[:, None, :]
    images = [
        make_image("slice.png", "train", texture(1)),
        ListedImage("flat.nii", save_volume(tmp_path / "flat.nii", flat), "test", None),
        ListedImage("deep.nii", save_volume(tmp_path / "deep.nii", np.repeat(flat, 9, 1)), "test", None),
    ]
    leakage = find_leakage(images)
    assert {near.image for near in leakage.near_duplicates} == {"slice.png", "flat.nii"}
    assert (leakage.groups, leakage.images) == (2, {"test": 2, "train": 1})


def test_of_several_volumes_in_a_file_the_first_counts(tmp_path):
    shape = (41, 37, 33)
    several = np.stack([texture(1, shape), texture(2, shape), texture(3, shape)], axis=-1)
    images = [
        ListedImage("a.nii", save_volume(tmp_path / "a.nii", several), "0", None),
        *(
            ListedImage(f"{n}.nii", save_volume(tmp_path / f"{n}.nii", texture(n, shape)), str(n), None)
            for n in (1, 2, 3)
        ),
    ]
    assert {near.image for near in find_leakage(images).near_duplicates} == {"a.nii", "1.nii"}


def test_holes_of_nan_hide_no_copy(tmp_path):
    shape = (41, 37, 33)
    copy = texture(1, shape)
    copy[5:8, 20, 10] = np.nan
    copy[30, 6, 6] = np.inf
    images = [
        ListedImage("a.nii", save_volume(tmp_path / "a.nii", texture(1, shape)), "0", None),
        ListedImage("b.nii", save_volume(tmp_path / "b.nii", copy), "1", None),
    ]
    leakage = find_leakage(images)
    assert {near.image for near in leakage.near_duplicates} == {"a.nii", "b.nii"}
    assert leakage.failures == ()


# --- what cannot be compared -------------------------------------------------------------------------


def test_an_image_that_cannot_be_compared_is_named_and_the_others_are(make_image, tmp_path):
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    cut = save(tmp_path / "cut.png", texture(9))
    cut.write_bytes(cut.read_bytes()[:500])
    flat = save(tmp_path / "flat.png", np.full((9, 8), 77))
    images = [make_image("a.png", "train", texture(1)), make_image("b.png", "test", texture(1))]
    broken = [ListedImage(path.name, path, "train", None) for path in (text, cut, flat, tmp_path / "none.png")]
    leakage = find_leakage([*images, *broken])
    assert [failure.patient for failure in leakage.failures] == ["text.png", "cut.png", "flat.png", "none.png"]
    assert all(failure.reason.startswith(f"{failure.patient}: ") for failure in leakage.failures)
    assert "one value all over" in leakage.failures[2].reason
    assert len(leakage.near_duplicates) == 2
    with pytest.raises(DatasetError, match=r"none of the 4 images can be compared, the first: text\.png: cannot"):
        find_leakage(broken)


@pytest.mark.parametrize("similarity", [0, -0.5, 1.01, float("nan")])
def test_a_similarity_out_of_range_is_refused(make_image, similarity):
    with pytest.raises(DatasetError, match="similarity must be above 0 and at most 1"):
        find_leakage([make_image("a.png", "x"), make_image("b.png", "y")], similarity=similarity)


@pytest.mark.parametrize("size", [3, 64, 71, 208])
def test_averaging_keeps_a_constant_and_a_slope(size):
    matrix = averaging(size, 64)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-5)
    centers = (np.arange(64) + 0.5) * size / 64
    if size >= 64:
        np.testing.assert_allclose(matrix @ (np.arange(size) + 0.5), centers, atol=0.26)


# --- lists -------------------------------------------------------------------------------------------


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_datalists_folds_are_its_splits(tmp_path):
    entries = [
        {"subject": "sub-a", "fold": 0, "image": ["a/t1.nii.gz", "a/flair.nii.gz"], "label": "a/mask.nii.gz"},
        {"subject": "sub-b", "fold": 1, "image": "b/t1.nii.gz", "label": 3},
    ]
    datalist = write(tmp_path / "datalist.json", {"name": "x", "labels": {"0": "y"}, "training": entries})
    assert read_image_list(datalist) == [
        ListedImage("a/t1.nii.gz", tmp_path / "a/t1.nii.gz", "training fold 0", "sub-a"),
        ListedImage("a/flair.nii.gz", tmp_path / "a/flair.nii.gz", "training fold 0", "sub-a"),
        ListedImage("b/t1.nii.gz", tmp_path / "b/t1.nii.gz", "training fold 1", "sub-b"),
    ]


def test_a_datalists_lists_are_its_splits(tmp_path):
    content = {
        "authors": ["Anna", "Bert"],
        "training": [{"image": "1.png", "label": 0}],
        "validation": [{"image": "2.png", "subject": 7}, {"image": "4.png", "subject": "s-1", "patient": "s"}],
        "test": ["3.png"],
    }
    root = tmp_path / "elsewhere"
    assert read_image_list(write(tmp_path / "d.json", content), root=root) == [
        ListedImage("1.png", root / "1.png", "training", None),
        ListedImage("2.png", root / "2.png", "validation", "7"),
        ListedImage("4.png", root / "4.png", "validation", "s"),
        ListedImage("3.png", root / "3.png", "test", None),
    ]


@pytest.mark.parametrize(("name", "comma"), [("list.csv", ","), ("list.tsv", "\t")])
def test_a_table_names_path_split_and_subject(tmp_path, name, comma):
    rows = ["path,split,subject,fold", "a b.png,train,s1,0", "c.png,test,,1"]
    table = write(tmp_path / name, "\n".join(rows).replace(",", comma) + "\n")
    assert read_image_list(table) == [
        ListedImage("a b.png", tmp_path / "a b.png", "train", "s1"),
        ListedImage("c.png", tmp_path / "c.png", "test", None),
    ]
    assert [image.split for image in read_image_list(table, split="fold")] == ["0", "1"]


def test_a_folders_folders_are_its_splits(tmp_path):
    for name in ("train/x/2.jpg", "train/x/1.PNG", "test/3.nii.gz", "test/.hidden.png", ".git/4.png", "5.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "train" / "notes.txt").write_text("")
    assert [(image.name, image.split, image.path, image.subject) for image in read_image_list(tmp_path)] == [
        ("test/3.nii.gz", "test", tmp_path / "test/3.nii.gz", None),
        ("train/x/1.PNG", "train", tmp_path / "train/x/1.PNG", None),
        ("train/x/2.jpg", "train", tmp_path / "train/x/2.jpg", None),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.json", "{", "cannot be read as JSON"),
        ("d.json", [1], "expected lists of images by name"),
        ("d.json", {"training": [{"label": 1}]}, "training, entry 0: expected a path or a list of paths under image"),
        ("d.json", {"training": [{"image": []}]}, "training, entry 0: expected a path"),
        ("d.json", {"training": [{"image": "a.png"}]}, "at least two splits, found only training"),
        ("d.json", {}, "at least two splits, found no images"),
        ("d.csv", "path,subject\na.png,b\n", "the column split is missing, the columns are path, subject"),
        ("d.csv", "", "the column path is missing, the columns are none"),
        ("d.csv", "path,split\na.png,\n", "line 2: path or split is empty"),
        ("d.csv", "path,split\na.png\n", "line 2: path or split is empty"),
        ("d.csv", 'path,split\n"a.png,train\n', "cannot be read as a table"),
        ("d.txt", "path", "is no list of images; expected a datalist"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path, name, content, message):
    with pytest.raises(DatasetError, match=message):
        read_image_list(write(tmp_path / name, content))


@pytest.mark.parametrize("name", ["nowhere.json", "nowhere.csv", "nowhere"])
def test_a_list_that_is_not_there_is_refused(tmp_path, name):
    with pytest.raises(DatasetError, match=r"No such file|is not there"):
        read_image_list(tmp_path / name)


# --- the command -------------------------------------------------------------------------------------


def run(*arguments):
    result = CliRunner().invoke(app, ["check-leakage", *map(str, arguments)])
    return result.exit_code, result.stdout.splitlines(), result.stderr


@pytest.fixture
def table(tmp_path):
    for n, seed in enumerate((1, 2, 3, 2)):
        save(tmp_path / f"{n}.png", texture(seed))
    return write(tmp_path / "list.csv", "path,split,subject\n0.png,a,s\n1.png,a,t\n2.png,b,u\n3.png,b,t\n")


def test_leakage_is_told_in_clear_lines_with_exit_code_1_and_written_as_json(table, tmp_path):
    code, lines, stderr = run(table, "--json", tmp_path / "out" / "leakage.json")
    assert code == 1
    assert stderr == ""
    assert lines == [
        "4 images: 2 in a, 2 in b",
        "subjects in more than one split: 1 of 3, such as t",
        "images with a near-duplicate in another split (correlation 0.75 or more): 2, such as 1.png and 3.png (1.000)",
        "images whose nearest image lies in another split: " + lines[3].split()[-1],
        "groups of near-duplicates in more than one split: 1 of 3",
        "leakage found",
    ]
    found = json.loads((tmp_path / "out" / "leakage.json").read_text())
    assert found["leakage"] is True
    assert found["shared_subjects"] == {"t": ["a", "b"]}
    assert found["images_with_near_duplicate_elsewhere"] == len(found["near_duplicates"]) == 2
    assert set(found["near_duplicates"][0]) == set(NearDuplicate._fields)


def test_no_leakage_is_exit_code_0_and_subjects_may_be_unknown(table):
    table.write_text("path,split\n0.png,a\n1.png,a\n2.png,b\n")
    code, lines, _ = run(table)
    assert code == 0
    assert lines[1] == "subjects in more than one split: not known, the list names no subjects"
    assert lines[-1] == "no leakage found"


def test_an_image_that_cannot_be_read_is_exit_code_1(table, tmp_path):
    table.write_text("path,split\n0.png,a\n1.png,a\n2.png,b\nlost.png,b\n")
    code, lines, stderr = run(table, "--json", tmp_path / "leakage.json")
    assert code == 1
    assert stderr == f"ar2unet: lost.png: no such file as {tmp_path / 'lost.png'}\n"
    assert lines[-1] == "no leakage found"
    reasons = json.loads((tmp_path / "leakage.json").read_text())["failures"]
    assert reasons == [f"lost.png: no such file as {tmp_path / 'lost.png'}"]


def test_a_bound_of_ones_own_counts(table):
    table.write_text("path,split\n0.png,a\n2.png,b\n")
    assert run(table)[0] == 0
    assert run(table, "--similarity", "0.0001")[1][2].startswith("images with a near-duplicate in another split (corr")
    assert isinstance(
        CliRunner().invoke(app, ["check-leakage", str(table), "--similarity", "0"]).exception, DatasetError
    )


# --- the published data ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not UNPACK.is_file(), reason="the published dementia data are not there")
def test_all_200_subjects_of_the_publishers_split_are_found_on_both_sides(tmp_path):
    source = tmp_path / "published"
    subprocess.run([sys.executable, UNPACK, "dementia", source], check=True, capture_output=True)
    by_folder = find_leakage(read_image_list(source))
    assert by_folder.images == {"test": 1279, "train": 5121}
    # Without a name of any subject.
    assert (by_folder.groups, by_folder.shared_groups) == (200, 200)

    with (tmp_path / "folds.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "split", "subject", "fold"))
        for stage in STAGES[2:]:  # some of the subjects, to save time
            for number, files in enumerate(published_files(stage)):
                writer.writerows((name, name.split("/")[0], f"{stage}{number}", number % 5) for name in files)
    published = read_image_list(tmp_path / "folds.csv", root=source)
    assert len(leakage_module.shared_subjects(published)) == 30
    by_subject = find_leakage(read_image_list(tmp_path / "folds.csv", root=source, split="fold"))
    assert not by_subject.found
    assert by_subject.nearest_elsewhere == 0
