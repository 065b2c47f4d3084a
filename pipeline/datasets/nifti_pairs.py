"""One's own images: a scan and its mask, and what is to be said where something is not as it should be."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DatasetError
from pipeline.formats.bids import sort_entities

__all__ = [
    "Choices",
    "Finding",
    "LabelScheme",
    "Pair",
    "Source",
    "label_value",
    "prepared_entities",
    "read_description",
]


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be, named so that it can be put right.

    Attributes:
        subject: The scan it is about, as the datalist or the source names it; empty where it is about no scan.
        text: One line.
        is_error: Whether the scan is left out for it.
    """

    subject: str
    text: str
    is_error: bool = True


@dataclass(frozen=True)
class Choices:
    """What only its owner can say of a data set.

    Attributes:
        lesion_labels: Values, or names in ``dataset.json``, of the labels that are the lesion; none where there is
            one only.
        masks: BIDS: the folder in ``derivatives`` whose masks to take, where several have some.
        patient_pattern: nnU-Net: regular expression whose first group is what the cases of one patient share; None
            where each case is a patient, or is named ``sub-<label>_ses-<label>``.
    """

    lesion_labels: tuple[str, ...] = ()
    masks: str | None = None
    patient_pattern: str | None = None


@dataclass(frozen=True)
class LabelScheme:
    """What the values of the masks mean.

    Attributes:
        lesion: Values that are the lesion.
        allowed: Values that a mask may hold; None allows every whole number.
        advice: What to write where a mask holds something else.
    """

    lesion: frozenset[int]
    allowed: frozenset[int] | None
    advice: str = ""


@dataclass(frozen=True)
class Pair:
    """A scan and its mask.

    Attributes:
        entities: Of the prepared files, ``("sub", ...)`` first.
        flair: As all paths, it need not be readable.
        t1: None where there is none.
        t1c: As ``t1``.
        label: The mask.
        source: What the source calls the scan.
    """

    entities: tuple[tuple[str, str], ...]
    flair: Path
    t1: Path | None
    t1c: Path | None
    label: Path
    source: str

    @property
    def subject(self) -> str:
        """The scan's name in the datalist, such as ``sub-01`` or ``sub-01_ses-a``."""
        return "_".join(f"{key}-{value}" for key, value in self.entities)

    @property
    def patient(self) -> str:
        """Such as ``sub-01``."""
        return f"sub-{dict(self.entities)['sub']}"

    @property
    def images(self) -> dict[str, Path]:
        """The sequences there are, FLAIR first."""
        found = {"flair": self.flair, "t1": self.t1, "t1c": self.t1c}
        return {name: path for name, path in found.items() if path is not None}


@dataclass(frozen=True)
class Source:
    """What was found in a folder.

    Attributes:
        description: ``dataset_description.json`` or ``dataset.json``; empty where there is none.
        pairs: Sorted by subject, each subject once.
        scheme: What the values of the masks mean.
        findings: What is missing or ambiguous.
    """

    description: Mapping[str, Any]
    pairs: tuple[Pair, ...]
    scheme: LabelScheme
    findings: tuple[Finding, ...]


def prepared_entities(entities: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return the entities that all files of a scan can share: ``sub``, ``ses``, ``acq`` and ``run``.

    What else a FLAIR's name tells, and no T1w's may, goes into ``acq``, so that different names stay different.
    """
    given = dict(entities)
    kept = {key: value for key, value in given.items() if key in ("sub", "ses") or (key == "run" and value.isdecimal())}
    others = "".join(f"{key}{value}" for key, value in given.items() if key not in {*kept, "acq"})
    if acquisition := given.get("acq", "") + others:
        kept["acq"] = acquisition
    return sort_entities(kept.items())


def label_value(label: str) -> int:
    """Return a label's value as the command line gives it.

    Raises:
        DatasetError: If it is no whole number from 1.
    """
    if not label.isdecimal() or int(label) == 0:
        raise DatasetError(f"--lesion-label: expected a whole number from 1 or a name of dataset.json, got {label!r}")
    return int(label)


def read_description(path: Path) -> dict[str, Any] | None:
    """Return a file's JSON object, None where there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
