"""Train several networks through the bundle, each with the same budget of time, and score them on held-out patients.

    python bench/compare_networks.py --dataset_dir DATA --output_dir OUT --fold 0 --budget 60

DATA is what `ar2unet prepare` writes. Each training and each evaluation is `python -m monai.bundle run` in the
bundle's folder, as a user would start it, with `network_def` alone replaced: data, augmentation, loss, learning rate
and seed are those of train.yaml, and so are the widths from half resolution downwards. The budget is minutes of
training: an epoch of each network is measured first, and as many are trained as fit, so the learning rate runs its
whole course. `--epochs N` gives every network the same number instead. Nothing is validated meanwhile and no epoch is
picked: the last averaged weights are what is scored. A network whose result lies in OUT is not trained again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import AR2UNetError, BundleError, DatasetError
from pipeline.evaluation.tables import SUMMARY_FILE, write_summary
from pipeline.predictor import SEGMENTATION_BUNDLE

NETWORKS = (
    "unet",
    "attention_unet",
    "attention_residual_unet",
    "ar2unet_reference",
    "ar2unet_published",
    "ar2unet_without_backbone",
    "ar2unet",
)
TRAIN, EVALUATE = (SEGMENTATION_BUNDLE / "configs" / name for name in ("train.yaml", "evaluate.yaml"))
PROBE_EPOCHS = 3  # of which the first, in which workers start and libraries warm up, is not counted
SPARE = 0.03  # share of the budget kept free, because no machine runs evenly
SLICE_SIZE = 256  # pixels, of the slice whose GFLOPs are counted
OWN_KEYS = ("dataset_dir", "output_dir", "fold", "epochs", "val_interval", "checkpoint", "network_def")
SCORES = {"iou": 3, "precision": 3, "recall": 3, "pixel_accuracy": 4}  # beside Dice, and their decimals
EPOCH_TIME = re.compile(r"SupervisedTrainer: Epoch\[\d+\] Complete\. Time taken: (\d+):(\d+):([\d.]+)")


@dataclass(frozen=True)
class Comparison:
    """What all networks have in common.

    Attributes:
        dataset_dir: As `ar2unet prepare` writes it.
        output_dir: Gets a folder for each network.
        fold: Held out of training, and scored.
        budget: Minutes of training for each network; None where ``epochs`` says how long.
        epochs: Of every network; None where the budget says how many.
        overrides: Further keys of train.yaml and their values, as on the command line.
    """

    dataset_dir: Path
    output_dir: Path
    fold: int
    budget: float | None
    epochs: int | None
    overrides: dict[str, str]

    def flags(self, **further: object) -> dict[str, object]:
        """Return the keys to override in a training or evaluation."""
        return {**self.overrides, "dataset_dir": self.dataset_dir, "fold": self.fold, **further}


@dataclass(frozen=True)
class Result:
    """One network's row of the table.

    Attributes:
        network: Its name.
        settings: All that the result depends on.
        parameters: Weights that are learned.
        gflops: For one slice of 256 x 256 pixels, in 10^9, a multiply-add counted as 2.
        epoch_seconds: Of each epoch that was trained.
        summary: ``summary.json`` of the evaluation.
    """

    network: str
    settings: Mapping[str, Any]
    parameters: int
    gflops: float
    epoch_seconds: Sequence[float]
    summary: Mapping[str, Any]


# --- the networks -------------------------------------------------------------------------------------


def network_definitions(ours: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return each network's ``network_def``, given that of train.yaml.

    Networks that do not know patches have a level more instead, of half the channels, which is as much work;
    2 at least, because MONAI's gates halve them.
    """
    sizes = {name: ours[name] for name in ("spatial_dims", "in_channels", "out_channels")}
    patched = {**sizes, "channels": ours["channels"], "patch_size": ours["patch_size"]}
    whole = {
        **sizes,
        "channels": "$[max(2, @channels[0] // @patch_size), *@channels] if @patch_size > 1 else @channels",
    }
    halving = {"strides": "$[2] * (len(@channels) - (@patch_size == 1))"}
    published = {"_target_": ours["_target_"], **whole, "recurrences": 2}
    return {
        # As in bundles of MONAI's model zoo: two convolutions a residual unit, batch norm.
        "unet": {"_target_": "monai.networks.nets.UNet", **whole, **halving, "num_res_units": 2, "norm": "batch"},
        "attention_unet": {"_target_": "monai.networks.nets.AttentionUnet", **whole, **halving},
        "attention_residual_unet": {"_target_": "networks.attention_residual_unet.AttentionResidualUNet", **patched},
        "ar2unet_reference": {**published, "upsample": "nearest", "gate": "decoder"},
        "ar2unet_published": published,
        "ar2unet_without_backbone": {**ours, "backbone": "none"},
        "ar2unet": dict(ours),
    }


def describe_network(configs: Sequence[Path], overrides: Mapping[str, str]) -> tuple[int, float]:
    """Return the number of parameters and the GFLOPs of one slice.

    Convolutions and matrix products are counted, a multiply-add as 2 operations; norms and activations are not.

    Args:
        configs: One on top of the other, as in ``--config_file``.
        overrides: Keys of them and their values, as on the command line.
    """
    import torch
    from monai.bundle import ConfigParser
    from torch.utils.flop_counter import FlopCounterMode

    parser = ConfigParser()
    parser.read_config([str(path) for path in configs])
    parser.update({key: yaml.safe_load(value) for key, value in overrides.items()})
    with torch.device("meta"):  # shapes without numbers: nothing is computed
        network = parser.get_parsed_content("network_def").eval()
        image = torch.empty(1, parser.get_parsed_content("network_def#in_channels"), SLICE_SIZE, SLICE_SIZE)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return sum(weight.numel() for weight in network.parameters()), counter.get_total_flops() / 1e9


# --- training and evaluation --------------------------------------------------------------------------


def epochs_within(budget: float, seconds_per_epoch: float) -> int:
    """Return how many epochs fit into a budget of minutes, a little of it kept spare.

    Raises:
        AR2UNetError: If not one fits.
    """
    epochs = math.floor(budget * 60 * (1 - SPARE) / seconds_per_epoch)
    if epochs < 1:
        raise AR2UNetError(f"--budget must hold an epoch of {seconds_per_epoch:.1f} s, got {budget:g} minutes")
    return epochs


def read_epoch_seconds(log: str) -> list[float]:
    """Return how long each epoch took, from what a training printed."""
    return [int(hours) * 3600 + int(minutes) * 60 + float(rest) for hours, minutes, rest in EPOCH_TIME.findall(log)]


def run_bundle(workflow: str, configs: Sequence[Path], flags: Mapping[str, object], log: Path) -> str:
    """Run ``python -m monai.bundle run`` in the bundle's folder.

    Args:
        workflow: Such as "training".
        configs: One on top of the other.
        flags: Keys to override.
        log: Gets what the run prints.

    Returns:
        What the run printed.

    Raises:
        BundleError: If the run fails.
    """
    command = [sys.executable, "-m", "monai.bundle", "run", workflow, "--config_file", str([*map(str, configs)])]
    command += ["--logging_file", "configs/logging.conf"]
    command += [part for key, value in flags.items() for part in (f"--{key}", str(value))]
    environment = {**os.environ, "MONAI_FAIL_ON_DUPLICATE_CONFIG": "1"}
    with log.open("w") as file:
        finished = subprocess.run(
            command, cwd=SEGMENTATION_BUNDLE, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False
        )
    printed = log.read_text(errors="replace")
    if finished.returncode != 0:
        last = (printed.strip().splitlines() or ["nothing printed"])[-1]
        raise BundleError(f"{workflow} must end with exit code 0, got {finished.returncode}: {last} (more in {log})")
    return printed


def train(comparison: Comparison, configs: Sequence[Path], folder: Path, epochs: int) -> list[float]:
    """Train one network into ``folder`` and return the seconds of each epoch."""
    never = epochs + 1  # validation would take of the budget, and could end a training early
    flags = comparison.flags(output_dir=folder, epochs=epochs, val_interval=never)
    log = folder / "training.log"
    seconds = read_epoch_seconds(run_bundle("training", configs, flags, log))
    if len(seconds) != epochs:
        raise BundleError(f"{log} must tell the time of {epochs} epochs, got {len(seconds)}")
    return seconds


def train_within(comparison: Comparison, configs: Sequence[Path], folder: Path) -> list[float]:
    """Train one network for as many epochs as it is given or as fit, and return the seconds of each."""
    epochs = comparison.epochs
    if epochs is None:
        with tempfile.TemporaryDirectory() as probe:
            seconds = statistics.fmean(train(comparison, configs, Path(probe), PROBE_EPOCHS)[1:])
        epochs = epochs_within(comparison.budget or 0, seconds)
        say(f"{folder.name}: {seconds:.2f} s an epoch, so {epochs} epochs in {comparison.budget:g} minutes")
    (folder / "evaluation" / SUMMARY_FILE).unlink(missing_ok=True)  # of weights that are about to be replaced
    return train(comparison, configs, folder, epochs)


def evaluate(comparison: Comparison, configs: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Score the last weights of the training in ``folder``, once, and return its ``summary.json``."""
    summary = folder / "evaluation" / SUMMARY_FILE
    if not summary.is_file():
        flags = comparison.flags(output_dir=summary.parent, checkpoint=folder / "model_final.pt")
        run_bundle("evaluating", [*configs, EVALUATE], flags, folder / "evaluation.log")
    content: dict[str, Any] = json.loads(summary.read_text())
    return content


# --- one network after the other ----------------------------------------------------------------------


def settings_of(comparison: Comparison, definition: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that a result depends on; results of other settings have no place in the same table.

    Raises:
        DatasetError: If there is no datalist.
    """
    import torch

    datalist = comparison.dataset_dir / "datalist.json"
    try:
        data = datalist.read_bytes()
    except OSError as error:
        raise DatasetError(f"{datalist} must be a datalist as 'ar2unet prepare' writes it: {error.strerror}") from error
    configs = [yaml.safe_load(path.read_text()) for path in (TRAIN, EVALUATE)]  # so that a comment may change
    cuda = torch.cuda.is_available()
    return {
        "fold": comparison.fold,
        "budget_minutes": comparison.budget,
        "epochs": comparison.epochs,
        "overrides": comparison.overrides,
        "network_def": dict(definition),
        "datalist_sha256": hashlib.sha256(data).hexdigest(),
        "configs_sha256": hashlib.sha256(json.dumps(configs).encode()).hexdigest(),
        "machine": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, {os.cpu_count()} threads",
    }


def read_trained(path: Path, wanted: Mapping[str, Any]) -> list[float]:
    """Return the seconds of each epoch of an earlier training.

    Raises:
        AR2UNetError: If the training had other settings.
    """
    found = json.loads(path.read_text())
    had = found["settings"]
    other = [f"{key} {had.get(key)!r} in place of {value!r}" for key, value in wanted.items() if had.get(key) != value]
    if other:
        raise AR2UNetError(f"{path} must be of the same settings, got {'; '.join(other)}: choose another --output_dir")
    seconds: list[float] = found["epoch_seconds"]
    return seconds


def compare_network(comparison: Comparison, name: str, definition: Mapping[str, Any]) -> Result:
    """Train and score one network, or take what an earlier call left in its folder.

    Raises:
        AR2UNetError: If the earlier call had other settings, the budget is too small or a run fails.
    """
    folder = comparison.output_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    path, settings = folder / "trained.json", settings_of(comparison, definition)
    configs = [TRAIN, folder / "network.yaml"]
    if path.is_file():
        seconds = read_trained(path, settings)
        say(f"{name}: trained already")
    else:
        configs[1].write_text(yaml.safe_dump({"network_def": dict(definition)}, sort_keys=False))
        seconds = train_within(comparison, configs, folder)
        write_summary(path, {"settings": settings, "epoch_seconds": seconds})
        say(f"{name}: trained {len(seconds)} epochs in {sum(seconds) / 60:.1f} minutes")
    parameters, gflops = describe_network(configs, comparison.overrides)
    return Result(name, settings, parameters, gflops, seconds, evaluate(comparison, configs, folder))


def say(line: str) -> None:
    """Tell whoever waits; stdout is for the table alone."""
    print(line, file=sys.stderr, flush=True)


# --- the table and the command line -------------------------------------------------------------------


def markdown_table(results: Sequence[Result]) -> str:
    """Return the results as a markdown table, a row a network in the order given, and what to know about it."""
    columns = ["network", "parameters", "GFLOPs a slice", "epochs", "s an epoch", "training min"]
    columns += ["mean Dice [95 %]", "median Dice [95 %]", *(name.replace("_", " ") for name in SCORES)]
    rows = [columns, ["---", *["---:"] * (len(columns) - 1)], *map(_cells, results)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + (
        f"\n\n{results[0].summary['patients']} held-out patients; IoU, precision, recall and pixel accuracy are means "
        f"over them. GFLOPs: one slice of {SLICE_SIZE} x {SLICE_SIZE} pixels, convolutions and matrix products, a "
        "multiply-add counted as 2. Seconds an epoch: median."
    )


def _cells(result: Result) -> list[str]:
    seconds, summary = result.epoch_seconds, result.summary
    cells = [result.network, f"{result.parameters:,}", f"{result.gflops:.2f}", str(len(seconds))]
    cells += [f"{statistics.median(seconds):.2f}", f"{sum(seconds) / 60:.1f}"]
    for statistic in ("mean", "median"):
        ends = summary["intervals"][statistic]["dice"]
        interval = "too few patients" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"
        cells.append(f"{summary[statistic]['dice']:.3f} [{interval}]")
    return [*cells, *(f"{summary['mean'][name]:.{decimals}f}" for name, decimals in SCORES.items())]


def parse_overrides(pairs: Sequence[str]) -> dict[str, str]:
    """Return ``key=value`` texts as a dictionary.

    Raises:
        AR2UNetError: If one has no ``=``, or is a key that the comparison itself sets.
    """
    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key or key.partition("#")[0] in OWN_KEYS:
            raise AR2UNetError(f"--set must be key=value with a key other than {', '.join(OWN_KEYS)}, got {pair!r}")
        overrides[key] = value
    return overrides


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset_dir", type=Path, required=True, help="as `ar2unet prepare` writes it")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets a folder for each network")
    parser.add_argument("--fold", type=int, required=True, help="held out of training, and scored")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--budget", type=float, metavar="MINUTES", help="of training, for each network")
    length.add_argument("--epochs", type=int, metavar="N", help="the same number for every network instead")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="comma-separated; default: all, %(default)s")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="of train.yaml")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results here, too")
    return parser.parse_args(arguments)


def compare(options: argparse.Namespace) -> list[Result]:
    """Train and score every network that is asked for.

    Raises:
        AR2UNetError: If an option makes no sense or a run fails.
    """
    names = options.networks.split(",")
    if unknown := sorted(set(names) - set(NETWORKS)):
        raise AR2UNetError(f"--networks must be among {', '.join(NETWORKS)}, got {', '.join(unknown)}")
    if options.fold < 0 or (options.epochs is not None and options.epochs < 1):
        raise AR2UNetError(f"--fold must be at least 0 and --epochs 1, got {options.fold} and {options.epochs}")
    # Resolved, because the runs start in the bundle's folder.
    data, output = options.dataset_dir.resolve(), options.output_dir.resolve()
    overrides = parse_overrides(options.set)
    comparison = Comparison(data, output, options.fold, options.budget, options.epochs, overrides)
    definitions = network_definitions(yaml.safe_load(TRAIN.read_text())["network_def"])
    return [compare_network(comparison, name, definitions[name]) for name in names]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print the table and return the exit code."""
    options = parse_arguments(arguments)
    try:
        results = compare(options)
        print(markdown_table(results))
        if options.json is not None:
            write_summary(options.json, {"networks": [asdict(result) for result in results]})
    except AR2UNetError as error:
        say(f"error: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
