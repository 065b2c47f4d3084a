"""``pipeline.evaluation.classification``: every figure against its definition, spelled out."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.classification import (
    balanced_accuracy,
    bootstrap_interval,
    class_aucs,
    expected_calibration_error,
    macro_auc,
    roc_auc,
    summarize_stages,
)

LABELS = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2])


@pytest.fixture
def probabilities():
    table = np.random.default_rng(3).random((11, 3)) + 0.4 * np.eye(3)[LABELS]
    return table / table.sum(1, keepdims=True)


def test_the_auc_is_the_share_of_pairs_in_order_with_ties_counting_half():
    truth, scores = [0, 0, 1, 1, 0, 1], [0.1, 0.4, 0.4, 0.9, 0.6, 0.2]
    positives, negatives = ([0.4, 0.9, 0.2], [0.1, 0.4, 0.6])
    pairs = [(p > n) + 0.5 * (p == n) for p in positives for n in negatives]
    assert roc_auc(truth, scores) == pytest.approx(np.mean(pairs))
    assert roc_auc(truth, [7.0] * 6) == 0.5
    assert roc_auc([0, 1], [1.0, 2.0]) == 1.0
    assert roc_auc([0, 1], [2.0, 1.0]) == 0.0


def test_the_auc_of_many_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    truth, scores = rng.integers(0, 2, 83), rng.integers(0, 20, 83) / 20
    order = scores[truth > 0][:, None] - scores[truth == 0][None]
    assert roc_auc(truth, scores) == pytest.approx(np.mean((order > 0) + 0.5 * (order == 0)))


def test_the_macro_auc_is_the_mean_of_one_against_the_others(probabilities):
    areas = [roc_auc(np.equal(LABELS, k), probabilities[:, k]) for k in range(3)]
    assert class_aucs(LABELS, probabilities) == tuple(areas)
    assert macro_auc(LABELS, probabilities) == pytest.approx(np.mean(areas))
    assert len(set(areas)) == 3


def test_balanced_accuracy_counts_classes_and_not_subjects():
    assert balanced_accuracy([0] * 8 + [1] * 2, [0] * 10) == 0.5
    assert balanced_accuracy([0, 0, 0, 2], [0, 0, 1, 2]) == pytest.approx((2 / 3 + 1) / 2)


def test_the_calibration_error_is_the_mean_gap_of_bins_of_equal_mass():
    values = np.linspace(0.02, 0.98, 20)
    truth = np.random.default_rng(1).random(20) < values**2
    gaps = [abs(values[part].mean() - truth[part].mean()) for part in np.split(np.arange(20), 5)]
    assert expected_calibration_error(truth, values) == pytest.approx(np.mean(gaps))
    assert expected_calibration_error(truth, values, bins=1) == pytest.approx(abs(values.mean() - truth.mean()))


def test_a_sure_and_right_model_is_calibrated_and_a_sure_and_wrong_one_is_not():
    truth = [0, 1, 0, 1, 1, 0]
    assert expected_calibration_error(truth, truth) == 0
    assert expected_calibration_error(truth, [1 - value for value in truth]) == 1


def test_the_interval_of_a_mean_is_that_of_its_normal_approximation():
    values = np.random.default_rng(2).normal(5, 2, 400)
    low, high = bootstrap_interval(np.mean, values)
    half = 1.96 * values.std() / 20
    assert (low, high) == (pytest.approx(values.mean() - half, abs=0.03), pytest.approx(values.mean() + half, abs=0.03))
    assert bootstrap_interval(np.mean, values) == (low, high)
    assert bootstrap_interval(np.mean, values, level=0.5)[0] > low


def test_an_interval_has_half_of_what_its_level_leaves_on_either_side():
    values = np.random.default_rng(2).normal(5, 2, 400)
    error = values.std() / 20
    for level, width in ((0.5, 0.674), (0.8, 1.282)):
        ends = bootstrap_interval(np.mean, values, level=level)
        assert ends == pytest.approx((values.mean() - width * error, values.mean() + width * error), abs=0.015)


def test_columns_are_drawn_together():
    truth = np.arange(30) % 2
    assert bootstrap_interval(roc_auc, truth, truth + 0.0) == (1.0, 1.0)


def test_draws_without_one_of_the_classes_are_left_out_and_too_few_subjects_have_no_interval():
    assert bootstrap_interval(roc_auc, [0, 0, 0, 0, 0, 1], [1, 2, 3, 4, 5, 6]) == (1.0, 1.0)
    assert bootstrap_interval(roc_auc, [0, 1], [1, 2]) is None
    assert bootstrap_interval(roc_auc, [0] * 9, [1] * 9) is None


def test_where_most_draws_are_undefined_there_is_no_interval():
    labels, table = [0] * 8 + [1, 2], np.eye(3)[[0] * 8 + [1, 2]]
    assert bootstrap_interval(roc_auc, np.equal(labels, 1), table[:, 1]) == (1.0, 1.0)  # a third of the draws
    assert bootstrap_interval(macro_auc, labels, table) is None  # more than half of them


def test_the_summary_draws_as_often_as_it_is_told(probabilities):
    few = summarize_stages(LABELS, probabilities, resamples=50)["macro_auc"]["interval_95"]
    assert few == list(bootstrap_interval(macro_auc, LABELS, probabilities, resamples=50))
    assert few != list(bootstrap_interval(macro_auc, LABELS, probabilities))
    assert "interval_95" not in summarize_stages(LABELS, probabilities, resamples=0)["macro_auc"]


def test_the_summary_holds_each_figure_with_its_interval(probabilities):
    prior = [5 / 11, 3 / 11, 3 / 11]
    summary = summarize_stages(LABELS, probabilities, prior=prior, resamples=200)
    assert summary["subjects"] == 11
    assert summary["auc_non_vs_any"]["value"] == roc_auc(LABELS > 0, 1 - probabilities[:, 0])
    assert summary["macro_auc"]["value"] == macro_auc(LABELS, probabilities)
    assert summary["balanced_accuracy"]["value"] == balanced_accuracy(LABELS, probabilities.argmax(1))
    raised = (probabilities / prior).argmax(1)
    assert summary["balanced_accuracy_for_shares"]["value"] == balanced_accuracy(LABELS, raised)
    for name in ("auc_non_vs_any", "macro_auc", "balanced_accuracy"):
        low, high = summary[name]["interval_95"]
        assert low <= summary[name]["value"] <= high
    confusion = np.array(summary["confusion"])
    assert confusion.sum(1).tolist() == [5, 3, 3]
    assert confusion[1, 2] == np.sum((LABELS == 1) & (probabilities.argmax(1) == 2))


def test_a_figure_that_is_undefined_is_none():
    summary = summarize_stages([0, 0, 0], [[0.7, 0.2, 0.1]] * 3)
    assert summary["auc_non_vs_any"] == {"value": None, "interval_95": None}
    assert summary["class_aucs"] is None
    assert summary["balanced_accuracy"]["value"] == 1.0


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (roc_auc, ([0, 1], [1.0]), r"truth and scores must have one entry a subject, got shapes \(2,\) and \(1,\)"),
        (roc_auc, ([1, 1], [1.0, 2.0]), "needs subjects on both sides, got 2 positive of 2"),
        (roc_auc, ([0, 1], [1.0, np.nan]), "scores must be finite"),
        (macro_auc, ([0, 1], [[1.0, 0.0, 0.0]] * 3), "labels and probabilities must have one entry"),
        (balanced_accuracy, ([], []), "must have one entry a subject"),
        (expected_calibration_error, ([0, 1], [0.5, 1.5]), "probabilities must be 0 to 1, got 0.5 to 1.5"),
        (expected_calibration_error, ([0, 1], [0.5, 0.5], 0), "bins must be at least 1, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)
