"""The separate environment that MONAI Label needs: it wants an older NumPy and pydicom than this software has."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pipeline.engines.artefact import hash_file
from pipeline.errors import AR2UNetError

__all__ = [
    "check_environment",
    "default_environment",
    "install_environment",
    "interpreter",
    "locked_torch",
    "package_checksum",
]

HERE = Path(__file__).resolve().parent
LOCK, CUDA_LOCK = HERE / "requirements.lock", HERE / "requirements-cuda.lock"
STAMP = ".ar2unet-label"  # holds the checksum of what the environment was made from; written last
OLDEST, NEWEST = (3, 11), (3, 12)  # of Python; NumPy 1.26 has no wheels for a newer one
TORCH = re.compile(
    r"^torch==(?P<version>\S+) \\\n(?P<hashes>(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE
)


def default_environment() -> Path:
    """Return where the environment lies unless told otherwise: ``.venv-label`` beside ``.venv``."""
    return HERE.parents[1] / ".venv-label"


def interpreter(environment: Path) -> Path:
    """Return an environment's Python."""
    return environment / "bin" / "python"


def check_environment(environment: Path) -> None:
    """Refuse an environment that is not there, or was made from another lock file.

    Raises:
        AR2UNetError: With the command that makes it.
    """
    command = "ar2unet label --install"
    if environment != default_environment():
        command += f" --environment {environment}"
    if not interpreter(environment).is_file():
        raise AR2UNetError(
            f"{environment} must be the environment of MONAI Label, got nothing there; make it: {command}"
        )
    try:
        made_from = (environment / STAMP).read_text()
    except OSError:
        made_from = ""
    if made_from != _checksum():
        raise AR2UNetError(f"{environment} is incomplete, or was made from an older lock file; make it anew: {command}")


def install_environment(environment: Path, say: Callable[[str], None]) -> None:
    """Make the environment from the lock file; an existing one is completed.

    torch comes first and alone, in the build that the package index offers, and is held against its checksums. The rest
    is installed with checksums, nothing resolved anew.

    Args:
        environment: Its folder.
        say: Shows a line of progress.

    Raises:
        AR2UNetError: If this Python does not fit, or a package cannot be installed.
    """
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        raise AR2UNetError(f"MONAI Label needs Python 3.11 or 3.12, got {sys.version.split()[0]}")
    (environment / STAMP).unlink(missing_ok=True)
    say(f"making {environment}; it takes some minutes and 4 GB")
    if not interpreter(environment).is_file():
        _run([sys.executable, "-m", "venv", str(environment)])
    _install_torch(environment)
    _pip(environment, "--no-deps", "--require-hashes", "-r", str(LOCK))
    if _needs_cuda(environment):
        say("torch is a CUDA build here; CUDA's libraries take another 3 GB")
        _pip(environment, "--no-deps", "--require-hashes", "-r", str(CUDA_LOCK))
    # Loads the heavy packages once: what an interrupted installation left half-written is found before the stamp.
    _run([str(interpreter(environment)), "-c", "import itk, monai, monailabel, numpy, torch"])
    (environment / STAMP).write_text(_checksum())
    say(f"{environment} is ready")


def locked_torch(lock: str) -> tuple[str, frozenset[str]]:
    """Return torch's version and the checksums of its builds from the text of the lock file."""
    found = TORCH.search(lock)
    if found is None:
        raise AR2UNetError(f"{LOCK} must begin with torch and its checksums")
    return found["version"], frozenset(re.findall(r"sha256:([0-9a-f]{64})", found["hashes"]))


def package_checksum(download: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a package that pip installed, from ``download_info`` of its report.

    Of a file in a local folder the report has none, so the file itself is asked.
    """
    stated = download.get("archive_info", {}).get("hashes", {}).get("sha256")
    if stated is not None:
        return str(stated)
    url = urlsplit(download["url"])
    if url.scheme != "file":
        raise AR2UNetError(f"{download['url']}: expected a package with a checksum, got none")
    return hash_file(Path(unquote(url.path)))


def _install_torch(environment: Path) -> None:
    """Install torch alone: told its checksums, pip would pass over the builds of a local folder."""
    version, hashes = locked_torch(LOCK.read_text())
    with tempfile.TemporaryDirectory(prefix="ar2unet-label-") as folder:
        report = Path(folder) / "report.json"
        _pip(environment, "--no-deps", "--report", str(report), f"torch=={version}")
        for package in json.loads(report.read_text())["install"]:
            got = package_checksum(package["download_info"])
            if got not in hashes:
                _run([str(interpreter(environment)), "-m", "pip", "uninstall", "--quiet", "--yes", "torch"])
                raise AR2UNetError(f"torch {version} must have one of the checksums in {LOCK.name}, got {got}")


def _needs_cuda(environment: Path) -> bool:
    code = "import importlib.metadata as m; print(*(m.requires('torch') or ()))"
    return "nvidia-" in _run([str(interpreter(environment)), "-c", code])


def _pip(environment: Path, *arguments: str) -> None:
    _run([str(interpreter(environment)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments])


def _run(command: list[str]) -> str:
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        lines = [line for line in finished.stderr.splitlines() if line.strip()] or ["no message"]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        raise AR2UNetError(f"{' '.join(command[1:4])} ...: {reason}")
    return finished.stdout


def _checksum() -> str:
    """Return the checksum of what an environment is made from."""
    return hashlib.sha256(LOCK.read_bytes() + CUDA_LOCK.read_bytes()).hexdigest()
