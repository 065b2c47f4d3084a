"""Folders for results: made where missing, and refused with a line where they cannot be."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.errors import AR2UNetError
from pipeline.formats.printable import printable

__all__ = ["check_folder", "make_folder"]


def make_folder(folder: Path) -> None:
    """Make a folder for results, and those above it.

    Raises:
        AR2UNetError: If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AR2UNetError(_refusal(folder, error.strerror or type(error).__name__)) from error


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to, before anything is computed for it.

    Raises:
        AR2UNetError: If so.
    """
    try:
        nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise AR2UNetError(_refusal(folder, error.strerror or type(error).__name__)) from error
    if not nearest.is_dir():
        raise AR2UNetError(_refusal(folder, f"{printable(nearest)} is a file"))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise AR2UNetError(_refusal(folder, f"{printable(nearest)} may not be written to"))


def _refusal(folder: Path, reason: str) -> str:
    return f"cannot make the folder {printable(folder)} for the results: {reason}; name another with -o"
