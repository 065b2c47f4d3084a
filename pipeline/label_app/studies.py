"""What of a folder of studies is one scan, which scans are held out, and which labels may be saved."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from pipeline.errors import DatasetError, ScanError

__all__ = ["check_label", "find_sequences", "is_held_out", "read_held_out", "scan_name", "without_companions"]

NIFTI_NAME = re.compile(r"(?P<stem>.+?)\.nii(\.gz)?")
FLAIR_SUFFIX, COMPANIONS = "_flair", ("_t1", "_t1c")


def without_companions(names: Iterable[str]) -> list[str]:
    """Return the names of scans: without the ``X_t1`` and ``X_t1c`` of an ``X_flair``, which are part of it."""
    names = list(names)
    whole = {_stem(name).removesuffix(FLAIR_SUFFIX) for name in names if _stem(name).endswith(FLAIR_SUFFIX)}
    return [name for name in names if not any(_stem(name).removesuffix(c) in whole for c in COMPANIONS if c in name)]


def find_sequences(flair: Path) -> tuple[Path | None, Path | None]:
    """Return the t1 and t1c that lie beside a scan's ``X_flair``; None for each that does not."""
    stem = _stem(flair.name)
    if not stem.endswith(FLAIR_SUFFIX):
        return None, None
    found = []
    for suffix in COMPANIONS:
        paths = [flair.with_name(stem.removesuffix(FLAIR_SUFFIX) + suffix + end) for end in (".nii.gz", ".nii")]
        found.append(next((path for path in paths if path.is_file()), None))
    return found[0], found[1]


def read_held_out(path: Path) -> tuple[str, ...]:
    """Read the list of scans that are never trained on: a name a line, ``*`` and ``?`` allowed, ``#`` begins a comment.

    Raises:
        DatasetError: If the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} must be a text file with the name of a scan in each line: {error}") from error
    names = (line.partition("#")[0].strip() for line in lines)
    return tuple(_stem(name) for name in names if name)


def is_held_out(image_id: str, held_out: Sequence[str]) -> bool:
    """Return whether a scan is on the list."""
    return any(fnmatchcase(image_id, pattern) for pattern in held_out)


def scan_name(image: Path) -> str:
    """Return a scan's name: its file's without the ending."""
    return _stem(image.name)


def check_label(label: Path, image: Path) -> None:
    """Refuse a label that a training could not learn from.

    Raises:
        ScanError: If it is no NIfTI mask of 0 and 1 on the voxel grid of its scan.
    """
    from pipeline.formats.nifti import read_mask
    from pipeline.formats.nifti_header import check_same_grid, read_layout

    if NIFTI_NAME.fullmatch(label.name) is None:
        raise ScanError(f"the label must be a .nii.gz or .nii file, got {label.name}")
    read_mask(label)
    check_same_grid(read_layout(label), read_layout(image))


def _stem(name: str) -> str:
    match = NIFTI_NAME.fullmatch(name)
    return match["stem"] if match else name
