"""``ar2unet compare``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.app import BundleOption, DeviceOption, EngineName, EngineOption, OutOption, app, make_predictor
from pipeline.cli.cases import segment_all
from pipeline.errors import AR2UNetError

if TYPE_CHECKING:
    from pipeline.case import Case, CaseResult

__all__ = ["compare"]


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="FLAIR of the earlier visit, as segment takes it.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="FLAIR of the later visit.")],
    output: OutOption,
    before_mask: Annotated[Path | None, typer.Option(help="NIfTI mask of BEFORE, instead of segmenting it.")] = None,
    after_mask: Annotated[Path | None, typer.Option(help="NIfTI mask of AFTER; both or none.")] = None,
    before_t1: Annotated[Path | None, typer.Option(help="T1 before contrast of BEFORE, beside a NIfTI.")] = None,
    before_t1c: Annotated[Path | None, typer.Option(help="T1 after contrast of BEFORE.")] = None,
    after_t1: Annotated[Path | None, typer.Option(help="T1 before contrast of AFTER.")] = None,
    after_t1c: Annotated[Path | None, typer.Option(help="T1 after contrast of AFTER.")] = None,
    before_series: Annotated[str | None, typer.Option(help="DICOM: SeriesInstanceUID of BEFORE's FLAIR.")] = None,
    after_series: Annotated[str | None, typer.Option(help="DICOM: SeriesInstanceUID of AFTER's FLAIR.")] = None,
    bundle: BundleOption = None,
    device: DeviceOption = None,
    engine: EngineOption = EngineName.AUTO,
) -> None:
    """Compare two visits of one patient: change in ml and %, a RANO-like category, compare.html and compare.png."""
    from pipeline.comparison.compare import Visit, compare_visits

    def segment(cases: Sequence[Case]) -> Iterator[tuple[Case, CaseResult | AR2UNetError]]:
        # Only now: what cannot be compared shall not wait for the network.
        return segment_all(make_predictor(bundle, device, engine), cases)

    comparison = compare_visits(
        Visit(before, before_mask, before_t1, before_t1c, before_series),
        Visit(after, after_mask, after_t1, after_t1c, after_series),
        output,
        segment,
    )
    for warning in comparison.warnings:
        typer.echo(f"ar2unet: {warning}", err=True)
    typer.echo(comparison.summary)
