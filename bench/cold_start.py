"""Time the command `ar2unet` in fresh processes on the CPU: help, its answer to a bad input, one scan.

    python bench/cold_start.py --scan flair.nii.gz --json cold_start.json --plot cold_start.png

One scan may take 1.5 times the floor of its network's work, counted over the slices that are sent, plus 1.0 s. Beside
it stand the reference engine and the plain MONAI way: `python -m monai.bundle run` of the same bundle on whole slices
with ``SliceInferer``, float32, NCHW, one slice at a time; with our network, and with an AttentionUnet of the same
widths and random weights. Files are in the page cache, as each command is run once before it counts.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import measuring
import yaml
from compare_networks import network_definitions
from floor import Floor, Timing, count_flops, make_network, measure_floor, time_calls
from measuring import Goal

from pipeline.case import case_name
from pipeline.datasets.phantom import load_sample
from pipeline.errors import AR2UNetError
from pipeline.evaluation.metrics import count_confusion
from pipeline.formats.nifti import read_mask, read_scan
from pipeline.predictor import SEGMENTATION_BUNDLE, Predictor

FLOORS_ALLOWED, SECONDS_ALLOWED = 1.5, 1.0  # for one scan: so many floors, and so much besides
HELP_SECONDS, ERROR_SECONDS = 0.3, 1.0
DICE_WANTED = 0.999
INFERENCE = SEGMENTATION_BUNDLE / "configs" / "inference.yaml"
HELP, ERROR = "ar2unet --help", "ar2unet segment, no such scan"
AUTO, REFERENCE = "ar2unet segment", "ar2unet segment --engine torch"
PLAIN = {"ar2unet": "plain MONAI, AR2-UNet", "attention_unet": "plain MONAI, AttentionUnet"}


@dataclass(frozen=True)
class Command:
    """A command to time.

    Attributes:
        name: In the table.
        words: Its command line.
        runs: That count.
        exit_code: It must end with.
        folder: In which it is run; None for the current one.
    """

    name: str
    words: tuple[str, ...]
    runs: int
    exit_code: int = 0
    folder: Path | None = None


def time_command(command: Command) -> Timing:
    """Run a command once, then time it in fresh processes.

    Raises:
        AR2UNetError: If it ends with another exit code.
    """

    def run() -> None:
        done = subprocess.run(command.words, cwd=command.folder, capture_output=True, check=False)
        if done.returncode != command.exit_code:
            said = (done.stderr.decode(errors="replace").strip().splitlines() or ["nothing said"])[-1]
            raise AR2UNetError(
                f"{command.name} must end with exit code {command.exit_code}, got {done.returncode}: {said}"
            )

    timing = time_calls(run, runs=command.runs)
    measuring.say(f"{command.name}: best {timing.best:.3f} s, median {timing.median:.3f} s")
    return timing


def make_commands(scan: Path, folder: Path, *, runs: int, slow_runs: int) -> list[Command]:
    """Return the commands to time.

    Args:
        scan: NIfTI file.
        folder: For configs and results.
        runs: Of the fast ones.
        slow_runs: Of those that import torch and MONAI.

    Raises:
        AR2UNetError: If there is no command `ar2unet`.
    """
    program = shutil.which("ar2unet", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    if program is None:
        raise AR2UNetError(f"ar2unet must be installed beside {sys.executable}, found none")
    segment = (program, "segment", str(scan), "--device", "cpu", "-o")
    commands = [
        Command(HELP, (program, "--help"), runs),
        Command(ERROR, (program, "segment", str(folder / "none.nii.gz"), "-o", str(folder / "none")), runs, 2),
        Command(AUTO, (*segment, str(folder / "auto")), runs),
        Command(REFERENCE, (*segment, str(folder / "torch"), "--engine", "torch"), slow_runs),
    ]
    (folder / "scans").mkdir()
    shutil.copy(scan, folder / "scans")
    for network, name in PLAIN.items():
        config = folder / f"{network}.yaml"
        config.write_text(yaml.safe_dump(plain_config(network), sort_keys=False))
        words = (sys.executable, "-m", "monai.bundle", "run", "--config_file", str([str(INFERENCE), str(config)]))
        words += ("--dataset_dir", str(folder / "scans"), "--output_dir", str(folder / network))
        commands.append(Command(name, words, slow_runs, folder=SEGMENTATION_BUNDLE))
    return commands


def plain_config(network: str) -> dict[str, Any]:
    """Return what goes on top of inference.yaml for the plain MONAI way.

    Args:
        network: "ar2unet" or "attention_unet".
    """
    config = yaml.safe_load(INFERENCE.read_text())
    to_frame, *further = config["volume_transforms"]
    inferer = {"_target_": "SliceInferer", "spatial_dim": 2, "roi_size": [-1, -1], "sw_batch_size": 1}
    plain: dict[str, Any] = {
        "device": "$torch.device('cpu')",
        "volume_transforms": [{**to_frame, "crop_to_head": False}, *further],
        "network": "$@network_def.to(@device)",
        "inferer": inferer,
    }
    if network != "ar2unet":
        plain |= {name: config["network_def"][name] for name in ("channels", "patch_size")}
        plain["network_def"] = network_definitions(config["network_def"])[network]
        # The bundle's weights are not this network's.
        plain["handlers"] = [part for part in config["handlers"] if part["_target_"] != "CheckpointLoader"]
    return plain


# --- the floor and the results ------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What a scan asks of the network.

    Attributes:
        sent: Shape ``(H, W, K)`` of the slices sent.
        flops: Of all of them.
    """

    sent: tuple[int, ...]
    flops: int


def count_work(predictor: Predictor, scan: Path) -> Work:
    """Count the network's work of a scan, for the slices as they are really sent."""
    sent = predictor.road.flair(predictor.prepare(read_scan(scan)).content).shape
    channels = yaml.safe_load(INFERENCE.read_text())["network_def"]["channels"]
    network = make_network("ar2unet", channels)
    return Work(sent, sent[2] * count_flops(network, (1, 3, *sent[:2])))


def compare_masks(scan: Path, folder: Path) -> float:
    """Return the Dice of the default engine's mask to the reference's."""
    first, second = (read_mask(folder / name / f"{case_name(scan)}_mask.nii.gz").mask for name in ("auto", "torch"))
    return count_confusion(first, second).dice


def find_goals(timings: Mapping[str, Timing], floor_seconds: float, dice: float, engine: str) -> list[Goal]:
    """Return the figures to reach; the best run counts."""
    allowed = FLOORS_ALLOWED * floor_seconds + SECONDS_ALLOWED
    limits = {f"{AUTO} ({engine})": (AUTO, allowed), HELP: (HELP, HELP_SECONDS), ERROR: (ERROR, ERROR_SECONDS)}
    goals = [
        Goal(name, f"{limit:.2f} s", f"{timings[key].best:.2f} s", timings[key].best <= limit)
        for name, (key, limit) in limits.items()
    ]
    return [*goals, Goal(f"Dice, {engine} against torch f32", f"{DICE_WANTED:g}", f"{dice:.5f}", dice >= DICE_WANTED)]


def timing_table(timings: Mapping[str, Timing], floor_seconds: float) -> str:
    """Return a row a command; ratios are of its best run."""
    columns = ["command", "best, s", "median, s", "runs", "times ours' floor", "times ours"]
    ours = timings[AUTO].best
    rows: list[list[object]] = []
    for name, timing in timings.items():
        ratios: list[object] = [None, None]
        if name not in (HELP, ERROR):
            ratios = [timing.best / floor_seconds, timing.best / ours]
        rows.append([name, timing.best, timing.median, len(timing.runs), *ratios])
    return measuring.markdown_table(columns, rows)


def plot(timings: Mapping[str, Timing], floor_seconds: float, path: Path) -> None:
    """Draw the best run of each command, on a logarithmic axis, and what one scan may take.

    Raises:
        AR2UNetError: If the picture cannot be written.
    """
    figure = measuring.new_figure(8, 3.5)
    axes = figure.add_subplot()
    measuring.draw_bars(axes, {name: timing.best for name, timing in timings.items()}, "s, best run", floor_seconds)
    allowed = FLOORS_ALLOWED * floor_seconds + SECONDS_ALLOWED
    axes.axvline(allowed, color="black", linestyle=":", label=f"{FLOORS_ALLOWED} floors + {SECONDS_ALLOWED} s")
    axes.set_xscale("log")
    axes.legend(frameon=False)
    measuring.save_figure(figure, path)


# --- the command line ---------------------------------------------------------------------------------


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scan", type=Path, metavar="NIFTI", help="FLAIR; default: the embedded sample's")
    parser.add_argument("--runs", type=int, default=7, help="of the fast commands; default: %(default)s")
    parser.add_argument("--slow_runs", type=int, default=2, help="of those with torch; default: %(default)s")
    measuring.add_output_options(parser)
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Time the commands, print the tables and write what the options ask for.

    Args:
        options: As ``parse_arguments`` returns them.
        folder: For configs and results.

    Raises:
        AR2UNetError: If an option makes no sense or a command fails.
    """
    measuring.check_at_least(1, runs=options.runs, slow_runs=options.slow_runs)
    scan = options.scan or load_sample().flair
    predictor = Predictor(device="cpu")
    work = count_work(predictor, scan)
    precision = predictor.engine.split()[-1]
    floor = measure_floor(precision)
    seconds = floor.seconds(work.flops)
    commands = make_commands(scan, folder, runs=options.runs, slow_runs=options.slow_runs)
    timings = {command.name: time_command(command) for command in commands}
    dice = compare_masks(scan, folder)
    goals = find_goals(timings, seconds, dice, predictor.engine)
    machine = measuring.describe_machine()
    print(timing_table(timings, seconds))
    print(f"\n{scan.name}: {describe_work(work, floor)}\n")
    print(f"{measuring.goals_table(goals)}\n\n{measuring.machine_line(machine, [floor])}")
    if options.json is not None:
        result = {"scan": scan.name, "engine": predictor.engine, "work": asdict(work), "floor_seconds": seconds}
        runs = {name: list(timing.runs) for name, timing in timings.items()}
        result |= {"timings": runs, "dice": dice, "goals": [asdict(goal) for goal in goals]}
        measuring.write_json(options.json, result, machine, [floor])
    if options.plot is not None:
        plot(timings, seconds, options.plot)


def describe_work(work: Work, floor: Floor) -> str:
    """Return what the floor was made of."""
    height, width, slices = work.sent
    return (
        f"{slices} slices of {height} x {width} sent, {work.flops / 1e9:,.0f} GFLOP, "
        f"floor {floor.seconds(work.flops):.3f} s in {floor.precision}."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables and return the exit code."""
    return measuring.run_benchmark(measure, parse_arguments(arguments))


if __name__ == "__main__":
    sys.exit(main())
