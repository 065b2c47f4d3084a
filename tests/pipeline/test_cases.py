"""The line that says what was found in a case."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline.cli.cases import describe
from pipeline.confidence.assessment import Assessment
from pipeline.measurement import measure


@pytest.fixture
def describe_mask():
    def say(mask, predicted_dice=0.76, *, review=False, spacing=(1.0, 2.0, 5.0)):
        measurements = measure(mask, spacing)
        return describe(SimpleNamespace(measurements=measurements, assessment=Assessment(predicted_dice, review, ())))

    return say


def test_what_was_found_is_said_with_the_dice_to_expect(describe_mask, two_lesions):
    assert describe_mask(two_lesions()) == "0.1 ml in 2 lesions on 5 of 7 slices; expected Dice 0.76"
    assert describe_mask(two_lesions(), 0.5, review=True).endswith("; expected Dice 0.50, REVIEW THIS CASE")


def test_without_a_spacing_voxels_are_counted_and_it_is_said_why(describe_mask, two_lesions):
    said = describe_mask(two_lesions(), spacing=None)
    assert said.startswith("8 voxels (spacing unknown, so no ml) in 2 lesions on 5 of 7 slices; ")


def test_of_a_mask_of_nothing_no_dice_is_expected(describe_mask, two_lesions):
    nothing = 0 * two_lesions()
    assert describe_mask(nothing) == "no lesion found"
    assert describe_mask(nothing, review=True) == "no lesion found, REVIEW THIS CASE"
