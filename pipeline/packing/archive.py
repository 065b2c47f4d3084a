"""Zip archives of which the same content always gives the same bytes."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from pipeline.formats.atomic import atomic_write

__all__ = ["write_archive", "write_entries"]

EARLIEST = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip archive can name
READABLE = 0o100644  # a plain file, which its owner may write and everybody may read
UNIX = 3  # the system whose permissions these are


def write_archive(entries: Mapping[str, bytes], path: Path) -> None:
    """Write files as a zip archive, sorted by name.

    Args:
        entries: Content by name, with forward slashes.
        path: The archive; its folder must exist.

    Raises:
        AR2UNetError: If it cannot be written.
    """
    with atomic_write(path) as file:
        write_entries(dict(sorted(entries.items())), file)


def write_entries(entries: Mapping[str, bytes], file: BinaryIO) -> None:
    """Write files as a zip archive, in the order given, all of one date and one set of permissions.

    They are stored, not compressed: weights hardly get smaller, and how small depends on the machine's zlib.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name, EARLIEST)
            info.create_system = UNIX
            info.external_attr = READABLE << 16
            archive.writestr(info, content)
