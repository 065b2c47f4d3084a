"""Numbers behind the plots, and that each plot can be drawn of anything."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from pipeline.evaluation.calibration import reliability, summarize_calibration
from pipeline.evaluation.plots import (
    agreement_limits,
    plot_dice,
    plot_dice_by_site,
    plot_dice_by_volume,
    plot_reliability,
    plot_volume_agreement,
)

PLOTS = (plot_dice, plot_dice_by_site, plot_dice_by_volume, plot_volume_agreement)


def test_bias_and_limits_are_those_of_bland_and_altman(make_scores):
    patients = [make_scores("a", 10, false_positive=4), make_scores("b", 10, false_negative=2), make_scores("c", 7, 1)]
    # Differences 4, -2, 1: mean 1, standard deviation 3.
    assert agreement_limits(patients) == pytest.approx((1, 1 - 1.96 * 3, 1 + 1.96 * 3))


def test_the_limits_are_in_ml_where_all_volumes_are(make_scores):
    patients = [make_scores("a", 10, 4, voxel_ml=0.5), make_scores("b", 10, 2, voxel_ml=0.25)]  # 2 ml and 0.5 ml more
    assert agreement_limits(patients)[0] == pytest.approx(1.25)
    assert agreement_limits([*patients, make_scores("c", 10, 3)])[0] == pytest.approx(3)


def test_of_one_patient_the_bias_is_its_error(make_scores):
    assert agreement_limits([make_scores("a", 10, 4)]) == (4, 4, 4)


@pytest.mark.parametrize("plot", PLOTS)
def test_a_plot_is_an_svg_file_and_always_the_same(plot, make_scores):
    patients = [make_scores(f"p{n}", n, n % 3, 9 - n, site="$x^2$" if n % 2 else "東京") for n in range(9)]
    svg = plot(patients)
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert plot(patients) == svg
    assert plot(patients[1:]) != svg


@pytest.mark.parametrize("plot", PLOTS)
def test_one_patient_and_empty_masks_can_be_plotted(plot, make_scores):
    for patients in ([make_scores("a", 0)], [make_scores("a", 0, 5), make_scores("b", 0)], [make_scores("a", 3)]):
        assert ElementTree.fromstring(plot(patients)) is not None


def dots_of(svg):
    """Return where the dots of an SVG plot lie, in its own units; y downwards."""
    namespace = "{http://www.w3.org/2000/svg}"
    axes = next(each for each in ElementTree.fromstring(svg).iter(f"{namespace}g") if each.get("id") == "axes_1")
    lines = [group for group in axes if (group.get("id") or "").startswith("line2d")]
    return [
        [(float(dot.get("x")), float(dot.get("y"))) for dot in line.iter(f"{namespace}use") if dot.get("x")]
        for line in lines
        if line.find(f".//{namespace}use") is not None
    ]


def test_the_reliability_plot_has_a_dot_for_each_bin_that_holds_voxels():
    # 0.01 promised and nothing there, 0.38 promised and half there, 0.95 promised and all there.
    bins = reliability([0.01, 0.01, 0.38, 0.38, 0.95], [0, 0, 1, 0, 1])
    svg = plot_reliability(summarize_calibration(bins))
    (dots,) = dots_of(svg)
    (x, y), (middle_x, middle_y), (last_x, last_y) = dots
    assert (middle_x - x) / (last_x - x) == pytest.approx(0.37 / 0.94, rel=1e-3)
    assert y - middle_y == pytest.approx(middle_y - last_y, rel=1e-3)
    assert y - last_y > 0
    assert plot_reliability(summarize_calibration(bins)) == svg
