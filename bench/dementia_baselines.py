"""The rows of the dementia table that the classifiers have to beat: the largest class, the nearest neighbour, a line.

Each returns held-out probabilities ``(subjects, 3)`` of non, very mild, and mild or moderate, given the fold of each
subject; a subject's own stage is never looked at.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from dementia_subjects import CLASSES, Subjects
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit

HEAD_ABOVE = 2  # grey values, of slices that were averaged down
STACK_POOLING, SLICE_POOLING = 4, 8  # pixels to one, along rows and columns
COMPONENTS = 60
PENALTY = 1.0  # of the squared weights, halved, as 1 / C of scikit-learn
TOLERANCE = 1e-6


def parts(folds: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yield who trains and who is held out, fold by fold."""
    for fold in np.unique(folds):
        yield np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)


def pool(slices: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Average squares of pixels: ``(…, rows, columns)`` becomes ``(…, rows // size, columns // size)``."""
    rows, columns = (length // size for length in slices.shape[-2:])
    squares = slices[..., : rows * size, : columns * size].reshape(*slices.shape[:-2], rows, size, columns, size)
    averages: NDArray[np.float32] = squares.mean(axis=(-3, -1), dtype=np.float32)
    return averages


def stack_similarities(subjects: Subjects) -> NDArray[np.float64]:
    """Return scalar products of the subjects' averaged-down stacks, each by its mean brightness ``(N, N)``."""
    stacks = pool(subjects.slices, STACK_POOLING).reshape(len(subjects.names), -1)
    stacks = stacks / np.array([stack[stack > HEAD_ABOVE].mean() for stack in stacks])[:, None]
    products: NDArray[np.float64] = (stacks @ stacks.T).astype(np.float64)
    return products


def slice_similarities(slices: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return scalar products of averaged-down slices ``(N, rows, columns)``, grey values as they are ``(N, N)``."""
    flat = pool(slices, SLICE_POOLING).reshape(len(slices), -1)
    products: NDArray[np.float32] = flat @ flat.T
    return products


def majority(classes: NDArray[np.int64], folds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Give everybody the shares of the classes in training."""
    result = np.empty((len(classes), CLASSES))
    for training, held_out in parts(folds):
        result[held_out] = np.bincount(classes[training], minlength=CLASSES) / len(training)
    return result


def nearest(
    similarities: NDArray[np.floating], training: NDArray[np.intp], held_out: NDArray[np.intp]
) -> NDArray[np.intp]:
    """Return which of ``training`` is nearest to each of ``held_out``, by the distance of raw values."""
    squares = np.diag(similarities)[training]
    distances = squares - 2 * similarities[np.ix_(held_out, training)]  # less their own square, the same for all
    neighbours: NDArray[np.intp] = training[distances.argmin(axis=1)]
    return neighbours


def nearest_subject(
    similarities: NDArray[np.floating], classes: NDArray[np.int64], folds: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Give everybody the class of the nearest subject, with certainty."""
    result = np.empty((len(classes), CLASSES))
    for training, held_out in parts(folds):
        result[held_out] = np.eye(CLASSES)[classes[nearest(similarities, training, held_out)]]
    return result


def nearest_slices(
    similarities: NDArray[np.floating], classes: NDArray[np.int64], folds: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Give everybody the shares of the classes among the nearest slices of the own slices.

    Args:
        similarities: Of all slices, subject by subject, each with as many.
        classes: Of the subjects.
        folds: Of the subjects.
    """
    each = len(similarities) // len(classes)
    owners = np.repeat(np.arange(len(classes)), each)
    result = np.empty((len(classes), CLASSES))
    for training, held_out in parts(folds[owners]):
        neighbours = owners[nearest(similarities, training, held_out)]
        votes = np.eye(CLASSES)[classes[neighbours]].reshape(-1, each, CLASSES)
        result[np.unique(owners[held_out])] = votes.mean(axis=1)
    return result


def principal_components(
    similarities: NDArray[np.floating], training: NDArray[np.intp], held_out: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the first components of both, found on training alone, each with a standard deviation of 1 there.

    From the scalar products: the components of N subjects span no more than N dimensions.
    """
    inside, across = similarities[np.ix_(training, training)], similarities[np.ix_(held_out, training)]
    means = inside.mean(axis=0)
    inside = inside - means - means[:, None] + means.mean()
    across = across - across.mean(axis=1, keepdims=True) - means + means.mean()
    squares, axes = np.linalg.eigh(inside)
    largest = np.argsort(squares)[::-1][:COMPONENTS]
    largest = largest[squares[largest] > TOLERANCE * squares.max()]
    squares, axes = squares[largest], axes[:, largest]
    unit = np.sqrt(len(training))
    return axes * unit, across @ axes / squares * unit


def fit_logistic(features: NDArray[np.float64], truth: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
    """Fit a logistic regression with an L2 penalty; weights ``(features,)`` and an offset."""

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights, logits = parameters[:-1], features @ parameters[:-1] + parameters[-1]
        excess = expit(logits) - truth
        value = PENALTY / 2 * (weights**2).sum() - log_expit(np.where(truth, logits, -logits)).sum()
        return float(value), np.append(features.T @ excess + PENALTY * weights, excess.sum())

    found = minimize(loss, np.zeros(features.shape[1] + 1), jac=True, method="L-BFGS-B").x
    return found[:-1], float(found[-1])


def components_and_logistic(
    similarities: NDArray[np.floating], classes: NDArray[np.int64], folds: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Classify everybody by logistic regressions on principal components: any dementia, and mild or moderate."""
    result = np.empty((len(classes), CLASSES))
    for training, held_out in parts(folds):
        inside, outside = principal_components(similarities, training, held_out)
        lines = [fit_logistic(inside, classes[training] >= least) for least in range(1, CLASSES)]
        any_dementia, mild = (expit(outside @ weights + offset) for weights, offset in lines)
        mild = np.minimum(mild, any_dementia)  # nobody is mildly demented without being demented
        result[held_out] = np.stack([1 - any_dementia, any_dementia - mild, mild], axis=1)
    return result
