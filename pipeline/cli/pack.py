"""``ar2unet pack``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import app

__all__ = ["pack"]


@app.command()
def pack(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="ZIP", help="The file to write.")],
) -> None:
    """Pack a bundle with the code it needs as one zip that runs with MONAI alone, without this software."""
    from pipeline.packing.bundle import pack_bundle

    packed = pack_bundle(bundle, output)
    for name in packed.without_url:
        typer.echo(f"ar2unet: large_files.yml lists {name} without an address; the model zoo wants one", err=True)
    size = packed.archive.stat().st_size / 1e6
    typer.echo(
        f"{packed.archive}: version {packed.version}, {packed.files} files ({packed.modules} modules), {size:.1f} MB"
    )
