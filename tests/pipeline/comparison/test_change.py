"""What a change is called."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.comparison.change import (
    PRODUCT_LIMITS,
    VOLUME_LIMITS,
    Amount,
    NewLesion,
    categorize,
    find_new_lesions,
    measure_change,
    measure_overlap,
    share_outside,
)

LARGE = NewLesion(700, 0.6, 20.0, (1.0, 2.0, 3.0))
SMALL = NewLesion(400, 0.4, 20.0, (1.0, 2.0, 3.0))


def amount(volume, *, interval=None, product=None, voxels=None):
    return Amount(voxels if voxels is not None else int(1000 * volume), 1, volume, interval, product)


@pytest.mark.parametrize(
    ("after", "by_volume", "by_product"),
    [
        (0, "complete response", "complete response"),
        (35, "partial response", "partial response"),
        (36, "minor response", "partial response"),
        (50, "minor response", "partial response"),
        (65, "minor response", "minor response"),
        (66, "stable", "minor response"),
        (75, "stable", "minor response"),
        (76, "stable", "stable"),
        (124, "stable", "stable"),
        (125, "stable", "progression"),
        (139, "stable", "progression"),
        (140, "progression", "progression"),
    ],
)
def test_the_category_changes_at_its_limits(after, by_volume, by_product):
    assert categorize(100, after, VOLUME_LIMITS) == by_volume
    assert categorize(100, after, PRODUCT_LIMITS) == by_product


def test_where_nothing_was_there_is_no_percentage():
    assert categorize(0, 0, VOLUME_LIMITS) == "no lesion"
    assert categorize(0, 5, VOLUME_LIMITS) is None
    change = measure_change(amount(0.0), amount(0.3))
    assert (change.percent, change.category, change.ml) == (None, None, 0.3)
    assert "too small" in change.reason
    assert measure_change(amount(0.0), amount(0.6), (LARGE,)).category == "progression"


def test_a_change_is_measured_by_volume_and_by_diameters():
    change = measure_change(amount(20.0, product=900.0), amount(27.0, product=1170.0))
    assert (change.ml, change.percent, change.product_percent) == pytest.approx((7, 35, 30))
    assert (change.category, change.category_by_product) == ("stable", "progression")
    assert "+35 %" in change.reason


def test_without_millilitres_voxels_are_compared():
    before, after = Amount(200, 1, None, None, None), Amount(60, 1, None, None, None)
    change = measure_change(before, after)
    assert (change.ml, change.percent, change.category) == (None, -70, "partial response")
    assert change.category_by_product is None


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [((8, 12), (13, 20), True), ((8, 13), (13, 20), False), ((13, 20), (8, 12), True), (None, (13, 20), None)],
)
def test_intervals_that_overlap_are_no_sure_change(before, after, expected):
    change = measure_change(amount(10.0, interval=before), amount(16.0, interval=after))
    assert change.is_distinguishable is expected
    assert change.category == "progression"


def test_a_new_lesion_is_progression_if_large_enough_and_surely_seen():
    before, after = amount(20.0, product=500.0), amount(20.6, product=530.0)
    change = measure_change(before, after, (LARGE, SMALL))
    assert (change.category, change.category_by_product) == ("progression", "progression")
    assert change.reason.startswith("1 new lesion of")
    assert measure_change(before, after, (SMALL,)).category == "stable"
    assert measure_change(before, after, (LARGE,), is_registered=False).category == "stable"
    unknown = NewLesion(700, None, None, (1.0, 2.0, 3.0))
    assert measure_change(before, after, (unknown,)).category == "stable"


def test_new_lesions_are_those_far_from_every_earlier_one_where_the_earlier_scan_looked():
    before, after = np.zeros((40, 30, 20), bool), np.zeros((50, 30, 20), bool)
    before[5:9, 5:9, 5:9] = True
    to_before = np.eye(4)
    to_before[0, 3] = 2.0  # voxel 3 of the later visit is voxel 5 of the earlier
    after[3:9, 3:7, 5:9] = True  # grown
    after[10, 5, 5] = True  # touches neither, 4 mm away
    after[20:23, 20:22, 10:12] = True  # new, 12 voxels
    after[30, 20, 3] = True  # new, 1 voxel
    after[45, 20, 10] = True  # the earlier scan ends before
    found = find_new_lesions(before, after, to_before, np.diag([1.0, 2.0, 3.0, 1.0]), 0.006)
    assert [lesion.voxels for lesion in found] == [12, 1]
    assert found[0].volume_ml == pytest.approx(0.072)
    assert found[0].centre_voxel == pytest.approx((21, 20.5, 10.5))
    assert found[0].distance_mm == pytest.approx(np.hypot(np.hypot(22 - 8, 2 * 12), 3 * 2))
    assert not found[0].counts
    first, *_ = find_new_lesions(before & False, after, to_before, np.eye(4), 1.0)
    assert first.distance_mm is None
    assert find_new_lesions(before, after & False, to_before, np.eye(4), 1.0) == ()


def test_a_lesion_that_reaches_beyond_the_earlier_scan_is_not_called_new():
    before, after = np.zeros((12, 9, 7), bool), np.zeros((20, 9, 7), bool)
    before[1, 1, 1] = True
    after[10:13, 6, 4] = True  # two of its voxels were seen, the third not
    after[10, 2, 5] = True
    (found,) = find_new_lesions(before, after, np.eye(4), np.diag([2.0, 2.0, 2.0, 1.0]), 0.008)
    assert found.centre_voxel == (10, 2, 5)


def test_what_the_other_scan_did_not_look_at_is_told():
    mask = np.zeros((10, 8, 6), bool)
    mask[4:8, 2, 3] = True
    shift = np.eye(4)
    shift[0, 3] = 3.0  # to 7, 8, 9, 10
    assert share_outside(mask, shift, (9, 8, 6)) == 0.5
    assert share_outside(mask & False, shift, (9, 8, 6)) == 0


def test_the_overlap_counts_what_stayed_came_and_went():
    before, after, seen = (np.zeros((5, 6, 7), bool) for _ in range(3))
    before[1, 1:6, 2], after[1, 4:6, 2], after[2, 4, 2:6] = True, True, True
    seen[:, 2:] = True
    found = measure_overlap(before, after, seen)
    assert (found.stable, found.new, found.resolved) == (2, 4, 2)
    assert measure_overlap(before, after).resolved == 3
