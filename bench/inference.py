"""Measure inference: the network's forward pass against its floor, growth with a scan's size, and work not done.

    python bench/inference.py --json inference.json --plot inference.png
    python bench/inference.py --channels 32,64,128,256,512
    python bench/inference.py --dataset_dir DATA --fold 0

The forward pass is that of slices of 256 x 256 pixels: our engines slice by slice, as `ar2unet segment` runs them, and
in batches; torch; and the plain MONAI way (``SliceInferer``, float32, NCHW, eager, one slice at a time) with our
network and with an AttentionUnet of the same widths. With other ``--channels`` than the shipped ones the weights are
random. With DATA, as `ar2unet prepare` writes it, the masks of every engine are compared with those of the float32
reference, and those of the head alone with those of whole slices. The bundle must be exported: `ar2unet export`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import agreement
import forward
import measuring
import numpy as np
import yaml
from agreement import write_variant
from floor import PRECISIONS, Floor, count_flops, make_network, measure_floor, time_calls
from forward import ALONE, OTHER, OURS, Forward
from measuring import Line

from pipeline.engines.artefact import read_artefact
from pipeline.errors import AR2UNetError
from pipeline.fast_road import installed_engines
from pipeline.formats.nifti import read_scan
from pipeline.formats.scan import Scan
from pipeline.predictor import SEGMENTATION_BUNDLE, Predictor
from pipeline.training.entries import datalist_entries
from pipeline.weights import load_weights

SIZE = 256  # pixels a side, of the slices of the forward pass
SLICES = 24  # of the volume whose slices are sent
BATCHES = (1, 4, 8)
GROWTH_SLICES = (12, 24, 48, 96)
GROWTH_SIZES = (128, 192, 256, 320, 384, 512)


# --- the forward pass ---------------------------------------------------------------------------------


def measure_forward(
    bundle: Path, precision: str, *, slices: int, batches: Sequence[int], runs: int
) -> tuple[list[Forward], int]:
    """Time every way through our network and through an AttentionUnet of the same widths.

    Args:
        bundle: Exported, where an engine for exported networks is installed.
        precision: In which convolutions are timed alone.
        slices: Of the volume that is sent.
        batches: Numbers of slices at once.
        runs: Of each way.

    Returns:
        What was measured, and the features of the first level.
    """
    reference = Predictor(bundle, device="cpu", engine="torch")
    channels = yaml.safe_load((bundle / "configs" / "inference.yaml").read_text())["network_def"]["channels"]
    networks = {
        OURS: load_weights(make_network("ar2unet", channels), reference.weights).eval(),
        OTHER: make_network("attention_unet", channels).eval(),
    }
    flops = {name: count_flops(network, (1, 3, SIZE, SIZE)) for name, network in networks.items()}
    exported = read_artefact(bundle, reference.weights_sha256).network if installed_engines() else None
    volume = np.random.default_rng(0).standard_normal((3, SIZE, SIZE, slices), dtype=np.float32)
    forwards = [
        forward.measure_way(way, flops[way.network], runs=runs)
        for way in forward.make_ways(networks, exported, volume, batches)
    ]
    shape = (max(batches), 3, SIZE, SIZE)
    seconds = forward.measure_convolutions(networks[OURS], shape, precision, runs=runs)
    forwards.append(Forward(OURS, ALONE, precision, max(batches), flops[OURS], seconds))
    return forwards, channels[0]


# --- growth -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Growth:
    """Seconds of ``Predictor.predict`` for scans of growing size.

    Attributes:
        against: What the size counts.
        sizes: Of the scans.
        seconds: Of each.
        line: Fitted to them.
    """

    against: str
    sizes: tuple[float, ...]
    seconds: tuple[float, ...]
    line: Line


def make_scan(size: int, slices: int) -> Scan:
    """Return a FLAIR scan with a bright head in noise, which fills 70 % of a slice's width and 85 % of its length."""
    first, second = np.ogrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    head = (first / 0.7) ** 2 + (second / 0.85) ** 2 <= 1
    noise = np.random.default_rng(0).uniform(0, 20, (size, size, slices))
    image = (noise + 100 * head[..., None]).astype(np.float32)
    # Of unknown spacing, so that it is not resampled.
    return Scan(image[None], np.diag([-1.0, -1.0, 1.0, 1.0]), None, f"head of {size} x {size} x {slices}")


def measure_growth(
    predictor: Predictor, slices: Sequence[int], sizes: Sequence[int], plane_slices: int, *, runs: int
) -> list[Growth]:
    """Time the prediction of scans of more and more slices, and of larger and larger ones.

    Args:
        predictor: Segments them.
        slices: Numbers of slices, of 256 x 256 pixels.
        sizes: Pixels a side.
        plane_slices: Slices of the scans of these sizes.
        runs: Of each; the best counts.
    """

    def measure(against: str, scans: Mapping[float, Scan]) -> Growth:
        seconds = []
        for scan in scans.values():
            seconds.append(time_calls(lambda scan=scan: predictor.predict(scan), runs=runs).best)
            measuring.say(f"{scan.source}: {seconds[-1]:.3f} s")
        return Growth(against, tuple(scans), tuple(seconds), measuring.fit_line(list(scans), seconds))

    return [
        measure(f"slices of {SIZE} x {SIZE}", {count: make_scan(SIZE, count) for count in slices}),
        measure(
            f"megapixels a slice, {plane_slices} slices",
            {size * size / 1e6: make_scan(size, plane_slices) for size in sizes},
        ),
    ]


def growth_table(growths: Sequence[Growth]) -> str:
    """Return slope and intercept of each growth."""
    columns = ["time of a scan against", "from", "to", "s for each", "s besides", "R²"]
    rows = [[g.against, g.sizes[0], g.sizes[-1], g.line.slope, g.line.intercept, f"{g.line.r2:.4f}"] for g in growths]
    return measuring.markdown_table(columns, rows)


# --- the command line ---------------------------------------------------------------------------------


def read_patients(data: Path, fold: int, limit: int | None) -> Iterator[tuple[str, Scan]]:
    """Yield the patients of a fold by name, one after the other."""
    for entry in datalist_entries(data, fold, "validation")[:limit]:
        t1, flair, t1c = map(Path, entry["image"])
        yield entry["subject"], read_scan(flair, t1, t1c)


def plot(forwards: Sequence[Forward], floors: Mapping[str, Floor], growths: Sequence[Growth], path: Path) -> None:
    """Draw each way's best time with its floor, and the growths.

    Raises:
        AR2UNetError: If the picture cannot be written.
    """
    figure = measuring.new_figure(12 if growths else 7, 6)
    grid = figure.add_gridspec(2, 2, width_ratios=(3, 2)) if growths else figure.add_gridspec(2, 1)
    best: dict[str, Forward] = {}
    for f in sorted(forwards, key=lambda f: -f.seconds):
        best[f"{f.network}, {f.engine} {f.precision}"] = f
    axes = figure.add_subplot(grid[:, 0])
    measuring.draw_bars(axes, {name: f.seconds for name, f in best.items()}, f"s a slice of {SIZE} x {SIZE}")
    heights = [floors[f.precision].seconds(f.flops) for f in best.values()]
    axes.plot(heights, range(len(best)), "|", color=measuring.FLOOR_COLOR, markersize=16, label="floor")
    axes.legend(frameon=False)
    for row, growth in enumerate(growths):
        measuring.draw_line(figure.add_subplot(grid[row, 1]), growth.sizes, growth.seconds, growth.line, growth.against)
    measuring.save_figure(figure, path)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--channels", help="features per level, such as 32,64,128,256,512; default: the shipped network"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, metavar="N", help="default: %(default)s")
    parser.add_argument("--slices", type=int, default=SLICES, help="of the volumes measured; default: %(default)s")
    parser.add_argument("--runs", type=int, default=3, help="of which the best counts; default: %(default)s")
    parser.add_argument("--no_growth", action="store_true", help="leave the growth with a scan's size out")
    parser.add_argument("--dataset_dir", type=Path, metavar="DATA", help="as `ar2unet prepare` writes it")
    parser.add_argument("--fold", type=int, default=0, help="whose patients' masks are compared; default: %(default)s")
    parser.add_argument("--patients", type=int, metavar="N", help="only the first N of the fold")
    measuring.add_output_options(parser)
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Measure all that the options ask for, print it and write it.

    Args:
        options: As ``parse_arguments`` returns them.
        folder: For variants of the bundle.

    Raises:
        AR2UNetError: If an option makes no sense, or the bundle is not exported.
    """
    measuring.check_at_least(1, batches=min(options.batches), slices=options.slices, runs=options.runs)
    measuring.check_at_least(1, patients=options.patients)
    if options.channels is not None and options.dataset_dir is not None:
        raise AR2UNetError("--dataset_dir must go with the shipped network, got --channels, whose weights are random")
    bundle = SEGMENTATION_BUNDLE
    if options.channels is not None:
        bundle = write_variant(folder / "random", channels=measuring.parse_channels(options.channels))
    predictor = Predictor(bundle, device="cpu")
    floors = {precision: measure_floor(precision) for precision in PRECISIONS}
    forwards, top = measure_forward(
        bundle, predictor.engine.split()[-1], slices=options.slices, batches=options.batches, runs=options.runs
    )
    goals = forward.forward_goals(forwards, floors, predictor.engine, top)
    tables, growths = [forward.forward_table(forwards, floors)], []
    result: dict[str, Any] = {"engine": predictor.engine, "forward": [asdict(f) for f in forwards]}
    if not options.no_growth:
        growths = measure_growth(predictor, GROWTH_SLICES, GROWTH_SIZES, options.slices, runs=options.runs)
        tables.append(growth_table(growths))
        result["growth"] = [asdict(growth) for growth in growths]
    if options.dataset_dir is not None:
        cases = read_patients(options.dataset_dir, options.fold, options.patients)
        whole = Predictor(
            write_variant(folder / "whole", crop_to_head=False), device="cpu", engine=predictor.engine.split()[0]
        )
        result["agreement"] = agreement.measure_agreement(predictor, whole, agreement.engines_of(predictor), cases)
        tables.append(agreement.agreement_tables(result["agreement"]))
        goals += agreement.agreement_goals(result["agreement"], predictor.engine)
    machine = measuring.describe_machine()
    tables += [measuring.goals_table(goals), measuring.machine_line(machine, list(floors.values()))]
    print("\n\n".join(tables))
    if options.json is not None:
        result["goals"] = [asdict(goal) for goal in goals]
        measuring.write_json(options.json, result, machine, list(floors.values()))
    if options.plot is not None:
        plot(forwards, floors, growths, options.plot)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables and return the exit code."""
    return measuring.run_benchmark(measure, parse_arguments(arguments))


if __name__ == "__main__":
    sys.exit(main())
