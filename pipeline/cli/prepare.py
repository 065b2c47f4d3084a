"""``ar2unet prepare``: a command a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.app import OutOption, app, progress_bar
from pipeline.errors import DatasetError, SomeInputsFailedError

if TYPE_CHECKING:
    from pipeline.datasets.datalist import PreparedDataset

__all__ = ["prepare_dementia_command", "prepare_lgg_command", "prepare_nifti_command"]

prepare_app = typer.Typer(help="Turn a published data set, or your own, into NIfTI files and patient-wise folds.")
app.add_typer(prepare_app, name="prepare", no_args_is_help=True)


@prepare_app.command("lgg")
def prepare_lgg_command(
    source: Annotated[Path, typer.Argument(metavar="KAGGLE_3M", help="The publisher's folder, a folder a patient.")],
    output: OutOption,
    folds: Annotated[int, typer.Option(help="Patient-wise folds, balanced by site and lesion size.", min=2)] = 5,
    seed: Annotated[int, typer.Option(help="Another seed, other folds.")] = 0,
) -> None:
    """Turn the LGG FLAIR slices into a NIfTI file a sequence, masks, and datalist.json with folds."""
    from pipeline.datasets.lgg import prepare_lgg

    with progress_bar("preparing") as advance:
        prepared = prepare_lgg(source, output, folds=folds, seed=seed, on_progress=lambda i, n, _: advance(i, n))
    _name_failures(prepared)
    _say_what_is_there(prepared, "patients")
    if prepared.failures:
        raise SomeInputsFailedError(f"{len(prepared.failures)} patients failed, the others are done")


@prepare_app.command("dementia")
def prepare_dementia_command(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="The published folder, with train and test.")],
    output: OutOption,
    folds: Annotated[int, typer.Option(help="Subject-wise folds, balanced by stage.", min=2)] = 5,
    seed: Annotated[int, typer.Option(help="Another seed, other folds.")] = 0,
) -> None:
    """Recover the subjects of the four-class dementia slices: a T1w volume each, and datalist.json with folds."""
    from pipeline.datasets.dementia import prepare_dementia

    with progress_bar("preparing") as advance:
        prepared = prepare_dementia(source, output, folds=folds, seed=seed, on_progress=lambda i, n, _: advance(i, n))
    _name_failures(prepared)
    _say_what_is_there(prepared, "subjects")
    if prepared.certainty is not None:
        own, other, margin = prepared.certainty
        typer.echo(
            f"neighbouring slices correlate at {own:.3f} or more within a subject, at {other:.3f} or less between two; "
            f"the smallest margin is {margin:.3f}"
        )
    if prepared.failures:
        raise SomeInputsFailedError(f"{len(prepared.failures)} subjects or files are left out, the others are done")


@prepare_app.command("nifti")
def prepare_nifti_command(
    source: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="BIDS tree with masks in derivatives, or nnU-Net folder with dataset.json."),
    ],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for the results.")] = None,
    folds: Annotated[int, typer.Option(help="Patient-wise folds, balanced by lesion size.", min=2)] = 5,
    seed: Annotated[int, typer.Option(help="Another seed, other folds.")] = 0,
    check: Annotated[bool, typer.Option("--check", help="List what is wrong and write nothing.")] = False,
    lesion_label: Annotated[
        list[str] | None,
        typer.Option(help="Label that is the lesion: its value, or its name in dataset.json; once for each."),
    ] = None,
    masks: Annotated[str | None, typer.Option(help="BIDS: the folder in derivatives whose masks to take.")] = None,
    patient_pattern: Annotated[
        str | None,
        typer.Option(help="nnU-Net: regular expression; its first group is what all cases of a patient share."),
    ] = None,
) -> None:
    """Check one's own images with masks, and turn them into the files and folds that training takes.

    All that is wrong is listed before anything is written. A scan with an error is left out.
    """
    from pipeline.datasets.nifti import CheckedDataset, Choices, check_nifti, prepare_nifti

    if output is None and not check:
        raise DatasetError("-o OUTPUT is missing: the folder for the results, or --check to write nothing")

    def show(checked: CheckedDataset) -> None:
        for finding in checked.findings:
            typer.echo(f"ar2unet: {'error' if finding.is_error else 'warning'}: {finding.text}", err=True)

    choices = Choices(tuple(lesion_label or ()), masks, patient_pattern)
    with progress_bar("checking" if check else "preparing") as advance:

        def on_progress(done: int, total: int, _name: str) -> None:
            advance(done, total)

        if check or output is None:
            checked = check_nifti(source, choices=choices, on_progress=on_progress)
        else:
            prepared = prepare_nifti(
                source,
                output,
                folds=folds,
                seed=seed,
                choices=choices,
                on_checked=show,
                on_progress=on_progress,
            )
    if check or output is None:
        show(checked)
        left_out = {finding.subject for finding in checked.findings if finding.is_error}
        typer.echo(f"{len(checked.entries)} scans can be trained on")
    else:
        left_out = {failure.patient for failure in prepared.failures}
        _say_what_is_there(prepared, "scans")
    if left_out:
        raise SomeInputsFailedError(f"{len(left_out)} scans are left out for their errors")


def _name_failures(prepared: PreparedDataset) -> None:
    for failure in prepared.failures:
        typer.echo(f"ar2unet: {' '.join(failure.reason.splitlines())}", err=True)  # a file's name may hold line breaks


def _say_what_is_there(prepared: PreparedDataset, noun: str) -> None:
    done = f"{prepared.written} written, {prepared.unchanged} already there"
    typer.echo(f"{prepared.subjects} {noun} in {prepared.datalist} ({done})")
