"""The one way from a scan to a mask; every face of the product calls it.

Two roads lead there, and a test holds them equal: the reference road is built from the bundle's
``inference.yaml`` through MONAI, the fast road runs what ``ar2unet export`` made of the same bundle.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.artefact import hash_file
from pipeline.errors import BundleError
from pipeline.fast_road import ENGINES, FastRoad, installed_engines
from pipeline.provenance import read_bundle_version
from pipeline.reference_road import ReferenceRoad

if TYPE_CHECKING:
    from pipeline.confidence.assessment import Assessment, Assessor
    from pipeline.formats.scan import Scan

__all__ = ["SEGMENTATION_BUNDLE", "Inferred", "Prediction", "Predictor", "Prepared"]

SEGMENTATION_BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "flair_abnormality_segmentation"

# Where this is, there is an NVIDIA GPU; asking torch would take longer than many a scan.
NVIDIA_DEVICE = Path("/dev/nvidiactl")

SMOOTHED = (
    "The scan is noisier than those the network was trained on and was smoothed first; small or faint lesions may be "
    "missed, so review the mask."
)

FRAGMENTS = "Fragments far smaller than the main lesion were left out of the mask (voxels: {})."


@dataclass(frozen=True, eq=False)
class Step:
    """What one step of the road made of a scan.

    Attributes:
        content: For the next step of the same road.
        seconds: Wall-clock time it took.
    """

    content: Any
    seconds: float


class Prepared(Step):
    """A scan ready for the network; what ``Predictor.prepare`` returns."""


class Inferred(Step):
    """What the network made of a scan; what ``Predictor.infer`` returns."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the network found in a scan, on the scan's own voxels.

    Attributes:
        mask: ``(I, J, K)``, uint8: 0 background, 1 FLAIR abnormality.
        probabilities: Of FLAIR abnormality, ``(I, J, K)``, float32.
        assessment: How far the mask can be trusted; None where the bundle does not say.
        warnings: What was done to the scan that may make the mask worse, one sentence each.
        notes: What else there is to know of the mask, one sentence each.
        seconds: Wall-clock time of ``preprocess``, ``network`` and ``postprocess``.
    """

    mask: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    assessment: Assessment | None
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: dict[str, float]


class Road(Protocol):
    """A way from a scan to probabilities and mask; the types in between are its own."""

    @property
    def engine(self) -> str:
        """What multiplies, such as "torch f32"."""

    def prepare(self, scan: Scan) -> Any:
        """Bring a scan into the slice frame and normalise it."""

    def infer(self, prepared: Any, on_progress: Callable[[int, int], None] | None) -> Any:
        """Run the network over all slices."""

    def finish(self, prepared: Any, inferred: Any) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return the probabilities of lesion and the mask, both ``(I, J, K)`` on the scan's own voxels."""

    def was_smoothed(self, prepared: Any) -> bool:
        """Return whether noise was taken out of the scan."""

    def flair(self, prepared: Any) -> NDArray[np.float32]:
        """Return the FLAIR as the network sees it, ``(H, W, K)``."""


class Predictor:
    """Segment scans with a bundle's network.

    Making one checks the bundle's files and, on the fast road, begins to load the engine in the
    background; torch is imported with the first scan of the reference road.

    ``prepare``, ``infer`` and ``finish`` are the parts of ``predict``, for those who overlap them: the first and
    the last may be called from any thread, ``infer`` from one at a time.

    Args:
        bundle: The bundle's folder.
        device: Such as "cpu" or "cuda", of the torch engine; None takes CUDA where there is one.
        engine: "openvino", "onnx", "torch" (the reference), or "auto": torch where there is a GPU or a device
            is named other than "cpu"; else the fastest that is installed, if the bundle's network was exported.

    Raises:
        BundleError: If the folder is not a bundle with weights, or the engine cannot serve it.

    Attributes:
        note: Why "auto" took a slower engine than it could have; None otherwise.
    """

    def __init__(self, bundle: Path = SEGMENTATION_BUNDLE, *, device: str | None = None, engine: str = "auto") -> None:
        if engine not in ("auto", "torch", *ENGINES):
            raise BundleError(f"engine must be auto, torch, {' or '.join(ENGINES)}, got {engine!r}")
        self.bundle = bundle
        self.device = device
        self._weights = bundle / "models" / "model.pt"
        for file in (bundle / "configs" / "inference.yaml", bundle / "configs" / "metadata.json", self.weights):
            if not file.is_file():
                raise BundleError(f"{bundle} must be a bundle with configs and weights, got none at {file}")
        self.note: str | None = None
        self.road: Road = self._choose_road(engine)

    @property
    def weights(self) -> Path:
        """The state dict in the bundle; fixed, since the road was chosen to fit it."""
        return self._weights

    @property
    def engine(self) -> str:
        """What multiplies and in which precision, such as "openvino f16"."""
        return self.road.engine

    @cached_property
    def version(self) -> str:
        """The bundle's version, from its metadata."""
        return read_bundle_version(self.bundle)

    @cached_property
    def weights_sha256(self) -> str:
        """The SHA-256 of the weights file, 64 hexadecimal digits."""
        return hash_file(self.weights)

    def predict(self, scan: Scan, *, on_progress: Callable[[int, int], None] | None = None) -> Prediction:
        """Segment a scan.

        Args:
            scan: FLAIR alone, or t1, flair and t1c.
            on_progress: Called with the slices done and their total, again and again.

        Raises:
            BundleError: If the weights do not fit the network that the bundle describes.
        """
        prepared = self.prepare(scan)
        return self.finish(prepared, self.infer(prepared, on_progress=on_progress))

    def prepare(self, scan: Scan) -> Prepared:
        """Do what comes before the network."""
        started = time.perf_counter()
        content = self.road.prepare(scan)
        return Prepared(content, time.perf_counter() - started)

    def infer(self, prepared: Prepared, *, on_progress: Callable[[int, int], None] | None = None) -> Inferred:
        """Run the network.

        Args:
            prepared: What ``prepare`` returned.
            on_progress: As in ``predict``.

        Raises:
            BundleError: If the weights do not fit the network that the bundle describes.
        """
        started = time.perf_counter()
        content = self.road.infer(prepared.content, on_progress)
        return Inferred(content, time.perf_counter() - started)

    def finish(self, prepared: Prepared, inferred: Inferred) -> Prediction:
        """Bring what the network found onto the scan's voxels, and say how far it can be trusted."""
        started = time.perf_counter()
        probabilities, mask = self.road.finish(prepared.content, inferred.content)
        assessment = None
        if self.assessor is not None:
            assessment = self.assessor.assess(self.road.flair(prepared.content), probabilities, mask)
        left_out = np.count_nonzero(probabilities > 0.5) - np.count_nonzero(mask)
        seconds = {
            "preprocess": prepared.seconds,
            "network": inferred.seconds,
            "postprocess": time.perf_counter() - started,
        }
        smoothed = self.road.was_smoothed(prepared.content)
        if smoothed and assessment is not None:
            assessment = replace(assessment, review=True)
        return Prediction(
            mask,
            probabilities,
            assessment,
            warnings=(SMOOTHED,) if smoothed else (),
            notes=(FRAGMENTS.format(left_out),) if left_out > 0 else (),
            seconds=seconds,
        )

    @cached_property
    def assessor(self) -> Assessor | None:
        """What assesses a mask of these weights; None where the bundle has nothing of it.

        Raises:
            BundleError: If a file of it is missing or damaged.
        """
        from pipeline.confidence.assessment import read_assessor

        return read_assessor(self.bundle)

    def _choose_road(self, engine: str) -> Road:
        reference = ReferenceRoad(self.bundle, self.weights, self.device)
        if engine == "torch":
            return reference
        if engine != "auto":
            if self.device not in (None, "cpu"):
                raise BundleError(f"engine {engine} runs on the CPU, got device {self.device!r}: take engine torch")
            return FastRoad(self.bundle, self.weights_sha256, engine)
        if self.device not in (None, "cpu") or (self.device is None and NVIDIA_DEVICE.exists()):
            return reference
        fastest = next(iter(installed_engines()), None)
        if fastest is None:
            return reference
        try:
            return FastRoad(self.bundle, self.weights_sha256, fastest)
        except BundleError as error:
            self.note = f"{error}; until then engine torch is used, which is several times slower"
            return reference
