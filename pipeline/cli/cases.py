"""Cases on their way through the predictor, and the line that says what was found; for several commands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import typer

from pipeline.cli.app import progress_bar
from pipeline.errors import AR2UNetError
from pipeline.formats.printable import printable

if TYPE_CHECKING:
    from pipeline.case import Case, CaseResult
    from pipeline.measurement import Measurements
    from pipeline.predictor import Predictor

__all__ = ["describe", "segment_all"]


def segment_all(predictor: Predictor, cases: Sequence[Case]) -> Iterator[tuple[Case, CaseResult | AR2UNetError]]:
    """Segment cases in order, with a progress bar, and print each case's warnings."""
    from pipeline.stream import segment_cases

    # After the first case: where all are refused, nothing else is worth a line.
    notes = [] if predictor.note is None else [predictor.note]

    title = cases[0].flair.name if len(cases) == 1 else f"{len(cases)} scans"
    with progress_bar(title) as advance:
        for case, result in segment_cases(predictor, cases, on_progress=advance):
            if not isinstance(result, AR2UNetError):
                for line in (*notes, *(f"{printable(case.flair.name)}: {warning}" for warning in result.warnings)):
                    typer.echo(f"ar2unet: {line}", err=True)
                notes.clear()
            yield case, result


def describe(result: CaseResult) -> str:
    """Return what was found in a case, in a line."""
    assessment = result.assessment
    found = _describe_lesions(result.measurements)
    if assessment is None:
        return found
    review = ", REVIEW THIS CASE" if assessment.review else ""
    if result.measurements.lesion_count == 0:  # a Dice says little about a mask of nothing
        return f"{found}{review}"
    return f"{found}; expected Dice {assessment.predicted_dice:.2f}{review}"


def _describe_lesions(found: Measurements) -> str:
    if found.lesion_count == 0:
        return "no lesion found"
    volume = f"{found.lesion_voxels} voxels" if found.volume_ml is None else f"{found.volume_ml:.1f} ml"
    lesions = "1 lesion" if found.lesion_count == 1 else f"{found.lesion_count} lesions"
    unknown = " (spacing unknown, so no ml)" if found.volume_ml is None else ""
    return f"{volume}{unknown} in {lesions} on {found.slices_with_lesion} of {found.slices_total} slices"
