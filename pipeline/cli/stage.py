"""``ar2unet stage``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import BundleOption, app
from pipeline.errors import ScanError, SomeInputsFailedError

__all__ = ["stage"]


@app.command()
def stage(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Brain-extracted T1: a slice (PNG, JPEG, NIfTI) or a volume."),
    ],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for the results.")] = None,
    bundle: BundleOption = None,
) -> None:
    """Tell the dementia stage (CDR) of T1 slices or volumes; with -o: stage.json, stage.html and saliency.png.

    The results of one file lie in the output folder itself, those of several in a folder each. Not a diagnosis.
    """
    from pipeline.formats.printable import printable
    from pipeline.staging.case import stage_case
    from pipeline.staging.content import describe_staging
    from pipeline.staging.reading import stage_name
    from pipeline.staging.stager import STAGING_BUNDLE, Stager

    names = [stage_name(file) for file in files]
    for name in names if output is not None else ():
        if names.count(name) > 1:
            raise ScanError(f"two files are named {printable(name)}; their results would overwrite each other")
    stager = Stager(bundle or STAGING_BUNDLE)
    several = len(files) > 1
    failed = 0
    for file, name in zip(files, names, strict=True):
        out = output / name if output is not None and several else output
        try:
            result = stage_case(stager, file, out)
        except ScanError as error:
            if not several:
                raise
            typer.echo(f"ar2unet: {error}", err=True)
            failed += 1
            continue
        shown = printable(file.name)
        for warning in result.staging.warnings:
            typer.echo(f"ar2unet: {shown}: {warning}", err=True)
        where = "" if result.paths is None else f"; {result.paths.stage}"
        typer.echo(f"{shown}: {describe_staging(result.staging)}; {result.seconds:.1f} s{where}")
    if failed == len(files):
        raise ScanError(f"none of the {failed} files could be staged")
    if failed:
        raise SomeInputsFailedError(f"{failed} of {len(files)} files failed, the others are done")
