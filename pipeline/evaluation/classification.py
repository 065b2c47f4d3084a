"""How good a classifier's probabilities are, a subject at a time: who is ranked above whom, and can they be believed.

Stages are ordered: 0 non demented, 1 very mild, 2 mild or worse. Every function takes one value or row a subject.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.evaluation.intervals import LEVEL, MIN_PATIENTS, SEED

__all__ = [
    "balanced_accuracy",
    "bootstrap_interval",
    "class_aucs",
    "expected_calibration_error",
    "macro_auc",
    "roc_auc",
    "summarize_stages",
]

EQUAL_MASS_BINS = 5  # of 200 subjects, 40 each: with more, the error of a perfect model is mostly chance
RESAMPLES = 2_000


def roc_auc(truth: ArrayLike, scores: ArrayLike) -> float:
    """Return the probability that a positive subject scores above a negative one, ties counting half.

    The area under the ROC curve, by ranks (Hanley and McNeil, "The meaning and use of the area under a receiver
    operating characteristic curve", 1982).

    Args:
        truth: ``(N,)``; above 0 is positive.
        scores: ``(N,)``; higher speaks for positive.

    Raises:
        ValueError: If the sizes differ, a score is not finite, or one side has nobody.
    """
    positive, values = np.asarray(truth) > 0, np.asarray(scores, dtype=np.float64)
    _check_sizes("truth", positive, "scores", values)
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite")
    count = int(positive.sum())
    if not 0 < count < len(positive):
        raise ValueError(f"an AUC needs subjects on both sides, got {count} positive of {len(positive)}")
    _, place, ties = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(ties) - (ties - 1) / 2)[place]  # from 1; the mean rank of those that tie
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))


def class_aucs(labels: ArrayLike, probabilities: ArrayLike) -> tuple[float, ...]:
    """Return each class's AUC against all others.

    Args:
        labels: Classes ``(N,)``, 0 to K - 1.
        probabilities: ``(N, K)``.

    Raises:
        ValueError: If the sizes differ, or a class has nobody or everybody.
    """
    classes, table = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    _check_sizes("labels", classes, "probabilities", table)
    return tuple(roc_auc(classes == k, table[:, k]) for k in range(table.shape[1]))


def macro_auc(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Return the mean of ``class_aucs``; every class counts alike."""
    return float(np.mean(class_aucs(labels, probabilities)))


def balanced_accuracy(labels: ArrayLike, predicted: ArrayLike) -> float:
    """Return the mean, over the classes that occur, of the share of their subjects that is predicted right.

    Raises:
        ValueError: If the sizes differ or there is nobody.
    """
    truth, answers = np.asarray(labels), np.asarray(predicted)
    _check_sizes("labels", truth, "predicted", answers)
    return float(np.mean([np.mean(answers[truth == k] == k) for k in np.unique(truth)]))


def expected_calibration_error(truth: ArrayLike, probabilities: ArrayLike, bins: int = EQUAL_MASS_BINS) -> float:
    """Return how far mean probability and share of positives lie apart, over bins with about equally many subjects.

    Even a perfect model does not reach 0: of 200 subjects and 5 bins, chance alone gives about 0.05.

    Args:
        truth: ``(N,)``; above 0 is positive.
        probabilities: Of positive ``(N,)``, 0 to 1.
        bins: How many; equal probabilities are never parted.

    Raises:
        ValueError: If the sizes differ, there is nobody, ``bins`` is below 1, or a probability is not in 0 to 1.
    """
    positive, values = np.asarray(truth) > 0, np.asarray(probabilities, dtype=np.float64)
    _check_sizes("truth", positive, "probabilities", values)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if not (values.min() >= 0 and values.max() <= 1):  # written so that NaN is refused, too
        raise ValueError(f"probabilities must be 0 to 1, got {values.min():g} to {values.max():g}")
    edges = np.quantile(values, np.arange(1, bins) / bins)
    place = np.searchsorted(edges, values, side="right")
    gaps = [abs(values[place == k].sum() - positive[place == k].sum()) for k in range(bins)]
    return float(np.sum(gaps) / len(values))


def bootstrap_interval(
    statistic: Callable[..., float],
    *columns: ArrayLike,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = SEED,
) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of any statistic over subjects.

    Subjects are drawn with replacement, as many as there are. A draw for which the statistic is undefined, because a
    class is missing from it, is left out.

    Args:
        statistic: Takes the columns, such as ``roc_auc``.
        columns: Arrays with one entry or row a subject.
        resamples: How often to draw.
        level: Share of the resamples inside the interval.
        seed: Of the draws.

    Returns:
        Its ends, or None for fewer subjects than an interval makes sense for, or where most draws are undefined.
    """
    arrays = [np.asarray(column) for column in columns]
    count = len(arrays[0])
    if count < MIN_PATIENTS:
        return None
    generator, values = np.random.default_rng(seed), []
    for _ in range(resamples):
        drawn = generator.integers(0, count, count)
        try:
            values.append(statistic(*(array[drawn] for array in arrays)))
        except ValueError:
            continue
    if len(values) * 2 < resamples:
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarize_stages(
    labels: ArrayLike, probabilities: ArrayLike, *, prior: ArrayLike | None = None, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Return what ``summary.json`` says of subjects' probabilities; a figure that is undefined for them is None.

    Args:
        labels: Classes ``(N,)``: 0 non demented, 1 very mild, 2 mild or worse.
        probabilities: ``(N, 3)``.
        prior: Each class's share of the training subjects ``(3,)``. The answer with the highest balanced accuracy is
            not the most probable class but the one whose probability exceeds its share the most; None leaves it out.
        resamples: Of the intervals; 0 leaves them out.

    Raises:
        ValueError: If the sizes differ or there is nobody.
    """
    classes, table = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    _check_sizes("labels", classes, "probabilities", table)
    answers, of_any = table.argmax(1), table[:, 1:].sum(1).clip(0, 1)
    figures: dict[str, tuple[Callable[..., float], tuple[NDArray[Any], ...]]] = {
        "auc_non_vs_any": (roc_auc, (classes > 0, of_any)),
        "macro_auc": (macro_auc, (classes, table)),
        "balanced_accuracy": (balanced_accuracy, (classes, answers)),
        "expected_calibration_error": (expected_calibration_error, (classes > 0, of_any)),
    }
    if prior is not None:
        raised = (table / np.asarray(prior, dtype=np.float64)).argmax(1)
        figures["balanced_accuracy_for_shares"] = (balanced_accuracy, (classes, raised))
    summary: dict[str, Any] = {"subjects": len(classes)}
    for name, (statistic, columns) in figures.items():
        value = _or_none(statistic, *columns)
        summary[name] = {"value": value}
        if resamples:
            interval = None if value is None else bootstrap_interval(statistic, *columns, resamples=resamples)
            summary[name]["interval_95"] = interval and list(interval)
    confusion = np.zeros((table.shape[1],) * 2, dtype=np.int64)
    np.add.at(confusion, (classes, answers), 1)
    return {**summary, "class_aucs": _or_none(class_aucs, classes, table), "confusion": confusion.tolist()}


def _or_none(statistic: Callable[..., Any], *columns: NDArray[Any]) -> Any:
    try:
        return statistic(*columns)
    except ValueError:
        return None


def _check_sizes(name: str, values: NDArray[Any], other: str, others: NDArray[Any]) -> None:
    if values.ndim != 1 or len(values) != len(others) or not len(values):
        raise ValueError(
            f"{name} and {other} must have one entry a subject, got shapes {values.shape} and {others.shape}"
        )
