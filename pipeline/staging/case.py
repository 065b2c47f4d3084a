"""One slice or volume goes in, a folder with its stage, saliency picture and page comes out."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.formats.atomic import atomic_write
from pipeline.formats.folders import make_folder
from pipeline.staging.reading import read_slices
from pipeline.staging.stager import Stager, Staging

__all__ = ["StagePaths", "StageResult", "stage_case"]


@dataclass(frozen=True)
class StagePaths:
    """Where the results of one input are.

    Attributes:
        stage: JSON, as ``schemas/stage.schema.json`` describes it.
        saliency: PNG of what each place adds to the answer.
        page: HTML, both to read in one file.
    """

    stage: Path
    saliency: Path
    page: Path


@dataclass(frozen=True, eq=False)
class StageResult:
    """What was found in one input.

    Attributes:
        paths: Where it was written; None where nothing was to be.
        content: What is in ``stage.json``.
        staging: What the stager said.
        seconds: What all steps took together.
    """

    paths: StagePaths | None
    content: dict[str, Any]
    staging: Staging
    seconds: float


def stage_case(stager: Stager, file: Path, out: Path | None) -> StageResult:
    """Read a slice or volume, tell its stage, and write it. Nothing is written for what cannot be read.

    Args:
        stager: Tells the stage.
        file: As ``read_slices`` takes it.
        out: Folder for the results, made where missing; None writes nothing.

    Raises:
        AR2UNetError: If the file cannot be read, or a result cannot be written.
    """
    from pipeline.staging.content import build_content

    started = time.perf_counter()
    read = read_slices(file)
    seconds = {"read": time.perf_counter() - started}
    staging = stager.stage(read)
    seconds["stage"] = staging.seconds
    seconds["total"] = time.perf_counter() - started
    content = build_content(read, staging, stager, seconds)
    paths = None if out is None else _write(out, content, staging, sides_known=read.sides_known)
    return StageResult(paths, content, staging, time.perf_counter() - started)


def _write(out: Path, content: dict[str, Any], staging: Staging, *, sides_known: bool) -> StagePaths:
    from pipeline.staging.content import write_stage_page
    from pipeline.staging.saliency import draw_saliency

    picture = draw_saliency(staging, content["input"], sides_known=sides_known)
    make_folder(out)
    paths = StagePaths(out / "stage.json", out / "saliency.png", out / "stage.html")
    with atomic_write(paths.saliency) as stream:
        stream.write(picture)
    write_stage_page(paths.page, content, picture)
    # Last of all: where it is, all the others are.
    with atomic_write(paths.stage) as stream:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        # A file name may hold bytes that are no characters.
        stream.write(text.encode("utf-8", "backslashreplace") + b"\n")
    return paths
