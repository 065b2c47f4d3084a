"""Plots of an evaluation, each as an SVG file in memory."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.scoring import PatientScores
from pipeline.evaluation.tables import NO_SITE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "agreement_limits",
    "plot_dice",
    "plot_dice_by_site",
    "plot_dice_by_volume",
    "plot_reliability",
    "plot_volume_agreement",
]

DOT_COLOR = "#2f5d8a"
BIN_WIDTH = 0.05
LIMIT_FACTOR = 1.96  # standard deviations that hold 95 % of a normal distribution
MAX_LABEL = 12  # characters of a site's name
PLOT_SIZE = (5.2, 3.6)  # inches


def plot_dice(patients: Sequence[PatientScores]) -> bytes:
    """Plot how the patients' Dice are distributed, with mean and median, as SVG."""
    from matplotlib.ticker import MaxNLocator

    dice = [patient.counts.dice for patient in patients]
    figure, axes = _new_plot("Dice", "patients")
    axes.hist(dice, bins=np.arange(0, 1 + BIN_WIDTH / 2, BIN_WIDTH).tolist(), color=DOT_COLOR, edgecolor="white")
    mean, median = float(np.mean(dice)), float(np.median(dice))
    axes.axvline(mean, color="black", linestyle="-", linewidth=1.2, label=f"mean {mean:.3f}")
    axes.axvline(median, color="black", linestyle="--", linewidth=1.2, label=f"median {median:.3f}")
    axes.set_xlim(0, 1)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper left", frameon=False)
    return _as_svg(figure)


def plot_dice_by_site(patients: Sequence[PatientScores]) -> bytes:
    """Plot each patient's Dice at each site, with the sites' means, as SVG."""
    sites = sorted({patient.site or NO_SITE for patient in patients})
    figure, axes = _new_plot("site", "Dice")
    for position, site in enumerate(sites, start=1):
        dice = np.sort([patient.counts.dice for patient in patients if (patient.site or NO_SITE) == site])
        # Spread sideways in an order of their own, so that equal dots do not hide one another.
        spread = 0.3 * (2 * np.modf(np.arange(len(dice)) * 0.618)[0] - 1)
        axes.plot(position + spread, dice, "o", color=DOT_COLOR, alpha=0.6, markersize=5)
        axes.plot([position - 0.35, position + 0.35], [dice.mean()] * 2, color="black", linewidth=1.5)
    # The font lacks most of the world's characters, and a missing one is a box and a warning.
    labels = ["".join(c if c.isprintable() and ord(c) < 0x250 else "?" for c in site[:MAX_LABEL]) for site in sites]
    axes.set_xticks(range(1, len(sites) + 1), labels, parse_math=False)
    axes.set_ylim(-0.03, 1.03)
    return _as_svg(figure)


def plot_dice_by_volume(patients: Sequence[PatientScores]) -> bytes:
    """Plot each patient's Dice over the true lesion's volume, as SVG."""
    volumes, unit = _volumes(patients)
    figure, axes = _new_plot(f"true volume ({unit})", "Dice")
    axes.plot(volumes[:, 1], [patient.counts.dice for patient in patients], "o", color=DOT_COLOR, alpha=0.6)
    positive = volumes[volumes[:, 1] > 0, 1]
    # Linear only below the smallest lesion, so that patients without one have a place, too.
    axes.set_xscale("symlog", linthresh=float(positive.min()) if len(positive) else 1.0)
    axes.set_ylim(-0.03, 1.03)
    return _as_svg(figure)


def plot_volume_agreement(patients: Sequence[PatientScores]) -> bytes:
    """Plot the volumes' differences over their means with bias and limits of agreement, as SVG.

    After Bland and Altman, "Statistical methods for assessing agreement between two methods
    of clinical measurement", 1986. In ml where every patient's spacing is known, else in voxels.
    """
    volumes, unit = _volumes(patients)
    figure, axes = _new_plot(f"mean of predicted and true volume ({unit})", f"predicted − true ({unit})")
    axes.plot(volumes.mean(axis=1), _differences(volumes), "o", color=DOT_COLOR, alpha=0.6)
    bias, low, high = agreement_limits(patients)
    axes.axhline(bias, color="black", linewidth=1.2, label=f"bias {bias:,.4g}")
    for limit in (low, high):
        axes.axhline(limit, color="black", linewidth=1, linestyle="--")
    axes.plot([], [], color="black", linewidth=1, linestyle="--", label=f"95 % limits {low:,.4g} to {high:,.4g}")
    axes.legend(loc="best", frameon=False, fontsize=8)
    return _as_svg(figure)


def plot_reliability(calibration: Mapping[str, Any]) -> bytes:
    """Plot each bin's share of lesion over its mean probability, with the line where both are equal, as SVG.

    Args:
        calibration: As ``summarize_calibration`` returns it.
    """
    filled = [each for each in calibration["bins"] if each["voxels"]]
    figure, axes = _new_plot("mean probability of lesion", "share of lesion")
    axes.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--", label="perfectly calibrated")
    probabilities, shares = ([each[name] for each in filled] for name in ("mean_probability", "lesion_share"))
    error = calibration["expected_calibration_error"]
    axes.plot(probabilities, shares, "o-", color=DOT_COLOR, alpha=0.8, label=f"calibration error {error:.4f}")
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    return _as_svg(figure)


def agreement_limits(patients: Sequence[PatientScores]) -> tuple[float, float, float]:
    """Return the mean of predicted minus true volume, and it less and plus 1.96 standard deviations.

    In ml where every patient's spacing is known, else in voxels. The standard deviation is the
    sample's (n - 1); of one patient it is taken as 0.
    """
    volumes, _ = _volumes(patients)
    difference = _differences(volumes)
    bias = float(difference.mean())
    spread = LIMIT_FACTOR * float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    return bias, bias - spread, bias + spread


def _volumes(patients: Sequence[PatientScores]) -> tuple[NDArray[np.float64], str]:
    """Return predicted and true volumes ``(N, 2)`` and their unit."""
    voxels = np.array([[patient.predicted_voxels, patient.true_voxels] for patient in patients], dtype=np.float64)
    sizes = [patient.voxel_ml for patient in patients]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return voxels, "voxels"
    return voxels * np.array(known)[:, None], "ml"


def _differences(volumes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return predicted minus true of volumes ``(N, 2)``."""
    difference: NDArray[np.float64] = volumes[:, 0] - volumes[:, 1]
    return difference


def _new_plot(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Return a figure of its own, which no display and no global state of matplotlib's knows, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=PLOT_SIZE)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _as_svg(figure: Figure) -> bytes:
    import matplotlib as mpl

    figure.tight_layout()
    file = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "ar2unet"}):  # the same plot is the same file
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
