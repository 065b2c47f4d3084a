"""``ar2unet cohort``, also in the calling convention of BIDS-Apps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from pipeline.cli.app import BundleOption, DeviceOption, EngineName, EngineOption, app, make_predictor, progress_bar
from pipeline.errors import AR2UNetError, SomeInputsFailedError

if TYPE_CHECKING:
    from pipeline.cohort.finding import FoundScan
    from pipeline.cohort.folder import CohortFolder
    from pipeline.cohort.keys import Settings
    from pipeline.cohort.rows import Row
    from pipeline.cohort.running import SegmentAll, Summary

__all__ = ["cohort"]

LISTS = ("--participant-label", "--participant_label", "--session-label", "--session_label")
ADDRESS = re.compile(r"local|auto|(?:ray://)?[\w.\[\]:-]+:\d+")


class CohortCommand(TyperCommand):
    """A command some of whose options take any number of values, as BIDS-Apps do, or perhaps one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Bring the arguments into the form that the parser knows."""
        return super().parse_args(ctx, plain_arguments(args))


def plain_arguments(arguments: Sequence[str]) -> list[str]:
    """Give each value of a list an option of its own, and ``--ray`` without an address the one of this machine."""
    plain: list[str] = []
    option = ""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument in LISTS and not following.startswith("-") and following:
            option = argument
            continue
        if argument.startswith("-"):
            option = ""
        plain += [option, argument] if option else [argument]
        if argument == "--ray" and not ADDRESS.fullmatch(following):
            plain.append("local")
    return plain


@app.command(cls=CohortCommand)
def cohort(
    source: Annotated[Path, typer.Argument(metavar="FOLDER", help="Searched for scans, or a BIDS tree.")],
    out: Annotated[Path | None, typer.Argument(metavar="[OUT]", help="As -o, for BIDS-Apps.")] = None,
    level: Annotated[str | None, typer.Argument(metavar="[participant]", help="As BIDS-Apps are called.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for the results.")] = None,
    participants: Annotated[
        list[str] | None, typer.Option("--participant-label", "--participant_label", help="BIDS: these subjects only.")
    ] = None,
    sessions: Annotated[
        list[str] | None, typer.Option("--session-label", "--session_label", help="BIDS: these sessions only.")
    ] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Write the probabilities, too.")] = False,
    mesh: Annotated[bool, typer.Option("--mesh", help="Write the lesions' surface as STL, too.")] = False,
    ray: Annotated[
        str | None, typer.Option("--ray", metavar="[ADDRESS]", help="On a Ray cluster; no address: on this machine.")
    ] = None,
    num_cpus: Annotated[int, typer.Option("--num-cpus", help="Ray: processors of a worker.", min=1)] = 1,
    bundle: BundleOption = None,
    device: DeviceOption = None,
    engine: EngineOption = EngineName.AUTO,
) -> None:
    """Segment every scan below a folder, or of a BIDS tree: a folder a case, cohort.csv and cohort.html.

    Started again, it does what is missing or changed. A bad scan is a row of the table and stops nothing.
    """
    from pipeline.cohort.finding import find_cases
    from pipeline.cohort.folder import open_folder
    from pipeline.cohort.keys import Settings
    from pipeline.predictor import SEGMENTATION_BUNDLE

    results = _folder_of(out, level, output)
    source = source.absolute()  # workers of a cluster may stand in another folder
    cases = find_cases(source, results, participants=participants or None, sessions=sessions or None)
    settings = Settings(bundle or SEGMENTATION_BUNDLE, device, engine.value, probabilities, mesh)
    is_bids = any(case.bids is not None for case in cases)
    with open_folder(results) as folder:
        if ray is None:
            summary = _run(folder, cases, _local(folder, settings, engine), source if is_bids else None)
        else:
            from pipeline.cohort.ray_workers import connect

            with connect(ray) as connected:
                work = _on_ray(connected, folder, settings, num_cpus)
                summary = _run(folder, cases, work, source if is_bids else None)
    done = summary.total - summary.failed
    typer.echo(f"{done} of {summary.total} scans done ({summary.unchanged} already there); {summary.page}")
    if summary.failed:
        raise SomeInputsFailedError(f"{summary.failed} of {summary.total} scans failed, the others are done")


def _folder_of(out: Path | None, level: str | None, output: Path | None) -> Path:
    if level not in (None, "participant"):
        raise AR2UNetError(f"the level of analysis must be participant, got {level}: cohort.csv holds the whole group")
    if (out is None) == (output is None):
        raise AR2UNetError("expected one folder for the results: cohort FOLDER -o OUT, or cohort BIDS OUT participant")
    return out or output or Path()


def _run(folder: CohortFolder, cases: Sequence[FoundScan], work: SegmentAll, bids_root: Path | None) -> Summary:
    from pipeline.cohort.running import run_cohort

    def say(row: Row) -> None:
        named = row.path.rpartition("/")[2] in row.reason
        typer.echo(f"ar2unet: {row.reason if named else f'{row.path}: {row.reason}'}", err=True)

    try:
        with progress_bar(f"{len(cases)} scans") as advance:
            return run_cohort(folder, cases, work, bids_root=bids_root, on_progress=advance, on_failure=say)
    except KeyboardInterrupt:
        typer.echo("ar2unet: interrupted; started again it goes on from here", err=True)
        raise


def _local(folder: CohortFolder, settings: Settings, engine: EngineName) -> SegmentAll:
    from pipeline.cohort.segmenting import Segmenter

    predictor = make_predictor(settings.bundle, settings.device, engine)
    if predictor.note is not None:
        typer.echo(f"ar2unet: {predictor.note}", err=True)
    return Segmenter(folder, settings, predictor).segment_all


def _on_ray(ray: object, folder: CohortFolder, settings: Settings, num_cpus: int) -> SegmentAll:
    from functools import partial

    from pipeline.cohort.ray_workers import segment_on_ray

    def say(line: str) -> None:
        typer.echo(f"ar2unet: {line}", err=True)

    return partial(segment_on_ray, ray, folder, settings, num_cpus=num_cpus, on_note=say)
