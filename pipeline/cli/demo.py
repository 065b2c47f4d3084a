"""``ar2unet demo``."""

from __future__ import annotations

from pathlib import Path

import typer

from pipeline.cli.app import DeviceOption, EngineName, EngineOption, OutOption, app, make_predictor
from pipeline.cli.cases import describe, segment_all
from pipeline.errors import AR2UNetError

__all__ = ["demo"]


@app.command()
def demo(
    output: OutOption = Path("demo_out"), device: DeviceOption = None, engine: EngineOption = EngineName.AUTO
) -> None:
    """Segment the embedded sample, a phantom head with a known lesion, and print the Dice against its truth."""
    from pipeline.case import Case
    from pipeline.datasets.phantom import load_sample

    sample = load_sample()
    predictor = make_predictor(None, device, engine)
    ((_, result),) = segment_all(predictor, [Case(sample.flair, output, sample.t1, sample.t1c)])
    if isinstance(result, AR2UNetError):
        raise result

    import numpy as np
    from nibabel import nifti1

    from pipeline.evaluation.metrics import count_confusion

    mask, truth = (np.asarray(nifti1.load(path).dataobj) for path in (result.mask, sample.truth))  # type: ignore[no-untyped-call]
    typer.echo(f"sample: {describe(result)}; {result.seconds:.1f} s ({predictor.engine})")
    typer.echo(f"Dice against the known lesion: {count_confusion(mask, truth).dice:.3f}")
    for path in (result.mask, result.overlay, result.report, result.page):
        typer.echo(f"  {path}")
