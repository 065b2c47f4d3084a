"""Every scan below a folder, each with a name of its own, in an order that stays.

A BIDS tree is searched as BIDS. Elsewhere these are scans:

- NIfTI, NRRD and MetaImage files, as FLAIR. ``X_flair`` takes ``X_t1`` and ``X_t1c`` beside it for partners.
- A zip, and the folders that hold the DICOM files of one study.
- A folder with slices named as those of the LGG data set.

Masks, other sequences by their BIDS suffix, hidden files, derivatives and results of this software are not.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ScanError
from pipeline.formats.printable import printable

if TYPE_CHECKING:
    from pipeline.formats.bids import BidsScan

__all__ = ["MARKER", "FoundScan", "find_cases"]

MARKER = ".cohort"  # the folder within a cohort's results that holds what only the software needs
LEFT_OUT_FOLDERS = ("derivatives", "labelsTr", "labelsTs", "__MACOSX")
VOLUME = re.compile(r"(?P<stem>.+)\.(?:nii|nii\.gz|nrrd|nhdr|mha|mhd)", re.IGNORECASE)
SEQUENCE = re.compile(r"(?P<stem>.+)_(?P<sequence>t1|flair|t1c)", re.IGNORECASE)
# What is derived from a scan, and what BIDS names after another sequence than FLAIR.
NOT_A_FLAIR = re.compile(
    r"(?:.*[_.-])?(?:masks?|seg|segmentations?|labels?|probabilities|lesions?|roi|dseg|probseg"
    r"|T1w|T2w|PDw|T2starw|T1map|T2map|bold|sbref|dwi|epi|phase\w*|magnitude\w*|asl|m0scan|SWI|angio|pet)|.*_label-.*"
)
DICOM_RESULT = re.compile(r".*_(?:probabilities_)?seg\.dcm")
SLICE = re.compile(r".+_\d+\.tiff?", re.IGNORECASE)
OTHERS = (".zip", ".tif", ".tiff")  # endings of what is no volume and no DICOM file of a study
MAX_NAME = 120  # characters; file systems take 255 bytes


@dataclass(frozen=True, slots=True)
class FoundScan:
    """A scan that was found, or the reason why there is none where there should be.

    Attributes:
        name: Of its row and folder; unique among what was found, the same at every search.
        place: Relative to the folder that was searched; what the table shows.
        flair: What ``pipeline.reading.read_case`` takes.
        t1: Pre-contrast T1 beside it; None where missing.
        t1c: Post-contrast T1 beside it; None where missing.
        problem: Why it cannot be segmented, one line; None where it can be tried.
        bids: What the BIDS tree says of it; None elsewhere.
    """

    name: str
    place: str
    flair: Path
    t1: Path | None = None
    t1c: Path | None = None
    problem: str | None = None
    bids: BidsScan | None = None


def find_cases(
    root: Path, out: Path, *, participants: Collection[str] | None = None, sessions: Collection[str] | None = None
) -> list[FoundScan]:
    """Find every scan below a folder.

    Args:
        root: A folder, BIDS or not.
        out: Folder for the results; it is not searched.
        participants: BIDS labels to keep, with or without ``sub-``; None for all.
        sessions: BIDS labels to keep, with or without ``ses-``; None for all.

    Returns:
        What was found, sorted by place.

    Raises:
        DatasetError: If a BIDS tree lacks a participant that is asked for.
        ScanError: If ``root`` is not a folder or holds no scan, or labels are given outside of BIDS.
    """
    from pipeline.formats.bids import is_bids

    if not root.is_dir():
        raise ScanError(
            f"{printable(root)}: expected a folder of scans, got {'a file' if root.exists() else 'nothing'}"
        )
    if is_bids(root):
        found = list(_find_bids(root, participants, sessions))
    elif participants is not None or sessions is not None:
        raise ScanError(f"{printable(root)}: labels of participants and sessions go with BIDS, got another folder")
    else:
        found = list(_find_files(root, out.resolve()))
    if not found:
        raise ScanError(f"{printable(root)}: expected NIfTI, NRRD, MHA, DICOM or LGG scans below, found none")
    for each in found:
        # Results among the slices would be read with them, and change what the case is known by.
        if each.flair.is_dir() and out.resolve().is_relative_to(each.flair.resolve()):
            raise ScanError(f"{printable(out)}: expected a folder outside of the study {printable(each.flair)}")
    return _with_names(sorted(found, key=lambda each: each.place))


def _find_bids(
    root: Path, participants: Collection[str] | None, sessions: Collection[str] | None
) -> Iterator[FoundScan]:
    from pipeline.formats.bids import find_scans

    tree = find_scans(root, participants)
    wanted = None if sessions is None else {f"ses-{label.removeprefix('ses-')}" for label in sessions}
    for scan in tree.scans:
        if wanted is None or scan.session in wanted:
            place = scan.flair.relative_to(root).as_posix()
            yield FoundScan(scan.stem, place, scan.flair, scan.t1, scan.t1c, bids=scan)
    for missing in tree.without_flair:
        if wanted is None or missing.session in wanted:
            parts = [part for part in (missing.subject, missing.session) if part is not None]
            yield FoundScan("_".join(parts), "/".join(parts), root.joinpath(*parts), problem=missing.reason)


def _find_files(root: Path, out: Path) -> Iterator[FoundScan]:
    studies: dict[str, list[Path]] = {}
    unread: list[OSError] = []
    for parent, folders, names in os.walk(root, onerror=unread.append):
        folder = Path(parent)
        folders[:] = sorted(name for name in folders if not _is_left_out(folder / name, out))
        files = sorted(name for name in names if not name.startswith("."))
        volumes = [name for name in files if VOLUME.fullmatch(name)]
        yield from _find_volumes(root, folder, volumes)
        if any(SLICE.fullmatch(name) for name in files):
            yield _found(root, folder)
        yield from (_found(root, folder / name) for name in files if name.lower().endswith(".zip"))
        others = [
            name for name in files if not (VOLUME.fullmatch(name) or name.lower().endswith((".zip", ".tif", ".tiff")))
        ]
        study = _study_of(folder, others)
        if study is not None:
            studies.setdefault(study, []).append(folder)
    yield from (_found(root, folder) for folder in _study_folders(studies))
    for error in unread:
        place = Path(error.filename)
        yield _found(root, place, f"{_relative(root, place)}: cannot be read: {error.strerror or error}")


def _is_left_out(folder: Path, out: Path) -> bool:
    hidden = folder.name.startswith(".") or folder.name in LEFT_OUT_FOLDERS
    return hidden or (folder / MARKER).is_dir() or folder.resolve() == out


def _find_volumes(root: Path, folder: Path, names: Sequence[str]) -> Iterator[FoundScan]:
    alone: list[str] = []
    groups: dict[str, dict[str, list[Path]]] = {}
    for name in names:
        stem = _stem(name)
        match = SEQUENCE.fullmatch(stem)
        if match is not None:
            group = groups.setdefault(match["stem"], {"t1": [], "flair": [], "t1c": []})
            group[match["sequence"].lower()].append(folder / name)
        elif not NOT_A_FLAIR.fullmatch(stem):
            alone.append(name)
    yield from (_found(root, folder / name) for name in alone)
    for stem, group in groups.items():
        t1, t1c = (next(iter(group[sequence]), None) for sequence in ("t1", "t1c"))
        for flair in group["flair"]:
            yield replace(_found(root, flair), t1=t1, t1c=t1c)
        if not group["flair"]:
            first = t1 or t1c
            if first is not None:
                yield _found(root, first, f"{_relative(root, first)}: expected {stem}_flair beside it, found none")


def _stem(name: str) -> str:
    match = VOLUME.fullmatch(name)
    return name if match is None else match["stem"].removesuffix(".nii")


def _study_of(folder: Path, names: Sequence[str]) -> str | None:
    """Return the StudyInstanceUID of a folder's first DICOM file; None where it holds none."""
    from pipeline.formats.dicom.files import START_BYTES, starts_as_dicom

    for name in names:
        path = folder / name
        if DICOM_RESULT.fullmatch(name) or not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                start = file.read(START_BYTES)
        except OSError:
            continue
        if starts_as_dicom(start):
            return _study_uid(path)
    return None


def _study_uid(path: Path) -> str:
    from pipeline.formats.dicom.headers import quiet_pydicom

    quiet_pydicom()
    from pydicom import dcmread

    try:
        found = dcmread(path, stop_before_pixels=True, force=True, specific_tags=["StudyInstanceUID"])
        uid = str(found.get("StudyInstanceUID", "")).strip()
    except Exception:  # whatever a damaged header makes pydicom raise, the reader will say it of the whole study
        uid = ""
    return uid or f"no study in {path.parent}"


def _study_folders(studies: Mapping[str, Sequence[Path]]) -> list[Path]:
    """Return for each study the folder above all its files; where other studies lie there too, the largest without."""
    only: dict[Path, str | None] = {}  # of a folder, the one study below; None for several
    for study, folders in studies.items():
        for folder in {each for leaf in folders for each in (leaf, *leaf.parents)}:
            only[folder] = study if only.get(folder, study) == study else None
    tops: set[Path] = set()
    for study, folders in studies.items():
        common = Path(os.path.commonpath(folders))
        for leaf in folders:
            top = leaf
            while top != common and only[top.parent] == study:
                top = top.parent
            tops.add(top)
    return sorted(tops)


def _relative(root: Path, path: Path) -> str:
    return printable(path.relative_to(root)) if path != root else root.resolve().name


def _found(root: Path, path: Path, problem: str | None = None) -> FoundScan:
    return FoundScan("", _relative(root, path), path, problem=problem)


def _with_names(found: Sequence[FoundScan]) -> list[FoundScan]:
    """Name each after its place; those whose names would be equal get a part of their place's hash as well."""
    names = [each.name or _safe(each.place) for each in found]
    twice = {name for name, count in Counter(name.casefold() for name in names).items() if count > 1}
    return [
        replace(each, name=_hashed(name, each.place) if name.casefold() in twice else name)
        for each, name in zip(found, names, strict=True)
    ]


def _safe(place: str) -> str:
    *parents, last = place.split("/")
    joined = "_".join([*parents, re.sub(r"\.nii\.gz$", "", last, flags=re.IGNORECASE)])
    name = re.sub(r"[^\w.-]+", "-", joined).lstrip(".-") or "scan"
    return name if len(name.encode()) <= MAX_NAME else _hashed(name, place)


def _hashed(name: str, place: str) -> str:
    short = name.encode()[: MAX_NAME - 9].decode("utf-8", "ignore")
    return f"{short}-{hashlib.sha256(place.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"
