"""Bootstrap intervals where the distribution of the resamples is known."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.intervals import bootstrap_intervals


def test_the_interval_is_the_middle_of_what_resampling_gives():
    found = bootstrap_intervals([0, 0, 0, 0, 1])
    # How many ones are drawn is binomial(5, 1/5): at most 2 with 94.2 %, at most 3 with 99.3 %, none with 32.8 %.
    assert found.mean == pytest.approx((0, 3 / 5))
    # The median is 1 with 5.8 %, when at least 3 ones are drawn.
    assert found.median == (0, 1)


def test_a_lower_level_gives_a_narrower_interval():
    found = bootstrap_intervals([0, 0, 0, 0, 1], level=0.8)  # at most 1 one with 73.7 %, at most 2 with 94.2 %
    assert found.mean == pytest.approx((0, 2 / 5))
    assert found.median == (0, 0)


def test_of_many_patients_the_mean_lies_within_two_standard_errors():
    values = np.random.default_rng(4).normal(0.7, 0.1, 400)
    low, high = bootstrap_intervals(values).mean
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 20)


def test_equal_values_leave_no_doubt():
    assert bootstrap_intervals([0.25] * 6).mean == pytest.approx((0.25, 0.25))


def test_the_order_of_the_patients_does_not_matter_and_the_seed_does():
    values = [0.1, 0.5, 0.6, 0.83, 0.9, 0.31, 0.7]
    assert bootstrap_intervals(values) == bootstrap_intervals(values[::-1])
    assert bootstrap_intervals(values, resamples=50) != bootstrap_intervals(values, resamples=50, seed=1)


def test_of_four_patients_no_interval_is_claimed():
    assert bootstrap_intervals([0.1, 0.2, 0.3, 0.4]) is None
    assert bootstrap_intervals([]) is None
