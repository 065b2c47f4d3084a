"""``ar2unet segment``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import BundleOption, DeviceOption, EngineName, EngineOption, OutOption, app, make_predictor
from pipeline.cli.cases import describe, segment_all
from pipeline.errors import AR2UNetError, ScanError, SomeInputsFailedError
from pipeline.formats.printable import printable

__all__ = ["segment"]


@app.command()
def segment(
    scans: Annotated[
        list[Path],
        typer.Argument(metavar="SCAN...", help="FLAIR as NIfTI, NRRD or MHA; DICOM folder or zip; LGG folder."),
    ],
    output: OutOption,
    t1: Annotated[Path | None, typer.Option(help="T1 before contrast, beside a NIfTI; one scan only.")] = None,
    t1c: Annotated[Path | None, typer.Option(help="T1 after contrast, beside a NIfTI; one scan only.")] = None,
    series: Annotated[str | None, typer.Option(help="DICOM: SeriesInstanceUID to read as FLAIR.")] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Write the probabilities, too.")] = False,
    mesh: Annotated[bool, typer.Option("--mesh", help="Write the lesions' surface as STL, too.")] = False,
    bundle: BundleOption = None,
    device: DeviceOption = None,
    engine: EngineOption = EngineName.AUTO,
) -> None:
    """Segment scans: a mask on each scan's own voxels, report.json, report.html and overlay.png.

    The results of one scan lie in the output folder itself, those of several in a folder each.
    """
    from pipeline.case import Case
    from pipeline.reading import case_name

    if len(scans) > 1 and (t1 is not None or t1c is not None):
        raise ScanError(f"--t1 and --t1c go with one scan, got {len(scans)}")
    names = [case_name(scan) for scan in scans]
    for name in names:
        if names.count(name) > 1:
            raise ScanError(f"two scans are named {printable(name)}; their results would overwrite each other")
    predictor = make_predictor(bundle, device, engine)
    several = len(scans) > 1
    cases = [
        Case(scan, output / name if several else output, t1, t1c, series, probabilities, mesh)
        for scan, name in zip(scans, names, strict=True)
    ]
    failed = 0
    for case, result in segment_all(predictor, cases):
        if not isinstance(result, AR2UNetError):
            found = f"{describe(result)}; {result.seconds:.1f} s ({predictor.engine})"
            typer.echo(f"{printable(case.flair.name)}: {found}; {printable(result.mask)}")
        elif several:
            typer.echo(f"ar2unet: {result}", err=True)
            failed += 1
        else:
            raise result
    if failed == len(scans):
        raise ScanError(f"none of the {failed} scans could be segmented")
    if failed:
        raise SomeInputsFailedError(f"{failed} of {len(scans)} scans failed, the others are done")
