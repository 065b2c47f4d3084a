"""Calibration by hand: few voxels, every number can be checked on paper."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.calibration import (
    ReliabilityBins,
    expected_calibration_error,
    fit_temperature,
    reliability,
    summarize_calibration,
)


def voxels(*groups):
    """Make probabilities and truth from (probability, voxels, how many of them lesion)."""
    probabilities = np.concatenate([np.full(number, value) for value, number, _ in groups])
    truth = np.concatenate([np.arange(number) < positive for _, number, positive in groups])
    return probabilities, truth


def logit(probabilities):
    return np.log(probabilities / (1 - probabilities))


def test_each_voxel_falls_into_the_bin_of_its_probability():
    probabilities = np.array([[0.0, 0.1, 0.25], [0.26, 0.5, 1.0]])
    truth = np.array([[0, 1, 0], [0, 2, 1]])
    # Bins of four end with 0.25, 0.5, 0.75 and 1.
    assert reliability(probabilities, truth, bins=4) == ReliabilityBins(
        (3, 2, 0, 1), (0.35, 0.76, 0.0, 1.0), (1, 1, 0, 1)
    )


def test_only_voxels_inside_are_looked_at():
    probabilities, truth = np.array([0.2, 0.9, 0.9]), np.array([0, 0, 1])
    inside = np.array([1, 0, 1])
    assert reliability(probabilities, truth, inside, bins=2) == ReliabilityBins((1, 1), (0.2, 0.9), (0, 1))


def test_there_are_fifteen_bins_as_in_the_paper():
    bins = reliability(np.array([0.0, 1 / 15, 0.07, 0.95, 1.0]), np.zeros(5))
    assert bins.counts == (2, 1, *[0] * 12, 2)


def test_the_error_is_the_weighted_mean_of_the_gaps():
    # Of 8 voxels at 0.1 none is lesion, a gap of 0.1; of 2 at 0.7 both are, a gap of 0.3.
    bins = reliability(*voxels((0.1, 8, 0), (0.7, 2, 2)))
    assert expected_calibration_error(bins) == pytest.approx(0.8 * 0.1 + 0.2 * 0.3)


def test_within_a_bin_too_high_and_too_low_cancel():
    bins = reliability(np.array([0.1, 0.3]), np.array([0, 0]), bins=2) + reliability([0.4], [1], bins=2)
    assert expected_calibration_error(bins) == pytest.approx((1 - 0.8) / 3)


def test_perfectly_calibrated_voxels_have_no_error():
    bins = reliability(*voxels((0.0, 7, 0), (0.2, 10, 2), (0.5, 6, 3), (0.9, 10, 9), (1.0, 3, 3)))
    assert expected_calibration_error(bins) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("constant", "error"), [(0.0, 0.25), (0.25, 0.0), (0.6, 0.35), (1.0, 0.75)])
def test_a_constant_is_wrong_by_its_distance_from_the_share_of_lesion(constant, error):
    assert expected_calibration_error(reliability(*voxels((constant, 40, 10)))) == pytest.approx(error)


def test_patients_are_added_voxel_by_voxel():
    first, second = voxels((0.1, 8, 0), (0.7, 2, 2)), voxels((0.1, 3, 1), (0.4, 5, 0))
    together = [np.concatenate(pair) for pair in zip(first, second, strict=True)]
    sum_of_both, at_once = reliability(*first) + reliability(*second), reliability(*together)
    assert (sum_of_both.counts, sum_of_both.positive_sums) == (at_once.counts, at_once.positive_sums)
    assert sum_of_both.probability_sums == pytest.approx(at_once.probability_sums)


def test_different_bins_cannot_be_added():
    with pytest.raises(ValueError, match="equal in number, got 15 and 4"):
        reliability([0.5], [1]) + reliability([0.5], [1], bins=4)


def test_the_summary_says_of_each_bin_what_was_promised_and_what_came():
    summary = summarize_calibration(reliability(*voxels((0.1, 8, 0), (0.7, 2, 2)), bins=2))
    assert summary.pop("expected_calibration_error") == pytest.approx(0.14)
    first, second = summary.pop("bins")
    assert first == {"from": 0, "to": 0.5, "voxels": 8, "mean_probability": pytest.approx(0.1), "lesion_share": 0}
    assert second == {"from": 0.5, "to": 1, "voxels": 2, "mean_probability": pytest.approx(0.7), "lesion_share": 1}
    assert summary == {"region": "head", "voxels": 10}


def test_of_an_empty_bin_the_summary_promises_nothing():
    empty = summarize_calibration(reliability([0.9], [1], bins=2))["bins"][0]
    assert (empty["voxels"], empty["mean_probability"], empty["lesion_share"]) == (0, None, None)


def test_rounding_beyond_1_is_forgiven_and_nothing_else():
    assert reliability(np.array([1 + 1e-7, -1e-7]), [1, 0], bins=2) == ReliabilityBins((1, 1), (0.0, 1.0), (0, 1))
    for wrong in (1.01, -0.01, np.nan):
        with pytest.raises(ValueError, match="probabilities must be 0 to 1, got"):
            reliability([0.5, wrong], [0, 0])


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"must have one shape, got \(2, 3\), \(3, 2\), \(2, 3\)"):
        reliability(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"must have one shape, got \(3,\), \(3,\), \(1,\)"):
        reliability(np.zeros(3), np.zeros(3), np.ones(1))
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        reliability([0.5], [1], bins=0)


def test_no_voxels_have_no_error():
    nothing = reliability([0.5], [1], [0])
    assert sum(nothing.counts) == 0
    with pytest.raises(ValueError, match="no voxels"):
        expected_calibration_error(nothing)


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_what_the_logits_were_scaled_by(scale):
    probabilities, truth = voxels((0.1, 20, 2), (0.3, 10, 3), (0.8, 10, 8), (0.95, 40, 38))
    assert fit_temperature(scale * logit(probabilities), truth) == pytest.approx(scale, rel=1e-3)


def test_the_temperature_lowers_the_calibration_error_of_a_network_too_sure_of_itself():
    probabilities, truth = voxels((0.1, 20, 2), (0.3, 10, 3), (0.8, 10, 8), (0.95, 40, 38))
    logits = 3 * logit(probabilities)
    temperature = fit_temperature(logits, truth)

    def error(values):
        return expected_calibration_error(reliability(1 / (1 + np.exp(-values)), truth))

    assert error(logits) > 0.05
    assert error(logits / temperature) < 0.001


def test_large_logits_do_not_overflow():
    temperature = fit_temperature(np.array([2000.0, -2000.0, 2000.0, -2000.0, 2000.0]), np.array([1, 0, 1, 0, 0]))
    # Four of five are right; at the best T, a probability of 0.8, it is 2000 / log(4), which is more than may be.
    assert temperature == pytest.approx(100, rel=1e-3)


@pytest.mark.parametrize(
    ("logits", "truth", "reason"),
    [
        ([], [], "both classes, got 0 lesion of 0"),
        ([1.0, 2.0], [0, 0], "both classes, got 0 lesion of 2"),
        ([1.0, 2.0, 3.0], [1, 1, 1], "both classes, got 3 lesion of 3"),
        ([1.0, 2.0], [1], r"must both be \(N,\), got \(2,\) and \(1,\)"),
        ([[1.0, 2.0]], [[1, 0]], r"must both be \(N,\), got \(1, 2\)"),
        ([1.0, np.inf], [1, 0], "logits must be finite"),
    ],
)
def test_what_no_temperature_can_be_fitted_to_is_refused(logits, truth, reason):
    with pytest.raises(ValueError, match=reason):
        fit_temperature(np.array(logits), np.array(truth))
