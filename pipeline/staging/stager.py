"""The one way from a T1 slice or volume to a dementia stage; every face of the product calls it.

The reference is the bundle's ``inference.yaml``, run by MONAI. Here the same network is called without MONAI, which
would take longer to import than all else; a test holds the two equal.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.artefact import hash_file
from pipeline.errors import BundleError
from pipeline.provenance import read_bundle_version
from pipeline.staging.frame import SLICES
from pipeline.staging.plausibility_model import read_plausibility
from pipeline.staging.stages import STAGES, SURE_ABOVE, DementiaStage

if TYPE_CHECKING:
    from networks.atrophy_classifier import AtrophyClassifier
    from pipeline.staging.plausibility import PlausibilityModel
    from pipeline.staging.reading import T1Slices

__all__ = ["STAGING_BUNDLE", "Stager", "Staging"]

STAGING_BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "dementia_stage_classification"
SPREAD = (10, 90)  # percentiles
UNCHECKED = "The bundle cannot tell whether this is a T1 brain slice like those the model was trained on."
SINGLE_SLICE = "A single slice tells less than a volume: the model was fitted to one slice of each subject at a time."


@dataclass(frozen=True, eq=False)
class Staging:
    """What the model says of a slice or a volume.

    Attributes:
        probabilities: Calibrated, of each of ``STAGES``, ``(3,)``.
        spread: Of each class, the 10th and 90th percentile of what the single slices say, ``(3, 2)``; None of one.
        slices: Raw intensities looked at, ``(N, rows, columns)``: 1 or 32.
        positions: Of these among a training subject's slices, from 0 for the lowest.
        contributions: What each pixel adds to the log odds of any dementia, compared with the mean training
            subject, in the shape of ``slices``; they add up to the whole difference.
        warnings: Why the answer may mean nothing, a sentence each.
        notes: What was decided on the way, a sentence each.
        seconds: Wall-clock time.
    """

    probabilities: NDArray[np.float64]
    spread: NDArray[np.float64] | None
    slices: NDArray[np.float32]
    positions: tuple[int, ...]
    contributions: NDArray[np.float32]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def stage(self) -> DementiaStage:
        """The likeliest class."""
        return STAGES[int(self.probabilities.argmax())]

    @property
    def dementia(self) -> float:
        """The probability of dementia of any stage."""
        return float(1 - self.probabilities[0])

    @property
    def sure(self) -> bool:
        """Whether dementia, or its absence, is likely enough, and nothing is odd about the input."""
        return max(self.dementia, 1 - self.dementia) >= SURE_ABOVE and not self.warnings


class Stager:
    """Tell the dementia stage with a bundle's network; torch is imported with the first input.

    Args:
        bundle: The bundle's folder.

    Raises:
        BundleError: If the folder is not a bundle with weights.
    """

    def __init__(self, bundle: Path = STAGING_BUNDLE) -> None:
        self.bundle = bundle
        self.weights = bundle / "models" / "model.pt"
        for file in (bundle / "configs" / "metadata.json", self.weights):
            if not file.is_file():
                raise BundleError(f"{bundle} must be a staging bundle with configs and weights, got none at {file}")

    @cached_property
    def version(self) -> str:
        """The bundle's version, from its metadata."""
        return read_bundle_version(self.bundle)

    @cached_property
    def weights_sha256(self) -> str:
        """The SHA-256 of the weights file, 64 hexadecimal digits."""
        return hash_file(self.weights)

    @cached_property
    def plausibility(self) -> PlausibilityModel | None:
        """What the training slices look like; None where the bundle does not say.

        Raises:
            BundleError: If its file is damaged.
        """
        path = self.bundle / "models" / "plausibility.json"
        return read_plausibility(path) if path.exists() else None

    @cached_property
    def network(self) -> AtrophyClassifier:
        """The bundle's network with its weights.

        Raises:
            BundleError: If the weights cannot be read, or do not fit.
        """
        from networks.atrophy_classifier import AtrophyClassifier
        from pipeline.weights import load_weights

        network = AtrophyClassifier()
        load_weights(network, self.weights)
        return network.eval()

    def stage(self, read: T1Slices) -> Staging:
        """Tell the stage of one slice, or of a volume from its 32 slices, which are searched for in a taller one.

        Raises:
            BundleError: If the weights do not fit the network, or the plausibility model is damaged.
        """
        started = time.perf_counter()
        import torch

        network, image = self.network, torch.from_numpy(read.slices)
        spread: NDArray[np.float64] | None = None
        notes = list(read.notes)
        with torch.inference_mode():
            if read.is_single:
                places, fits = network.slice_positions(image[None])
                logits = network.slice_logits(image[None], places)
                contributions = network.slice_contributions(image[None], places)
                positions = tuple(places.tolist())
                notes += [_describe_place(positions[0], float(fits[0])), SINGLE_SLICE]
            else:
                first, fit = (0, 1.0) if len(image) == SLICES else network.find_slices(image)
                if len(image) != SLICES:
                    notes.append(_describe_range(first, len(image), fit))
                image = image[first : first + SLICES]
                logits, contributions = network(image[None]), network.contributions(image[None])
                each = network.slice_logits(image[:, None], torch.arange(SLICES)).double().softmax(1)
                spread = np.percentile(each.numpy(), SPREAD, axis=0).T
                positions = tuple(range(SLICES))
            probabilities = logits[0].double().softmax(0).numpy()
        slices = image.numpy()
        warnings = (UNCHECKED,) if self.plausibility is None else tuple(self.plausibility.check(slices, read.color))
        seconds = time.perf_counter() - started
        pixels = contributions[0].numpy()
        return Staging(probabilities, spread, slices, positions, pixels, warnings, tuple(notes), seconds)


def _describe_place(position: int, fit: float) -> str:
    return (
        f"The slice resembles number {position + 1} of the training subjects' {SLICES}, counted from the lowest, most "
        f"(correlation with the mean slice {fit:.2f})."
    )


def _describe_range(first: int, count: int, fit: float) -> str:
    return (
        f"Slices {first + 1} to {first + SLICES} of {count}, counted from the lowest, fit the training subjects' best "
        f"(mean correlation with their mean slices {fit:.2f}) and were taken."
    )
