"""What the server is told at its start."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from pipeline.errors import AR2UNetError

__all__ = ["MIN_TOKEN_LENGTH", "Settings", "default_folder", "is_loopback"]

MIN_TOKEN_LENGTH = 16  # of random characters more than anybody can try over a network


@dataclass(frozen=True)
class Settings:
    """What the server is told at its start.

    Attributes:
        folder: Where the jobs are kept.
        host: Address to listen on.
        port: TCP port; 0 takes a free one.
        token: What users have to show; None asks for none, on loopback only.
        allowed_hosts: Names under which the page is reached, besides ``host`` and those of loopback.
        bundle: The bundle's folder; None takes the shipped one.
        device: Of the torch engine, as ``Predictor`` takes it.
        engine: As ``Predictor`` takes it.
        queue_size: Jobs that may be uploading, waiting or in work at once.
        max_upload_bytes: Of all files of one job.
        max_storage_bytes: Of all jobs.
        keep_uploads: How long the uploaded scan of a finished job is kept.
        keep_results: How long a job is kept after its end.
        job_seconds: The longest that one job may take in the worker.

    Raises:
        AR2UNetError: If the address may be reached by others and there is no token, or the token is too short.
    """

    folder: Path
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()
    bundle: Path | None = None
    device: str | None = None
    engine: str = "auto"
    queue_size: int = 64
    max_upload_bytes: int = 2**30
    max_storage_bytes: int = 20 * 2**30
    keep_uploads: timedelta = timedelta(hours=24)
    keep_results: timedelta = timedelta(days=30)
    job_seconds: float = 1800.0

    def __post_init__(self) -> None:
        """Refuse to be reached by everybody."""
        if self.token is None and not is_loopback(self.host):
            raise AR2UNetError(
                f"--host {self.host} can be reached from other machines, so a token is needed: "
                "set AR2UNET_TOKEN or give --token"
            )
        if self.token is not None and (len(self.token) < MIN_TOKEN_LENGTH or not self.token.isascii()):
            raise AR2UNetError(
                f"the token must be at least {MIN_TOKEN_LENGTH} ASCII characters, got {len(self.token)}; "
                "python3 -c 'import secrets; print(secrets.token_urlsafe())' makes one"
            )


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def default_folder() -> Path:
    """Return the user's folder for the jobs, as the XDG Base Directory Specification has it."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "ar2unet" / "jobs"
