"""Recompute every figure of docs/results_dementia.md.

    python bench/dementia_cross_validation.py DATA --runs RUNS --json dementia.json --images docs/images

DATA is what `ar2unet prepare dementia` writes. Split by subject: the folds of its datalist, and ten ways of dealing the
subjects out. Beside them the same methods on splits that leak, and on shuffled stages. RUNS keeps each training, so
that what was interrupted goes on where it was; after a change to a network, take another folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import measuring
import numpy as np
from dementia_plots import CLASS_NAMES, coverage, plot_calibration, plot_confusion, plot_coverage
from dementia_rows import (
    FIVE_FOLDS,
    SEEDS,
    Row,
    atrophy_rows,
    baseline_rows,
    leaking_rows,
    load,
    network_rows,
    shuffled_row,
)
from dementia_slice_network import Recipe
from dementia_subjects import CLASSES, read_subjects
from measuring import NOTHING
from numpy.typing import NDArray

from pipeline.errors import AR2UNetError
from pipeline.evaluation.classification import (
    balanced_accuracy,
    bootstrap_interval,
    expected_calibration_error,
    macro_auc,
    roc_auc,
)
from pipeline.staging.stages import SURE_ABOVE

PRODUCT, LINEAR = "AtrophyClassifier", "60 principal components, logistic regression"
COLUMNS = (
    "method",
    "split",
    "answers",
    "AUC, non against any dementia",
    f"… of {len(SEEDS)} deals",
    "macro AUC",
    "balanced accuracy",
    "… of the likeliest class",
    "calibration error",
    f"… of {len(SEEDS)} deals",
    "training",
)
RESAMPLES, FLOOR_DRAWS = 1_000, 1_000
SURE = (0.5, 0.6, 0.7, 0.8, 0.9)


# --- figures ------------------------------------------------------------------------------------------


def figures_of(prior: NDArray[np.float64]) -> dict[str, Callable[..., float]]:
    """Return what is measured, each of classes ``(N,)`` and probabilities ``(N, 3)``."""
    return {
        "auc": lambda classes, table: roc_auc(classes > 0, of_any(table)),
        "macro_auc": macro_auc,
        "balanced_accuracy": lambda classes, table: balanced_accuracy(classes, (table / prior).argmax(axis=1)),
        "balanced_accuracy_of_the_likeliest": lambda classes, table: balanced_accuracy(classes, table.argmax(axis=1)),
        "calibration_error": lambda classes, table: expected_calibration_error(classes > 0, of_any(table)),
    }


def of_any(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probability of any dementia ``(N,)``."""
    result: NDArray[np.float64] = table[:, 1:].sum(axis=1).clip(0, 1)
    return result


def score(row: Row) -> dict[str, Any]:
    """Return a row's figures, with intervals over subjects: slices of one subject are no independent answers.

    None where the split leaks, as no interval tells anything of other subjects there.
    """
    prior = np.bincount(row.classes, minlength=CLASSES) / len(row.classes)
    people = [np.flatnonzero(row.owners == owner) for owner in np.unique(row.owners)]
    result: dict[str, Any] = {"split": row.split, "answers": len(row.owners), "subjects": len(people)}
    for name, figure in figures_of(prior).items():

        def drawn(chosen: NDArray[np.intp], figure: Callable[..., float] = figure) -> float:
            lines = np.concatenate([people[each] for each in chosen])
            return figure(row.classes[lines], row.probabilities[lines])

        interval = None
        # Resampled subjects are never as well calibrated as the subjects: that interval would be off to one side.
        if row.split == FIVE_FOLDS and name != "calibration_error":
            interval = bootstrap_interval(drawn, np.arange(len(people)), resamples=RESAMPLES)
        result[name] = {"value": figure(row.classes, row.probabilities), "interval_95": interval}
        if row.again:
            values = [figure(row.classes, each) for each in row.again]
            result[name] |= {"mean": float(np.mean(values)), "deviation": float(np.std(values, ddof=1))}
    return {**result, "seconds": row.seconds}


def score_permutations(row: Row) -> dict[str, Any]:
    """Return the mean of the figures over the permutations, and between which values 95 % of them lie."""
    count = len(np.unique(row.owners))
    prior = np.bincount(row.classes, minlength=CLASSES) / len(row.classes)
    result: dict[str, Any] = {"split": row.split, "answers": count, "subjects": count}
    for name, figure in figures_of(prior).items():
        values = [
            figure(row.classes[place : place + count], row.probabilities[place : place + count])
            for place in range(0, len(row.owners), count)
        ]
        interval = tuple(map(float, np.quantile(values, [0.025, 0.975])))
        result[name] = {"value": float(np.mean(values)), "interval_95": interval}
    return {**result, "seconds": None}


def calibration_floor(dementia: NDArray[np.float64]) -> tuple[float, float]:
    """Return the calibration error of a perfect model with these probabilities: its mean, and its 95th percentile.

    Perfect: each subject is demented with exactly its probability.
    """
    draws = np.random.default_rng(0).random((FLOOR_DRAWS, len(dementia))) < dementia
    errors = [expected_calibration_error(demented, dementia) for demented in draws]
    return float(np.mean(errors)), float(np.quantile(errors, 0.95))


def compare(first: Row, second: Row) -> str:
    """Return between what the difference of two rows' AUC lies, the same subjects drawn for both."""

    def difference(classes: NDArray[np.int64], one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
        return roc_auc(classes > 0, of_any(one)) - roc_auc(classes > 0, of_any(other))

    columns = (first.classes, first.probabilities, second.probabilities)
    interval = bootstrap_interval(difference, *columns, resamples=RESAMPLES)
    return "unknown" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


# --- tables -------------------------------------------------------------------------------------------


def table(scores: dict[str, dict[str, Any]]) -> str:
    """Return the figures of every row as markdown."""
    return measuring.markdown_table(COLUMNS, [_cells(name, each) for name, each in scores.items()])


def _cells(name: str, each: dict[str, Any]) -> list[str]:
    auc, error = each["auc"], each["calibration_error"]
    seconds = NOTHING if each["seconds"] is None else f"{each['seconds']:.0f} s"
    what = "subjects" if each["answers"] == each["subjects"] else "slices"
    balanced = [_with_interval(each["balanced_accuracy"]), f"{each['balanced_accuracy_of_the_likeliest']['value']:.3f}"]
    return [
        name.split("@")[0],
        each["split"],
        f"{each['answers']:,} {what}",
        _with_interval(auc),
        _of_deals(auc),
        _with_interval(each["macro_auc"]),
        *balanced,
        f"{error['value']:.3f}",
        _of_deals(error),
        seconds,
    ]


def _of_deals(figure: dict[str, Any]) -> str:
    return f"{figure['mean']:.3f} ± {figure['deviation']:.3f}" if "mean" in figure else NOTHING


def _with_interval(figure: dict[str, Any]) -> str:
    interval = figure["interval_95"]
    return f"{figure['value']:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def sure_table(demented: NDArray[np.bool_], dementia: NDArray[np.float64]) -> str:
    """Return how many are answered, and how many of them rightly, at each threshold."""
    rows = []
    for threshold in SURE:
        share, right = coverage(demented, dementia, threshold)
        rows.append([f"{threshold:.1f}", f"{share:.0%}", NOTHING if right is None else f"{right:.0%}"])
    return measuring.markdown_table(["sure from", "answered", "of them right"], rows)


# --- the command line ---------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> None:
    """Compute every row, print the tables, and write what was asked for."""
    data = load(read_subjects(options.data), options.runs)
    recipe = None if options.without_network else replace(Recipe(), epochs=options.epochs)
    rows = [*baseline_rows(data), *(network_rows(data, recipe) if recipe else ()), *atrophy_rows(data)]
    scores = {row.name: score(row) for row in rows}
    shuffled = shuffled_row(data)
    scores[shuffled.name] = score_permutations(shuffled)
    scores |= {f"{row.name}@{row.split}": score(row) for row in leaking_rows(data, recipe)}
    product = next(row for row in rows if row.name == PRODUCT)
    demented, dementia = product.classes > 0, of_any(product.probabilities)
    floor, usual = calibration_floor(dementia)
    print(table(scores))
    print(
        f"\nA perfectly calibrated model: calibration error {floor:.3f} in the mean, up to {usual:.3f} in 95 of 100.\n"
    )
    print(sure_table(demented, dementia))
    line = next(row for row in rows if row.name == LINEAR)
    difference = roc_auc(demented, dementia) - roc_auc(demented, of_any(line.probabilities))
    print(f"\nAUC above {LINEAR}: {difference:.3f}, 95 % interval {compare(product, line)}.")
    for stage in range(1, CLASSES):
        pair = np.isin(product.classes, (0, stage))
        print(f"AUC, {CLASS_NAMES[0]} against {CLASS_NAMES[stage]}: {roc_auc(demented[pair], dementia[pair]):.3f}")
    if options.images:
        draw(product, options.images)
    if options.json:
        held_out = [
            {"subject": name, "fold": int(fold), "stage": int(stage), "probabilities": probabilities.tolist()}
            for name, fold, stage, probabilities in zip(
                data.subjects.names, data.subjects.folds, data.subjects.stages, product.probabilities, strict=True
            )
        ]
        result = {"rows": scores, "calibration_floor": {"mean": floor, "95th percentile": usual}, "subjects": held_out}
        measuring.write_json(options.json, result, measuring.describe_machine())


def draw(product: Row, folder: Path) -> None:
    """Draw the three plots of the product's row."""
    folder.mkdir(parents=True, exist_ok=True)
    demented, dementia = product.classes > 0, of_any(product.probabilities)
    plot_confusion(product.classes, product.probabilities.argmax(axis=1), folder / "dementia_confusion.png")
    plot_calibration(demented, dementia, folder / "dementia_calibration.png")
    plot_coverage(demented, dementia, SURE_ABOVE, folder / "dementia_coverage.png")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="what `ar2unet prepare dementia` wrote")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="keep trainings here, and take them from here")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures, and every subject's probabilities"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="draw the plots here")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs, help="of the five-block network")
    parser.add_argument(
        "--without-network", action="store_true", help="leave the five-block network out: the slow part"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Recompute the table; 2 says in one line what was wrong."""
    options = parse_arguments(arguments)
    try:
        measuring.check_at_least(1, epochs=options.epochs)
        measure(options)
    except AR2UNetError as error:
        measuring.say(f"error: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
