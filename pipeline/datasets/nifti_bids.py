"""Pairs of a scan and its mask in a BIDS tree: which mask among the derivatives belongs to which FLAIR.

Nothing but names is read here; what the volumes hold is judged in ``nifti_checks.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.datasets.nifti_pairs import (
    Finding,
    LabelScheme,
    Pair,
    Source,
    label_value,
    prepared_entities,
    read_description,
)
from pipeline.errors import DatasetError
from pipeline.formats.bids import BidsScan, find_scans, parse_name
from pipeline.formats.nifti_header import printable

__all__ = ["BidsMask", "find_bids_pairs", "find_mask", "list_masks"]

OURS = "ar2unet"  # as GeneratedBy has it: masks by this very program are no truth to learn from


@dataclass(frozen=True)
class BidsMask:
    """A mask among the derivatives.

    Attributes:
        path: The file.
        entities: Of its name.
    """

    path: Path
    entities: tuple[tuple[str, str], ...]

    def get(self, key: str) -> str | None:
        """Return an entity's value, None where the name has none."""
        return dict(self.entities).get(key)


def find_bids_pairs(source: Path, lesion_labels: Sequence[str], folder: str | None) -> Source:
    """Find every FLAIR of a BIDS tree and its mask.

    Args:
        source: The tree's root.
        lesion_labels: Values that are the lesion; without any it is 1, and 0 all else.
        folder: The folder in ``derivatives`` whose masks to take; None for all.

    Raises:
        DatasetError: If the tree cannot be read, or there is no such folder.
    """
    scheme = LabelScheme(frozenset({1}), frozenset({0, 1}), "--lesion-label VALUE names the lesion's")
    if lesion_labels:
        scheme = LabelScheme(frozenset(label_value(label) for label in lesion_labels), None)
    tree = find_scans(source)
    findings = [
        Finding(missing.subject if missing.session is None else f"{missing.subject}_{missing.session}", missing.reason)
        for missing in tree.without_flair
    ]
    masks, notes = list_masks(source, folder)
    findings += [Finding("", note, is_error=False) for note in notes]
    flairs = Counter((scan.subject, scan.session) for scan in tree.scans)
    pairs, used = [], set()
    for scan in tree.scans:
        findings += [Finding(scan.stem, warning, is_error=False) for warning in scan.warnings]
        mask = find_mask(scan, masks, alone=flairs[scan.subject, scan.session] == 1)
        if isinstance(mask, str):
            findings.append(Finding(scan.stem, f"{scan.stem}: {mask}"))
        else:
            used.add(mask)
            pairs.append(Pair(prepared_entities(scan.entities), scan.flair, scan.t1, scan.t1c, mask, scan.stem))
    orphans = [mask for mask in masks if mask.path not in used and _place(mask) not in flairs]
    findings += [Finding("", f"{printable(mask.path)}: a mask without a FLAIR", is_error=False) for mask in orphans]
    pairs.sort(key=lambda pair: pair.subject)
    description = read_description(source / "dataset_description.json") or {}
    return Source(description, tuple(pairs), scheme, tuple(findings))


def list_masks(root: Path, folder: str | None) -> tuple[list[BidsMask], list[str]]:
    """List the masks in ``derivatives/*/sub-*/[ses-*/]anat``, and what was passed over.

    Args:
        root: The tree's root.
        folder: The folder in ``derivatives`` to look in; None looks in all but those that this program wrote.

    Raises:
        DatasetError: If there is no such folder.
    """
    derivatives = root / "derivatives"
    folders = [path for path in sorted(derivatives.glob("*")) if path.is_dir() and not path.name.startswith(".")]
    notes = []
    if folder is not None:
        chosen = [path for path in folders if path.name == folder]
        if not chosen:
            names = ", ".join(path.name for path in folders) or "none"
            raise DatasetError(f"{printable(derivatives)}: expected a folder {folder!r}, got {names}")
        folders = chosen
    else:
        for path in [path for path in folders if _is_ours(path)]:
            folders.remove(path)
            notes.append(f"{printable(path)}: made by ar2unet itself, so its masks are not taken")
    masks = []
    for path in (file for each in folders for file in sorted(each.glob("sub-*/**/anat/*_mask.nii*"))):
        parsed = parse_name(path.name)
        if parsed is not None and "sub" in dict(parsed[0]):
            masks.append(BidsMask(path, parsed[0]))
    return masks, notes


def find_mask(scan: BidsScan, masks: Sequence[BidsMask], *, alone: bool) -> Path | str:
    """Return the lesion mask of a scan, or why none could be told.

    Masks ``label-lesion`` go before others; without any, one that has no label is taken, unless it is of the brain.
    Its acquisition, run and the like must be the FLAIR's; a name without them will do where the session has one FLAIR.

    Args:
        scan: A FLAIR.
        masks: All there are.
        alone: Whether it is its session's only FLAIR.
    """
    own = dict(scan.entities)
    of_session = [mask for mask in masks if _place(mask) == (scan.subject, scan.session)]
    labelled = [mask for mask in of_session if mask.get("label") == "lesion"]
    candidates = labelled or [mask for mask in of_session if mask.get("label") is None and mask.get("desc") != "brain"]
    details = {key: own.get(key) for key in ("acq", "ce", "rec", "run", "echo")}
    exact = [mask for mask in candidates if all(mask.get(key) == value for key, value in details.items())]
    loose = [mask for mask in candidates if all(mask.get(key) in (None, value) for key, value in details.items())]
    chosen = exact or (loose if alone else [])
    if len(chosen) == 1:
        return chosen[0].path
    if not chosen:
        return "no mask of it (*_label-lesion_mask.nii.gz) in derivatives"
    names = ", ".join("/".join(mask.path.parts[mask.path.parts.index("derivatives") + 1 :]) for mask in chosen)
    return f"which mask is its own is not clear: {names}; --masks FOLDER names a folder in derivatives"


def _place(mask: BidsMask) -> tuple[str, str | None]:
    """Return subject and session, as a scan has them."""
    session = mask.get("ses")
    return f"sub-{mask.get('sub')}", None if session is None else f"ses-{session}"


def _is_ours(folder: Path) -> bool:
    try:
        generated = (read_description(folder / "dataset_description.json") or {})["GeneratedBy"]
        return any(program["Name"] == OURS for program in generated)
    except (KeyError, TypeError):
        return False
