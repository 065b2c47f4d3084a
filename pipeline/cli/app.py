"""The application that the commands register with, and what several of them share."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import AR2UNetError

if TYPE_CHECKING:
    from pipeline.predictor import Predictor

__all__ = [
    "BundleOption",
    "DeviceOption",
    "EngineName",
    "EngineOption",
    "OutOption",
    "app",
    "main",
    "make_predictor",
    "progress_bar",
]

app = typer.Typer(
    help="Segment the FLAIR abnormality in brain MR scans. For research use only; not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

OutOption = Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")]
BundleOption = Annotated[Path | None, typer.Option("--bundle", help="Another bundle's folder than the shipped one.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, ...; CUDA where there is one.")]


class EngineName(StrEnum):
    """Who multiplies."""

    AUTO, OPENVINO, ONNX, TORCH = "auto", "openvino", "onnx", "torch"


EngineOption = Annotated[
    EngineName, typer.Option("--engine", help="Who multiplies: torch is the reference, auto takes the fastest.")
]


def main() -> None:
    """Run the command line; what the user did wrong is one line on stderr and an exit code."""
    try:
        app()
    except AR2UNetError as error:
        typer.echo(f"ar2unet: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("ar2unet: interrupted", err=True)
        sys.exit(130)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr where somebody watches; yield what moves it, given the work done and its total."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    redirect = sys.stdout.isatty()  # else what is printed for a file would appear on the screen
    with Progress(*columns, console=console, transient=True, redirect_stdout=redirect) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def make_predictor(bundle: Path | None, device: str | None, engine: EngineName) -> Predictor:
    """Make the predictor of a command, its bundle the shipped one where none is named."""
    from pipeline.predictor import SEGMENTATION_BUNDLE, Predictor
    from pipeline.stream import keep_memory

    keep_memory()  # before the engine's threads get heaps of their own
    # What MONAI and torch say to developers is not for the user's eyes.
    warnings.filterwarnings("ignore")
    return Predictor(bundle or SEGMENTATION_BUNDLE, device=device, engine=engine.value)
