"""The rows of the dementia table: who classifies whom, on which split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import dementia_atrophy as atrophy
import dementia_baselines as baselines
import numpy as np
from dementia_slice_network import Recipe, hold_out
from dementia_subjects import CLASSES, Subjects, deal_folds, keep, merge_stages, shuffle_slices
from measuring import say
from numpy.typing import NDArray

SEEDS = tuple(range(10))
PERMUTATIONS = 20


@dataclass(frozen=True)
class Row:
    """Held-out probabilities of one method on one split.

    Attributes:
        name: Of the method.
        split: Such as "subjects, five folds".
        owners: Whose each answer is, an index of the subjects ``(N,)``.
        classes: What is right ``(N,)``.
        probabilities: ``(N, 3)``.
        again: Those of other folds, one array a seed; they are in the order of ``owners``, too.
        seconds: Of the training, the fastest fold; None where there is next to none.
    """

    name: str
    split: str
    owners: NDArray[np.int64]
    classes: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    again: Sequence[NDArray[np.float64]] = ()
    seconds: float | None = None


@dataclass(frozen=True)
class Data:
    """The subjects, and what many rows need of them.

    Attributes:
        subjects: All.
        stacks: Scalar products of the subjects' stacks, see `dementia_baselines`.
        slices: Scalar products of all single slices.
        features: See `dementia_atrophy.read_features`.
        runs: Keeps what takes long; None keeps nothing.
    """

    subjects: Subjects
    stacks: NDArray[np.float64]
    slices: NDArray[np.float32]
    features: dict[str, NDArray[np.float32]]
    runs: Path | None

    def kept(self, name: str) -> Path | None:
        """Return where something is kept."""
        return self.runs and self.runs / f"{name}.npz"


FIVE_FOLDS = "subjects, five folds"
RANDOM_SLICES = "slices at random: leaks"
PUBLISHED = "the publisher's: leaks"


def load(subjects: Subjects, runs: Path | None) -> Data:
    """Compute what many rows need."""
    flat = subjects.slices.reshape(-1, *subjects.slices.shape[2:])
    path = runs and runs / "features.npz"
    settings = {"fluids": atrophy.FLUIDS, "subjects": subjects.names}
    features = keep(path, settings, lambda: atrophy.read_features(subjects.slices))
    stacks, slices = baselines.stack_similarities(subjects), baselines.slice_similarities(flat)
    return Data(subjects, stacks, slices, features, runs)


# --- split by subject ---------------------------------------------------------------------------------


def baseline_rows(data: Data) -> Iterator[Row]:
    """Yield what has to be beaten."""
    for name, classify in (
        ("majority class", baselines.majority),
        ("1-nearest neighbour, stack of slices", lambda *split: baselines.nearest_subject(data.stacks, *split)),
        ("1-nearest neighbour, votes of slices", lambda *split: baselines.nearest_slices(data.slices, *split)),
        (
            "60 principal components, logistic regression",
            lambda *split: baselines.components_and_logistic(data.stacks, *split),
        ),
    ):
        say(name)
        classes, seeds = data.subjects.classes, [deal_folds(data.subjects, seed) for seed in SEEDS]
        yield subject_row(
            data, name, classify(classes, data.subjects.folds), [classify(classes, folds) for folds in seeds]
        )


def subject_row(
    data: Data,
    name: str,
    probabilities: NDArray[np.float64],
    again: Sequence[NDArray[np.float64]] = (),
    seconds: float | None = None,
) -> Row:
    """Return the row of a method with one answer a subject."""
    owners = np.arange(len(data.subjects.names))
    return Row(name, FIVE_FOLDS, owners, data.subjects.classes, probabilities, again, seconds)


def network_rows(data: Data, recipe: Recipe) -> Iterator[Row]:
    """Yield the five-block network: the mean over a subject's slices, and each slice on its own."""
    subjects = data.subjects
    count = subjects.slices.shape[1]
    single, seconds = np.empty((len(subjects.names), count, CLASSES)), []
    for fold in np.unique(subjects.folds):
        held_out = np.repeat(subjects.folds == fold, count)
        row = _network_row(data, f"fold{fold}", FIVE_FOLDS, held_out, recipe)
        single[subjects.folds == fold] = row.probabilities.reshape(-1, count, CLASSES)
        seconds.append(row.seconds or 0.0)
    yield subject_row(data, "five-block network, mean over slices", single.mean(axis=1), seconds=min(seconds))
    yield slice_row(data, "five-block network, one slice", single)


def _network_row(data: Data, kept: str, split: str, held_out: NDArray[np.bool_], recipe: Recipe) -> Row:
    """Train the five-block network on all slices but some."""
    subjects = data.subjects
    stages, shape = np.repeat(subjects.stages, subjects.slices.shape[1]), subjects.slices.shape[2:]
    settings = {**asdict(recipe), "held_out": np.packbits(held_out).tobytes().hex(), "stages": stages.tolist()}
    found = keep(
        data.kept(kept), settings, lambda: hold_out(subjects.slices.reshape(-1, *shape), stages, held_out, recipe)
    )
    four = found["probabilities"]
    merged = np.concatenate([four[:, : CLASSES - 1], four[:, CLASSES - 1 :].sum(axis=1, keepdims=True)], axis=1)
    owners = np.flatnonzero(held_out) // subjects.slices.shape[1]
    name, seconds = "five-block network, one slice", float(found["seconds"])
    return Row(name, split, owners, subjects.classes[owners], merged, seconds=seconds)


def slice_row(data: Data, name: str, probabilities: NDArray[np.float64]) -> Row:
    """Return the row of a method with an answer ``(subjects, slices, 3)`` a slice."""
    owners = np.repeat(np.arange(len(probabilities)), probabilities.shape[1])
    return Row(name, FIVE_FOLDS, owners, data.subjects.classes[owners], probabilities.reshape(-1, CLASSES))


def atrophy_rows(data: Data) -> Iterator[Row]:
    """Yield the classifier of the product, its recipe chosen inside of the training folds, and single slices."""
    subjects, seconds = data.subjects, []
    whole = np.empty((len(subjects.names), CLASSES))
    single = np.empty((len(subjects.names), subjects.slices.shape[1], CLASSES))
    for fold in np.unique(subjects.folds):
        held_out = subjects.folds == fold
        settings = {"held_out": held_out.tolist(), "stages": subjects.stages.tolist()}
        found = keep(
            data.kept(f"atrophy{fold}"),
            settings,
            lambda held_out=held_out: atrophy.hold_out(subjects.slices, subjects.stages, held_out),
        )
        whole[held_out], single[held_out] = found["subject"], found["slice"]
        seconds.append(float(found["seconds"]))
    classes, seeds = subjects.classes, [deal_folds(subjects, seed) for seed in SEEDS]
    again = [atrophy.cross_validate(data.features, classes, folds) for folds in seeds]
    yield subject_row(data, "AtrophyClassifier", whole, again, min(seconds))
    say("recipes chosen inside of the training folds")
    chosen = [
        atrophy.choose_and_cross_validate(data.features, classes, folds, atrophy.RECIPES)[0]
        for folds in (subjects.folds, *seeds)
    ]
    yield subject_row(data, "… recipe chosen inside of training folds", chosen[0], chosen[1:])
    yield slice_row(data, "AtrophyClassifier, one slice", single)


def shuffled_row(data: Data) -> Row:
    """Return the product's classifier where the stages are dealt out to the subjects at random, many times."""
    answers, truths = [], []
    for seed in range(PERMUTATIONS):
        stages = np.random.default_rng(seed).permutation(data.subjects.stages)
        folds = deal_folds(replace(data.subjects, stages=stages), seed)
        answers.append(atrophy.cross_validate(data.features, merge_stages(stages), folds))
        truths.append(merge_stages(stages))
    owners = np.tile(np.arange(len(data.subjects.names)), PERMUTATIONS)
    name = f"AtrophyClassifier, stages shuffled {PERMUTATIONS} times"
    return Row(name, FIVE_FOLDS, owners, np.concatenate(truths), np.concatenate(answers))


# --- splits that leak ---------------------------------------------------------------------------------


def leaking_rows(data: Data, recipe: Recipe | None) -> Iterator[Row]:
    """Yield how brilliant the same methods look with every subject on both sides.

    Args:
        data: All.
        recipe: Of the five-block network, which takes part in the publisher's split; None leaves it out.
    """
    shuffled = np.random.default_rng(0).permutation(data.subjects.classes)
    for split, held_out in (
        (RANDOM_SLICES, shuffle_slices(data.subjects, 0).reshape(-1)),
        (PUBLISHED, data.subjects.in_test.reshape(-1)),
    ):
        owners = np.repeat(np.arange(len(data.subjects.names)), data.subjects.slices.shape[1])
        outside = np.flatnonzero(held_out)
        neighbours = owners[baselines.nearest(data.slices, np.flatnonzero(~held_out), outside)]
        for name, classes in (
            ("1-nearest neighbour, one slice", data.subjects.classes),
            ("… stages shuffled by subject", shuffled),
        ):
            yield Row(name, split, owners[outside], classes[owners[outside]], np.eye(CLASSES)[classes[neighbours]])
    if recipe is not None:
        yield _network_row(data, "publisher", PUBLISHED, data.subjects.in_test.reshape(-1), recipe)
