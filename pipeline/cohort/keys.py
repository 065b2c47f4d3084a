"""What a case's results depend on, as one hash: they are taken for done only where it is still the same."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.cohort.finding import FoundScan
from pipeline.errors import ScanError
from pipeline.formats.printable import printable
from pipeline.provenance import software_version
from pipeline.report import SCHEMA_VERSION

__all__ = ["Settings", "case_key", "hash_bundle", "hash_inputs"]

FORMAT = 1  # of what goes into the hash, and of the records
DETACHED = re.compile(rb"^(?:data ?file|ElementDataFile)\s*[:=]\s*(.*)$", re.IGNORECASE | re.MULTILINE)
HEADER_BYTES = 2**20
# The bundle's files that decide over a mask and its report; the exported network is bound to them by its manifest.
BUNDLE_FILES = ("configs/*", "models/*.pt", "models/*.json", "models/exported/manifest.json")


@dataclass(frozen=True, slots=True)
class Settings:
    """How every case of a cohort is segmented.

    Attributes:
        bundle: Folder of the bundle.
        device: As ``pipeline.predictor.Predictor`` takes it.
        engine: As ``pipeline.predictor.Predictor`` takes it.
        with_probabilities: Whether to write the probabilities, too.
        with_mesh: Whether to write the surface of the lesions, too.
    """

    bundle: Path
    device: str | None = None
    engine: str = "auto"
    with_probabilities: bool = False
    with_mesh: bool = False


def case_key(found: FoundScan, settings: Settings, *, bundle_hash: str, engine: str) -> str:
    """Return the hash of all that a case's results depend on.

    Args:
        found: The case; its files are read.
        settings: How it is segmented.
        bundle_hash: As ``hash_bundle`` returns it.
        engine: What multiplies, such as "openvino f16".

    Raises:
        ScanError: If an input cannot be read.
    """
    options = [settings.with_probabilities, settings.with_mesh]
    parts = [FORMAT, SCHEMA_VERSION, software_version(), hash_inputs(found), bundle_hash, engine, options]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def hash_bundle(bundle: Path) -> str:
    """Return the hash of the bundle's weights and configs."""
    files = sorted({path for pattern in BUNDLE_FILES for path in bundle.glob(pattern) if path.is_file()})
    return _hash_files(bundle, files)


def hash_inputs(found: FoundScan) -> str:
    """Return the hash of all files of a case: their names, their roles and their content.

    Raises:
        ScanError: If one of them cannot be read.
    """
    whole = hashlib.sha256()
    for role, path in (("flair", found.flair), ("t1", found.t1), ("t1c", found.t1c)):
        if path is None:
            continue
        try:
            files = sorted(_files_of(path))
            whole.update(f"{role} {_hash_files(path if path.is_dir() else path.parent, files)}\n".encode())
        except FileNotFoundError as error:
            raise ScanError(f"{printable(path)}: expected a file, got no such file") from error
        except OSError as error:
            raise ScanError(f"{printable(path)}: cannot be read: {error.strerror or error}") from error
    return whole.hexdigest()


def _files_of(path: Path) -> Iterator[Path]:
    """Yield the files that reading a path may read."""
    if path.is_dir():
        for parent, folders, names in os.walk(path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = (Path(parent, name) for name in names if not name.startswith("."))
            yield from (each for each in inside if each.is_file())
        return
    if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe would wait for ever
        raise OSError(f"{path.name} is not a regular file")
    yield path
    if path.name.lower().endswith((".nhdr", ".mhd")):
        yield from _detached_files(path)


def _detached_files(path: Path) -> Iterator[Path]:
    """Yield the files that a header of NRRD or MetaImage names: one, a list, or a pattern with a number."""
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    match = DETACHED.search(header)
    if match is None:
        return
    lines = [match[1], *header[match.end() :].splitlines()]
    for line in lines:
        name = line.strip().decode("utf-8", "surrogateescape")
        if re.search(r"%\d*d", name):
            pattern = re.sub(r"%\d*d", "*", name.split()[0])
            yield from (each for each in path.parent.glob(pattern) if each.is_file())
        elif name and "\0" not in name and (path.parent / name).is_file():
            yield path.parent / name


def _hash_files(folder: Path, files: list[Path]) -> str:
    whole = hashlib.sha256()
    for path in files:
        name = str(path.relative_to(folder) if path.is_relative_to(folder) else path)
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{len(name)} ".encode() + name.encode("utf-8", "surrogateescape") + f" {content}\n".encode())
    return whole.hexdigest()
