"""``ar2unet label``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import app

__all__ = ["label"]


@app.command()
def label(
    studies: Annotated[
        str | None,
        typer.Argument(metavar="STUDIES", help="Folder of NIfTI scans, labels kept below it; or a DICOMweb address."),
    ] = None,
    install: Annotated[bool, typer.Option("--install", help="Make the environment that MONAI Label needs.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen on; of this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port.", min=1, max=65535)] = 8000,
    weights: Annotated[
        str, typer.Option(help="latest, shipped (undoes all training), or the number of a training.")
    ] = "latest",
    held_out: Annotated[
        Path | None, typer.Option(help="List of scans that are never trained on, a name a line; * and ? allowed.")
    ] = None,
    bundle: Annotated[
        list[Path] | None, typer.Option(help="Another bundle's folder than the shipped one; may be repeated.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where packed bundles and trained weights are kept.", show_default=False)
    ] = None,
    environment: Annotated[
        Path | None,
        typer.Option(envvar="AR2UNET_LABEL_ENV", help="Of MONAI Label.", show_default=".venv-label beside .venv"),
    ] = None,
) -> None:
    """Serve the bundles to 3D Slicer and OHIF through MONAI Label: segment, correct, train, segment again."""
    from pipeline.label_app.environment import default_environment, install_environment

    environment = (environment or default_environment()).absolute()
    if install:
        install_environment(environment, lambda line: typer.echo(f"ar2unet: {line}", err=True))
    if studies is None:
        if not install:
            raise typer.BadParameter("STUDIES must name the folder of scans, or a DICOMweb store; or --install")
        return

    from pipeline.label_app.folder import default_folder
    from pipeline.label_app.server import LabelSettings, prepare_server, server_environment
    from pipeline.label_app.store_address import check_address, is_address
    from pipeline.predictor import SEGMENTATION_BUNDLE

    settings = LabelSettings(
        studies=check_address(studies) if is_address(studies) else Path(studies),
        folder=(folder or default_folder()).absolute(),
        environment=environment,
        bundles=tuple(bundle or [SEGMENTATION_BUNDLE]),
        host=host,
        port=port,
        weights=weights,
        held_out=held_out,
    )
    command = prepare_server(settings)
    typer.echo(f"ar2unet: MONAI Label at http://{host}:{port} (Ctrl-C ends it)")
    sys.stdout.flush()
    os.chdir(settings.folder)  # MONAI Label takes an image's name for a file where one of that name is in sight
    os.execve(command[0], command, server_environment(settings))
