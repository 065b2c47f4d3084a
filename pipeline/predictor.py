"""The one way from a scan to a mask; every face of the product calls it.

Everything is built from the bundle's ``inference.yaml``: what happens to a volume before
and after the network is written there, once.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BundleError

if TYPE_CHECKING:
    import torch
    from monai.bundle import ConfigParser

    from pipeline.confidence.assessment import Assessment, Assessor
    from pipeline.formats.scan import Scan

__all__ = ["SEGMENTATION_BUNDLE", "Prediction", "Predictor"]

SEGMENTATION_BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "flair_abnormality_segmentation"

# NIfTI's codes, with which a volume in memory says whether its spacing is known.
MILLIMETRE, UNKNOWN_UNIT = 2, 0

LESION = 1  # the channel of the network's output


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the network found in a scan, on the scan's own voxels.

    Attributes:
        mask: ``(I, J, K)``, uint8: 0 background, 1 FLAIR abnormality.
        probabilities: Of FLAIR abnormality, ``(I, J, K)``, float32.
        assessment: How far the mask can be trusted; None where the bundle does not say.
        seconds: Wall-clock time of ``preprocess``, ``network`` and ``postprocess``.
    """

    mask: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    assessment: Assessment | None
    seconds: dict[str, float]


class Predictor:
    """Segment scans with a bundle's network.

    Making one checks the bundle's files only; the network is loaded with the first scan,
    so a bad scan is refused before torch is imported.

    Args:
        bundle: The bundle's folder.
        device: Such as "cpu" or "cuda"; None takes CUDA where there is one.

    Raises:
        BundleError: If the folder is not a bundle with weights.
    """

    engine = "torch"

    def __init__(self, bundle: Path = SEGMENTATION_BUNDLE, *, device: str | None = None) -> None:
        self.bundle = bundle
        self.device = device
        self.weights = bundle / "models" / "model.pt"
        for file in (bundle / "configs" / "inference.yaml", bundle / "configs" / "metadata.json", self.weights):
            if not file.is_file():
                raise BundleError(f"{bundle} must be a bundle with configs and weights, got none at {file}")

    @cached_property
    def version(self) -> str:
        """The bundle's version, from its metadata."""
        path = self.bundle / "configs" / "metadata.json"
        try:
            return str(json.loads(path.read_text())["version"])
        except (ValueError, KeyError, OSError) as error:
            raise BundleError(f"{path} must be JSON with a version: {error}") from error

    @cached_property
    def weights_sha256(self) -> str:
        """The SHA-256 of the weights file, 64 hexadecimal digits."""
        return hashlib.sha256(self.weights.read_bytes()).hexdigest()

    def predict(self, scan: Scan, *, on_progress: Callable[[int, int], None] | None = None) -> Prediction:
        """Segment a scan.

        Args:
            scan: FLAIR alone, or t1, flair and t1c.
            on_progress: Called with the slices done and their total after each batch.

        Raises:
            BundleError: If the weights do not fit the network that the bundle describes.
        """
        import torch

        from transforms.geometry import FLAIR_CHANNEL

        started = time.perf_counter()
        data = self._compose("volume_transforms")({"image": _volume(scan)})
        preprocessed = time.perf_counter()
        image = data["image"][None].to(self._network_device)
        with torch.inference_mode():
            logits = self._parsed("inferer")(image, _counting(self.network, image.shape[-1], on_progress))
        inferred = time.perf_counter()
        data["pred"] = logits[0]
        data = self._compose("probability_transforms")(data)
        probabilities = data["pred"][LESION].numpy()
        mask = self._compose("mask_transforms")(data)["pred"][0].numpy()
        assessment = None
        if self.assessor is not None:
            assessment = self.assessor.assess(data["image"][FLAIR_CHANNEL].numpy(), probabilities, mask)
        seconds = {
            "preprocess": preprocessed - started,
            "network": inferred - preprocessed,
            "postprocess": time.perf_counter() - inferred,
        }
        return Prediction(mask=mask, probabilities=probabilities, assessment=assessment, seconds=seconds)

    @cached_property
    def network(self) -> torch.nn.Module:
        """The bundle's network with its weights, ready for inference.

        Raises:
            BundleError: If the weights cannot be read, or do not fit.
        """
        from pipeline.weights import load_weights

        return load_weights(self._parsed("network"), self.weights).eval()

    @cached_property
    def assessor(self) -> Assessor | None:
        """What assesses a mask of these weights; None where the bundle has nothing of it.

        Raises:
            BundleError: If a file of it is missing or damaged.
        """
        from pipeline.confidence.assessment import read_assessor

        return read_assessor(self.bundle)

    @cached_property
    def _config(self) -> ConfigParser:
        from monai.bundle import ConfigParser

        config = ConfigParser()
        config.read_config(self.bundle / "configs" / "inference.yaml")
        config["bundle_root"] = str(self.bundle)
        if self.device is not None:
            config["device"] = f"$torch.device({self.device!r})"
        return config

    @property
    def _network_device(self) -> torch.device:
        device: torch.device = self._parsed("device")
        return device

    def _parsed(self, key: str) -> Any:
        return self._config.get_parsed_content(key)

    def _compose(self, key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
        from monai.transforms import Compose

        transforms: Sequence[Any] = self._parsed(key)
        compose: Callable[[dict[str, Any]], dict[str, Any]] = Compose(transforms)
        return compose


def _volume(scan: Scan) -> torch.Tensor:
    """Return the scan as the bundle's own loading would have left it."""
    import torch
    from monai.data import MetaTensor

    unit = UNKNOWN_UNIT if scan.spacing is None else MILLIMETRE
    meta = {"affine": torch.from_numpy(scan.affine), "xyzt_units": unit, "filename_or_obj": scan.source}
    return MetaTensor(torch.from_numpy(scan.image), meta=meta)


def _counting(
    network: torch.nn.Module, slices: int, on_progress: Callable[[int, int], None] | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the network as a function that reports the slices that went through it."""
    done = 0

    def run(batch: torch.Tensor) -> torch.Tensor:
        nonlocal done
        logits: torch.Tensor = network(batch)
        done += len(batch)
        if on_progress is not None:
            on_progress(done, slices)
        return logits

    return run
