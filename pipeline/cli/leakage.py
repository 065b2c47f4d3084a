"""``ar2unet check-leakage``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.app import app, progress_bar

if TYPE_CHECKING:
    from pipeline.datasets.leakage import Leakage

__all__ = ["check_leakage"]


@app.command("check-leakage")
def check_leakage(
    source: Annotated[
        Path,
        typer.Argument(metavar="DATALIST", help="datalist.json, a CSV with path and split, or a folder of splits."),
    ],
    root: Annotated[Path | None, typer.Option(help="Where relative paths start; else the list's folder.")] = None,
    split: Annotated[str, typer.Option(help="The CSV's column that holds the split.")] = "split",
    similarity: Annotated[
        float | None, typer.Option(help="From which correlation of their fine detail two images count as the same.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for all that was found.")] = None,
) -> None:
    """Find subjects and nearly the same images in more than one split of an image data set.

    Exit code 0: no leakage; 1: leakage was found, or an image could not be read; 2: wrong usage or no readable list.
    """
    from pipeline.datasets.datalist import write_json
    from pipeline.datasets.image_list import read_image_list
    from pipeline.datasets.leakage import SIMILARITY, find_leakage

    images = read_image_list(source, root=root, split=split)
    with progress_bar("comparing") as advance:
        leakage = find_leakage(images, similarity=SIMILARITY if similarity is None else similarity, on_progress=advance)
    if json_file is not None:
        write_json(json_file, leakage.to_dict())
    for failure in leakage.failures:
        # A file's name may hold line breaks.
        typer.echo(f"ar2unet: {' '.join(failure.reason.splitlines())}", err=True)
    for line in describe(leakage):
        typer.echo(line)
    if leakage.found or leakage.failures:
        raise typer.Exit(1)


def describe(leakage: Leakage) -> list[str]:
    """Say what was found, a line a result."""
    splits = ", ".join(f"{count} in {split}" for split, count in leakage.images.items())
    lines = [f"{sum(leakage.images.values())} images: {splits}"]
    if leakage.subjects is None:
        lines.append("subjects in more than one split: not known, the list names no subjects")
    else:
        example = next((f", such as {name}" for name in leakage.shared_subjects), "")
        lines.append(f"subjects in more than one split: {len(leakage.shared_subjects)} of {leakage.subjects}{example}")
    example = next((f", such as {n.image} and {n.other} ({n.correlation:.3f})" for n in leakage.near_duplicates), "")
    bound = f"correlation {leakage.similarity:g} or more"
    lines += [
        f"images with a near-duplicate in another split ({bound}): {len(leakage.near_duplicates)}{example}",
        f"images whose nearest image lies in another split: {leakage.nearest_elsewhere}",
        f"groups of near-duplicates in more than one split: {leakage.shared_groups} of {leakage.groups}",
        "leakage found" if leakage.found else "no leakage found",
    ]
    return [" ".join(line.splitlines()) for line in lines]
