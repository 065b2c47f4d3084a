"""The command ``ar2unet``. Each command imports what it needs when it runs, so ``--help`` answers at once."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import AR2UNetError, ScanError, SomeInputsFailedError

if TYPE_CHECKING:
    from pipeline.case import Case, CaseResult
    from pipeline.measurement import Measurements
    from pipeline.predictor import Predictor

__all__ = ["app", "main"]

app = typer.Typer(
    help="Segment the FLAIR abnormality in brain MR scans. For research use only; not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
prepare_app = typer.Typer(help="Turn a published data set into NIfTI files and patient-wise folds.")
app.add_typer(prepare_app, name="prepare", no_args_is_help=True)

OutOption = Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")]
BundleOption = Annotated[Path | None, typer.Option("--bundle", help="Another bundle's folder than the shipped one.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, ...; CUDA where there is one.")]


class EngineName(StrEnum):
    """Who multiplies."""

    AUTO, OPENVINO, ONNX, TORCH = "auto", "openvino", "onnx", "torch"


EngineOption = Annotated[
    EngineName, typer.Option("--engine", help="Who multiplies: torch is the reference, auto takes the fastest.")
]


def main() -> None:
    """Run the command line; what the user did wrong is one line on stderr and an exit code."""
    try:
        app()
    except AR2UNetError as error:
        typer.echo(f"ar2unet: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("ar2unet: interrupted", err=True)
        sys.exit(130)


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
    bundle: BundleOption = None,
    device: DeviceOption = None,
    engine: EngineOption = EngineName.AUTO,
) -> None:
    """Segment scans: a mask on each scan's own voxels, report.json and overlay.png.

    The results of one scan lie in the output folder itself, those of several in a folder each.
    """
    from pipeline.case import Case
    from pipeline.reading import case_name

    if len(scans) > 1 and (t1 is not None or t1c is not None):
        raise ScanError(f"--t1 and --t1c go with one scan, got {len(scans)}")
    names = [case_name(scan) for scan in scans]
    for name in names:
        if names.count(name) > 1:
            raise ScanError(f"two scans are named {name}; their results would overwrite each other")
    predictor = _make_predictor(bundle, device, engine)
    several = len(scans) > 1
    cases = [
        Case(scan, output / name if several else output, t1, t1c, series, probabilities)
        for scan, name in zip(scans, names, strict=True)
    ]
    failed = 0
    for case, result in _segment_all(predictor, cases):
        if not isinstance(result, AR2UNetError):
            found = f"{_describe(result)}; {result.seconds:.1f} s ({predictor.engine})"
            typer.echo(f"{case.flair.name}: {found}; {result.mask}")
        elif several:
            typer.echo(f"ar2unet: {result}", err=True)
            failed += 1
        else:
            raise result
    if failed == len(scans):
        raise ScanError(f"none of the {failed} scans could be segmented")
    if failed:
        raise SomeInputsFailedError(f"{failed} of {len(scans)} scans failed, the others are done")


@app.command()
def demo(
    output: OutOption = Path("demo_out"), device: DeviceOption = None, engine: EngineOption = EngineName.AUTO
) -> None:
    """Segment the embedded sample, a phantom head with a known lesion, and print the Dice against its truth."""
    from pipeline.case import Case
    from pipeline.datasets.phantom import load_sample

    sample = load_sample()
    predictor = _make_predictor(None, device, engine)
    ((_, result),) = _segment_all(predictor, [Case(sample.flair, output, sample.t1, sample.t1c)])
    if isinstance(result, AR2UNetError):
        raise result

    import numpy as np
    from nibabel import nifti1

    from pipeline.evaluation.metrics import count_confusion

    mask, truth = (np.asarray(nifti1.load(path).dataobj) for path in (result.mask, sample.truth))  # type: ignore[no-untyped-call]
    typer.echo(f"sample: {_describe(result)}; {result.seconds:.1f} s ({predictor.engine})")
    typer.echo(f"Dice against the known lesion: {count_confusion(mask, truth).dice:.3f}")
    for path in (result.mask, result.overlay, result.report):
        typer.echo(f"  {path}")


@app.command()
def export(
    bundle: Annotated[Path | None, typer.Argument(metavar="[BUNDLE]", help="Folder; the shipped bundle's.")] = None,
) -> None:
    """Export a bundle's network for the fast engines, into models/exported; again after its weights change."""
    from pipeline.exporting import export_bundle
    from pipeline.predictor import SEGMENTATION_BUNDLE

    artefact = export_bundle(bundle or SEGMENTATION_BUNDLE)
    typer.echo(f"{artefact.network}: from weights {artefact.manifest.weights_sha256[:12]}")


@prepare_app.command("lgg")
def prepare_lgg_command(
    source: Annotated[Path, typer.Argument(metavar="KAGGLE_3M", help="The publisher's folder, a folder a patient.")],
    output: OutOption,
    folds: Annotated[int, typer.Option(help="Patient-wise folds, balanced by site and lesion size.", min=2)] = 5,
    seed: Annotated[int, typer.Option(help="Another seed, other folds.")] = 0,
) -> None:
    """Turn the LGG FLAIR slices into a NIfTI file a sequence, masks, and datalist.json with folds."""
    from pipeline.datasets.lgg import prepare_lgg

    with _progress_bar("preparing") as advance:
        prepared = prepare_lgg(source, output, folds=folds, seed=seed, on_progress=lambda i, n, _: advance(i, n))
    for failure in prepared.failures:
        typer.echo(f"ar2unet: {failure.reason}", err=True)
    typer.echo(
        f"{prepared.subjects} patients in {prepared.datalist} "
        f"({prepared.written} written, {prepared.unchanged} already there)"
    )
    if prepared.failures:
        raise SomeInputsFailedError(f"{len(prepared.failures)} patients failed, the others are done")


@app.command()
def evaluate(
    prediction: Annotated[Path, typer.Argument(metavar="PRED", help="Predicted masks: a folder, or one NIfTI file.")],
    truth: Annotated[Path, typer.Argument(metavar="TRUTH", help="True masks: a folder, or one NIfTI file.")],
    output: OutOption,
    groups: Annotated[Path | None, typer.Option(help="Each patient's site: participants.tsv or datalist.json.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of FLAIR scans to draw worst and best cases on.")] = None,
) -> None:
    """Score predicted masks against their truth, patient by patient: patients.csv, summary.json, report.html.

    Masks are matched by the patient's name; who cannot be scored is named with the reason.
    """
    from pipeline.evaluation.evaluate import evaluate_masks

    with _progress_bar("scoring") as advance:
        result = evaluate_masks(prediction, truth, output, groups=groups, images=images, on_progress=advance)
    for message in (*result.notes, *(patient.reason for patient in result.left_out)):
        # A file's name may hold line breaks.
        typer.echo(f"ar2unet: {' '.join(message.splitlines())}", err=True)
    summary = result.summary
    interval = summary["intervals"]["mean"]["dice"]
    between = "" if interval is None else f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})"
    dice = f"Dice mean {summary['mean']['dice']:.3f}{between}, median {summary['median']['dice']:.3f}"
    typer.echo(f"{summary['patients']} scored: {dice}; {result.page}")
    if result.left_out:
        total = len(result.left_out) + len(result.patients)
        raise SomeInputsFailedError(f"{len(result.left_out)} of {total} patients could not be scored, the others are")


def _segment_all(predictor: Predictor, cases: Sequence[Case]) -> Iterator[tuple[Case, CaseResult | AR2UNetError]]:
    """Segment cases in order, with a progress bar, and print each case's warnings."""
    from pipeline.stream import segment_cases

    # After the first case: where all are refused, nothing else is worth a line.
    notes = [] if predictor.note is None else [predictor.note]

    title = cases[0].flair.name if len(cases) == 1 else f"{len(cases)} scans"
    with _progress_bar(title) as advance:
        for case, result in segment_cases(predictor, cases, on_progress=advance):
            if not isinstance(result, AR2UNetError):
                for line in (*notes, *(f"{case.flair.name}: {warning}" for warning in result.warnings)):
                    typer.echo(f"ar2unet: {line}", err=True)
                notes.clear()
            yield case, result


def _describe(result: CaseResult) -> str:
    assessment = result.assessment
    if assessment is None:
        return _describe_lesions(result.measurements)
    review = ", REVIEW THIS CASE" if assessment.review else ""
    return f"{_describe_lesions(result.measurements)}; expected Dice {assessment.predicted_dice:.2f}{review}"


def _describe_lesions(found: Measurements) -> str:
    if found.lesion_count == 0:
        return "no lesion found"
    volume = f"{found.lesion_voxels} voxels" if found.volume_ml is None else f"{found.volume_ml:.1f} ml"
    lesions = "1 lesion" if found.lesion_count == 1 else f"{found.lesion_count} lesions"
    unknown = " (spacing unknown, so no ml)" if found.volume_ml is None else ""
    return f"{volume}{unknown} in {lesions} on {found.slices_with_lesion} of {found.slices_total} slices"


@contextmanager
def _progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr where somebody watches; yield what moves it, given the work done and its total."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    redirect = sys.stdout.isatty()  # else what is printed for a file would appear on the screen
    with Progress(*columns, console=console, transient=True, redirect_stdout=redirect) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _make_predictor(bundle: Path | None, device: str | None, engine: EngineName) -> Predictor:
    from pipeline.predictor import SEGMENTATION_BUNDLE, Predictor
    from pipeline.stream import keep_memory

    keep_memory()  # before the engine's threads get heaps of their own
    # What MONAI and torch say to developers is not for the user's eyes.
    warnings.filterwarnings("ignore")
    return Predictor(bundle or SEGMENTATION_BUNDLE, device=device, engine=engine.value)
