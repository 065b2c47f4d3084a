"""The command that becomes MONAI Label's server, in its own environment, with what it must be told."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import AR2UNetError, BundleError
from pipeline.label_app.conversion import PYTHON
from pipeline.label_app.environment import check_environment, interpreter
from pipeline.label_app.folder import lock_folder, prepare_app, prepare_bundle
from pipeline.label_app.store_address import check_store, make_private, user_and_password
from pipeline.label_app.studies import read_held_out
from pipeline.label_app.versions import choose

__all__ = ["LabelSettings", "prepare_server", "server_command", "server_environment"]


@dataclass(frozen=True)
class LabelSettings:
    """What the server is told at its start.

    Attributes:
        studies: The folder of scans, below which labels are kept; or a DICOMweb store's address, as text.
        folder: The app's own.
        environment: Where MONAI Label is installed.
        bundles: Their folders.
        host: Address to listen on, of loopback.
        port: TCP port.
        weights: "latest", "shipped", or a version.
        held_out: A list of scans that are never trained on.

    Raises:
        AR2UNetError: If others could reach the address (MONAI Label asks for no token), or two bundles share a name.
    """

    studies: Path | str
    folder: Path
    environment: Path
    bundles: tuple[Path, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    weights: str = "latest"
    held_out: Path | None = None

    def __post_init__(self) -> None:
        """Refuse to be reached by everybody, and models that could not be told apart."""
        names = [bundle.resolve().name for bundle in self.bundles]
        if len(set(names)) < len(names):
            raise AR2UNetError(f"--bundle must name folders of different names, got {', '.join(names)}")
        if not _is_loopback(self.host):
            raise AR2UNetError(
                f"--host must be an address of this machine only, such as 127.0.0.1, got {self.host}: anybody could "
                f"read the scans; from elsewhere, use a tunnel: ssh -L {self.port}:127.0.0.1:{self.port} THIS_MACHINE"
            )


def prepare_server(settings: LabelSettings) -> list[str]:
    """Make everything ready that the server finds at its start; return the command that becomes it.

    Raises:
        AR2UNetError: If the studies or the environment are missing, the port is taken, or a bundle, its weights or the
            list do not fit.
    """
    if isinstance(settings.studies, Path) and not settings.studies.is_dir():
        raise AR2UNetError(f"{settings.studies} must be a folder of .nii.gz files, got no folder")
    if isinstance(settings.studies, str):
        check_store(settings.studies, user_and_password())
    for bundle in settings.bundles:
        _check_bundle(bundle)
    check_environment(settings.environment)
    if settings.held_out is not None:
        read_held_out(settings.held_out)
    _check_port(settings.host, settings.port)
    lock_folder(settings.folder)
    if isinstance(settings.studies, str):
        make_private(settings.folder)
    prepare_app(settings.folder)
    names = [prepare_bundle(bundle, settings.folder) for bundle in settings.bundles]
    return server_command(settings, names)


def server_command(settings: LabelSettings, names: Sequence[str]) -> list[str]:
    """Return the command for bundles that lie in the app's folder."""
    conf = {"models": ",".join(names)}
    for name in names:
        choice = choose(settings.folder / "model" / name / "models", settings.weights)
        conf |= {f"weights_{name}": choice.name, f"known_{name}": str(choice.known)}
    if settings.held_out is not None:
        conf["held_out"] = str(settings.held_out.resolve())
    command = [str(interpreter(settings.environment)), "-m", "monailabel.main", "start_server"]
    studies = settings.studies if isinstance(settings.studies, str) else str(settings.studies.resolve())
    command += ["--app", str(settings.folder), "--studies", studies]
    command += ["--host", settings.host, "--port", str(settings.port), "--uvicorn_app", "pipeline.label_app.asgi:app"]
    return command + [part for key, value in conf.items() for part in ("--conf", key, value)]


def server_environment(settings: LabelSettings, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the server's environment variables: nothing of the caller's Python, nothing that asks the network."""
    kept = {
        key: value for key, value in environ.items() if not key.startswith(("PYTHON", "MONAI_LABEL_", "VIRTUAL_ENV"))
    }
    if isinstance(settings.studies, str):
        user, password = user_and_password(environ) or ("", "")
        # The names that MONAI Label's own proxy for OHIF has them under.
        kept |= {"MONAI_LABEL_DICOMWEB_USERNAME": user, "MONAI_LABEL_DICOMWEB_PASSWORD": password}
    return kept | {
        PYTHON: sys.executable,
        "PYTHONPATH": str(settings.folder),
        "PYTHONNOUSERSITE": "1",
        "PYTHONUNBUFFERED": "1",
        "MONAI_LABEL_DATASTORE_FILE_EXT": json.dumps(["*.nii.gz", "*.nii"]),
        "MONAI_LABEL_TRACKING_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Scoring runs when it is asked for, not at every start and every next sample.
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
    }


def _check_bundle(bundle: Path) -> None:
    """Refuse a bundle whose result is no mask, such as a classifier; what else may be wrong, packing it says.

    Raises:
        BundleError: With what its metadata has.
    """
    try:
        metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
        output = next(iter(metadata["network_data_format"]["outputs"].values()))["format"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration):
        return
    if output != "segmentation":
        raise BundleError(
            f"{bundle.resolve().name} must be a bundle that segments, for viewers of MONAI Label show masks; its "
            f"output is {output}"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise AR2UNetError(
                f"port {port} of {host} cannot be used: {error.strerror}; --port names another"
            ) from error
