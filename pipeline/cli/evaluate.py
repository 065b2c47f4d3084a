"""``ar2unet evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import OutOption, app, progress_bar
from pipeline.errors import SomeInputsFailedError

__all__ = ["evaluate"]


@app.command()
def evaluate(
    prediction: Annotated[Path, typer.Argument(metavar="PRED", help="Predicted masks: a folder, or one NIfTI file.")],
    truth: Annotated[Path, typer.Argument(metavar="TRUTH", help="True masks: a folder, or one NIfTI file.")],
    output: OutOption,
    groups: Annotated[Path | None, typer.Option(help="Each patient's site: participants.tsv or datalist.json.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of FLAIR scans to draw worst and best cases on.")] = None,
) -> None:
    """Score predicted masks against their truth, patient by patient: patients.csv, summary.json, report.html.

    Masks are matched by the patient's name; who cannot be scored is named with the reason.
    """
    from pipeline.evaluation.evaluate import evaluate_masks

    with progress_bar("scoring") as advance:
        result = evaluate_masks(prediction, truth, output, groups=groups, images=images, on_progress=advance)
    for message in (*result.notes, *(patient.reason for patient in result.left_out)):
        # A file's name may hold line breaks.
        typer.echo(f"ar2unet: {' '.join(message.splitlines())}", err=True)
    summary = result.summary
    interval = summary["intervals"]["mean"]["dice"]
    between = "" if interval is None else f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})"
    dice = f"Dice mean {summary['mean']['dice']:.3f}{between}, median {summary['median']['dice']:.3f}"
    typer.echo(f"{summary['patients']} scored: {dice}; {result.page}")
    if result.left_out:
        total = len(result.left_out) + len(result.patients)
        raise SomeInputsFailedError(f"{len(result.left_out)} of {total} patients could not be scored, the others are")
