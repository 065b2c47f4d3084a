"""The floor of a step: its floating-point work divided by the best rate of the machine, and a clock to compare with.

The rate is the best that the machine reaches, just before, on a large convolution of the same precision. Work counts
convolutions and matrix products, a multiply-add as 2.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import AR2UNetError

if TYPE_CHECKING:
    import torch

Clock = Callable[[], float]

PRECISIONS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}  # and what torch calls them
FLOOR_CHANNELS = 256
# Slices and pixels a side of the convolutions; which of them is fastest differs between machines.
FLOOR_SIZES = {"cpu": ((4, 32), (4, 64), (8, 64), (2, 128)), "cuda": ((16, 128), (64, 128), (64, 256))}
FLOOR_SECONDS = 2.0  # spent on each precision
MATRIX_SIZE = 8192


# --- time and rates -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """Seconds of each of several runs of the same thing."""

    runs: tuple[float, ...]

    @property
    def best(self) -> float:
        """The shortest: what the machine can do while nobody else wants it."""
        return min(self.runs)

    @property
    def median(self) -> float:
        """The middle one: what to expect."""
        return statistics.median(self.runs)


def time_calls(
    call: Callable[[], object], *, runs: int = 3, warmup: int = 1, clock: Clock = time.perf_counter
) -> Timing:
    """Time ``runs`` calls after ``warmup`` calls that do not count."""
    for _ in range(warmup):
        call()
    seconds = []
    for _ in range(runs):
        started = clock()
        call()
        seconds.append(clock() - started)
    return Timing(tuple(seconds))


@dataclass(frozen=True)
class Floor:
    """The best rate that a machine reaches.

    Attributes:
        precision: "f32", "bf16" or "f16".
        rate: Floating-point operations a second, a multiply-add counted as 2.
        work: What reached it.
    """

    precision: str
    rate: float
    work: str

    def seconds(self, flops: float) -> float:
        """Return how long so much work takes at this rate."""
        return flops / self.rate


def measure_floor(
    precision: str, *, device: str = "cpu", seconds: float = FLOOR_SECONDS, clock: Clock = time.perf_counter
) -> Floor:
    """Measure the best rate of a 3x3 convolution of 256 channels, in channels-last order.

    Args:
        precision: "f32", "bf16" or "f16".
        device: "cpu" or "cuda".
        seconds: To spend, over all sizes together.
        clock: In seconds.

    Raises:
        AR2UNetError: If the precision is unknown, or torch cannot convolve in it here.
    """
    import torch

    dtype, kind = torch_type(precision), torch.device(device).type
    convolution = torch.nn.Conv2d(FLOOR_CHANNELS, FLOOR_CHANNELS, 3, padding=1, bias=False, device=device)
    convolution = convolution.to(dtype=dtype, memory_format=torch.channels_last)
    flops_per_pixel = 2 * FLOOR_CHANNELS * FLOOR_CHANNELS * 9
    best, work = 0.0, ""
    for slices, side in FLOOR_SIZES[kind]:
        image = torch.randn(slices, FLOOR_CHANNELS, side, side, device=device)
        image = image.to(dtype=dtype, memory_format=torch.channels_last)
        try:
            spent = _best_seconds(lambda image=image: convolution(image), seconds / len(FLOOR_SIZES[kind]), kind, clock)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise AR2UNetError(f"the floor of {precision} must be measured with torch: {reason}") from error
        rate = flops_per_pixel * slices * side * side / spent
        if rate > best:
            best, work = rate, f"3x3 convolution of {slices} x {FLOOR_CHANNELS} x {side} x {side}"
    return Floor(precision, best, work)


def measure_matrix_floor(
    precision: str, *, device: str, seconds: float = FLOOR_SECONDS, clock: Clock = time.perf_counter
) -> Floor:
    """Measure the rate of a product of two large square matrices."""
    import torch

    first, second = torch.randn(2, MATRIX_SIZE, MATRIX_SIZE, device=device, dtype=torch_type(precision))
    spent = _best_seconds(lambda: first @ second, seconds, torch.device(device).type, clock)
    return Floor(precision, 2 * MATRIX_SIZE**3 / spent, f"product of matrices of {MATRIX_SIZE} x {MATRIX_SIZE}")


def torch_type(precision: str) -> torch.dtype:
    """Return torch's type of a precision.

    Raises:
        AR2UNetError: If the precision is unknown.
    """
    import torch

    if precision not in PRECISIONS:
        raise AR2UNetError(f"precision must be {', '.join(PRECISIONS)}, got {precision!r}")
    dtype: torch.dtype = getattr(torch, PRECISIONS[precision])
    return dtype


def _best_seconds(call: Callable[[], object], seconds: float, kind: str, clock: Clock) -> float:
    """Return the shortest time of as many calls as fit into ``seconds``, but of 3 at least."""
    import torch

    def wait() -> None:
        if kind == "cuda":  # which computes while Python goes on
            torch.cuda.synchronize()

    best, calls = float("inf"), 0
    with torch.inference_mode():
        call()
        wait()
        end = clock() + seconds
        while calls < 3 or clock() < end:
            started = clock()
            call()
            wait()
            best, calls = min(best, clock() - started), calls + 1
    return best


# --- networks -----------------------------------------------------------------------------------------


def make_network(name: str, channels: Sequence[int]) -> torch.nn.Module:
    """Return a network with random weights.

    Args:
        name: As in ``compare_networks.NETWORKS``, such as "ar2unet" or "attention_unet".
        channels: Features per level.
    """
    from compare_networks import TRAIN, network_definitions
    from monai.bundle import ConfigParser

    config = ConfigParser()
    config.read_config(str(TRAIN))
    config["channels"] = list(channels)
    config["network_def"] = network_definitions(config["network_def"])[name]
    network: torch.nn.Module = config.get_parsed_content("network_def")
    return network


def count_flops(network: torch.nn.Module, shape: Sequence[int]) -> int:
    """Return the work of a forward pass of slices ``(B, C, H, W)``, without computing anything."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    ghost = copy.deepcopy(network).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ghost(torch.empty(tuple(shape), device="meta"))
    return int(counter.get_total_flops())
