"""The subjects of the four-class dementia data, recovered from the names of its slices and confirmed by their pixels.

What the names say is told in ``dementia_slices.py``. They are believed only where the pixels agree: each slice must be
like the next one of its own subject, and clearly more so than like the next one of anybody else. Whoever fails is named
and left out; nothing is guessed.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.datasets.datalist import Failure
from pipeline.datasets.dementia_slices import (
    LAYOUT,
    STAGES,
    DementiaSubject,
    Stage,
    find_images,
    published_files,
    read_bytes,
    read_subject,
    size,
)
from pipeline.errors import DatasetError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Certainty", "Recovery", "recover_subjects"]

# Measured on the 200 published subjects: a slice and the next one of its subject correlate at 0.978 or more, with the
# next one of anybody else at 0.955 or less; 0.035 is the smallest difference of the two for one slice. A slice and the
# next but one of its subject correlate at least 0.015 less than neighbours do. Each bound lies halfway or below.
MIN_CORRELATION = 0.965
MIN_MARGIN = 0.015
MIN_ORDER_MARGIN = 0.005


class Certainty(NamedTuple):
    """How sure the recovery is: correlations between each slice and the next one, over all recovered subjects.

    ``lowest_own`` is the lowest with the own subject's, ``highest_other`` the highest with anybody else's, and
    ``smallest_margin`` the smallest difference of the two for one slice.
    """

    lowest_own: float
    highest_other: float
    smallest_margin: float


@dataclass(frozen=True)
class Recovery:
    """The subjects recovered with certainty, how certain that is, and what was left out with its reason."""

    subjects: tuple[DementiaSubject, ...]
    certainty: Certainty | None
    failures: tuple[Failure, ...]


def recover_subjects(
    source: Path,
    *,
    stages: Sequence[Stage] = STAGES,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Recovery:
    """Find who is whose in the published slices.

    A subject is left out and named if one of its slices is missing, unreadable, of another size or kind, the same file
    as another one, or does not fit its neighbours. Images below train and test that are not named as published are
    reported and not looked at.

    Args:
        source: Holds ``train`` and ``test``.
        stages: The published sizes.
        on_progress: Called after each subject is read with subjects done, subjects in all, and the subject's name.

    Returns:
        The subjects, sorted by stage and number.

    Raises:
        DatasetError: If ``source`` has none of the published slices.
    """
    published = {stage: published_files(stage) for stage in stages}
    names = {name for subjects in published.values() for files in subjects for name in files}
    present = find_images(source)
    if not names & present:
        raise DatasetError(f"no published slices in {source}; {LAYOUT}")
    failures: list[Failure] = []
    subjects: list[DementiaSubject] = []
    owners: dict[str, list[str]] = defaultdict(list)  # bytes' hash -> the files that have these bytes
    total, done = sum(stage.subjects for stage in stages), 0
    for stage, members in published.items():
        if not present.intersection(name for files in members for name in files):
            failures.append(Failure(stage.folder, f"{stage.folder}: none of its slices is there; all subjects missing"))
            done += stage.subjects
            continue
        for number, files in enumerate(members, start=1):
            name = f"sub-{stage.folder}{number:03}"
            try:
                subjects.append(read_subject(source, name, stage, files, present, owners))
            except DatasetError as error:
                failures.append(Failure(name, str(error)))
            done += 1
            if on_progress is not None:
                on_progress(done, total, name)
    subjects, odd = refuse_other_sizes(subjects)
    subjects, repeated = refuse_repeated(subjects, owners)
    subjects, uncertain, certainty = refuse_uncertain(subjects)
    failures += [*odd, *repeated, *uncertain, *report_foreign(source, present - names, owners)]
    return Recovery(tuple(subjects), certainty, tuple(failures))


def refuse_other_sizes(subjects: Sequence[DementiaSubject]) -> tuple[list[DementiaSubject], list[Failure]]:
    """Refuse the subjects whose slices are not of the size that most have."""
    sizes = Counter(size(subject.slices) for subject in subjects)
    expected = sizes.most_common(1)[0][0] if sizes else ""
    return divide(
        subjects,
        lambda subject: (
            f"its slices are {size(subject.slices)} pixels, expected {expected} as most have"
            if size(subject.slices) != expected
            else None
        ),
    )


def refuse_repeated(
    subjects: Sequence[DementiaSubject], owners: dict[str, list[str]]
) -> tuple[list[DementiaSubject], list[Failure]]:
    """Refuse the subjects with a slice whose bytes are there twice: which of the two is right, cannot be known."""
    twins = {file: files for files in owners.values() if len(files) > 1 for file in files}

    def reason(subject: DementiaSubject) -> str | None:
        for file in subject.files:
            if file in twins:
                return f"{file} is the same image as {next(twin for twin in twins[file] if twin != file)}"
        return None

    return divide(subjects, reason)


def refuse_uncertain(
    subjects: Sequence[DementiaSubject],
) -> tuple[list[DementiaSubject], list[Failure], Certainty | None]:
    """Refuse the subjects with a slice that does not fit the next one, or that fits another subject's as well."""
    if not subjects:
        return [], [], None
    own, other, rival, skipping = correlate_neighbours([subject.slices for subject in subjects])
    position = {subject.subject: index for index, subject in enumerate(subjects)}

    def reason(subject: DementiaSubject) -> str | None:
        index = position[subject.subject]
        for k in range(len(subject.files) - 1):
            here, after = subject.files[k], subject.files[k + 1]
            found = f"{own[k, index]:.3f}"
            if own[k, index] < MIN_CORRELATION:
                return f"{here} and {after} correlate at {found}, expected {MIN_CORRELATION} or more of neighbours"
            if own[k, index] - other[k, index] < MIN_MARGIN:
                whom = subjects[rival[k, index]].subject
                return f"{here} and {after} correlate at {found}, with those of {whom} at {other[k, index]:.3f}"
        for k in range(len(subject.files) - 2):
            if min(own[k, index], own[k + 1, index]) - skipping[k, index] < MIN_ORDER_MARGIN:
                return f"{', '.join(subject.files[k : k + 2])} and {subject.files[k + 2]} are not in order"
        return None

    kept, failures = divide(subjects, reason)
    columns = [position[subject.subject] for subject in kept]
    if not columns:
        return kept, failures, None
    own, other = own[:, columns], other[:, columns]
    return kept, failures, Certainty(float(own.min()), float(other.max()), float((own - other).min()))


class Neighbours(NamedTuple):
    """Correlations ``(slices - 1, subjects)`` of each slice with the next one; see :func:`correlate_neighbours`."""

    own: NDArray[np.float32]
    other: NDArray[np.float32]
    rival: NDArray[np.intp]
    skipping: NDArray[np.float32]


def correlate_neighbours(volumes: Sequence[NDArray[np.uint8]]) -> Neighbours:
    """Correlate each slice with the next one of its own subject and of all others, in both directions.

    Args:
        volumes: A volume ``(slices, rows, columns)`` a subject, all of one shape.

    Returns:
        The correlation with the own next slice; the highest one with another subject's, -1 if there is none; which
        subject that is; and ``(slices - 2, subjects)`` the correlation with the own next slice but one.
    """
    import numpy as np

    def features(k: int) -> NDArray[np.float32]:
        pixels = np.stack([volume[k] for volume in volumes]).reshape(len(volumes), -1).astype(np.float32)
        pixels -= pixels.mean(axis=1, keepdims=True)
        length = np.linalg.norm(pixels, axis=1, keepdims=True)
        scaled: NDArray[np.float32] = pixels / np.maximum(length, 1)  # an empty slice correlates with nothing
        return scaled

    own, other, rival, skipping = [], [], [], []
    before, here = None, features(0)
    for k in range(1, len(volumes[0])):
        after = features(k)
        if before is not None:
            skipping.append(np.einsum("sp,sp->s", before, after))
        matrix = here @ after.T  # (subjects, subjects)
        own.append(np.diagonal(matrix).copy())
        np.fill_diagonal(matrix, -1)
        forwards_or_back = np.maximum(matrix, matrix.T)
        rival.append(forwards_or_back.argmax(axis=1))
        other.append(forwards_or_back.max(axis=1))
        before, here = here, after
    return Neighbours(np.stack(own), np.stack(other), np.stack(rival), np.stack(skipping))


def report_foreign(source: Path, foreign: Iterable[str], owners: dict[str, list[str]]) -> list[Failure]:
    """Report images that are not named as published, with the published file they are a copy of, if any."""
    failures = []
    for file in sorted(foreign):
        try:
            copies = owners.get(hashlib.sha256(read_bytes(source / file, file)).hexdigest(), [])
        except DatasetError as error:
            failures.append(Failure(file, str(error)))
            continue
        copy = f"; the same image as {copies[0]}" if copies else ""
        failures.append(Failure(file, f"{file}: not named as published, not used{copy}"))
    return failures


def divide(
    subjects: Sequence[DementiaSubject], reason: Callable[[DementiaSubject], str | None]
) -> tuple[list[DementiaSubject], list[Failure]]:
    """Divide subjects into those without a reason to refuse them, and the refusals."""
    kept: list[DementiaSubject] = []
    failures: list[Failure] = []
    for subject in subjects:
        found = reason(subject)
        if found is None:
            kept.append(subject)
        else:
            failures.append(Failure(subject.subject, f"{subject.subject}: {found}"))
    return kept, failures
