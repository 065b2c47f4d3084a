"""``ar2unet prepare``: a command a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import OutOption, app, progress_bar
from pipeline.errors import SomeInputsFailedError

__all__ = ["prepare_lgg_command"]

prepare_app = typer.Typer(help="Turn a published data set into NIfTI files and patient-wise folds.")
app.add_typer(prepare_app, name="prepare", no_args_is_help=True)


@prepare_app.command("lgg")
def prepare_lgg_command(
    source: Annotated[Path, typer.Argument(metavar="KAGGLE_3M", help="The publisher's folder, a folder a patient.")],
    output: OutOption,
    folds: Annotated[int, typer.Option(help="Patient-wise folds, balanced by site and lesion size.", min=2)] = 5,
    seed: Annotated[int, typer.Option(help="Another seed, other folds.")] = 0,
) -> None:
    """Turn the LGG FLAIR slices into a NIfTI file a sequence, masks, and datalist.json with folds."""
    from pipeline.datasets.lgg import prepare_lgg

    with progress_bar("preparing") as advance:
        prepared = prepare_lgg(source, output, folds=folds, seed=seed, on_progress=lambda i, n, _: advance(i, n))
    for failure in prepared.failures:
        typer.echo(f"ar2unet: {failure.reason}", err=True)
    typer.echo(
        f"{prepared.subjects} patients in {prepared.datalist} "
        f"({prepared.written} written, {prepared.unchanged} already there)"
    )
    if prepared.failures:
        raise SomeInputsFailedError(f"{len(prepared.failures)} patients failed, the others are done")
