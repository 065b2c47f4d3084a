"""ONNX Runtime: for processors and systems that OpenVINO does not serve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pipeline.engines.engine import Receive
from pipeline.errors import BundleError

__all__ = ["OnnxEngine"]

ONLY_ERRORS = 3  # of ONNX Runtime's five levels of logging


class OnnxEngine:
    """Runs an exported network with ONNX Runtime on the CPU, in float32.

    Args:
        network: ONNX file.

    Raises:
        BundleError: If ONNX Runtime cannot read the network.
    """

    name = "onnx f32"

    def __init__(self, network: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ONLY_ERRORS
        try:
            self._session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base of their own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BundleError(f"{network} must be a network that ONNX Runtime can run: {reason}") from error
        self._input = self._session.get_inputs()[0].name

    def infer(self, image: NDArray[np.float32], receive: Receive) -> None:
        """Run the network on every slice, as ``pipeline.engines.engine.Engine`` says."""
        for k in range(image.shape[-1]):
            (logits,) = self._session.run(None, {self._input: np.ascontiguousarray(image[None, ..., k])})
            receive(k, logits[0])
