"""Ways to send slices through a network, for `inference.py` to time: our engines, torch, and plain MONAI."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import measuring
import numpy as np
from floor import PRECISIONS, Floor, time_calls, torch_type
from measuring import Goal
from numpy.typing import NDArray

from pipeline.engines.engine import Engine
from pipeline.fast_road import installed_engines

if TYPE_CHECKING:
    import torch

OURS, OTHER = "AR2-UNet", "AttentionUnet"
PLAIN = "plain MONAI"
ALONE = "torch, convolutions alone"
STREAM = "slice by slice"  # as `ar2unet segment` runs the engine, in place of a batch size
PLAIN_SLICES = 6  # are enough of the slowest way

SHARE_WANTED = 0.85  # of the floor's rate
TIMES_WANTED, TIMES_WANTED_WIDE = 3.5, 3.0  # faster than plain MONAI, and from so many channels at the top
WIDE = 32


@dataclass(frozen=True)
class Way:
    """A way to send slices through a network.

    Attributes:
        network: OURS or OTHER.
        engine: What multiplies.
        precision: In which: "f32", "bf16" or "f16".
        batch: Slices at once, or STREAM.
        slices: That ``run`` sends.
        run: Sends them.
    """

    network: str
    engine: str
    precision: str
    batch: int | str
    slices: int
    run: Callable[[], object]


@dataclass(frozen=True)
class Forward:
    """What was measured of a way, where ``flops`` and ``seconds`` are those of one slice."""

    network: str
    engine: str
    precision: str
    batch: int | str
    flops: int
    seconds: float


# --- the ways -----------------------------------------------------------------------------------------


def make_ways(
    networks: Mapping[str, torch.nn.Module], exported: Path | None, volume: NDArray[np.float32], batches: Sequence[int]
) -> Iterator[Way]:
    """Yield every way to send slices through the networks, one after the other; each is for use at once.

    Args:
        networks: OURS and OTHER, ready for inference.
        exported: The ONNX file of OURS; None leaves the engines out.
        volume: ``(C, H, W, K)``, whose slices are sent.
        batches: Numbers of slices at once.
    """
    if exported is not None:
        for engine in exported_engines(exported):
            name, precision = engine.name.split()
            batched = _openvino_batch if name == "openvino" else _onnx_batch
            yield Way(OURS, name, precision, STREAM, volume.shape[-1], _stream(engine, volume))
            for batch in batches:
                yield Way(OURS, name, precision, batch, batch, batched(exported, precision, _batch_of(volume, batch)))
    for batch in batches:
        run = _torch_batch(networks[OURS], _batch_of(volume, batch))
        yield Way(OURS, "torch, channels last", "bf16", batch, batch, run)
    volume = volume[..., :PLAIN_SLICES]
    for name, network in networks.items():
        yield Way(name, PLAIN, "f32", 1, volume.shape[-1], plain_run(network, volume))


def exported_engines(exported: Path) -> Iterator[Engine]:
    """Yield each engine that is installed here, in each of its precisions."""
    for name in installed_engines():
        if name == "openvino":
            from pipeline.engines.openvino_engine import OpenVINOEngine

            yield from (OpenVINOEngine(exported, precision) for precision in PRECISIONS)
        else:
            from pipeline.engines.onnx_engine import OnnxEngine

            yield OnnxEngine(exported)


def _stream(engine: Engine, volume: NDArray[np.float32]) -> Callable[[], object]:
    return lambda: engine.infer(volume, lambda _number, _logits: None)


def _openvino_batch(exported: Path, precision: str, images: NDArray[np.float32]) -> Callable[[], object]:
    """Compile for this very batch, which serves OpenVINO best."""
    import openvino

    core = openvino.Core()
    model = core.read_model(exported)
    model.reshape(list(images.shape))
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    compiled = core.compile_model(model, "CPU", hints)
    return lambda: compiled({0: images})


def _onnx_batch(exported: Path, _precision: str, images: NDArray[np.float32]) -> Callable[[], object]:
    import onnxruntime

    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: images})


def _torch_batch(network: torch.nn.Module, images: NDArray[np.float32]) -> Callable[[], object]:
    import torch

    network = copy.deepcopy(network).to(memory_format=torch.channels_last)
    tensor = torch.from_numpy(images).to(memory_format=torch.channels_last)

    def run() -> None:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            network(tensor)

    return run


def plain_run(network: torch.nn.Module, volume: NDArray[np.float32]) -> Callable[[], object]:
    """Return the way that MONAI's examples go: eager, float32, NCHW, a slice at a time."""
    import torch
    from monai.inferers import SliceInferer

    tensor = torch.from_numpy(np.ascontiguousarray(volume[None]))
    inferer = SliceInferer(spatial_dim=2, roi_size=volume.shape[1:3], sw_batch_size=1)

    def run() -> None:
        with torch.no_grad():
            inferer(tensor, network)

    return run


def _batch_of(volume: NDArray[np.float32], batch: int) -> NDArray[np.float32]:
    return np.ascontiguousarray(volume[..., np.arange(batch) % volume.shape[-1]].transpose(3, 0, 1, 2))


# --- times --------------------------------------------------------------------------------------------


def measure_way(way: Way, flops: int, *, runs: int) -> Forward:
    """Time a way; the best of its runs counts, as it does for the floor."""
    seconds = time_calls(way.run, runs=runs).best / way.slices
    measuring.say(f"{way.network}, {way.engine} {way.precision}, {way.batch}: {seconds:.4f} s a slice")
    return Forward(way.network, way.engine, way.precision, way.batch, flops, seconds)


def measure_convolutions(network: torch.nn.Module, shape: Sequence[int], precision: str, *, runs: int) -> float:
    """Return the seconds a slice of all convolutions of a network, each timed alone with nothing in between.

    Narrow layers do not reach what the floor's wide convolution does; this sum says how much of a forward pass's
    distance to its floor is theirs.

    Args:
        network: Ready for inference.
        shape: Of the slices ``(B, C, H, W)``.
        precision: "f32", "bf16" or "f16".
        runs: Of each convolution.
    """
    import torch

    calls: dict[tuple[object, ...], tuple[torch.nn.Module, torch.Tensor, int]] = {}

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        key = (type(module), module.kernel_size, inputs[0].shape, output.shape)
        times = calls[key][2] if key in calls else 0
        calls[key] = (module, inputs[0], times + 1)

    kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    hooks = [module.register_forward_hook(note) for module in network.modules() if isinstance(module, kinds)]
    form = {"dtype": torch_type(precision), "memory_format": torch.channels_last}
    seconds = 0.0
    with torch.inference_mode():
        network(torch.randn(tuple(shape)))
        for hook in hooks:
            hook.remove()
        for module, image, times in calls.values():
            layer, prepared = copy.deepcopy(module).to(**form), image.to(**form)
            timing = time_calls(lambda f=layer, x=prepared: f(x), runs=runs)
            seconds += times * timing.best
    return seconds / shape[0]


# --- the table ----------------------------------------------------------------------------------------


def forward_table(forwards: Sequence[Forward], floors: Mapping[str, Floor]) -> str:
    """Return seconds a slice, a row a network, engine and precision, and a column a batch size."""
    batches: list[int | str] = sorted({f.batch for f in forwards if isinstance(f.batch, int)})
    batches = [STREAM, *batches]
    columns = ["network", "engine", "precision", *(b if b == STREAM else f"batch {b}" for b in batches)]
    columns += ["GFLOP a slice", "floor, s", "share of the floor's rate", "times plain MONAI"]
    groups: dict[tuple[str, str, str], dict[int | str, Forward]] = {}
    for forward in forwards:
        groups.setdefault((forward.network, forward.engine, forward.precision), {})[forward.batch] = forward
    rows: list[list[object]] = []
    for names, found in groups.items():
        best = min(found.values(), key=lambda forward: forward.seconds)
        floor = floors[best.precision].seconds(best.flops)
        seconds = [found[batch].seconds if batch in found else None for batch in batches]
        times = _plain_seconds(forwards) / best.seconds
        rows.append([*names, *seconds, best.flops / 1e9, floor, f"{floor / best.seconds:.0%}", times])
    return measuring.markdown_table(columns, rows)


def forward_goals(forwards: Sequence[Forward], floors: Mapping[str, Floor], engine: str, top: int) -> list[Goal]:
    """Return the figures to reach, for the engine that ``ar2unet segment`` takes here.

    Args:
        forwards: With that engine among them, slice by slice.
        floors: By precision.
        engine: Such as "openvino f16".
        top: Features of the first level.
    """
    ours = next((f for f in forwards if f"{f.engine} {f.precision}" == engine and f.batch == STREAM), None)
    if ours is None:  # the reference, which nobody claims to be fast
        return []
    share = floors[ours.precision].seconds(ours.flops) / ours.seconds
    times = _plain_seconds(forwards) / ours.seconds
    wanted = TIMES_WANTED_WIDE if top >= WIDE else TIMES_WANTED
    name = f"forward, {engine}"
    return [
        Goal(f"{name}: share of the floor's rate", f"{SHARE_WANTED:.0%}", f"{share:.0%}", share >= SHARE_WANTED),
        Goal(f"{name}: times faster than plain MONAI", f"{wanted:g}", f"{times:.2f}", times >= wanted),
    ]


def _plain_seconds(forwards: Sequence[Forward]) -> float:
    return next(f.seconds for f in forwards if f.engine == PLAIN and f.network == OURS)
