"""The rows of the dementia table that rest on `AtrophyClassifier`.

Ten times five folds, recipes chosen inside of the training folds and shuffled stages are hundreds of fits. They share
the features: computed once with the brain mask of all subjects, which no stage has a say in, and turned to coordinates
of as few dimensions as there are subjects. `CalibratedRidge` gives the same on either. The headline is the classifier's
own ``fit`` and ``forward``, its mask of the training subjects alone.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from dementia_baselines import parts
from dementia_subjects import CLASSES
from numpy.typing import NDArray

from networks.atrophy_classifier import BRIGHT_NORM, PENALTY, AtrophyClassifier
from networks.calibrated_ridge import CalibratedRidge

FLUIDS = (0.35, 0.45, 0.6)  # of the intensity of white matter: darker is fluid
BRIGHT_NORMS = (0.0, 0.3)
PENALTIES = (0.3, 1.0, 3.0)
AT_ONCE = 320  # slices classified together


class Recipe(NamedTuple):
    """What may be chosen: what counts as fluid, how much bright matter has to say, how much weights cost."""

    fluid: float
    bright_norm: float
    penalty: float


PRODUCT = Recipe(AtrophyClassifier.FLUID, BRIGHT_NORM, PENALTY)
RECIPES = tuple(Recipe(*each) for each in itertools.product(FLUIDS, BRIGHT_NORMS, PENALTIES))


# --- the classifier as it is --------------------------------------------------------------------------


@torch.no_grad()
def hold_out(
    slices: NDArray[np.uint8], stages: NDArray[np.int64], held_out: NDArray[np.bool_]
) -> dict[str, NDArray[np.float64]]:
    """Fit the classifier to all subjects but some, and classify those.

    Args:
        slices: ``(N, slices, rows, columns)``.
        stages: ``(N,)``.
        held_out: ``(N,)``.

    Returns:
        ``subject``: probabilities ``(held out, 3)`` from all slices of a subject; ``slice``: from each slice alone
        ``(held out, slices, 3)``, its position found from the picture; ``seconds``: of the fit.
    """
    images, labels, outside = torch.from_numpy(slices), torch.from_numpy(stages), torch.from_numpy(held_out)
    classifier = AtrophyClassifier()
    start = time.perf_counter()
    classifier.fit(images[~outside], labels[~outside])
    seconds = time.perf_counter() - start
    single = images[outside].flatten(0, 1)[:, None]
    logits = torch.cat([classifier.slice_logits(batch) for batch in single.split(AT_ONCE)])
    return {
        "subject": classifier(images[outside]).softmax(1).double().numpy(),
        "slice": logits.softmax(1).double().numpy().reshape(-1, slices.shape[1], CLASSES),
        "seconds": np.array(seconds),
    }


# --- many fits ----------------------------------------------------------------------------------------


@torch.no_grad()
def read_features(slices: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Return coordinates ``(N, N)`` of the subjects' features: a kind of fluid each, and bright matter."""
    classifier, images = AtrophyClassifier(), torch.from_numpy(slices)
    above = sum((part > classifier.BACKGROUND).sum(0) for part in classifier._parts(images))
    classifier.mask.copy_(above * 2 > len(images))
    result = {}
    for fluid in FLUIDS:
        classifier.FLUID = fluid  # type: ignore[misc]  # the product's own is final
        features = torch.cat([classifier._subject_features(part) for part in classifier._parts(images)])
        dark, bright = features.split(classifier.subject_head.blocks, dim=1)
        result[str(fluid)] = coordinates(dark.numpy())
        result["bright"] = coordinates(bright.numpy())
    return result


def coordinates(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return points ``(N, N)`` that lie to one another as the features ``(N, F)``, less their mean, do."""
    centred = (features - features.mean(axis=0)).astype(np.float64)
    squares, axes = np.linalg.eigh(centred @ centred.T)
    points: NDArray[np.float32] = (axes * np.sqrt(squares.clip(0))).astype(np.float32)
    return points


def fit(
    features: Mapping[str, NDArray[np.float32]],
    classes: NDArray[np.int64],
    training: NDArray[np.intp],
    recipe: Recipe,
) -> tuple[NDArray[np.float64], float]:
    """Fit a recipe to the training subjects.

    Returns:
        Everybody's probabilities ``(N, 3)``, and the out-of-fold cross-entropy of the training subjects.
    """
    points = torch.from_numpy(np.concatenate([features[str(recipe.fluid)], features["bright"]], axis=1))
    half = len(classes)
    head = CalibratedRidge(1, (half, half), (1.0, recipe.bright_norm), recipe.penalty)
    labels = torch.from_numpy(classes[training])
    entropy = head.fit(points[training, None], labels, torch.Generator().manual_seed(0))
    logits = head(points, torch.zeros(len(points), dtype=torch.long))
    return logits.softmax(1).double().numpy(), float(entropy)


def cross_validate(
    features: Mapping[str, NDArray[np.float32]],
    classes: NDArray[np.int64],
    folds: NDArray[np.int64],
    recipe: Recipe = PRODUCT,
) -> NDArray[np.float64]:
    """Return held-out probabilities ``(N, 3)`` of one recipe."""
    return choose_and_cross_validate(features, classes, folds, [recipe])[0]


def choose_and_cross_validate(
    features: Mapping[str, NDArray[np.float32]],
    classes: NDArray[np.int64],
    folds: NDArray[np.int64],
    recipes: Sequence[Recipe],
) -> tuple[NDArray[np.float64], list[Recipe]]:
    """Return held-out probabilities ``(N, 3)`` of the recipe that does best inside of each fold's training subjects.

    The one with the lowest cross-entropy out of the inner folds; the held-out subjects have no say in it.
    """
    result, chosen = np.empty((len(classes), CLASSES)), []
    for training, held_out in parts(folds):
        fits = [fit(features, classes, training, recipe) for recipe in recipes]
        best = min(range(len(fits)), key=lambda place: fits[place][1])
        result[held_out] = fits[best][0][held_out]
        chosen.append(recipes[best])
    return result, chosen
