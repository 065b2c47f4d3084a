"""Fetches the page's viewer, NiiVue, as ``niivue.lock.json`` names it: ``python -m pipeline.web.viewer [TARBALL]``.

npm itself is not needed: the registry serves plain tarballs, and the lock file holds the hash that npm would check.
The page works without the viewer, and says what is missing.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import AR2UNetError
from pipeline.formats.atomic import atomic_write
from pipeline.formats.printable import printable

__all__ = ["LOCK", "VENDOR", "ViewerLock", "install_viewer", "is_installed", "main", "read_lock"]

LOCK = Path(__file__).with_name("niivue.lock.json")
VENDOR = Path(__file__).with_name("static") / "vendor"
PUBLIC_REGISTRY = "https://registry.npmjs.org/"
MAX_BYTES = 64 * 2**20  # the tarball has 7 MB
TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class ViewerLock:
    """Which viewer, and how it is known to be the right one.

    Attributes:
        name: Of the npm package.
        version: Of the npm package.
        tarball: Its address in the public registry.
        integrity: Hash of the tarball as npm writes it, ``sha512-`` and base64.
        file: The one file of the tarball that the page loads.
    """

    name: str
    version: str
    tarball: str
    integrity: str
    file: str


def read_lock(path: Path = LOCK) -> ViewerLock:
    """Read the lock file that comes with the software."""
    return ViewerLock(**json.loads(path.read_text()))


def is_installed(lock: ViewerLock, folder: Path = VENDOR) -> bool:
    """Return whether the viewer is there, of this very tarball and whole."""
    try:
        stamp = json.loads((folder / "niivue.json").read_text())
        content = (folder / "niivue.js").read_bytes()
        return bool(stamp == _stamp(lock, content))
    except (OSError, ValueError):
        return False


def install_viewer(lock: ViewerLock, folder: Path = VENDOR, tarball: Path | None = None) -> str:
    """Put the viewer where the page loads it from; nothing of a wrong tarball is written.

    Args:
        lock: Which viewer.
        folder: Made where missing; gets ``niivue.js`` and ``niivue.json``.
        tarball: A copy of the tarball, for machines without a network; None fetches it.

    Returns:
        Where it came from.

    Raises:
        AR2UNetError: If it cannot be fetched, its hash is not the locked one, or it cannot be written.
    """
    source, packed = _fetch(lock) if tarball is None else _read(tarball)
    algorithm, _, _ = lock.integrity.partition("-")
    got = f"{algorithm}-{base64.b64encode(hashlib.new(algorithm, packed).digest()).decode()}"
    if got != lock.integrity:
        raise AR2UNetError(f"{source}: expected the hash {lock.integrity}, got {got}; nothing was installed")
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
        member = archive.extractfile(lock.file)
        if member is None:
            raise AR2UNetError(f"{source}: expected the file {lock.file}, got a folder or a link")
        content = member.read()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AR2UNetError(f"{printable(folder)}: cannot be made: {error.strerror or error}") from error
    with atomic_write(folder / "niivue.js") as file:
        file.write(content)
    with atomic_write(folder / "niivue.json") as file:  # the last: it says that all is there
        file.write(json.dumps(_stamp(lock, content), indent=2).encode() + b"\n")
    return source


def _stamp(lock: ViewerLock, content: bytes) -> dict[str, str]:
    return {
        "name": lock.name,
        "version": lock.version,
        "integrity": lock.integrity,
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def _read(tarball: Path) -> tuple[str, bytes]:
    try:
        return printable(tarball), tarball.read_bytes()
    except OSError as error:
        raise AR2UNetError(f"{printable(tarball)}: cannot be read: {error.strerror or error}") from error


def _fetch(lock: ViewerLock) -> tuple[str, bytes]:
    """Fetch the tarball from the registry that npm is told to use, and from the public one."""
    registries = dict.fromkeys((_registry(), PUBLIC_REGISTRY))
    failures = []
    for registry in registries:
        address = lock.tarball.replace(PUBLIC_REGISTRY, registry)
        try:
            with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as answer:
                packed = answer.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            failures.append(f"{address}: {reason}")
            continue
        if len(packed) > MAX_BYTES:
            raise AR2UNetError(f"{address}: expected at most {MAX_BYTES} bytes, got more")
        return address, packed
    raise AR2UNetError(f"the viewer {lock.name} {lock.version} cannot be fetched: {'; '.join(failures)}")


def _registry() -> str:
    """Return the registry of npm's environment or configuration, the public one where neither names one."""
    # npm reads its variables in any case, and writes them in lower case itself.
    named = next((value for name, value in os.environ.items() if name.lower() == "npm_config_registry"), None)
    npm = shutil.which("npm")
    if not named and npm:
        asked = [npm, "config", "get", "registry"]
        try:
            said = subprocess.run(asked, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True)
            named = said.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            named = None
    if not named or not named.startswith(("https://", "http://")):
        return PUBLIC_REGISTRY
    return named.rstrip("/") + "/"


def main(arguments: Sequence[str] | None = None) -> int:
    """Install the viewer unless it is there; return the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    lock = read_lock()
    if len(given) > 1:
        sys.stderr.write("usage: python -m pipeline.web.viewer [TARBALL]\n")
        return 2
    if not given and is_installed(lock):
        return 0
    try:
        source = install_viewer(lock, tarball=Path(given[0]) if given else None)
    except AR2UNetError as error:
        sys.stderr.write(f"The web page goes without its viewer: {error}\n")
        return error.exit_code
    sys.stdout.write(f"viewer {lock.name} {lock.version} installed from {source}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
