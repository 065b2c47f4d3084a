"""Patient-wise folds: who trains, who is held out, and the check that nobody does both."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from pipeline.errors import DatasetError

__all__ = ["SplitPatient", "assign_folds", "check_no_leak"]

# How far chance may reorder patients of one site by lesion size before they are dealt out: a factor drawn between
# 1 - JITTER and 1 + JITTER. Without it every seed would give the same split; the sums are balanced on true sizes.
JITTER = 0.5


class SplitPatient(NamedTuple):
    """What a patient is balanced by: the site it was scanned at and the size of its lesion in voxels."""

    subject: str
    site: str
    lesion_voxels: int


def assign_folds(patients: Iterable[SplitPatient], *, folds: int, seed: int) -> dict[str, int]:
    """Deal patients out to folds, balanced by site and by lesion size.

    Fold sizes differ by at most one, so do the counts of each site over the folds. The result depends on the set of
    patients and on ``seed`` only, not on their order. Fewer patients than folds leave some folds empty.

    Each site is dealt in rounds of ``folds`` patients, large lesions first; in a round every fold takes one patient,
    and the next largest lesion goes to the fold with the fewest lesion voxels so far.

    Args:
        patients: One entry a patient; subjects are unique.
        folds: Number of folds, at least 2.
        seed: Any integer.

    Returns:
        The fold, 0 to ``folds - 1``, of each subject, sorted by subject.

    Raises:
        DatasetError: If ``folds`` is below 2, or a subject is there twice.
    """
    if folds < 2:
        raise DatasetError(f"folds must be at least 2, got {folds}")
    ordered = sorted(patients)
    for first, second in pairwise(ordered):
        if first.subject == second.subject:
            raise DatasetError(f"subject {first.subject} is there twice; a split needs each patient once")

    # Only random() is used: its sequence is guaranteed to be the same in every Python version.
    rng = random.Random(seed)
    ranks = [rng.random() for _ in range(folds)]
    sites: dict[str, list[tuple[float, SplitPatient]]] = defaultdict(list)
    for patient in ordered:
        sites[patient.site].append((patient.lesion_voxels * (1 - JITTER + 2 * JITTER * rng.random()), patient))

    counts, voxels = [0] * folds, [0] * folds
    assigned: dict[str, int] = {}
    # Largest site first: the smaller ones then even out what is left.
    for _, members in sorted(sites.items(), key=lambda item: (-len(item[1]), item[0])):
        members.sort(key=lambda member: (-member[0], member[1].subject))
        for start in range(0, len(members), folds):
            dealt = [patient for _, patient in members[start : start + folds]]
            free = list(range(folds))
            if len(dealt) < folds:
                # A part of a round: it goes to the smallest folds, or their sizes would drift apart.
                free.sort(key=lambda fold: (counts[fold], voxels[fold], ranks[fold]))
                free = free[: len(dealt)]
            for patient in sorted(dealt, key=lambda patient: (-patient.lesion_voxels, patient.subject)):
                fold = min(free, key=lambda fold: (voxels[fold], ranks[fold]))
                free.remove(fold)
                counts[fold] += 1
                voxels[fold] += patient.lesion_voxels
                assigned[patient.subject] = fold
    return dict(sorted(assigned.items()))


def check_no_leak(entries: Iterable[Mapping[str, Any]], *, side: str = "fold") -> None:
    """Refuse a datalist in which a patient or a file is on two sides of a split.

    Args:
        entries: Datalist entries with ``subject``, ``image`` (a path or a list of paths), optionally ``label`` and
            ``patient``, whose scans several entries may be, and the key ``side``.
        side: The key that names an entry's side: its fold, or for example ``"training"`` and ``"validation"``.

    Raises:
        DatasetError: If a subject, a patient, an image or a label is found on two sides, naming it and both sides.
    """
    seen: dict[tuple[str, str], Any] = {}
    for entry in entries:
        images = entry["image"] if isinstance(entry["image"], (list, tuple)) else [entry["image"]]
        things = [("subject", str(entry["subject"])), *(("image", str(image)) for image in images)]
        things += [(key, str(entry[key])) for key in ("patient", "label") if entry.get(key) is not None]
        for thing in things:
            before = seen.setdefault(thing, entry[side])
            if before != entry[side]:
                raise DatasetError(
                    f"{thing[0]} {thing[1]} is in {side} {before} and in {side} {entry[side]}; a patient and its files "
                    "belong to one side of a split only"
                )
