"""Whether slices look like the T1 brain slices that the staging model was trained on.

A model answers whatever it is given: a tumour scan, a photograph, a slice upside down. Here a few simple
properties of a slice, each with a meaning of its own, are compared with those of the training subjects at the same
height of the brain. One that lies outside of what is usual there raises a warning that names it. It is no check of
image quality, and a picture made to pass will pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.staging.frame import COLUMNS, ROWS

__all__ = [
    "FEATURES",
    "POOLED",
    "Feature",
    "PlausibilityModel",
    "Template",
    "correlate",
    "describe_slice",
    "describe_slices",
    "estimate_positions",
    "pool",
    "scale_intensities",
]

Floats = NDArray[np.float32]

STEP = 8  # pixels along an edge that are averaged to one of a template's
POOLED = ROWS // STEP, COLUMNS // STEP
FOREGROUND = 0.1  # of the bright parts' intensity: above it there is tissue or fluid
BRIGHT = 90  # percentile of the foreground by which intensities are divided, so that their unit does not matter
INSIDE, OUTSIDE = 0.9, 0.1  # share of foreground in a template's pixel
MAX_COLOR = 2.0  # of 255: what JPEG makes of grey stored as color stays below
MOST_UNUSUAL = 3  # features that a warning names
TINY = 1e-6


class Feature(NamedTuple):
    """A property of a slice: its name, what a warning calls it, and on which sides it can be unusual."""

    name: str
    meaning: str
    has_low: bool
    has_high: bool


FEATURES = (
    Feature("outline", "overlap of the brain's outline with the usual one", True, False),
    Feature("anatomy", "correlation with the usual pattern inside the brain", True, False),
    Feature("sides", "correlation with the usual difference between left and right", True, False),
    Feature("background", "brightness around the brain", False, True),
    Feature("dark", "brightness of the brain's darkest twentieth", True, True),
    Feature("middle", "median brightness of the brain", True, True),
    Feature("bright", "brightness of its brightest twentieth", True, True),
    Feature("texture", "difference between neighbouring pixels", True, True),
    Feature("grain", "fine grain against edges", True, True),
)


@dataclass(frozen=True, eq=False)
class Template:
    """The training subjects' mean slice at each height.

    Attributes:
        mean: Scaled intensities ``(32, *POOLED)``.
        coverage: Share of foreground ``(32, *POOLED)``.
    """

    mean: Floats
    coverage: Floats


@dataclass(frozen=True, eq=False)
class PlausibilityModel:
    """What the training subjects' slices are like.

    Attributes:
        template: Their mean.
        slice_limits: ``(len(FEATURES), 2)``, the usual range of each feature of a single slice, infinite where open.
        volume_limits: The same of the mean over a subject's slices.
    """

    template: Template
    slice_limits: NDArray[np.float64]
    volume_limits: NDArray[np.float64]

    def check(self, slices: Floats, color: float = 0.0) -> list[str]:
        """Return a warning, as a list of one sentence for the user, or none.

        Args:
            slices: ``(N, rows, columns)``: 1, whose height is estimated, or all of a subject's, from the lowest.
            color: As in ``pipeline.staging.pictures.Picture``.
        """
        found = self.find_unusual(slices, color)
        if not found:
            return []
        named = "; ".join(found[:MOST_UNUSUAL])
        return [
            f"This does not look like the brain-extracted T1 slices the model was trained on: {named}"
            f"{self._guess(slices)}. Do not use the stage."
        ]

    def find_unusual(self, slices: Floats, color: float = 0.0) -> list[str]:
        """Return what is unusual, in the order of ``FEATURES``; arguments as ``check``."""
        scaled = scale_intensities(slices)
        single = len(slices) == 1
        limits = self.slice_limits if single else self.volume_limits
        description = describe_slices(scaled, self.template).mean(axis=0)
        sentences = [
            f"{feature.meaning}: {value:.3g}, usual {f'from {low:.3g}' if value < low else f'up to {high:.3g}'}"
            for value, (low, high), feature in zip(description, limits, FEATURES, strict=True)
            if not low <= value <= high
        ]
        if color > MAX_COLOR:
            sentences.insert(0, f"color: red, green and blue {color:.0f} of 255 apart, usual 0")
        return sentences

    def _guess(self, slices: Floats) -> str:
        """Say what has perhaps been done to slices that are no others than the training subjects', if anything."""
        scaled = scale_intensities(slices)
        turns = {
            "": scaled,
            "upside down": scaled[:, ::-1],
            "turned by half a circle": scaled[:, ::-1, ::-1],
            "in reverse order": scaled[::-1],
            "a T1 with dark and bright exchanged": np.where(scaled > FOREGROUND, scaled.max() + FOREGROUND - scaled, 0),
        }
        usual = FEATURES_BY_NAME["outline"], FEATURES_BY_NAME["anatomy"]
        limits = self.slice_limits if len(slices) == 1 else self.volume_limits
        descriptions = {name: describe_slices(turn, self.template).mean(axis=0) for name, turn in turns.items()}
        fitting = [
            name for name, description in descriptions.items()
            if all(description[index] >= limits[index, 0] for index in usual)
        ]  # fmt: skip
        if fitting and "" not in fitting:
            best = max(fitting, key=lambda name: float(descriptions[name][list(usual)].sum()))
            return f". It may be {best}"
        upright = descriptions[""]
        if "" in fitting and upright[FEATURES_BY_NAME["sides"]] < limits[FEATURES_BY_NAME["sides"], 0]:
            return ". Left and right may be exchanged"
        return ""


FEATURES_BY_NAME: Mapping[str, int] = {feature.name: index for index, feature in enumerate(FEATURES)}


def scale_intensities(slices: Floats) -> Floats:
    """Divide each slice of ``(N, rows, columns)`` by what its bright parts have; one without any stays 0."""
    scaled = np.zeros(slices.shape, np.float32)
    for image, result in zip(slices, scaled, strict=True):
        foreground = image[image > FOREGROUND * np.percentile(image, 99.5)]
        if foreground.size:
            result[...] = image / max(TINY, float(np.percentile(foreground, BRIGHT)))
    return scaled


def pool(slices: Floats) -> Floats:
    """Average ``(..., rows, columns)`` to ``(..., *POOLED)``."""
    shape = (*slices.shape[:-2], POOLED[0], STEP, POOLED[1], STEP)
    pooled: Floats = slices.reshape(shape).mean(axis=(-3, -1), dtype=np.float32)
    return pooled


def estimate_positions(scaled: Floats, template: Template) -> NDArray[np.intp]:
    """Return for each slice of ``(N, rows, columns)``, scaled, the height whose mean slice it resembles most."""
    return np.asarray(correlate_all(pool(scaled), template.mean).argmax(axis=1))


def correlate_all(images: Floats, others: Floats) -> Floats:
    """Return Pearson's correlations ``(N, M)`` of ``(N, h, w)`` with ``(M, h, w)``; 0 with a constant image."""
    flat = [array.reshape(len(array), -1) for array in (images, others)]
    centred = [array - array.mean(axis=1, keepdims=True) for array in flat]
    first, second = (array / np.maximum(TINY, np.linalg.norm(array, axis=1, keepdims=True)) for array in centred)
    correlations: Floats = first @ second.T
    return correlations


def correlate(image: Floats, other: Floats) -> float:
    """Return Pearson's correlation of two arrays of one size; 0 with a constant one."""
    return float(correlate_all(image.reshape(1, 1, -1), other.reshape(1, 1, -1))[0, 0])


def describe_slices(scaled: Floats, template: Template) -> NDArray[np.float64]:
    """Describe slices ``(N, rows, columns)``, scaled, as ``(N, len(FEATURES))``.

    A single slice is compared with the height that it resembles most, all of a subject's with their own.
    """
    heights: Sequence[int] = range(len(scaled))
    if len(scaled) == 1:
        heights = estimate_positions(scaled, template).tolist()
    return np.array([describe_slice(image, template, height) for image, height in zip(scaled, heights, strict=True)])


def describe_slice(scaled: Floats, template: Template, height: int) -> list[float]:
    """Describe one slice ``(rows, columns)``, scaled, against a height of the template, by ``FEATURES``."""
    small, foreground = pool(scaled), pool((scaled > FOREGROUND).astype(np.float32))
    mean, coverage = template.mean[height], template.coverage[height]
    inside = coverage > INSIDE
    overlap = 2 * float(np.minimum(foreground, coverage).sum()) / max(TINY, float(foreground.sum() + coverage.sum()))
    both = inside & inside[:, ::-1]
    full = np.repeat(np.repeat(inside, STEP, axis=0), STEP, axis=1)
    dark, middle, bright = np.quantile(scaled[full], (0.05, 0.5, 0.95))
    edges = float(np.abs(np.diff(scaled, axis=0))[full[1:] & full[:-1]].mean())
    grain = float(np.abs(np.diff(scaled, n=2, axis=1))[full[:, 1:-1]].mean())
    return [
        overlap,
        correlate(small[inside], mean[inside]),
        correlate((small - small[:, ::-1])[both], (mean - mean[:, ::-1])[both]),
        float(np.abs(small[coverage < OUTSIDE]).mean()),
        float(dark),
        float(middle),
        float(bright),
        edges,
        grain / max(TINY, edges),
    ]
