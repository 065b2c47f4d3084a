"""The pictures of the dementia results: confusion, calibration, and how sure an answer has to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from measuring import BAR_COLOR, FLOOR_COLOR, new_figure, save_figure
from numpy.typing import NDArray

from pipeline.evaluation.classification import EQUAL_MASS_BINS, expected_calibration_error

CLASS_NAMES = ("non", "very mild", "mild or moderate")
THRESHOLDS = np.round(np.arange(0.5, 0.951, 0.01), 2)  # further up hardly anybody is left


def coverage(
    demented: NDArray[np.bool_], dementia: NDArray[np.float64], sure_above: float
) -> tuple[float, float | None]:
    """Return the share of subjects with an answer at a threshold, and the share of those answers that is right.

    Args:
        demented: Who has any dementia ``(N,)``.
        dementia: The probability of it ``(N,)``.
        sure_above: The likelier of the two answers is given where its probability is at least this.
    """
    sure = np.maximum(dementia, 1 - dementia) >= sure_above
    right = ((dementia >= 0.5) == demented)[sure]
    return float(sure.mean()), float(right.mean()) if len(right) else None


def plot_confusion(classes: NDArray[np.int64], predicted: NDArray[np.int64], path: Path) -> None:
    """Draw how many subjects of each stage are taken for which."""
    counts = np.zeros((len(CLASS_NAMES),) * 2, dtype=int)
    np.add.at(counts, (classes, predicted), 1)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    figure = new_figure(4.6, 3.8)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(*counts.shape):
        share = shares[row, column]
        color = "white" if share > 0.5 else "black"
        axes.text(column, row, f"{counts[row, column]}\n{share:.0%}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(CLASS_NAMES)), [name.replace(" or ", " or\n") for name in CLASS_NAMES])
    axes.set_yticks(range(len(CLASS_NAMES)), CLASS_NAMES)
    axes.set_xlabel("answer")
    axes.set_ylabel("stage as published")
    save_figure(figure, path)


def plot_calibration(demented: NDArray[np.bool_], dementia: NDArray[np.float64], path: Path) -> None:
    """Draw the share of demented subjects over the probability, in bins of equally many, with its standard error."""
    edges = np.quantile(dementia, np.arange(1, EQUAL_MASS_BINS) / EQUAL_MASS_BINS)
    place = np.searchsorted(edges, dementia, side="right")
    filled = [place == k for k in range(EQUAL_MASS_BINS) if (place == k).any()]
    means, shares = (np.array([values[each].mean() for each in filled]) for values in (dementia, demented))
    errors = np.sqrt(shares * (1 - shares) / [each.sum() for each in filled])
    error = expected_calibration_error(demented, dementia)
    figure = new_figure(4.6, 3.8)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--", label="perfect")
    axes.errorbar(means, shares, errors, fmt="o-", color=BAR_COLOR, capsize=3, label=f"calibration error {error:.3f}")
    axes.set_xlabel("mean probability of any dementia")
    axes.set_ylabel("share with dementia, ± its standard error")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, loc="upper left")
    save_figure(figure, path)


def plot_coverage(demented: NDArray[np.bool_], dementia: NDArray[np.float64], sure_above: float, path: Path) -> None:
    """Draw accuracy over coverage, from an answer to everybody to answers that are nearly certain."""
    points = [(coverage(demented, dementia, threshold), threshold) for threshold in THRESHOLDS]
    figure = new_figure(5.2, 3.8)
    axes = figure.add_subplot()
    drawn = [(share, right) for (share, right), _ in points if right is not None]
    axes.plot(*zip(*drawn, strict=True), color=BAR_COLOR)
    share, right = coverage(demented, dementia, sure_above)
    if right is not None:
        label = f"sure from {sure_above:g} on: {share:.0%} answered, {right:.0%} of them right"
        axes.plot([share], [right], "o", color=FLOOR_COLOR, label=label)
        axes.legend(frameon=False, loc="lower left")
    axes.set_xlabel("share of subjects that are answered")
    axes.set_ylabel("share of the answers that is right")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0.5, 1.02)
    save_figure(figure, path)
