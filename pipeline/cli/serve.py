"""``ar2unet serve``."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import BundleOption, DeviceOption, EngineName, EngineOption, app

__all__ = ["serve"]


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port; 0 takes a free one.", min=0, max=65535)] = 8000,
    token: Annotated[
        str | None, typer.Option(envvar="AR2UNET_TOKEN", help="What users have to show; best from the environment.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="A name under which the page is reached; may be repeated.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where jobs are kept.", show_default="~/.local/share/ar2unet/jobs")
    ] = None,
    queue: Annotated[int, typer.Option(help="Jobs that may be uploading, waiting or in work.", min=1)] = 64,
    max_upload: Annotated[int, typer.Option(help="MB of all files of one job.", min=1)] = 1024,
    max_storage: Annotated[float, typer.Option(help="GB of all jobs; the oldest go first.", min=0.001)] = 20.0,
    keep_uploads: Annotated[float, typer.Option(help="Hours that a scan is kept after its job.", min=0)] = 24.0,
    keep_results: Annotated[float, typer.Option(help="Days that a job is kept after its end.", min=0)] = 30.0,
    job_timeout: Annotated[float, typer.Option(help="Seconds that a job may take.", min=1)] = 1800.0,
    bundle: BundleOption = None,
    device: DeviceOption = None,
    engine: EngineOption = EngineName.AUTO,
) -> None:
    """Serve the web page: drop a scan, see its mask, take it home."""
    from pipeline.web.settings import Settings, default_folder

    settings = Settings(
        folder=folder or default_folder(),
        host=host,
        port=port,
        token=token,
        allowed_hosts=tuple(allowed_host or ()),
        bundle=bundle,
        device=device,
        engine=engine.value,
        queue_size=queue,
        max_upload_bytes=max_upload * 2**20,
        max_storage_bytes=int(max_storage * 2**30),
        keep_uploads=timedelta(hours=keep_uploads),
        keep_results=timedelta(days=keep_results),
        job_seconds=job_timeout,
    )
    from pipeline.web.server import run_server

    try:
        run_server(settings, lambda address: typer.echo(f"ar2unet: {address} (Ctrl-C ends it)"))
    except KeyboardInterrupt:  # how a server is ended
        return
