"""The fast road from a scan to probabilities: NumPy and an exported network, neither torch nor MONAI.

It calls the same pure functions as the transforms that the bundle's config names, with the parameters that
``ar2unet export`` took from that config. A test holds it equal to the reference road, voxel for voxel.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.artefact import read_artefact
from pipeline.errors import BundleError

if TYPE_CHECKING:
    from pipeline.engines.engine import Engine
    from pipeline.formats.scan import Scan
    from transforms.geometry import SliceFrame

__all__ = ["ENGINES", "FastRoad", "SliceFramed", "installed_engines"]

# The module that each engine cannot do without; the fastest engine first.
ENGINES = {"openvino": "openvino", "onnx": "onnxruntime"}

LESION = 1  # of the two classes of the network's output


@dataclass(frozen=True, eq=False)
class SliceFramed:
    """A scan as the network sees it.

    Attributes:
        image: t1, flair and t1c ``(3, H, W, K)``, float32, normalised; for FLAIR alone three views of it.
        frame: The way back.
        smoothed: Whether it had more noise than the training scans, so that some was taken out.
    """

    image: NDArray[np.float32]
    frame: SliceFrame
    smoothed: bool


def installed_engines() -> list[str]:
    """Return the engines that can be used here, the fastest first, without importing any."""
    return [name for name, module in ENGINES.items() if importlib.util.find_spec(module) is not None]


class FastRoad:
    """Bring scans into the slice frame, through an exported network, and back.

    The engine is loaded in the background from the beginning, while the scan is still being read.

    Args:
        bundle: The bundle's folder.
        weights_sha256: Of its weights.
        engine: "openvino" or "onnx".

    Raises:
        BundleError: If the engine is not installed, or the exported network does not belong to the bundle.
    """

    def __init__(self, bundle: Path, weights_sha256: str, engine: str) -> None:
        if engine not in installed_engines():
            raise BundleError(f"engine {engine} needs the package {ENGINES[engine]}, which is not installed")
        artefact = read_artefact(bundle, weights_sha256)
        self.manifest = artefact.manifest
        loader = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._engine: Future[Engine] = loader.submit(_load_engine, engine, artefact.network)
        loader.shutdown(wait=False)

    @property
    def engine(self) -> str:
        """The engine's name and precision, such as "openvino f16"."""
        return self._engine.result().name

    def prepare(self, scan: Scan) -> SliceFramed:
        """Bring a scan into the slice frame, reduce its noise where there is much, and normalise it."""
        from transforms.denoising import reduce_noise
        from transforms.geometry import find_slice_frame, to_slice_frame
        from transforms.intensity import normalize_intensity

        frame = find_slice_frame(scan.image, scan.affine, scan.spacing, **self.manifest.frame)
        framed = np.asarray(to_slice_frame(scan.image, frame), dtype=np.float32)
        reduced = reduce_noise(framed, **self.manifest.noise)
        image = normalize_intensity(reduced, **self.manifest.intensity)
        if len(image) == 1:
            image = np.broadcast_to(image, (self.manifest.in_channels, *image.shape[1:]))
        return SliceFramed(image, frame, smoothed=reduced is not framed)

    def infer(self, prepared: SliceFramed, on_progress: Callable[[int, int], None] | None) -> NDArray[np.float32]:
        """Return the probabilities of lesion ``(H, W, K)`` in the slice frame."""
        total = prepared.image.shape[-1]
        height, width, _ = prepared.image.shape[1:]
        probabilities = np.empty((total, height, width), dtype=np.float32)
        done = 0

        def receive(k: int, logits: NDArray[np.float32]) -> None:
            nonlocal done
            probabilities[k] = _probability_of_lesion(logits)
            done += 1
            if on_progress is not None:
                on_progress(done, total)

        self._engine.result().infer(prepared.image, receive)
        return probabilities.transpose(1, 2, 0)

    def finish(
        self, prepared: SliceFramed, probabilities: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return the probabilities of lesion and the mask, both ``(I, J, K)`` on the scan's own voxels."""
        from transforms.components import keep_main_components
        from transforms.geometry import from_slice_frame

        on_grid = from_slice_frame(probabilities[None], prepared.frame)[0]
        # Of two classes the likelier one is the one above one half.
        mask = (on_grid > 0.5).view(np.uint8)
        return on_grid, keep_main_components(mask, **self.manifest.components)

    def was_smoothed(self, prepared: SliceFramed) -> bool:
        """Return whether noise was taken out of the scan."""
        return prepared.smoothed

    def flair(self, prepared: SliceFramed) -> NDArray[np.float32]:
        """Return the FLAIR as the network sees it, ``(H, W, K)``."""
        from transforms.geometry import FLAIR_CHANNEL

        flair: NDArray[np.float32] = prepared.image[FLAIR_CHANNEL]
        return flair


def _probability_of_lesion(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the softmax of two classes, the second of them: ``(2, H, W)`` -> ``(H, W)``."""
    # Written with tanh, which unlike exp does not overflow.
    probabilities: NDArray[np.float32] = (np.tanh((logits[LESION] - logits[1 - LESION]) / 2) + 1) / 2
    return probabilities


def _load_engine(name: str, network: Path) -> Engine:
    if name == "openvino":
        from pipeline.engines.openvino_engine import OpenVINOEngine

        return OpenVINOEngine(network)
    from pipeline.engines.onnx_engine import OnnxEngine

    return OnnxEngine(network)
