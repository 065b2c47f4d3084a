"""Which of the series is the FLAIR, which the T1 before and after contrast: the one place of that rule.

A series is judged by what its SeriesDescription says. First match counts:

1. Not an MR image, or a word of ``LEFT_OUT`` (a localiser, a map, diffusion, ...): none of them.
2. "T1" without "T2" is T1, "T1 FLAIR" included, which is a T1-weighted inversion recovery. It is after contrast
   if the description says so ("post", "Gd", "+C", ...) or ContrastBolusAgent is filled and the description does not
   deny it ("pre", "without contrast", ...).
3. "FLAIR" or "dark fluid" is FLAIR, unless its echo time is known and short (``MIN_FLAIR_ECHO_TIME``).
4. An inversion time within ``FLAIR_INVERSION_TIMES`` with a long echo and repetition time is FLAIR, whatever its name.
5. A description that names no contrast at all is judged again by its ProtocolName, as in 2 and 3.

Where several series qualify and exactly one is an original acquisition (ImageType ORIGINAL), that one is taken
before those derived from it, such as reformatted ones. Otherwise a FLAIR has to be named by its UID, and T1 is left
out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.errors import ScanError
from pipeline.formats.dicom.headers import Header, find_value, first_of, numbers, text

__all__ = ["Series", "choose_flair", "choose_t1", "classify", "describe", "group_series"]

# FLAIR nulls fluid: 2000 to 2600 ms at 1.5 T, 3D at 3 T from 1600 ms; STIR nulls fat at 150 to 250, T1-weighted
# recovery takes 300 to 1100 ms.
FLAIR_INVERSION_TIMES = (1400.0, 3500.0)  # ms
MIN_FLAIR_ECHO_TIME = 60.0  # ms; T1-weighted recovery (MPRAGE, MP2RAGE, T1 FLAIR) stays below 30
MIN_FLAIR_REPETITION_TIME = 3500.0  # ms

# Where a time stands: in the dataset itself, or in a functional group of a multi-frame one.
TIMES = {
    "inversion": ("InversionTime", "MRModifierSequence", "InversionTimes"),
    "echo": ("EchoTime", "MREchoSequence", "EffectiveEchoTime"),
    "repetition": ("RepetitionTime", "MRTimingAndRelatedParametersSequence", "RepetitionTime"),
}

LEFT_OUT = re.compile(
    r"(?<![a-z])(?:locali[sz]er|loc|scout|survey|pilot|calibration|adc|dwi|dti|diff|diffusion|trace|dir|stir|perf|perfusion"
    r"|dsc|dce|asl|swi|swan|phase|maps?|cbf|cbv|mtt|bold|fmri|tof|mra|mrv|angio|mip|minip|sub|subtract(?:ion|ed)|mask|seg)"
    r"(?![a-z])"
)
FLAIR = re.compile(r"flair|dark.?fluid|da-fl")
T1 = re.compile(r"t1(?!\d)|mp-?rage|bravo")
T2 = re.compile(r"t2(?!\d)|(?<![a-z])pd(?![a-z])")
WITHOUT_CONTRAST = re.compile(
    r"(?<![a-z])(?:pre|non|no|without|w/?o|native?|ohne)[^a-z0-9]*(?:contrast|gad\w*|(?:gd|ce|km|c)(?![a-z]))?(?![a-z])"
)
WITH_CONTRAST = re.compile(r"post(?!er)|gad|contrast|enhanc|(?<![a-z])(?:gd|ce|km|c)(?![a-z])")
NO_AGENT = ("", "none", "no", "n/a", "unknown")
MAX_LISTED = 8  # series in a message

FLAIR_ROLE, T1_ROLE, T1C_ROLE = "flair", "t1", "t1c"


@dataclass(frozen=True, eq=False)
class Series:
    """The files of one SeriesInstanceUID, and what they say of themselves.

    Attributes:
        uid: SeriesInstanceUID.
        headers: Of its files, sorted by name.
        images: Files, or frames of multi-frame files.
    """

    uid: str
    headers: tuple[Header, ...]
    images: int

    def text(self, keyword: str) -> str:
        """Return an element of the first file as one short line; empty where it is missing."""
        return text(self.headers[0].dataset, keyword)

    def milliseconds(self, time: str) -> float | None:
        """Return one of ``TIMES`` as the first file has it; None where it is missing."""
        keyword, group, keyword_in_group = TIMES[time]
        dataset = self.headers[0].dataset
        for value in (find_value(dataset, keyword), find_value(dataset, keyword_in_group, 1, group)):
            found = numbers(first_of(value), 1)
            if found is not None:
                return found[0]
        return None

    @property
    def is_original(self) -> bool:
        """Whether it was acquired as it is, and not computed from another."""
        return str(first_of(find_value(self.headers[0].dataset, "ImageType"))) == "ORIGINAL"


def group_series(headers: Iterable[Header]) -> list[Series]:
    """Group files by SeriesInstanceUID, in the order of SeriesNumber and UID; objects without pixels are left out."""
    groups: dict[str, list[Header]] = {}
    for header in headers:
        if header.pixel_bytes is not None or "Rows" in header.dataset:
            groups.setdefault(text(header.dataset, "SeriesInstanceUID"), []).append(header)
    series = [Series(uid, tuple(group), sum(header.frames for header in group)) for uid, group in groups.items()]
    return sorted(series, key=lambda one: (numbers(one.text("SeriesNumber"), 1) or (0.0,), one.uid))


def classify(series: Series) -> str | None:
    """Return "flair", "t1" or "t1c", or None for any other series; the rule is this module's docstring."""
    description = series.text("SeriesDescription").lower()
    if series.text("Modality") != "MR" or LEFT_OUT.search(description):
        return None
    role = _judge_words(description, series)
    if role in (T1_ROLE, T1C_ROLE):
        return role
    if role == FLAIR_ROLE or _has_flair_timing(series):
        return FLAIR_ROLE
    if FLAIR.search(description) or T2.search(description):  # named, and yet not timed like one
        return None
    protocol = series.text("ProtocolName").lower()
    return None if LEFT_OUT.search(protocol) else _judge_words(protocol, series)


def choose_flair(series: Sequence[Series], uid: str | None) -> tuple[Series, list[str]]:
    """Return the FLAIR among the series, and notes on how it was chosen.

    Args:
        series: All of them.
        uid: SeriesInstanceUID to take whatever it is; None to go by the rule.

    Raises:
        ScanError: Listing the series, if the UID is not there or not MR, or if no series or more than one is FLAIR.
    """
    if uid is not None:
        named = [one for one in series if one.uid == uid]
        if not named:
            raise ScanError(f"expected the series {uid}, got {_list(series)}")
        if named[0].text("Modality") != "MR":
            raise ScanError(
                f"expected an MR series, got modality {named[0].text('Modality') or 'none'}: {describe(named[0])}"
            )
        return named[0], []
    candidates = [one for one in series if classify(one) == FLAIR_ROLE]
    # A picture saved of a FLAIR is no second FLAIR; where there is nothing else, stacking it says what is wrong.
    candidates = [one for one in candidates if one.images > 1] or candidates
    chosen, notes = _prefer_original(candidates)
    if chosen is not None:
        return chosen, notes
    if candidates:
        raise ScanError(f"expected one FLAIR series, got {_list(candidates)}; name one with --series UID")
    images = [one for one in series if one.text("Modality") == "MR"]
    if len(images) == 1 and images[0].images > 1 and _says_nothing(images[0]):
        return images[0], [f"no tag says FLAIR; read because it is the only MR series: {describe(images[0])}"]
    if not images:
        raise ScanError(f"expected an MR series, got {_list(series)}")
    raise ScanError(f"expected a FLAIR series, got {_list(images)}; name one with --series UID")


def choose_t1(series: Sequence[Series], flair: Series, role: str) -> tuple[Series | None, list[str]]:
    """Return the one series of a role that shares the FLAIR's scanner coordinates, and notes; None where unclear.

    Args:
        series: All of them.
        flair: The one chosen as FLAIR.
        role: "t1" or "t1c".
    """
    candidates = [
        one
        for one in series
        if one is not flair
        and classify(one) == role
        and all(one.text(keyword) == flair.text(keyword) for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"))
    ]
    chosen, notes = _prefer_original(candidates)
    if chosen is None and candidates:
        return None, [f"no {role} taken, for there is more than one: {_list(candidates)}"]
    return chosen, notes


def describe(series: Series) -> str:
    """Return a series as messages show it: UID, number, description, images."""
    number, description = series.text("SeriesNumber") or "without number", series.text("SeriesDescription")
    return f"{series.uid} (series {number}, {description!r}, {series.images} images)"


def _list(series: Sequence[Series]) -> str:
    if not series:
        return "none"
    listed = "; ".join(describe(one) for one in series[:MAX_LISTED])
    return listed + (f"; and {len(series) - MAX_LISTED} more" if len(series) > MAX_LISTED else "")


def _prefer_original(candidates: Sequence[Series]) -> tuple[Series | None, list[str]]:
    originals = [one for one in candidates if one.is_original] if len(candidates) > 1 else list(candidates)
    if len(originals) != 1:
        return None, []
    derived = [one for one in candidates if one is not originals[0]]
    return originals[0], [f"derived series left aside: {_list(derived)}"] if derived else []


def _judge_words(line: str, series: Series) -> str | None:
    """Return the role that a description names; None where it names none."""
    if T1.search(line) and not T2.search(line):
        said = WITH_CONTRAST.search(WITHOUT_CONTRAST.sub(" ", line))
        denied = WITHOUT_CONTRAST.search(line)
        given = series.text("ContrastBolusAgent").lower() not in NO_AGENT
        return T1C_ROLE if said or (given and not denied) else T1_ROLE
    echo = series.milliseconds("echo")
    return FLAIR_ROLE if FLAIR.search(line) and (echo is None or echo >= MIN_FLAIR_ECHO_TIME) else None


def _has_flair_timing(series: Series) -> bool:
    inversion, echo, repetition = (series.milliseconds(time) for time in ("inversion", "echo", "repetition"))
    if inversion is None or echo is None or repetition is None:
        return False
    shortest, longest = FLAIR_INVERSION_TIMES
    return shortest <= inversion <= longest and echo >= MIN_FLAIR_ECHO_TIME and repetition >= MIN_FLAIR_REPETITION_TIME


def _says_nothing(series: Series) -> bool:
    """Whether neither description nor timing tells what a series is."""
    description = series.text("SeriesDescription").lower()
    named = LEFT_OUT.search(description) or any(pattern.search(description) for pattern in (T1, T2, FLAIR))
    echo = series.milliseconds("echo")
    return not named and (echo is None or echo >= MIN_FLAIR_ECHO_TIME)
