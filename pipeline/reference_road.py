"""The reference road from a scan to probabilities: torch and MONAI, built from the bundle's ``inference.yaml``.

What happens to a volume before and after the network is written there, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BundleError, first_line

if TYPE_CHECKING:
    import torch
    from monai.bundle import ConfigParser

    from pipeline.formats.scan import Scan

__all__ = ["ReferenceRoad"]

# NIfTI's codes, with which a volume in memory says whether its spacing is known.
MILLIMETRE, UNKNOWN_UNIT = 2, 0

LESION = 1  # the channel of the network's output


class ReferenceRoad:
    """Run a scan through the transforms, the inferer and the network that a bundle's config names.

    The network is loaded with the first scan, so a bad scan is refused before torch is imported.

    Args:
        bundle: The bundle's folder.
        weights: Its state dict.
        device: Such as "cpu" or "cuda"; None takes what the config says.
    """

    engine = "torch f32"

    def __init__(self, bundle: Path, weights: Path, device: str | None) -> None:
        self.bundle = bundle
        self.weights = weights
        self.device = device

    def prepare(self, scan: Scan) -> dict[str, Any]:
        """Return the dictionary of transforms with ``image`` ``(3, H, W, K)`` as the network sees it."""
        return self._compose("volume_transforms")({"image": _volume(scan)})

    def infer(self, prepared: dict[str, Any], on_progress: Callable[[int, int], None] | None) -> torch.Tensor:
        """Return the logits ``(L, H, W, K)`` in the slice frame.

        Raises:
            BundleError: If the weights do not fit the network that the bundle describes.
        """
        import torch

        image = prepared["image"][None].to(self._device())
        with torch.inference_mode():
            logits: torch.Tensor = self._parsed("inferer")(image, _counting(self.network, image.shape[-1], on_progress))
        return logits[0]

    def finish(self, prepared: dict[str, Any], logits: torch.Tensor) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return the probabilities of lesion and the mask, both ``(I, J, K)`` on the scan's own voxels."""
        data = self._compose("probability_transforms")({**prepared, "pred": logits})
        probabilities = data["pred"][LESION].numpy()
        return probabilities, self._compose("mask_transforms")(data)["pred"][0].numpy()

    def was_smoothed(self, prepared: dict[str, Any]) -> bool:
        """Return whether noise was taken out of the scan."""
        from transforms.dictionary import NOISE_META_KEY

        return bool(prepared["image"].meta.get(NOISE_META_KEY, False))

    def flair(self, prepared: dict[str, Any]) -> NDArray[np.float32]:
        """Return the FLAIR as the network sees it, ``(H, W, K)``."""
        from transforms.geometry import FLAIR_CHANNEL

        flair: NDArray[np.float32] = prepared["image"][FLAIR_CHANNEL].numpy()
        return flair

    @cached_property
    def network(self) -> torch.nn.Module:
        """The bundle's network with its weights, ready for inference.

        Raises:
            BundleError: If the weights cannot be read, or do not fit.
        """
        from pipeline.weights import load_weights

        return load_weights(self._parsed("network"), self.weights).eval()

    @cached_property
    def config(self) -> ConfigParser:
        """The bundle's ``inference.yaml``."""
        from monai.bundle import ConfigParser

        if (self.bundle / "scripts").is_dir():
            raise BundleError(
                f"{self.bundle} is a packed bundle: run it with 'python -m monai.bundle run', or name the one it was "
                "packed from"
            )
        config, path = ConfigParser(), self.bundle / "configs" / "inference.yaml"
        try:
            config.read_config(path)
            config["bundle_root"] = str(self.bundle)
        except Exception as error:  # YAML's own errors, and whatever MONAI makes of YAML that is something else
            raise BundleError(f"{path} must be a config that MONAI can read: {first_line(error)}") from error
        if self.device is not None:
            config["device"] = f"$torch.device({self.device!r})"
        return config

    def _parsed(self, key: str) -> Any:
        config = self.config
        try:
            return config.get_parsed_content(key)
        except Exception as error:  # whatever the code that a config names can raise
            path = self.bundle / "configs" / "inference.yaml"
            cause = error if error.__cause__ is None else error.__cause__  # MONAI says what it was doing, its cause why
            raise BundleError(f"{path} must describe the bundle, but {key!r} fails: {first_line(cause)}") from error

    def _device(self) -> torch.device:
        """Return the device to compute on, once it has shown that it holds a number."""
        import torch

        if self.device is None:
            device: torch.device = self._parsed("device")
            return device
        try:
            torch.zeros(1, device=self.device).item()
        except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
            raise BundleError(
                f"device must be cpu, cuda or another that torch can use here, got {self.device!r}: {first_line(error)}"
            ) from error
        return torch.device(self.device)

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
