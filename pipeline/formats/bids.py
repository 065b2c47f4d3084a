"""Finding the scans of a BIDS tree: each FLAIR with the T1w images of its session before and after contrast."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from pipeline.errors import DatasetError
from pipeline.formats.nifti_header import printable

__all__ = [
    "BidsScan",
    "BidsTree",
    "MissingFlair",
    "find_scans",
    "is_bids",
    "parse_name",
    "read_bidsignore",
    "sort_entities",
]

NAME = re.compile(r"(?P<entities>(?:[a-zA-Z]+-[a-zA-Z0-9+]+_)+)(?P<suffix>[a-zA-Z0-9]+)\.nii(?:\.gz)?")
# In the order that BIDS wants; an unknown one goes last.
ORDER = (
    "sub", "ses", "sample", "task", "tracksys", "acq", "nuc", "voi", "ce", "trc", "stain", "rec", "dir", "run", "mod",
    "echo", "flip", "inv", "mt", "part", "proc", "hemi", "space", "split", "recording", "chunk", "atlas", "seg",
    "scale", "res", "den", "label", "desc",
)  # fmt: skip
MAGNITUDE = (None, "mag")  # values of "part" that are an image; phase, real and imag are not


@dataclass(frozen=True)
class BidsScan:
    """A FLAIR and its partners.

    Attributes:
        root: The BIDS tree it lies in.
        entities: Of the FLAIR's name in its order, such as ``(("sub", "01"), ("ses", "a"), ("run", "1"))``.
        flair: The FLAIR file.
        t1: T1w before contrast of the same session; None where missing or ambiguous.
        t1c: T1w after contrast (``ce-``) of the same session; as ``t1``.
        warnings: Which partner was left out for being ambiguous, or which double was, a line each.
    """

    root: Path
    entities: tuple[tuple[str, str], ...]
    flair: Path
    t1: Path | None = None
    t1c: Path | None = None
    warnings: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """The name that all its results begin with, such as ``sub-01_ses-a_run-1``; unique in its tree."""
        return "_".join(f"{key}-{value}" for key, value in self.entities)

    @property
    def subject(self) -> str:
        """Such as ``sub-01``."""
        return f"sub-{dict(self.entities)['sub']}"

    @property
    def session(self) -> str | None:
        """Such as ``ses-a``; None where the tree has no sessions."""
        label = dict(self.entities).get("ses")
        return None if label is None else f"ses-{label}"


@dataclass(frozen=True)
class MissingFlair:
    """A session, or a subject without sessions, that cannot be segmented for want of a FLAIR."""

    subject: str
    session: str | None
    reason: str


@dataclass(frozen=True)
class BidsTree:
    """What a BIDS tree holds, sorted by name."""

    root: Path
    scans: tuple[BidsScan, ...]
    without_flair: tuple[MissingFlair, ...]


def is_bids(root: Path) -> bool:
    """Return whether a folder is a BIDS tree: it has a ``dataset_description.json`` or folders ``sub-*``."""
    return (root / "dataset_description.json").is_file() or any(path.is_dir() for path in root.glob("sub-*"))


def find_scans(root: Path, participants: Collection[str] | None = None) -> BidsTree:
    """Find every FLAIR of a BIDS tree with its partners.

    Only ``sub-*/[ses-*/]anat`` is looked at, so derivatives, source data and code stay out, as do hidden files and
    what ``.bidsignore`` names. The partner is the session's only T1w of its kind. Among several it is the one with
    the FLAIR's ``acq`` and ``run``, else the only one with the FLAIR's ``run``; else there is none, and a warning.

    Args:
        root: The tree's root.
        participants: Labels to keep, with or without ``sub-``; None for all.

    Raises:
        DatasetError: If ``root`` cannot be read, has no subjects, or lacks a participant that is asked for.
    """
    ignored = read_bidsignore(root)
    scans: list[BidsScan] = []
    without: list[MissingFlair] = []
    for folder in _chosen_subjects(root, participants):
        sessions = [path for path in _list(folder) if path.name.startswith("ses-") and path.is_dir()]
        for place in [folder, *sessions]:
            found = list(_scans_of(root, place, ignored))
            scans += found
            # A subject with sessions need not have a FLAIR beside them.
            if not found and (place is not folder or not sessions):
                session = None if place is folder else place.name
                where = "/".join(filter(None, (folder.name, session)))
                without.append(
                    MissingFlair(
                        folder.name, session, f"{where}: no {where.replace('/', '_')}_*FLAIR.nii.gz in its anat"
                    )
                )
    return BidsTree(root, tuple(scans), tuple(without))


def parse_name(name: str) -> tuple[tuple[tuple[str, str], ...], str] | None:
    """Return entities and suffix of a NIfTI file's BIDS name, None where it is none."""
    match = NAME.fullmatch(name)
    if match is None:
        return None
    entities = tuple(tuple(part.split("-")) for part in match["entities"].rstrip("_").split("_"))
    return entities, match["suffix"]


def sort_entities(entities: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return entities in the order of BIDS, each once."""
    place = {key: number for number, key in enumerate(ORDER)}
    return tuple(sorted(dict(entities).items(), key=lambda item: place.get(item[0], len(ORDER))))


def read_bidsignore(root: Path) -> tuple[str, ...]:
    """Return the patterns of a tree's ``.bidsignore``; exceptions (``!``) are not known."""
    try:
        lines = (root / ".bidsignore").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ()
    return tuple(line.strip() for line in lines if line.strip() and line.lstrip()[0] not in "#!")


def _chosen_subjects(root: Path, participants: Collection[str] | None) -> list[Path]:
    folders = {path.name: path for path in _list(root) if path.name.startswith("sub-") and path.is_dir()}
    if not folders:
        raise DatasetError(f"{printable(root)}: expected a BIDS tree with folders sub-<label>, got none")
    if participants is None:
        return list(folders.values())
    wanted = {f"sub-{label.removeprefix('sub-')}" for label in participants}
    if missing := sorted(wanted - set(folders)):
        raise DatasetError(f"{printable(root)}: no participant {', '.join(missing)} among its {len(folders)}")
    return [folder for name, folder in folders.items() if name in wanted]


def _list(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted by name, hidden things left out."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DatasetError(f"{printable(folder)}: cannot be read as a BIDS tree: {error.strerror or error}") from error


@dataclass(frozen=True)
class _Image:
    path: Path
    entities: tuple[tuple[str, str], ...]
    suffix: str

    def get(self, key: str) -> str | None:
        value = dict(self.entities).get(key)
        # run-1 and run-01 are the same index.
        return value if key != "run" or value is None else (value.lstrip("0") or "0")


def _scans_of(root: Path, place: Path, ignored: Sequence[str]) -> Iterator[BidsScan]:
    """Yield the scans of a subject's or session's folder."""
    anat = place / "anat"
    if not anat.is_dir():
        return
    images: dict[tuple[object, str], _Image] = {}
    doubles: dict[Path, str] = {}
    for path in _list(anat):
        parsed = parse_name(path.name)
        if parsed is None or path.is_dir() or _is_ignored(path.relative_to(root), ignored):
            continue
        image = _Image(path, *parsed)
        if image.suffix not in ("FLAIR", "T1w") or image.get("part") not in MAGNITUDE:
            continue
        # A file that is named after another subject or session than its folder could be either's.
        if [f"{key}-{value}" for key, value in parsed[0] if key in ("sub", "ses")] != list(
            place.relative_to(root).parts
        ):
            continue
        before = images.get(parsed)
        if before is not None:  # X.nii sorts before X.nii.gz
            doubles[path] = f"{path.name} is taken, not {before.path.name} of the same name"
        images[parsed] = image
    t1s = [image for image in images.values() if image.suffix == "T1w"]
    for flair in images.values():
        if flair.suffix != "FLAIR":
            continue
        t1, t1_warning = _partner(flair, [image for image in t1s if image.get("ce") is None], "T1w")
        t1c, t1c_warning = _partner(flair, [image for image in t1s if image.get("ce") is not None], "ce-*_T1w")
        used = (doubles.get(path) for path in (flair.path, t1, t1c) if path is not None)
        warnings = tuple(filter(None, (*used, t1_warning, t1c_warning)))
        yield BidsScan(root, flair.entities, flair.path, t1, t1c, warnings)


def _partner(flair: _Image, candidates: Sequence[_Image], kind: str) -> tuple[Path | None, str | None]:
    """Return the partner by the rule of :func:`find_scans`, and a warning where it leaves several."""
    if len(candidates) <= 1:
        return (candidates[0].path if candidates else None), None
    same_run = [image for image in candidates if image.get("run") == flair.get("run")]
    same_both = [image for image in same_run if image.get("acq") == flair.get("acq")]
    for chosen in (same_both, same_run):
        if len(chosen) == 1:
            return chosen[0].path, None
    names = ", ".join(image.path.name for image in candidates)
    return None, f"{flair.path.name}: which {kind} belongs to it is not clear, so none is used: {names}"


def _is_ignored(path: Path, patterns: Sequence[str]) -> bool:
    """Return whether a pattern names a path relative to the root, or a folder above it."""
    places = [path, *path.parents[:-1]]
    for pattern in patterns:
        bare = pattern.strip("/")
        if any(fnmatch(place.as_posix(), bare) for place in places):
            return True
        if "/" not in bare and any(fnmatch(part, bare) for part in path.parts):
            return True
    return False
