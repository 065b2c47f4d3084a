"""Measure the steady state of many scans: scans a second against the network's own time, and memory as they go on.

    python bench/throughput.py SCAN... --repeat 100 -o OUT

The scans go round and round through `pipeline.stream`, file to file, as `ar2unet segment SCAN...` takes them. What the
network alone needs for the same scans, one after the other and with nothing beside it, is measured before and after;
the share of it in the steady state is what reading, resampling and writing leave of the machine.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import (
    BAR_COLOR,
    Goal,
    Line,
    check_at_least,
    describe_machine,
    draw_line,
    fit_line,
    goals_table,
    machine_line,
    markdown_table,
    new_figure,
    save_figure,
    write_json,
)

from pipeline.case import Case, prepare_case, segment_case
from pipeline.errors import AR2UNetError
from pipeline.predictor import SEGMENTATION_BUNDLE, Predictor
from pipeline.reading import case_name
from pipeline.stream import keep_memory, segment_cases

LEAST_SHARE = 0.90  # of pure network time
MOST_GROWTH = 0.05  # of memory, from the early scan to the late one
MOST_MEMORY = 2.0  # GB
LEAST_ROUNDS = 3  # the first fills the stream, and a line wants two points
EARLY, LATE = 20, 200  # scans after which memory is compared
PASSES = 3  # of the network alone over all scans, before and after
GIGABYTE = 1e9


# --- measuring ----------------------------------------------------------------------------------------


def measure(predictor: Predictor, scans: Sequence[Path], repeat: int, out: Path) -> dict[str, Any]:
    """Send the scans ``repeat`` times through the stream, and through the network alone before and after.

    Args:
        predictor: Segments them.
        scans: NIfTI files or folders of slices, of different names.
        repeat: Rounds, ``LEAST_ROUNDS`` or more.
        out: Gets a folder of results for each scan, written anew each round.

    Returns:
        As ``tables`` and ``plot`` take it.

    Raises:
        AR2UNetError: If a scan cannot be segmented.
    """
    cases = [Case(scan, out / case_name(scan)) for scan in scans]
    for case in cases:  # compiling and first imports are no part of a steady state
        segment_case(predictor, case.flair, case.out)
    alone = network_seconds(predictor, cases)
    busy, spent = busy_seconds(), time.process_time()
    times, memory = [], []
    started = time.perf_counter()
    for _, outcome in segment_cases(predictor, itertools.chain.from_iterable(itertools.repeat(cases, repeat))):
        if isinstance(outcome, AR2UNetError):
            raise outcome
        times.append(time.perf_counter() - started)
        memory.append(resident_bytes())
    others, spent = (busy_seconds() - busy) / times[-1], time.process_time() - spent
    alone += network_seconds(predictor, cases)
    first = len(scans)  # scans of the round that fills the stream
    line = fit_line(range(first + 1, len(times) + 1), times[first:])
    early, late = min(EARLY, len(memory)) - 1, min(LATE, len(memory)) - 1
    network, network_spent = (statistics.fmean(column) / len(scans) for column in zip(*alone, strict=True))
    return {
        "engine": predictor.engine,
        "scans": [scan.name for scan in scans],
        "segmented": len(times),
        "network_seconds_per_scan": network,
        "network_processor_seconds_per_scan": network_spent,
        "network_seconds_per_round": [seconds for seconds, _ in alone],
        "seconds_per_scan": line.slope,
        "intercept_seconds": line.intercept,
        "r2": line.r2,
        "share_of_network_time": network / line.slope,
        "processor_seconds_per_scan": spent / len(times),
        "cores_taken_by_others": others,
        "early": {"scan": early + 1, "bytes": memory[early]},
        "late": {"scan": late + 1, "bytes": memory[late]},
        "growth": memory[late] / memory[early] - 1,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "times": times,
        "memory": memory,
    }


def network_seconds(predictor: Predictor, cases: Sequence[Case]) -> list[tuple[float, float]]:
    """Return the time and the processor time of the network alone for all cases, of several passes."""
    rounds = []
    for _ in range(PASSES):
        total, spent = 0.0, 0.0
        for case in cases:
            prepared = prepare_case(predictor, case).prepared
            started = time.perf_counter(), time.process_time()
            predictor.infer(prepared)
            total += time.perf_counter() - started[0]
            spent += time.process_time() - started[1]
        rounds.append((total, spent))
    return rounds


def resident_bytes() -> int:
    """Return this process's memory, as Linux counts it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def busy_seconds() -> float:
    """Return the processor time that other processes than this one have taken since the machine started, in s."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - time.process_time()


# --- results ------------------------------------------------------------------------------------------


def goals(result: dict[str, Any]) -> list[Goal]:
    """Return what is to be reached; memory is compared only where there were scans enough."""
    share, growth, peak = result["share_of_network_time"], result["growth"], result["peak_bytes"] / GIGABYTE
    found = [
        Goal("share of pure network time", f"at least {LEAST_SHARE:.0%}", f"{share:.1%}", share >= LEAST_SHARE),
        Goal("highest memory, GB", f"below {MOST_MEMORY:g}", f"{peak:.2f}", peak < MOST_MEMORY),
    ]
    if result["segmented"] >= LATE:
        name = f"memory after scan {LATE} against scan {EARLY}"
        found.append(Goal(name, f"at most {MOST_GROWTH:+.0%}", f"{growth:+.1%}", growth <= MOST_GROWTH))
    return found


def tables(result: dict[str, Any], machine: dict[str, Any]) -> str:
    """Return what was measured, and what was to be reached, as markdown tables."""
    per_scan = result["seconds_per_scan"]
    rows = [
        ["scans", result["segmented"]],
        ["network alone, s a scan", result["network_seconds_per_scan"]],
        ["stream, s a scan", per_scan],
        ["stream, scans a second", 1 / per_scan],
        ["intercept of the line, s", result["intercept_seconds"]],
        ["processor time of the network alone, s a scan", result["network_processor_seconds_per_scan"]],
        ["processor time of the stream, s a scan", result["processor_seconds_per_scan"]],
        ["cores that other processes took meanwhile", result["cores_taken_by_others"]],
        [f"memory after scan {result['early']['scan']}, GB", result["early"]["bytes"] / GIGABYTE],
        [f"memory after scan {result['late']['scan']}, GB", result["late"]["bytes"] / GIGABYTE],
    ]
    written = markdown_table([f"stream, {result['engine']}", "measured"], rows)
    return "\n\n".join([written, goals_table(goals(result)), machine_line(machine)])


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw time against the number of scans with its line, and memory below.

    Raises:
        AR2UNetError: If the picture cannot be written.
    """
    figure = new_figure(7, 6)
    time_axes, memory_axes = figure.subplots(2)
    numbers = list(range(1, result["segmented"] + 1))
    line = Line(result["seconds_per_scan"], result["intercept_seconds"], result["r2"])
    draw_line(time_axes, numbers, result["times"], line, "scans")
    memory_axes.plot(numbers, [size / GIGABYTE for size in result["memory"]], color=BAR_COLOR)
    memory_axes.set_ylim(bottom=0)
    memory_axes.set_ylabel("memory, GB")
    memory_axes.set_xlabel("scans")
    save_figure(figure, path)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scans", type=Path, nargs="+", metavar="SCAN", help="as `ar2unet segment` takes them")
    parser.add_argument("--repeat", type=int, default=10, metavar="N", help="rounds through all scans (default: 10)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="results, table, plot")
    parser.add_argument("--bundle", type=Path, default=SEGMENTATION_BUNDLE, help="default: the shipped one")
    parser.add_argument("--engine", default="auto", help="who multiplies, as `ar2unet segment` takes it")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and return the exit code."""
    options = parse_arguments(arguments)
    try:
        check_at_least(LEAST_ROUNDS, repeat=options.repeat)
        names = [case_name(scan) for scan in options.scans]
        if len(set(names)) < len(names):
            raise AR2UNetError(f"SCAN must be of different names, got {', '.join(sorted(names))}")
        keep_memory()  # before the engine's threads get heaps of their own
        predictor = Predictor(options.bundle, engine=options.engine)
        result = measure(predictor, options.scans, options.repeat, options.output)
        machine = describe_machine()
        print(tables(result, machine))
        write_json(options.output / "throughput.json", result, machine)
        plot(result, options.output / "throughput.png")
    except AR2UNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
