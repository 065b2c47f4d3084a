"""Lists of images and the split each belongs to: MONAI's datalist, a CSV, or a folder of splits."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import DatasetError

__all__ = ["SUFFIXES", "ListedImage", "read_image_list"]

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp", ".nii", ".nii.gz")
KINDS = "a datalist (.json), a table with the columns path and split (.csv, .tsv), or a folder of splits"
# The lists of a datalist whose elements may be mere paths; elsewhere a list of strings is something else.
PATH_LISTS = ("train", "val", "test")


class ListedImage(NamedTuple):
    """One image: its name as listed, where it lies, its split, and its subject where the list says so."""

    name: str
    path: Path
    split: str
    subject: str | None


def read_image_list(source: Path, *, root: Path | None = None, split: str = "split") -> list[ListedImage]:
    """Read which images there are and which split each belongs to.

    - A datalist (``.json``): lists such as ``training`` and ``validation`` of entries with ``image``, a path or a list
      of paths, and optionally ``subject`` or ``patient``, and ``fold``. An entry's split is its list, and where it has
      a fold, that fold of the list.
    - A table (``.csv``, ``.tsv``) with the columns ``path`` and ``split`` and optionally ``subject``.
    - A folder: each folder in it is a split, all images below belong to it. Subjects are not known.

    Args:
        source: The list.
        root: What relative paths start from; by default the folder of the list.
        split: The table's column that holds the split.

    Returns:
        The images in the order of the list, those of a folder sorted by name.

    Raises:
        DatasetError: If the list cannot be read, is of no such kind, or has fewer than two splits.
    """
    if source.is_dir():
        images = list(from_folder(source))
    elif source.suffix.lower() == ".json":
        images = list(from_datalist(source, root or source.parent))
    elif source.suffix.lower() in (".csv", ".tsv"):
        images = list(from_table(source, root or source.parent, split))
    else:
        what = "is not there" if not source.exists() else "is no list of images"
        raise DatasetError(f"{source} {what}; expected {KINDS}")
    splits = sorted({image.split for image in images})
    if len(splits) < 2:
        found = f"only {splits[0]}" if splits else "no images"
        raise DatasetError(f"{source}: expected images in at least two splits, found {found}")
    return images


def from_folder(folder: Path) -> Iterator[ListedImage]:
    """List the images below each folder of a folder; hidden files and folders are passed over."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") for part in parts)
        if len(parts) > 1 and not hidden and path.name.lower().endswith(SUFFIXES) and path.is_file():
            yield ListedImage("/".join(parts), path, parts[0], None)


def from_table(table: Path, root: Path, column: str) -> Iterator[ListedImage]:
    """List the rows of a CSV or TSV."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if table.suffix.lower() == ".tsv" else ",", strict=True)
            columns = list(reader.fieldnames or [])
            missing = [name for name in ("path", column) if name not in columns]
            if missing:
                have = ", ".join(columns) or "none"
                raise DatasetError(f"{table}: the column {missing[0]} is missing, the columns are {have}")
            for row in reader:
                if not row["path"] or not row[column]:
                    raise DatasetError(f"{table}, line {reader.line_num}: path or {column} is empty")
                yield ListedImage(row["path"], root / row["path"], row[column], row.get("subject") or None)
    except OSError as error:
        raise DatasetError(f"{table} cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DatasetError(f"{table} cannot be read as a table: {error}") from error


def from_datalist(datalist: Path, root: Path) -> Iterator[ListedImage]:
    """List the entries of a MONAI datalist."""
    try:
        content = json.loads(datalist.read_bytes())
    except OSError as error:
        raise DatasetError(f"{datalist} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{datalist} cannot be read as JSON: {error}") from error
    if not isinstance(content, Mapping):
        raise DatasetError(f"{datalist}: expected lists of images by name, such as training and validation")
    for name, entries in content.items():
        if not isinstance(entries, list):
            continue
        for number, entry in enumerate(entries):
            if isinstance(entry, str) and name.lower().startswith(PATH_LISTS):
                entry = {"image": entry}
            if isinstance(entry, Mapping):
                yield from from_entry(entry, name, root, f"{datalist}: {name}, entry {number}")


def from_entry(entry: Mapping[str, Any], name: str, root: Path, where: str) -> Iterator[ListedImage]:
    """List the images of one entry of the datalist's list ``name``."""
    paths = entry.get("image")
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
        raise DatasetError(f"{where}: expected a path or a list of paths under image, got {paths!r}")
    fold = entry.get("fold")
    subject = entry.get("patient", entry.get("subject"))  # where a patient has several scans, each is a subject there
    for path in paths:
        side = name if fold is None else f"{name} fold {fold}"
        yield ListedImage(path, root / path, side, None if subject is None else str(subject))
