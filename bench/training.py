"""Measure training: slices a second of the bundle's own trainer, against its floor and the plain MONAI way.

    python bench/training.py --dataset_dir DATA --json training.json --plot training.png

DATA is what `ar2unet prepare` writes. Ours is the trainer that train.yaml describes, run for some iterations, with
its loader, augmentation, loss, optimiser and handlers: bfloat16 where the device computes it, channels last, slices
cropped to the head, volumes cached. The plain MONAI way is the same trainer with float32, NCHW, slices of 256 x
256, and volumes that are read, oriented and normalised by MONAI's own transforms each time they are drawn from;
batch, augmentation, loss, optimiser and number of workers are ours. The floor of a step is three times its forward
work, as the backward pass computes twice as much. On CUDA ours is measured compiled and without pinned memory, too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import measuring
import yaml
from compare_networks import parse_overrides
from floor import Floor, measure_floor, measure_matrix_floor
from measuring import Goal
from training_runs import OURS, PLAIN, Training, make_settings, train

from pipeline.errors import AR2UNetError
from pipeline.training.entries import datalist_entries

SLICE_SIZE = [192, 208]  # pixels: about as many as the mean window of train.yaml
TIMES_WANTED, FLOORS_ALLOWED, WAITING_ALLOWED = 6.0, 2.0, 0.05


def common_overrides(options: argparse.Namespace, device: str, folder: Path) -> dict[str, Any]:
    """Return the keys of train.yaml that every way shares.

    Raises:
        AR2UNetError: If an option makes no sense, or the data are not there.
    """
    chosen = {key: yaml.safe_load(value) for key, value in parse_overrides(options.set).items()}
    entries = datalist_entries(options.dataset_dir, options.fold, "training")[: options.patients]
    never = 1_000_000  # epochs: the stopwatch ends the training, and nothing is validated
    return {
        "dataset_dir": str(options.dataset_dir),
        "output_dir": str(folder),
        "fold": options.fold,
        "epochs": never,
        "val_interval": never,
        "slice_size": SLICE_SIZE,
        "prepare_batch": "$monai.engines.default_prepare_batch",  # no windows: every step is the same work
        "train#dataset#data": entries,
        "validate#dataset#cache_rate": 0.0,
        "device": f"$torch.device('{device}')",
        **chosen,
    }


# --- results ------------------------------------------------------------------------------------------


def training_table(trainings: Sequence[Training], floors: Mapping[str, Floor], matrix: Floor | None) -> str:
    """Return a row a way to train.

    Args:
        trainings: The plain MONAI way with our network among them.
        floors: By precision.
        matrix: The rate of matrix products; None leaves its column out.
    """
    columns = ["way", "batch", "slices a s", "s a step", "floor, s", "times the floor", "waiting", "times plain MONAI"]
    columns += [] if matrix is None else [f"of the {matrix.precision} matrix rate"]
    plain = next(training for training in trainings if training.setting == PLAIN).slices_per_second
    rows: list[list[object]] = []
    for t in trainings:
        floor = floors[t.precision].seconds(t.flops)
        row: list[object] = [t.setting, f"{t.shape[0]} x {t.shape[2]} x {t.shape[3]} {t.precision}"]
        row += [t.slices_per_second, t.step, floor, t.step / floor, f"{t.waiting:.1%}", t.slices_per_second / plain]
        rows.append(row if matrix is None else [*row, f"{matrix.seconds(t.flops) / t.step:.1%}"])
    return measuring.markdown_table(columns, rows)


def training_goals(trainings: Sequence[Training], floors: Mapping[str, Floor]) -> list[Goal]:
    """Return the figures to reach."""
    by_name = {training.setting: training for training in trainings}
    ours = by_name[OURS]
    times = ours.slices_per_second / by_name[PLAIN].slices_per_second
    over = ours.step / floors[ours.precision].seconds(ours.flops)
    waiting = ours.waiting
    return [
        Goal("training, times plain MONAI", f"{TIMES_WANTED:g}", f"{times:.2f}", times >= TIMES_WANTED),
        Goal("training step, times its floor", f"at most {FLOORS_ALLOWED:g}", f"{over:.2f}", over <= FLOORS_ALLOWED),
        Goal("waiting for data", f"at most {WAITING_ALLOWED:.0%}", f"{waiting:.1%}", waiting <= WAITING_ALLOWED),
    ]


def plot(trainings: Sequence[Training], floors: Mapping[str, Floor], path: Path) -> None:
    """Draw slices a second, and what a step's time goes into.

    Raises:
        AR2UNetError: If the picture cannot be written.
    """
    figure = measuring.new_figure(11, 0.5 * len(trainings) + 1.5)
    rates, shares = figure.subplots(1, 2)
    names = [training.setting for training in trainings]
    measuring.draw_bars(rates, {t.setting: t.slices_per_second for t in trainings}, "slices a second")
    bottom = [0.0] * len(names)
    floor = [floors[t.precision].seconds(t.flops) / t.shape[0] for t in trainings]
    above = [t.step / t.shape[0] - least for t, least in zip(trainings, floor, strict=True)]
    wait = [statistics.fmean(t.waits) / t.shape[0] for t in trainings]
    for label, widths, color in (
        ("floor", floor, "#b3402e"),
        ("above it", above, "#2f5d8a"),
        ("waiting", wait, "grey"),
    ):
        shares.barh(names, widths, left=bottom, color=color, label=label)
        bottom = [left + width for left, width in zip(bottom, widths, strict=True)]
    shares.invert_yaxis()
    shares.set_yticks([])
    shares.set_xlabel("s a slice")
    shares.legend(frameon=False)
    measuring.save_figure(figure, path)


# --- the command line ---------------------------------------------------------------------------------


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--dataset_dir", type=Path, required=True, metavar="DATA", help="as `ar2unet prepare` writes it"
    )
    parser.add_argument("--fold", type=int, default=0, help="held out; default: %(default)s")
    parser.add_argument("--patients", type=int, metavar="N", help="only the first N; default: all that are trained on")
    parser.add_argument("--iterations", type=int, default=20, help="of ours; default: %(default)s")
    parser.add_argument("--plain_iterations", type=int, default=4, help="of plain MONAI; default: %(default)s")
    parser.add_argument("--warmup", type=int, default=2, help="iterations before these; default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: CUDA where there is one")
    parser.add_argument("--compile", action="store_true", help="measure ours compiled, too; always on CUDA")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="of train.yaml")
    measuring.add_output_options(parser)
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Train every way, print the tables and write what the options ask for.

    Args:
        options: As ``parse_arguments`` returns them.
        folder: For what training writes.

    Raises:
        AR2UNetError: If an option makes no sense, or the data are not there.
    """
    import torch

    measuring.check_at_least(1, iterations=options.iterations, plain_iterations=options.plain_iterations)
    measuring.check_at_least(1, warmup=options.warmup, patients=options.patients)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise AR2UNetError("--device cuda needs a GPU that torch can use, found none")
    common = common_overrides(options, device, folder)
    settings = make_settings(device, compiled=options.compile or device == "cuda")
    floors = {name: measure_floor(name, device=device) for name in sorted({each.precision for each in settings})}
    matrix = measure_matrix_floor("bf16", device=device) if device == "cuda" else None
    trainings = [
        train(
            setting,
            common,
            iterations=options.plain_iterations if setting.plain else options.iterations,
            warmup=options.warmup,
            device=device,
        )
        for setting in settings
    ]
    machine, rates = measuring.describe_machine(), [*floors.values(), *([matrix] if matrix else [])]
    goals = training_goals(trainings, floors)
    print(training_table(trainings, floors, matrix), measuring.goals_table(goals), sep="\n\n", end="\n\n")
    print(measuring.machine_line(machine, rates))
    if options.json is not None:
        result = {"device": device, "trainings": [asdict(training) for training in trainings]}
        measuring.write_json(options.json, {**result, "goals": [asdict(goal) for goal in goals]}, machine, rates)
    if options.plot is not None:
        plot(trainings, floors, options.plot)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables and return the exit code."""
    return measuring.run_benchmark(measure, parse_arguments(arguments))


if __name__ == "__main__":
    sys.exit(main())
