"""``ar2unet export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import app

__all__ = ["export"]


@app.command()
def export(
    bundle: Annotated[Path | None, typer.Argument(metavar="[BUNDLE]", help="Folder; the shipped bundle's.")] = None,
) -> None:
    """Export a bundle's network for the fast engines, into models/exported; again after its weights change."""
    from pipeline.exporting import export_bundle
    from pipeline.predictor import SEGMENTATION_BUNDLE

    artefact = export_bundle(bundle or SEGMENTATION_BUNDLE)
    typer.echo(f"{artefact.network}: from weights {artefact.manifest.weights_sha256[:12]}")
