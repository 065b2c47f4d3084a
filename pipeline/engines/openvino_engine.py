"""OpenVINO: the fastest of the engines on CPUs, in half precision where that is faster and leaves the masks alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray

from pipeline.engines.engine import Receive
from pipeline.errors import BundleError, first_line

__all__ = ["OpenVINOEngine", "best_precision"]

CPU_INFO = Path("/proc/cpuinfo")


def best_precision() -> str:
    """Return the fastest precision of this processor that leaves the masks as they are.

    That is float16 where AMX multiplies it, or an ARM processor. Many processors with AMX multiply bfloat16 alone, and
    in AVX-512 float16 is slower than float32, though OpenVINO names it as a capability of either kind. bfloat16 would
    be the fastest there, but its masks are not those of float32 (mean Dice 0.997; bench/RESULTS.md).
    """
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    fast = "FP16" in capabilities and ("BF16" not in capabilities or _has_amx_float16())
    return "f16" if fast else "f32"


def _has_amx_float16() -> bool:
    """Ask Linux; where nobody can be asked, the answer is no."""
    try:
        processors = CPU_INFO.read_text()
    except OSError:
        return False
    return "amx_fp16" in processors.split()


class OpenVINOEngine:
    """Runs an exported network with OpenVINO on the CPU.

    Slices go one by one through as many streams as the processor serves best, so that no core waits for
    another. The network is compiled once for slices of any size: that costs a seventh of the speed, and compiling
    for each scan's own size would cost more than it saves.

    Args:
        network: ONNX file.
        precision: "f32", "bf16" or "f16"; None takes ``best_precision``.

    Raises:
        BundleError: If OpenVINO cannot read the network.
    """

    def __init__(self, network: Path, precision: str | None = None) -> None:
        self.precision = precision or best_precision()
        core = openvino.Core()
        settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": self.precision}
        try:
            self._compiled = core.compile_model(network, "CPU", settings)
        except RuntimeError as error:
            raise BundleError(f"{network} must be a network that OpenVINO can run: {first_line(error)}") from error
        streams = self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        # Two for each stream: one that runs, one that waits, so that no stream does.
        self._requests = [self._compiled.create_infer_request() for _ in range(2 * streams)]

    @property
    def name(self) -> str:
        """Such as "openvino f16"."""
        return f"openvino {self.precision}"

    def infer(self, image: NDArray[np.float32], receive: Receive) -> None:
        """Run the network on every slice, as ``pipeline.engines.engine.Engine`` says."""
        requests, total = self._requests, image.shape[-1]
        ahead = len(requests)
        # Waited for in turn: a callback would run in a thread of OpenVINO's, which may still want Python's
        # lock when an interrupt or the end of the process takes it away for good.
        try:
            for k in range(total + ahead):
                request = requests[k % ahead]
                if k - ahead in range(total):
                    request.wait()
                    receive(k - ahead, request.get_output_tensor(0).data[0])
                if k < total:
                    request.start_async({0: np.ascontiguousarray(image[None, ..., k])})
        finally:  # whoever leaves early must not leave requests that run
            for request in requests:
                request.wait()
