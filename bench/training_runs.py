"""Ways to train with the bundle's own trainer, for `training.py` to time: ours, its variants, and plain MONAI."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import measuring
import yaml
from compare_networks import TRAIN, network_definitions
from floor import Clock, count_flops

from pipeline.errors import AR2UNetError

if TYPE_CHECKING:
    from ignite.engine import Engine
    from monai.bundle import ConfigParser

FORWARD_PASSES = 3  # a step is worth: one forward, and two in the backward pass
PLAIN_SIZE = [256, 256]
CACHE_ONLY = ("cache_rate", "copy_cache", "as_contiguous", "num_workers", "progress")  # what a plain Dataset lacks
OURS, PLAIN = "ours", "plain MONAI, AR2-UNet"


# --- the ways to train --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """A way to train.

    Attributes:
        name: In the table.
        precision: "bf16" or "f32".
        plain: Whether it is the slow way, of which fewer iterations do.
        overrides: Keys of train.yaml and what they become.
    """

    name: str
    precision: str
    plain: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)


def make_settings(device: str, *, compiled: bool) -> list[Setting]:
    """Return the ways to train on a device: ours, its variants, and the plain MONAI way with two networks."""
    import torch

    from pipeline.training.precision import computes_bfloat16

    ours = "bf16" if computes_bfloat16(torch.device(device)) else "f32"  # as train.yaml decides
    settings = [Setting(OURS, ours)]
    if compiled:
        settings.append(Setting("ours, compiled", ours, overrides={"train#trainer#compile": True}))
    if device == "cuda":
        settings.append(Setting("ours, memory not pinned", ours, overrides={"train#dataloader#pin_memory": False}))
    attention_unet = network_definitions(yaml.safe_load(TRAIN.read_text())["network_def"])["attention_unet"]
    other = {**plain_overrides(), "network_def": attention_unet}
    return [
        *settings,
        Setting(PLAIN, "f32", plain=True, overrides=plain_overrides()),
        Setting("plain MONAI, AttentionUnet", "f32", plain=True, overrides=other),
    ]


def plain_overrides() -> dict[str, Any]:
    """Return the keys of train.yaml that make it the plain MONAI way."""
    sides = [["L", "R"], ["P", "A"], ["I", "S"]]
    return {
        "amp": False,
        "slice_size": PLAIN_SIZE,
        "placed_network": "$@initialized_network.to(@device)",
        "volume_transforms": [
            {"_target_": "Orientationd", "keys": ["image", "label"], "axcodes": "LPS", "labels": sides},
            {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True},
        ],
        "train#label_transforms": [],
        "train#dataset#_target_": "Dataset",
        **{f"train#dataset#{name}": None for name in CACHE_ONLY},
    }


def read_config(overrides: Mapping[str, Any]) -> ConfigParser:
    """Return train.yaml with keys replaced; a key whose new value is None is left out."""
    from monai.bundle import ConfigParser

    config = ConfigParser()
    config.read_config(str(TRAIN))
    for key, value in overrides.items():
        if value is None:
            parent, _, name = key.rpartition("#")
            config[parent].pop(name)
        else:
            config[key] = value
    return config


# --- measuring ----------------------------------------------------------------------------------------


class Stopwatch:
    """Notes when each iteration's batch has come and when its step is done, then ends the training.

    Args:
        iterations: After which training ends.
        device: Waited for, where it computes while Python goes on.
        clock: In seconds.
    """

    def __init__(self, iterations: int, *, device: str = "cpu", clock: Clock = time.perf_counter) -> None:
        self.iterations = iterations
        self.device = device
        self.clock = clock
        self.came: list[float] = []
        self.done: list[float] = []

    def attach(self, engine: Engine) -> None:
        """Attach it last of all handlers, so that theirs is part of the step."""
        from ignite.engine import Events

        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._batch_came)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step_done)

    def _batch_came(self, _engine: Engine) -> None:
        self.came.append(self.clock())

    def _step_done(self, engine: Engine) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        self.done.append(self.clock())
        if len(self.done) >= self.iterations:
            engine.terminate()


@dataclass(frozen=True)
class Training:
    """What was measured of a way to train.

    Attributes:
        setting: Its name.
        precision: Of its network.
        shape: Of a batch ``(B, C, H, W)``.
        flops: Of a step.
        steps: Seconds of each, without the wait for its batch.
        waits: Seconds until each batch came.
        preparation: Seconds before the first batch was asked for: the cache is filled.
    """

    setting: str
    precision: str
    shape: tuple[int, ...]
    flops: int
    steps: tuple[float, ...]
    waits: tuple[float, ...]
    preparation: float

    @property
    def slices_per_second(self) -> float:
        """Of all iterations, waits included."""
        return self.shape[0] * len(self.steps) / (sum(self.steps) + sum(self.waits))

    @property
    def waiting(self) -> float:
        """Share of the time spent waiting for data."""
        return sum(self.waits) / (sum(self.steps) + sum(self.waits))

    @property
    def step(self) -> float:
        """Seconds of the median step."""
        return statistics.median(self.steps)


def read_stopwatch(stopwatch: Stopwatch, warmup: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the seconds of each step and of each wait before it, without those of the first iterations.

    Args:
        stopwatch: Of a training that is over.
        warmup: Iterations that do not count, at least 1: the first batch's wait has no beginning.
    """
    came, done = stopwatch.came, stopwatch.done
    counted = range(warmup, len(done))
    return tuple(done[i] - came[i] for i in counted), tuple(came[i] - done[i - 1] for i in counted)


def train(setting: Setting, common: Mapping[str, Any], *, iterations: int, warmup: int, device: str) -> Training:
    """Train for some iterations.

    Args:
        setting: How.
        common: Further keys of train.yaml and their values.
        iterations: That count.
        warmup: Before them.
        device: "cpu" or "cuda".
    """
    from monai.utils import set_determinism

    config = read_config({**common, **setting.overrides})
    started = time.perf_counter()
    set_determinism(seed=0)  # as train.yaml does
    try:
        trainer, network = (config.get_parsed_content(key) for key in ("train#trainer", "network_def"))
        stopwatch = Stopwatch(warmup + iterations, device=device)
        stopwatch.attach(trainer)
        preparation = time.perf_counter() - started
        trainer.run()
        config.get_parsed_content("writer").close()
    finally:
        set_determinism(None)
    if len(stopwatch.done) < warmup + iterations:
        raise AR2UNetError(f"{setting.name} must train {warmup + iterations} iterations, got {len(stopwatch.done)}")
    batch = config["batch_size"] * config["slices_per_patient"]
    shape = (batch, config.get_parsed_content("network_def#in_channels"), *config["slice_size"])
    flops = FORWARD_PASSES * count_flops(network, shape)
    training = Training(setting.name, setting.precision, shape, flops, *read_stopwatch(stopwatch, warmup), preparation)
    measuring.say(f"{setting.name}: {training.slices_per_second:.2f} slices a second")
    return training
