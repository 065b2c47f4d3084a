"""Pairs of a scan and its mask in an nnU-Net folder: ``imagesTr``, ``labelsTr`` and ``dataset.json``, version 1 or 2.

Nothing but names and ``dataset.json`` is read here; what the volumes hold is judged in ``nifti_checks.py``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
from pipeline.formats.bids import parse_name
from pipeline.formats.nifti_header import printable

__all__ = ["find_nnunet_pairs"]

# What a channel may be called in dataset.json, its letters and digits only, in small letters.
CHANNEL_NAMES = {
    "flair": ("flair", "t2flair", "flairt2", "t2wflair"),
    "t1": ("t1", "t1w", "t1n", "t1native", "t1pre"),
    "t1c": ("t1c", "t1ce", "t1gd", "t1post", "t1wce", "t1wgd", "t1wpost", "cet1", "cet1w", "t1contrast"),
}
ENDINGS = (".nii.gz", ".nii")
CHANNEL_DIGITS = 4  # case_0000.nii.gz


def find_nnunet_pairs(source: Path, lesion_labels: Sequence[str], pattern: str | None) -> Source:
    """Find the cases of an nnU-Net folder, each a patient unless its name or the pattern says otherwise.

    Args:
        source: The folder.
        lesion_labels: Names in ``dataset.json``, or values, of the labels that are the lesion.
        pattern: Regular expression whose first group is what the cases of one patient share; None where each case is
            a patient, or is named ``sub-<label>_ses-<label>``.

    Raises:
        DatasetError: If ``dataset.json`` does not say what is what, or the pattern is none.
    """
    path = source / "dataset.json"
    description = read_description(path)
    if description is None:
        raise DatasetError(f"{printable(path)}: expected a JSON object as nnU-Net has it, got something else")
    ending = str(description.get("file_ending", ".nii.gz"))
    if ending not in ENDINGS:
        raise DatasetError(f"{printable(path)}: expected a file_ending of .nii.gz or .nii, got {ending!r}")
    channels = _channels(path, description)
    scheme = _scheme(path, description, lesion_labels)
    patient = None if pattern is None else _compiled(pattern)
    cases, findings = _list_cases(source / "imagesTr", ending)
    labels = {file.name.removesuffix(ending): file for file in _visible(source / "labelsTr", ending)}
    pairs: dict[str, Pair] = {}
    for case in sorted({*cases, *labels}):
        found = _pair_of(case, cases.get(case, {}), labels.get(case), channels, patient)
        if not isinstance(found, Pair):
            findings += found
            continue
        first = pairs.setdefault(found.subject, found)
        if first is not found:
            findings.append(Finding(case, f"{case}: would be named {found.subject}, as {first.source} is"))
        findings += _missing_channels(found, channels, cases[case])
    if isinstance(count := description.get("numTraining"), int) and count != len(cases):
        text = f"{printable(path)}: numTraining is {count}, but imagesTr holds {len(cases)} cases"
        findings.append(Finding("", text, is_error=False))
    return Source(description, tuple(pairs[subject] for subject in sorted(pairs)), scheme, tuple(findings))


def _list_cases(folder: Path, ending: str) -> tuple[dict[str, dict[int, Path]], list[Finding]]:
    """Return each case's file by channel, and the files that are of no case."""
    cases: dict[str, dict[int, Path]] = defaultdict(dict)
    findings = []
    for file in _visible(folder, ending):
        match = re.fullmatch(rf"(.+)_([0-9]{{{CHANNEL_DIGITS}}}){re.escape(ending)}", file.name)
        if match is None:
            text = f"{printable(file)}: expected a name like case_0000{ending}; it is passed over"
            findings.append(Finding("", text, is_error=False))
        else:
            cases[match[1]][int(match[2])] = file
    return cases, findings


def _pair_of(
    case: str,
    files: Mapping[int, Path],
    label: Path | None,
    channels: Mapping[str, int],
    patient: re.Pattern[str] | None,
) -> Pair | list[Finding]:
    """Return a case as a pair, or why it is none."""
    entities = _entities_of(case, patient)
    found = {name: files.get(channel) for name, channel in channels.items()}
    flair, problems = found["flair"], []
    if not entities:
        problems.append("its name does not tell the patient" + (f" by {patient.pattern!r}" if patient else ""))
    if flair is None:
        problems.append(f"its FLAIR, imagesTr/{case}_{channels['flair']:04d}, is missing")
    if label is None:
        problems.append(f"its mask, labelsTr/{case}, is missing")
    if not entities or flair is None or label is None:
        return [Finding(case, f"{case}: {problem}") for problem in problems]
    return Pair(entities, flair, found.get("t1"), found.get("t1c"), label, case)


def _missing_channels(pair: Pair, channels: Mapping[str, int], files: Mapping[int, Path]) -> Iterator[Finding]:
    for name, channel in channels.items():
        if channel not in files:
            text = f"{pair.source}: its {name}, channel {channel:04d}, is missing; FLAIR takes its place"
            yield Finding(pair.subject, text, is_error=False)


def _entities_of(case: str, patient: re.Pattern[str] | None) -> tuple[tuple[str, str], ...]:
    """Return the entities of a case's prepared files: those in its name if BIDS gave it, else made from it."""
    if patient is not None:
        match = patient.search(case)
        label = _alphanumeric(match[1] or "") if match else ""
        return (("sub", label), ("ses", _alphanumeric(case))) if label else ()
    parsed = parse_name(f"{case}_FLAIR.nii.gz")
    if parsed is not None and "sub" in dict(parsed[0]):
        return prepared_entities(parsed[0])
    label = _alphanumeric(case)
    return (("sub", label),) if label else ()


def _alphanumeric(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", text)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DatasetError(f"--patient-pattern: expected a regular expression, got {pattern!r} ({error})") from error
    if compiled.groups < 1:
        raise DatasetError(f"--patient-pattern: expected a group (...) that is the patient, got {pattern!r}")
    return compiled


def _channels(path: Path, description: Mapping[str, Any]) -> dict[str, int]:
    """Return which channel is flair, and where they are there t1 and t1c."""
    named = description.get("channel_names", description.get("modality"))
    if not isinstance(named, dict) or not all(str(key).isdecimal() for key in named):
        raise DatasetError(f'{printable(path)}: expected "channel_names": {{"0": "FLAIR", ...}}, got {named!r}')
    found: dict[str, int] = {}
    for key, name in named.items():
        bare = _alphanumeric(str(name)).lower()
        sequence = next((sequence for sequence, names in CHANNEL_NAMES.items() if bare in names), None)
        if sequence is not None:
            if sequence in found:
                raise DatasetError(f"{printable(path)}: expected one channel named {sequence}, got two in {named!r}")
            found[sequence] = int(key)
    if "flair" not in found:
        advice = 'write "FLAIR", "T1" and "T1c" for the channels that are these'
        raise DatasetError(f"{printable(path)}: no channel of channel_names is a FLAIR, got {named!r}; {advice}")
    return found


def _scheme(path: Path, description: Mapping[str, Any], chosen: Sequence[str]) -> LabelScheme:
    """Return what label values mean, and refuse where it is not clear which are the lesion."""
    where, values = printable(path), _label_values(path, description.get("labels"))
    # What is labelled "ignore" was left undecided by whoever drew the mask, so no mask may hold it.
    foreground = {name: members for name, members in values.items() if name != "ignore" and members != {0}}
    allowed = frozenset({0}).union(*foreground.values())
    if chosen:
        lesion = frozenset[int]().union(*(foreground.get(label) or {label_value(label)} for label in chosen))
        if not lesion <= allowed - {0}:
            raise DatasetError(f"{where}: --lesion-label {', '.join(chosen)}: expected labels of {sorted(foreground)}")
        return LabelScheme(lesion, allowed)
    if len(foreground) != 1:
        names = ", ".join(f"{name} ({'+'.join(map(str, sorted(ids)))})" for name, ids in foreground.items())
        advice = "--lesion-label NAME says which is the lesion"
        raise DatasetError(f"{where}: expected one label beside the background, got {names or 'none'}; {advice}")
    return LabelScheme(allowed - {0}, allowed)


def _label_values(path: Path, labels: object) -> dict[str, frozenset[int]]:
    """Return the values by name; nnU-Net 1 has value to name, nnU-Net 2 name to value, or to those of a region."""
    if not isinstance(labels, dict):
        raise DatasetError(f'{printable(path)}: expected "labels": {{"background": 0, "lesion": 1}}, got {labels!r}')
    try:
        if all(str(key).isdecimal() for key in labels):
            return {str(name): frozenset({int(value)}) for value, name in labels.items()}
        return {
            str(name): frozenset(int(part) for part in (value if isinstance(value, list) else [value]))
            for name, value in labels.items()
        }
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{printable(path)}: expected whole numbers as label values, got {labels!r}") from error


def _visible(folder: Path, ending: str) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.name.endswith(ending) and path.name[0] != ".")
    except OSError as error:
        raise DatasetError(f"{printable(folder)}: cannot be read: {error.strerror or error}") from error
