"""Whether an input looks like the FLAIR scans that the segmentation network knows.

A network answers whatever it is given: a T1, a CT, slices named wrongly. Here the description of
a volume is compared with those of suitable scans. Two things raise a warning: lying far from all
of them, in whatever direction; and lying less far, but in the direction of a failure that is
known to hide among them, such as a T1. It is no check of image quality.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.confidence.description import FEATURES, TINY, describe
from pipeline.errors import BundleError
from pipeline.formats.atomic import atomic_write

__all__ = ["FEATURES", "PlausibilityModel", "describe", "fit_model", "read_model", "write_model"]

SHRINKAGE = 0.1  # of correlation matrices towards the identity
PARTS = 10  # of the patients, each left out in turn to set the limits
MOST_UNUSUAL = 3  # features that a warning names
ADVICE = "Check the sequence and orientation, and review the mask."


@dataclass(frozen=True)
class PlausibilityModel:
    """What descriptions of suitable scans are like, and in which directions known failures lie.

    Attributes:
        names: Of the features, as in ``FEATURES``.
        mean: Of each feature.
        scale: Standard deviation of each feature.
        precision: Inverse of the features' shrunk correlation matrix, row by row.
        threshold: The distance beyond which a scan is unlike all suitable ones.
        failures: What known failures look like, as a warning says it: "a T1 scan".
        directions: Of each failure, weights of the standardized features; scaled so that a
            suitable scan hardly ever scores above 1.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...]
    threshold: float
    failures: tuple[str, ...] = ()
    directions: tuple[tuple[float, ...], ...] = ()

    def distance(self, description: ArrayLike) -> float:
        """Return how far a description ``(F,)`` lies from suitable scans: Mahalanobis' distance, 1 being typical."""
        return float(np.sqrt(self._shares(description).sum().clip(0) / len(self.names)))

    def scores(self, description: ArrayLike) -> dict[str, float]:
        """Return how much a description ``(F,)`` looks like each known failure; above 1 is unusual."""
        standardized = self._standardized(description)
        scores = (float(np.dot(direction, standardized)) for direction in self.directions)
        return dict(zip(self.failures, scores, strict=True))

    def judge(self, description: ArrayLike) -> list[str]:
        """Return a warning, as a list of one sentence for the user, or none, from a description ``(F,)``."""
        distance = self.distance(description)
        if distance > self.threshold:
            unusual = np.argsort(self._shares(description))[::-1][:MOST_UNUSUAL]
            return [
                "This does not look like the FLAIR scans the network was trained on "
                f"(distance {distance:.1f}, usual up to {self.threshold:.1f}); "
                f"most unusual: {', '.join(self.names[feature] for feature in unusual)}. {ADVICE}"
            ]
        failure, score = max(self.scores(description).items(), key=lambda item: item[1], default=("", 0.0))
        if score > 1:
            return [
                f"This looks more like {failure} than like the FLAIR scans the network was trained on "
                f"(score {score:.1f}, usual up to 1.0). {ADVICE}"
            ]
        return []

    def check(self, flair: NDArray[np.floating]) -> list[str]:
        """Return a warning, as a list of one sentence for the user, or none.

        Args:
            flair: FLAIR ``(H, W, K)`` in the slice frame, normalised, as ``describe`` takes it.
        """
        return self.judge(describe(flair))

    def _standardized(self, description: ArrayLike) -> NDArray[np.float64]:
        standardized: NDArray[np.float64] = (np.asarray(description, dtype=np.float64) - self.mean) / self.scale
        return standardized

    def _shares(self, description: ArrayLike) -> NDArray[np.float64]:
        """Return what each feature adds to the squared distance."""
        standardized = self._standardized(description)
        shares: NDArray[np.float64] = standardized * (np.asarray(self.precision) @ standardized)
        return shares


def fit_model(
    descriptions: Sequence[NDArray[np.floating]],
    failures: Mapping[str, NDArray[np.floating]] | None = None,
    *,
    false_alarm: float = 0.03,
) -> PlausibilityModel:
    """Fit the model to suitable scans, and to failures that are to be told from them.

    Correlation matrices are shrunk towards the identity, as there are not many patients for their
    entries. A failure's direction is Fisher's ("The use of multiple measurements in taxonomic
    problems", 1936). Limits are set on patients left out of the fit, a tenth of them at a time:
    the scans that a model was fitted to always look nearer to it than new ones.

    Args:
        descriptions: One array ``(V, F)`` a patient: of its scan, and of versions that are suitable, too.
        failures: By what a warning calls them, descriptions ``(N, F)`` of scans that failed so.
        false_alarm: Share of left-out scans that may lie beyond a limit: half of it for the
            distance, the other half for all failures together.

    Raises:
        ValueError: If there are fewer than two patients, or a description has other than ``F`` numbers.
    """
    failures = dict(failures or {})
    if len(descriptions) < 2:
        raise ValueError(f"descriptions must be of at least 2 patients, got {len(descriptions)}")
    for rows in (*descriptions, *failures.values()):
        if rows.ndim != 2 or rows.shape[1] != len(FEATURES):
            raise ValueError(f"descriptions must be (V, {len(FEATURES)}), got shape {rows.shape}")
    left_out = []  # of each scan, the distance and the scores under a model that does not know its patient
    for part in range(min(PARTS, len(descriptions))):
        others = [rows for number, rows in enumerate(descriptions) if number % PARTS != part]
        model = _fit(np.concatenate(others), failures)
        for row in np.concatenate(descriptions[part::PARTS]):
            left_out.append([model.distance(row), *model.scores(row).values()])
    beyond = np.array([false_alarm / 2, *[false_alarm / 2 / max(1, len(failures))] * len(failures)])
    limits = [
        float(np.quantile(column, 1 - share)) for column, share in zip(np.transpose(left_out), beyond, strict=True)
    ]
    return _fit(np.concatenate(descriptions), failures, threshold=limits[0], limits=limits[1:])


def _fit(
    descriptions: NDArray[np.floating],
    failures: Mapping[str, NDArray[np.floating]],
    *,
    threshold: float = 1.0,
    limits: Sequence[float] | None = None,
) -> PlausibilityModel:
    """Fit to descriptions ``(N, F)``; without limits, a failure's direction is scaled to score 1 at its own mean."""
    mean, scale = descriptions.mean(axis=0), np.maximum(descriptions.std(axis=0), TINY)
    standardized = (descriptions - mean) / scale
    correlation = np.cov(standardized.T, bias=True)
    directions = []
    for number, rows in enumerate(failures.values()):
        failed = (rows - mean) / scale
        within = _shrink((correlation + np.cov(failed.T, bias=True)) / 2)
        direction = np.linalg.solve(within, failed.mean(axis=0))
        direction /= max(TINY, float(direction @ failed.mean(axis=0)))
        directions.append(direction / max(TINY, limits[number]) if limits else direction)
    return PlausibilityModel(
        names=FEATURES,
        mean=tuple(mean.tolist()),
        scale=tuple(scale.tolist()),
        precision=tuple(tuple(row) for row in np.linalg.inv(_shrink(correlation)).tolist()),
        threshold=threshold,
        failures=tuple(failures),
        directions=tuple(tuple(direction.tolist()) for direction in directions),
    )


def _shrink(matrix: NDArray[np.floating]) -> NDArray[np.floating]:
    """Move a covariance matrix of standardized features ``(F, F)`` towards the identity."""
    return (1 - SHRINKAGE) * matrix + SHRINKAGE * np.eye(len(matrix))


def write_model(model: PlausibilityModel, path: Path) -> None:
    """Write a model as JSON.

    Raises:
        AR2UNetError: If the file cannot be written.
    """
    with atomic_write(path) as file:
        file.write((json.dumps(asdict(model), indent=1) + "\n").encode())


def read_model(path: Path) -> PlausibilityModel:
    """Read a model that ``write_model`` wrote.

    Raises:
        BundleError: If the file is missing, damaged, or of other features than these.
    """
    try:
        fields: dict[str, Any] = json.loads(path.read_bytes())
        names, failures = tuple(map(str, fields["names"])), tuple(map(str, fields["failures"]))
        shapes = {
            "mean": (len(names),),
            "scale": (len(names),),
            "precision": (len(names), len(names)),
            "threshold": (),
            "directions": (len(failures), len(names)),
        }
        numbers = {name: np.asarray(fields[name], dtype=np.float64) for name in shapes}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{path} must be a plausibility model, got {type(error).__name__}: {error}") from error
    if names != FEATURES:
        raise BundleError(f"{path} must describe the features of this version, got {', '.join(names)}")
    for name, shape in shapes.items():
        if numbers[name].size != np.prod(shape) or not np.isfinite(numbers[name]).all():
            raise BundleError(f"{path}: {name} must be {shape} finite numbers, got shape {numbers[name].shape}")
    lowest = min(float(numbers["scale"].min()), float(numbers["threshold"]))
    if lowest <= 0:
        raise BundleError(f"{path}: scale and threshold must be above 0, got {lowest:g}")
    return PlausibilityModel(names=names, failures=failures, **{name: _frozen(numbers[name]) for name in shapes})


def _frozen(numbers: NDArray[np.float64]) -> Any:
    """Return an array as nested tuples, and one of no dimensions as a number."""
    return tuple(_frozen(part) for part in numbers) if numbers.ndim else float(numbers)
