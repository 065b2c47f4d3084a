"""``ar2unet export``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import app

__all__ = ["export"]


class FormatName(StrEnum):
    """What others run."""

    TORCHSCRIPT, ONNX, OPENVINO, STATE_DICT = "torchscript", "onnx", "openvino", "state-dict"


@app.command()
def export(
    bundle: Annotated[Path | None, typer.Argument(metavar="[BUNDLE]", help="Folder; the shipped bundle's.")] = None,
    format_name: Annotated[FormatName | None, typer.Option("--format", help="For use elsewhere, with -o.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File: .ts, .onnx, .xml or .pt.")] = None,
) -> None:
    """Export a bundle's network for the fast engines, into models/exported; again after its weights change.

    With --format and -o also to a file for others, slices of any size, with what surrounds the network as JSON.
    """
    from pipeline.predictor import SEGMENTATION_BUNDLE

    folder = bundle or SEGMENTATION_BUNDLE
    if (format_name is None) != (output is None):
        raise typer.BadParameter("--format and -o go together")
    if format_name is None or output is None:
        from pipeline.exporting import export_bundle

        artefact = export_bundle(folder)
        typer.echo(f"{artefact.network}: from weights {artefact.manifest.weights_sha256[:12]}")
        return
    from pipeline.export_formats import export_network

    for file in export_network(folder, format_name.value, output):
        typer.echo(str(file))
