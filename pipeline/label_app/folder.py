"""The folder of the app: its code, the packed bundles, and the weights that trainings add."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import AR2UNetError, BundleError
from pipeline.formats.atomic import atomic_write

__all__ = ["default_folder", "lock_folder", "prepare_app", "prepare_bundle"]

HERE = Path(__file__).resolve().parent
PACKAGES = HERE.parents[1]
CODE = ("networks", "transforms", "pipeline")
APP_FILES = ("main.py", "sitecustomize.py")  # where MONAI Label and Python look for them
APP_PACKAGES = ("transforms", "pipeline")  # what the app itself imports; the bundles bring their own below `scripts`
KEPT = ("models/finetuned_*.pt",)  # the users' own: no new version of a bundle may take it away
STAMP = ".packed"


def default_folder() -> Path:
    """Return the user's folder for the app, as the XDG Base Directory Specification has it."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "ar2unet" / "label"


def lock_folder(folder: Path) -> int:
    """Keep other servers out of a folder until this process, or what it becomes, has ended.

    Returns:
        The descriptor of the lock, which a program that replaces this one inherits.

    Raises:
        AR2UNetError: If the folder cannot be written, or a server has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise AR2UNetError(f"{folder}: cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise AR2UNetError(
            f"{folder} must be one server's own, got one that another server has; see --folder"
        ) from error
    os.set_inheritable(descriptor, True)
    return descriptor


def prepare_app(folder: Path) -> None:
    """Put the app's code into its folder, as links to this software's.

    The environment of MONAI Label has packages of other versions, so it must find this software's code, but nothing
    else that may lie beside it.
    """
    links = {name: HERE / name for name in APP_FILES} | {name: PACKAGES / name for name in APP_PACKAGES}
    for name, target in links.items():
        link = folder / name
        if link.is_symlink() and link.readlink() == target:
            continue
        temporary = folder / f".{name}.partial"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(link)


def prepare_bundle(bundle: Path, folder: Path) -> str:
    """Pack a bundle into the app's folder, unless it is there already as it is now.

    Args:
        bundle: The bundle's folder.
        folder: Of the app.

    Returns:
        The bundle's name in the app.

    Raises:
        BundleError: If it cannot be packed.
    """
    from pipeline.packing.bundle import pack_bundle

    bundle = bundle.resolve()
    if not bundle.is_dir():
        raise BundleError(f"{bundle} must be a bundle's folder, got nothing there")
    target = folder / "model" / bundle.name
    checksum = _checksum(bundle)
    if _stamp(target) == checksum:
        return bundle.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as temporary:
        archive = Path(temporary) / f"{bundle.name}.zip"
        pack_bundle(bundle, archive)
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(temporary)
        _replace(target, Path(temporary) / bundle.name, Path(temporary) / "before")
    with atomic_write(target / STAMP) as file:
        file.write(checksum.encode())
    return bundle.name


def _replace(target: Path, new: Path, before: Path) -> None:
    """Put a new version of a bundle in an old one's place; the weights that were trained here stay."""
    for pattern in KEPT:
        for path in target.glob(pattern):
            shutil.copy2(path, new / path.relative_to(target))
    if target.exists():
        target.rename(before)
    new.rename(target)


def _stamp(target: Path) -> str:
    try:
        return (target / STAMP).read_text()
    except OSError:
        return ""


def _checksum(bundle: Path) -> str:
    """Return the checksum of all that a packed bundle is made from."""
    checksum = hashlib.sha256()
    for path in _sources(bundle):
        content = path.read_bytes()
        checksum.update(f"{path}\0{len(content)}\0".encode() + content)
    return checksum.hexdigest()


def _sources(bundle: Path) -> Iterator[Path]:
    exported = bundle / "models" / "exported"
    yield from sorted(path for path in bundle.rglob("*") if path.is_file() and exported not in path.parents)
    for package in CODE:
        yield from sorted((PACKAGES / package).rglob("*.py"))
