"""The table of dementia staging: who is held out stays unseen, and every row is what it says."""

from __future__ import annotations

import csv
import functools
import importlib
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from networks.atrophy_classifier import AtrophyClassifier

BENCH = Path(__file__).parents[2] / "bench"
ROWS, COLUMNS, SLICES = 32, 24, 8  # all sizes differ, so a swapped axis cannot pass unseen
STAGES = ("NonDemented", "VeryMildDemented", "MildDemented", "ModerateDemented")
COUNTS = (20, 13, 10, 2)
Small = functools.partial(
    AtrophyClassifier,
    slices=SLICES,
    size=(ROWS, COLUMNS),
    window=((0, 32), (0, 24)),
    fluid_slices=4,
    fluid_window=((8, 24), (4, 20)),
)


@pytest.fixture(scope="module")
def bench():
    """Return the scripts by name, as they find one another when run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        names = ("subjects", "baselines", "slice_network", "atrophy", "rows", "plots", "cross_validation")
        yield {name: importlib.import_module(f"dementia_{name}") for name in names}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Brains whose dark hole grows with the stage, as ``ar2unet prepare dementia`` writes them."""
    folder, rng = tmp_path_factory.mktemp("prepared"), np.random.default_rng(0)
    entries, rows = [], []
    labels = np.repeat(np.arange(4), COUNTS)
    for number, label in enumerate(labels):
        volume = rng.integers(120, 180, (COLUMNS, ROWS, SLICES), dtype=np.uint8)
        half = 2 + label + int(rng.integers(0, 2))
        volume[12 - half : 12 + half, 16 - half : 16 + half, :4] = rng.integers(11, 40, dtype=np.uint8)
        subject = f"sub-{STAGES[label]}{number:03d}"
        nib.save(nib.Nifti1Image(volume, np.diag([1.0, -1.0, 1.0, 1.0])), folder / f"{subject}.nii.gz")
        entry = {"subject": subject, "fold": number % 5, "label": int(label), "slices": SLICES}
        entries.append({**entry, "image": f"{subject}.nii.gz"})
        for slice_number in range(1, SLICES + 1):
            split = "test" if slice_number > 6 else "train"
            rows.append({"subject": subject, "slice": slice_number, "split": split})
    (folder / "datalist.json").write_text(json.dumps({"training": entries}))
    with (folder / "slices.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["subject", "slice", "split"])
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def subjects(bench, prepared):
    return bench["subjects"].read_subjects(prepared)


@pytest.fixture(scope="module")
def features(bench, subjects):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench["atrophy"], "AtrophyClassifier", Small)
        return bench["atrophy"].read_features(subjects.slices)


# --- subjects and splits ------------------------------------------------------------------------------


def test_slices_lie_as_published_and_know_their_split(subjects, prepared):
    assert subjects.slices.shape == (sum(COUNTS), SLICES, ROWS, COLUMNS)
    volume = np.asarray(nib.load(prepared / f"{subjects.names[3]}.nii.gz").dataobj)
    assert (subjects.slices[3, 2] == volume[:, :, 2].T).all()
    assert subjects.in_test.sum(axis=1).tolist() == [2] * sum(COUNTS)
    assert subjects.in_test[:, 6:].all()
    assert np.bincount(subjects.classes).tolist() == [20, 13, 12]


def test_data_that_are_not_there_are_named_in_one_line(bench, tmp_path, capsys):
    assert bench["cross_validation"].main([str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "nowhere must be what 'ar2unet prepare dementia' wrote" in error


def test_folds_are_balanced_by_stage_and_each_seed_deals_anew(bench, subjects):
    first, second = (bench["subjects"].deal_folds(subjects, seed) for seed in (0, 1))
    assert (first != second).any()
    for stage in range(3):
        counts = np.bincount(first[subjects.stages == stage], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_a_fifth_of_all_slices_is_drawn_at_random(bench, subjects):
    held_out = bench["subjects"].shuffle_slices(subjects, 0)
    assert held_out.shape == subjects.in_test.shape
    assert held_out.sum() == held_out.size // 5
    assert len(set(held_out.sum(axis=1))) > 1


def test_what_is_kept_is_not_computed_again_and_other_settings_are_refused(bench, tmp_path):
    keep, path = bench["subjects"].keep, tmp_path / "runs" / "fold0.npz"
    assert keep(path, {"seed": 0}, lambda: {"a": np.arange(3)})["a"].tolist() == [0, 1, 2]
    assert keep(path, {"seed": 0}, lambda: {"a": np.zeros(1)})["a"].tolist() == [0, 1, 2]
    assert [each.name for each in path.parent.iterdir()] == ["fold0.npz"]
    with pytest.raises(Exception, match=r"fold0\.npz must be of the same data and settings"):
        keep(path, {"seed": 1}, dict)


# --- baselines ----------------------------------------------------------------------------------------


def test_the_nearest_neighbour_is_the_twin_unless_it_is_held_out_too(bench):
    points = np.array([[0.0, 0.0], [5.0, 0.0], [0.1, 0.0], [4.0, 0.0]])
    classes, folds = np.array([0, 1, 2, 1]), np.array([0, 1, 1, 0])
    found = bench["baselines"].nearest_subject(points @ points.T, classes, folds).argmax(axis=1)
    assert found.tolist() == [2, 1, 0, 1]
    folds = np.array([0, 1, 0, 1])  # twin beside twin: both are held out together
    found = bench["baselines"].nearest_subject(points @ points.T, classes, folds).argmax(axis=1)
    assert found.tolist() == [1, 2, 1, 2]


def test_the_nearest_slices_vote(bench):
    slices = np.array([0.0, 10, 20, 0.1, 10.1, 90, 20.1, 91, 92])[:, None]  # three each of three subjects
    votes = bench["baselines"].nearest_slices(slices @ slices.T, np.array([0, 1, 2]), np.array([0, 1, 2]))
    assert votes[0] == pytest.approx([0, 2 / 3, 1 / 3])
    assert votes.sum(axis=1) == pytest.approx(1)


def test_components_are_those_of_the_training_subjects_alone(bench):
    points = np.random.default_rng(0).normal(size=(30, 7)) * np.arange(1, 8)
    training, held_out = np.arange(20), np.arange(20, 30)
    inside, outside = bench["baselines"].principal_components(points @ points.T, training, held_out)
    mean = points[training].mean(axis=0)
    axes = np.linalg.svd(points[training] - mean, full_matrices=False)[2]
    expected = (points - mean) @ axes.T
    expected /= expected[training].std(axis=0)
    assert np.abs(inside) == pytest.approx(np.abs(expected[training]))
    assert np.abs(outside) == pytest.approx(np.abs(expected[held_out]))


def test_the_logistic_regression_is_where_its_gradient_vanishes(bench):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 3))
    truth = features[:, 0] + rng.normal(size=60) > 0.3
    weights, offset = bench["baselines"].fit_logistic(features, truth)
    excess = 1 / (1 + np.exp(-features @ weights - offset)) - truth
    assert features.T @ excess + weights == pytest.approx(np.zeros(3), abs=1e-2)
    assert excess.sum() == pytest.approx(0, abs=1e-2)


def test_the_stages_of_the_held_out_have_no_say_in_their_answers(bench, subjects, features):
    similarities = bench["baselines"].stack_similarities(subjects)
    flat = bench["baselines"].slice_similarities(subjects.slices.reshape(-1, ROWS, COLUMNS))
    held_out = subjects.folds == 2
    changed = np.where(held_out, 2 - subjects.classes, subjects.classes)
    recipes = bench["atrophy"].RECIPES[::9]
    for classify in (
        bench["baselines"].majority,
        functools.partial(bench["baselines"].nearest_subject, similarities),
        functools.partial(bench["baselines"].nearest_slices, flat),
        functools.partial(bench["baselines"].components_and_logistic, similarities),
        functools.partial(bench["atrophy"].cross_validate, features),
        lambda *split: bench["atrophy"].choose_and_cross_validate(features, *split, recipes)[0],
    ):
        before, after = classify(subjects.classes, subjects.folds), classify(changed, subjects.folds)
        assert (before[held_out] == after[held_out]).all()
        assert (before[~held_out] != after[~held_out]).any()
        assert before.sum(axis=1) == pytest.approx(1)
        assert before.min() >= 0


# --- the product's classifier -------------------------------------------------------------------------


def test_coordinates_lie_to_one_another_as_the_features_do(bench):
    features = np.random.default_rng(0).normal(size=(9, 50)).astype(np.float32)
    points = bench["atrophy"].coordinates(features)
    assert points.shape == (9, 9)
    expected = np.linalg.norm(features[:, None] - features, axis=2)
    assert np.linalg.norm(points[:, None] - points, axis=2) == pytest.approx(expected, abs=1e-3)


def test_the_shared_features_answer_as_the_classifier_itself(bench, subjects, features, monkeypatch):
    monkeypatch.setattr(bench["atrophy"], "AtrophyClassifier", Small)
    held_out = subjects.folds == 1
    found = bench["atrophy"].hold_out(subjects.slices, subjects.stages, held_out)
    shared = bench["atrophy"].cross_validate(features, subjects.classes, subjects.folds)
    assert found["subject"] == pytest.approx(shared[held_out], abs=1e-3)
    assert found["slice"].shape == (held_out.sum(), SLICES, 3)
    # Slices above the hole tell nothing, those in it do.
    right = found["slice"].argmax(axis=2) == subjects.classes[held_out][:, None]
    assert right[:, :4].mean() > right[:, 4:].mean()


def test_the_recipe_is_chosen_by_what_it_does_inside_of_the_training_folds(bench, subjects, features):
    atrophy = bench["atrophy"]
    good, bad = atrophy.PRODUCT, atrophy.PRODUCT._replace(penalty=1e6)  # so large that all get one answer
    found, chosen = atrophy.choose_and_cross_validate(features, subjects.classes, subjects.folds, [bad, good])
    assert chosen == [good] * 5
    assert (found == atrophy.cross_validate(features, subjects.classes, subjects.folds)).all()
    assert len(set(atrophy.RECIPES)) == 18
    assert atrophy.PRODUCT in atrophy.RECIPES


# --- the five-block network ---------------------------------------------------------------------------


def test_rare_stages_weigh_more_and_the_average_slice_weighs_one(bench):
    stages = torch.tensor([0] * 100 + [1] * 25 + [2] * 4 + [3])
    weights = bench["slice_network"].stage_weights(stages)
    assert weights[1] / weights[0] == pytest.approx(2)
    assert weights[2] / weights[0] == pytest.approx(5)
    assert weights[stages].mean() == pytest.approx(1)


def test_the_weights_of_the_training_are_taken_out_of_the_probabilities(bench):
    truth, weights = torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.tensor([1.0, 2.0, 4.0, 8.0])
    found = bench["slice_network"].classify(
        lambda images: (truth * weights).log().expand(len(images), 4), *_images(3), weights
    )
    assert found == pytest.approx(np.tile(truth.numpy(), (3, 1)))


def _images(count):
    return (torch.rand(count, 1, 16, 12),)


def test_slices_are_halved_and_made_equally_bright(bench):
    slices = np.random.default_rng(0).integers(50, 80, (3, ROWS, COLUMNS), dtype=np.uint8)
    slices[2] = 0  # a black slice has no brightness to go by
    prepare = bench["slice_network"].prepare_slices
    assert prepare(slices).shape == (3, 1, ROWS // 2, COLUMNS // 2)
    assert prepare(slices)[:2].numpy() == pytest.approx(prepare(3 * slices)[:2].numpy(), abs=1e-5)
    assert prepare(slices).isfinite().all()


def test_augmentation_moves_each_slice_differently_and_only_a_little(bench):
    image = torch.zeros(1, 1, 20, 16)
    image[..., 6:14, 5:11] = 1
    moved = bench["slice_network"].augment(image.expand(6, -1, -1, -1), torch.Generator().manual_seed(0))
    assert moved.shape == (6, 1, 20, 16)
    assert len({each.sum().item() for each in moved}) == 6
    assert (moved - image).abs().mean() < 0.2


def test_the_network_learns_what_slices_show_and_the_seed_repeats_it(bench):
    rng = np.random.default_rng(0)
    stages = np.tile([0, 1, 2, 3], 40)
    slices = rng.integers(100, 140, (160, 32, 16), dtype=np.uint8)
    slices[stages % 2 == 1, 10:20] = 20
    recipe = bench["slice_network"].Recipe(epochs=6, share=1.0, batch_size=16, channels=(4, 8), learning_rate=5.0e-3)
    held_out = np.arange(160) >= 120
    found = bench["slice_network"].hold_out(slices, stages, held_out, recipe)["probabilities"]
    odd = found[:, 1] + found[:, 3] > 0.5
    assert (odd == (stages[held_out] % 2 == 1)).mean() > 0.9
    again = bench["slice_network"].hold_out(slices, stages, held_out, recipe)["probabilities"]
    assert (again == found).all()


# --- figures ------------------------------------------------------------------------------------------


@pytest.fixture
def row(bench):
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 1, 2], [50, 35, 15])
    table = np.eye(3)[classes] + rng.gamma(1, 1, (100, 3))
    table /= table.sum(axis=1, keepdims=True)
    again = [table, np.roll(table, 1, axis=0)]
    return bench["rows"].Row("it", bench["rows"].FIVE_FOLDS, np.arange(100), classes, table, again, 2.0)


def test_intervals_hold_the_figure_and_other_deals_have_a_mean(bench, row):
    found = bench["cross_validation"].score(row)
    low, high = found["auc"]["interval_95"]
    assert low < found["auc"]["value"] < high
    single = [bench["cross_validation"].figures_of(np.ones(3))["auc"](row.classes, each) for each in row.again]
    assert found["auc"]["mean"] == pytest.approx(np.mean(single))
    assert found["auc"]["deviation"] == pytest.approx(np.std(single, ddof=1))


def test_ten_slices_of_a_subject_are_no_ten_subjects(bench, row):
    from dataclasses import replace

    ten = {name: np.repeat(getattr(row, name), 10, axis=0) for name in ("owners", "classes", "probabilities")}
    one, many = (bench["cross_validation"].score(each) for each in (row, replace(row, **ten, again=())))
    assert many["answers"] == 1000
    assert many["subjects"] == 100
    assert many["auc"]["interval_95"] == pytest.approx(one["auc"]["interval_95"])


def test_a_split_that_leaks_gets_no_interval(bench, row):
    from dataclasses import replace

    found = bench["cross_validation"].score(replace(row, split=bench["rows"].PUBLISHED))
    assert found["auc"]["interval_95"] is None


def test_whoever_is_demented_at_all_counts(bench):
    figures = bench["cross_validation"].figures_of(np.ones(3))
    table = np.array([[0.3, 0.6, 0.1], [0.7, 0.0, 0.3], [0.6, 0.2, 0.2], [0.1, 0.1, 0.8]])
    assert figures["auc"](np.array([1, 0, 0, 2]), table) == 1
    assert figures["calibration_error"](np.array([1, 0, 0, 2]), table) == pytest.approx((0.3 + 0.3 + 0.4 + 0.1) / 4)


def test_the_balanced_answer_asks_what_rises_above_its_share(bench):
    figures = bench["cross_validation"].figures_of(np.array([0.5, 0.35, 0.15]))
    table, classes = np.array([[0.45, 0.35, 0.2], [0.6, 0.3, 0.1]]), np.array([2, 0])
    assert figures["balanced_accuracy"](classes, table) == 1
    assert figures["balanced_accuracy_of_the_likeliest"](classes, table) == 0.5


def test_the_floor_is_nothing_for_the_certain_and_about_a_twentieth_for_two_hundred(bench):
    floor = bench["cross_validation"].calibration_floor
    assert floor(np.repeat([0.0, 1.0], 50)) == (0, 0)
    mean, usual = floor(np.linspace(0.2, 0.8, 200))
    assert 0.04 < mean < 0.07 < usual < 0.12


def test_fewer_answers_are_given_the_surer_they_have_to_be(bench):
    demented, dementia = np.array([True, False, True, False]), np.array([0.9, 0.2, 0.4, 0.45])
    coverage = bench["plots"].coverage
    assert coverage(demented, dementia, 0.5) == (1, 0.75)
    assert coverage(demented, dementia, 0.7) == (0.5, 1)
    assert coverage(demented, dementia, 0.95) == (0, None)


def test_the_whole_table_on_small_brains(bench, prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench["atrophy"], "AtrophyClassifier", Small)
    monkeypatch.setattr(bench["atrophy"], "RECIPES", bench["atrophy"].RECIPES[::9])
    monkeypatch.setattr(bench["rows"], "SEEDS", (0, 1))
    monkeypatch.setattr(bench["rows"], "PERMUTATIONS", 4)
    monkeypatch.setattr(bench["cross_validation"], "RESAMPLES", 40)
    monkeypatch.setattr(bench["cross_validation"], "FLOOR_DRAWS", 40)
    options = ["--runs", tmp_path / "runs", "--json", tmp_path / "a.json", "--images", tmp_path, "--epochs", 1]
    assert bench["cross_validation"].main([str(prepared), *map(str, options)]) == 0
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert rows["majority class"]["auc"]["value"] < 0.55
    assert rows["AtrophyClassifier"]["auc"]["value"] > 0.8
    assert rows["AtrophyClassifier, stages shuffled 4 times"]["auc"]["value"] == pytest.approx(0.5, abs=0.15)
    assert rows["five-block network, mean over slices"]["answers"] == sum(COUNTS)
    assert rows["five-block network, one slice"]["answers"] == sum(COUNTS) * SLICES
    assert rows["five-block network, one slice@the publisher's: leaks"]["answers"] == sum(COUNTS) * 2
    assert len(re.findall(r"(?m)^\| [^|]+ \| (?:subjects|slices|the publisher)", printed)) == len(rows) == 15
    assert "| sure from | answered | of them right |" in printed
    for name in ("confusion", "calibration", "coverage"):
        assert 5_000 < (tmp_path / f"dementia_{name}.png").stat().st_size < 150_000
