"""What the speed benchmarks share: the machine, tables, plots and options; the clock is in `floor.py`."""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import AR2UNetError
from pipeline.evaluation.tables import write_summary

if TYPE_CHECKING:
    from floor import Floor
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PACKAGES = ("torch", "monai", "openvino", "onnxruntime", "numpy")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16")
PROCESSOR_FILE = Path("/proc/cpuinfo")
NOTHING = "–"
BAR_COLOR, FLOOR_COLOR = "#2f5d8a", "#b3402e"


# --- the machine --------------------------------------------------------------------------------------


def describe_machine() -> dict[str, Any]:
    """Return what a time depends on: processor, cores, memory, GPU, versions and the date."""
    import torch

    fields = _processor_fields()
    flags = set(fields.get("flags", "").split())
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": fields.get("model name", platform.processor() or platform.machine()),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
    }


def machine_line(machine: Mapping[str, Any], floors: Sequence[Floor] = ()) -> str:
    """Return the machine and its best rates as a sentence or two, to stand below a table."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    instructions = f" ({', '.join(machine['instructions'])})" if machine["instructions"] else ""
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    line = (
        f"{machine['date']}; {machine['processor']}, {machine['cores']} cores{instructions}{gpu}, "
        f"{machine['memory_gib']:g} GiB; Python {machine['python']}, {packages}."
    )
    rates = "; ".join(f"{floor.precision} {floor.rate / 1e9:,.0f} GFLOP/s ({floor.work})" for floor in floors)
    return f"{line} Best rates just before: {rates}." if floors else line


def _processor_fields() -> dict[str, str]:
    try:
        lines = PROCESSOR_FILE.read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# --- results ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """The line that fits points best by least squares: ``slope * x + intercept``; ``r2`` is 1 where it fits all."""

    slope: float
    intercept: float
    r2: float


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Fit a line to two points or more."""
    slope, intercept = statistics.linear_regression(x, y)
    return Line(slope, intercept, statistics.correlation(x, y) ** 2 if len(set(y)) > 1 else 1.0)


@dataclass(frozen=True)
class Goal:
    """A figure to reach.

    Attributes:
        name: What is measured.
        wanted: Such as "at least 85 %".
        measured: In the same unit.
        reached: Whether it is.
    """

    name: str
    wanted: str
    measured: str
    reached: bool


def goals_table(goals: Sequence[Goal]) -> str:
    """Return figures to reach as a markdown table."""
    columns = ["figure", "to reach", "measured", "reached"]
    return markdown_table(columns, [[g.name, g.wanted, g.measured, "yes" if g.reached else "no"] for g in goals])


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a markdown table; a float has three significant digits, None is a dash.

    Args:
        columns: Names; a column of numbers or shares in per cent is aligned to the right.
        rows: As many cells each as there are columns.

    Raises:
        ValueError: If a row has another number of cells.
    """
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row must have {len(columns)} cells, got {len(row)}: {list(row)}")
    texts = [[_cell(cell) for cell in row] for row in rows]
    right = [all(map(_is_number, column)) for column in zip(*texts, strict=True)]
    lines = [columns, ["---:" if number else "---" for number in right], *texts]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def significant(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits, but never with an exponent."""
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = digits - 1 - math.floor(math.log10(abs(rounded))) if rounded else 0
    return f"{rounded:,.{max(decimals, 0)}f}"


def _cell(cell: object) -> str:
    if cell is None:
        return NOTHING
    return significant(cell) if isinstance(cell, float) else f"{cell}"


def _is_number(text: str) -> bool:
    return re.fullmatch(rf"{NOTHING}|-?[\d,]+(\.\d+)?( ?%)?", text) is not None


def write_json(path: Path, result: Mapping[str, Any], machine: Mapping[str, Any], floors: Sequence[Floor] = ()) -> None:
    """Write results together with the machine that they were measured on.

    Raises:
        AR2UNetError: If the file cannot be written.
    """
    write_summary(path, {"machine": dict(machine), "floors": [asdict(floor) for floor in floors], **result})


def new_figure(width: float = 7, height: float = 4) -> Figure:
    """Return an empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def draw_bars(axes: Axes, bars: Mapping[str, float], label: str, floor: float | None = None) -> None:
    """Draw a horizontal bar a name, and a line at the floor.

    Args:
        axes: To draw on.
        bars: Values by name, the first on top.
        label: What the values are, with their unit.
        floor: In the same unit; None where there is none.
    """
    axes.barh(list(bars), list(bars.values()), color=BAR_COLOR)
    if floor is not None:
        axes.axvline(floor, color=FLOOR_COLOR, linestyle="--", label="floor")
        axes.legend(frameon=False)
    axes.invert_yaxis()
    axes.set_xlabel(label)


def draw_line(axes: Axes, x: Sequence[float], y: Sequence[float], line: Line, label: str) -> None:
    """Draw points, and the line that was fitted to them, as time in seconds against ``label``."""
    axes.plot(x, y, "o", color=BAR_COLOR)
    ends = [0, max(x)]
    axes.plot(ends, [line.intercept + line.slope * end for end in ends], color=FLOOR_COLOR)
    axes.set_xlabel(label)
    axes.set_ylabel("s")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{line.slope:.3g} s each {line.intercept:+.3g} s, R² {line.r2:.4f}", fontsize="medium")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a picture.

    Raises:
        AR2UNetError: If the file cannot be written, or its ending is no picture's.
    """
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise AR2UNetError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from error


# --- the command line ---------------------------------------------------------------------------------


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--json`` and ``--plot``."""
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results here, too")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw them here")


def check_at_least(smallest: int, **options: int | None) -> None:
    """Refuse options below ``smallest``; None counts as not given.

    Raises:
        AR2UNetError: Naming the first such option.
    """
    for name, value in options.items():
        if value is not None and value < smallest:
            raise AR2UNetError(f"--{name} must be at least {smallest}, got {value}")


def parse_channels(text: str) -> tuple[int, ...]:
    """Return features per level, given as "16,32,64,128,256".

    Raises:
        AR2UNetError: If that is not two whole numbers or more, each at least 1.
    """
    try:
        channels = tuple(int(part) for part in text.split(","))
    except ValueError:
        channels = ()
    if len(channels) < 2 or min(channels) < 1:
        raise AR2UNetError(f"--channels must be at least two whole numbers such as 32,64,128, got {text!r}")
    return channels


def run_benchmark(measure: Callable[[argparse.Namespace, Path], None], options: argparse.Namespace) -> int:
    """Measure in a temporary folder, say in one line what went wrong, and return the exit code."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            measure(options, Path(folder))
    except AR2UNetError as error:
        say(f"error: {error}")
        return error.exit_code
    return 0


def say(line: str) -> None:
    """Tell whoever waits; stdout is for the tables alone."""
    print(line, file=sys.stderr, flush=True)
