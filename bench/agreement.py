"""What `inference.py` says of masks: those of every engine against the reference's, and of the head against all."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import yaml
from floor import make_network
from forward import exported_engines
from measuring import Goal
from numpy.typing import NDArray

from pipeline.engines.artefact import read_artefact
from pipeline.engines.engine import Engine
from pipeline.evaluation.metrics import ConfusionCounts, count_confusion
from pipeline.exporting import export_bundle
from pipeline.fast_road import FastRoad, installed_engines
from pipeline.formats.scan import Scan
from pipeline.predictor import SEGMENTATION_BUNDLE, Predictor

DICE_WANTED = 0.999  # mean over patients


def write_variant(folder: Path, *, channels: Sequence[int] | None = None, crop_to_head: bool = True) -> Path:
    """Copy the shipped bundle with something changed, and export it where an engine wants that.

    Args:
        folder: To be made.
        channels: Features per level, with random weights; None keeps the network.
        crop_to_head: False sends whole slices through the network.

    Returns:
        The folder.
    """
    for part in ("configs", "models"):
        shutil.copytree(SEGMENTATION_BUNDLE / part, folder / part, ignore=shutil.ignore_patterns("exported"))
    path = folder / "configs" / "inference.yaml"
    config = yaml.safe_load(path.read_text())
    config["volume_transforms"][0]["crop_to_head"] = crop_to_head
    if channels is not None:
        import torch

        config["network_def"]["channels"] = list(channels)
        torch.save(make_network("ar2unet", channels).state_dict(), folder / "models" / "model.pt")
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    if installed_engines():
        export_bundle(folder)
    return folder


def with_engine(bundle: Path, engine: Engine) -> Predictor:
    """Return a predictor that multiplies with this very engine, in this very precision."""
    predictor = Predictor(bundle, engine=engine.name.split()[0])
    loaded: Future[Engine] = Future()
    loaded.set_result(engine)
    if isinstance(predictor.road, FastRoad):
        predictor.road._engine = loaded  # the product offers its best precision only
    return predictor


@dataclass(frozen=True)
class Pass:
    """A scan's way through a predictor: its mask, what went into the network, and the network's seconds."""

    mask: NDArray[np.uint8]
    shape: tuple[int, ...]  # (H, W, K)
    seconds: float


def run_pass(predictor: Predictor, scan: Scan) -> Pass:
    """Segment a scan."""
    prepared = predictor.prepare(scan)
    inferred = predictor.infer(prepared)
    shape = predictor.road.flair(prepared.content).shape
    return Pass(predictor.finish(prepared, inferred).mask, shape, inferred.seconds)


def measure_agreement(
    predictor: Predictor, whole: Predictor, others: Sequence[Predictor], cases: Iterable[tuple[str, Scan]]
) -> dict[str, Any]:
    """Compare masks, and what went through the network for them.

    Args:
        predictor: The product's choice.
        whole: The same, but not cropping to the head.
        others: Whose masks are compared with those of the float32 reference.
        cases: Names and scans.

    Returns:
        ``work``: voxels, slices and seconds of the network, each of the head and of all. ``dice``: of each
        comparison each patient's, and ``pooled`` over all voxels.
    """
    reference = Predictor(predictor.bundle, device="cpu", engine="torch")
    work: dict[str, dict[str, float]] = {name: {"head": 0, "all": 0} for name in ("voxels", "slices", "seconds")}
    counts: dict[str, dict[str, ConfusionCounts]] = {}
    for subject, scan in cases:
        passes = {"head": run_pass(predictor, scan), "all": run_pass(whole, scan)}
        for key, done in passes.items():
            work["voxels"][key] += int(np.prod(done.shape))
            work["slices"][key] += done.shape[-1]
            work["seconds"][key] += done.seconds
        truth = reference.predict(scan).mask
        pairs = {f"{other.engine} against torch f32": (other.predict(scan).mask, truth) for other in others}
        pairs[f"{predictor.engine}, the head against all"] = (passes["head"].mask, passes["all"].mask)
        for name, (mask, other_mask) in pairs.items():
            counts.setdefault(name, {})[subject] = count_confusion(mask, other_mask)
        measuring.say(f"{subject}: lowest Dice {min(by[subject].dice for by in counts.values()):.4f}")
    return {
        "work": work,
        "dice": {name: {subject: count.dice for subject, count in by.items()} for name, by in counts.items()},
        "pooled": {name: sum(by.values(), ConfusionCounts(0, 0, 0, 0)).dice for name, by in counts.items()},
    }


def engines_of(predictor: Predictor) -> list[Predictor]:
    """Return a predictor for each engine installed here, in each of its precisions."""
    if not installed_engines():
        return []
    exported = read_artefact(predictor.bundle, predictor.weights_sha256).network
    return [with_engine(predictor.bundle, engine) for engine in exported_engines(exported)]


def agreement_tables(result: dict[str, Any]) -> str:
    """Return the comparisons of masks, and the work not done, as markdown tables."""
    rows: list[list[object]] = []
    for name, dice in result["dice"].items():
        scores = statistics.fmean(dice.values()), min(dice.values()), result["pooled"][name]
        rows.append([name, len(dice), *(f"{score:.5f}" for score in scores)])
    masks = measuring.markdown_table(["masks", "patients", "mean Dice", "lowest", "pooled"], rows)
    rows = []
    for name, done in result["work"].items():
        rows.append([f"network's {name}", done["head"], done["all"], f"{done['head'] / done['all']:.0%}"])
    return f"{masks}\n\n{measuring.markdown_table(['work', 'head', 'all', 'share'], rows)}"


def agreement_goals(result: dict[str, Any], engine: str) -> list[Goal]:
    """Return the figures to reach, for the engine that ``ar2unet segment`` takes here."""
    goals = []
    for name, dice in result["dice"].items():
        mean = statistics.fmean(dice.values())
        if name.startswith(engine):
            goals.append(Goal(f"mean Dice, {name}", f"{DICE_WANTED:g}", f"{mean:.5f}", mean >= DICE_WANTED))
    return goals
