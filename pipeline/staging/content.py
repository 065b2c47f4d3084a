"""What ``stage.json`` and ``stage.html`` say of a slice or a volume."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pipeline.html_page import figure, table, write_html
from pipeline.provenance import software_versions
from pipeline.staging.reading import T1Slices
from pipeline.staging.stager import Stager, Staging
from pipeline.staging.stages import NOTICE, STAGES, SURE_ABOVE, verdict

__all__ = ["build_content", "describe_staging", "write_stage_page"]

SCHEMA_VERSION = "1.0"
SOFTWARE = ("torch", "numpy", "pillow", "nibabel")
SPREAD_HEADER = "single slices, 10th to 90th percentile"
METHOD = (
    "The model compares how much fluid and how much bright white matter there is at each place with what it saw in "
    "200 subjects. The classes are those of the published data set; it did not say how they were found."
)


def describe_staging(staging: Staging) -> str:
    """Return what was found, in a line."""
    chances = ", ".join(f"{each.words} {p:.2f}" for each, p in zip(STAGES, staging.probabilities.tolist(), strict=True))
    answer = verdict(staging.stage, sure=staging.sure)
    if not staging.sure:
        unlikely = f"dementia {staging.dementia:.2f}, sure from {SURE_ABOVE:.2f} or up to {1 - SURE_ABOVE:.2f}"
        reason = "the input is unlike the training slices" if staging.warnings else unlikely
        answer = answer.replace("not sure", f"not sure ({reason})", 1)
    return f"{answer}; probabilities: {chances}; not a diagnosis"


def build_content(read: T1Slices, staging: Staging, stager: Stager, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Gather what was found, as ``schemas/stage.schema.json`` describes it.

    Args:
        read: What was staged.
        staging: What was found.
        stager: Who found it.
        seconds: Wall-clock time of "read", "stage" and "total".
    """
    names = [stage.name for stage in STAGES]
    probabilities = [round(value, 6) for value in staging.probabilities.tolist()]
    spread = None
    if staging.spread is not None:
        ranges = ([round(value, 6) for value in row] for row in staging.spread.tolist())
        spread = dict(zip(names, ranges, strict=True))
    return {
        "schema_version": SCHEMA_VERSION,
        "input": read.source.name,
        "kind": "slice" if read.is_single else "volume",
        "slices_used": len(staging.slices),
        "position": staging.positions[0] + 1 if read.is_single else None,
        "stage": staging.stage.name,
        "cdr": staging.stage.cdr,
        "probabilities": dict(zip(names, probabilities, strict=True)),
        "probability_of_dementia": round(staging.dementia, 6),
        "spread": spread,
        "sure": staging.sure,
        "sure_above": SURE_ABOVE,
        "plausible": not staging.warnings,
        "sides_known": read.sides_known,
        "bundle": {"name": stager.bundle.name, "version": stager.version},
        "weights_sha256": stager.weights_sha256,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "software": software_versions(SOFTWARE),
        "warnings": list(staging.warnings),
        "notes": list(staging.notes),
        "notice": NOTICE,
    }


def write_stage_page(path: Path, content: Mapping[str, Any], picture: bytes) -> None:
    """Write what was found as a page to read, the picture inside.

    Args:
        path: The HTML file; its folder must exist.
        content: As ``build_content`` returns it.
        picture: PNG.

    Raises:
        AR2UNetError: If the file cannot be written.
    """
    stage = next(stage for stage in STAGES if stage.name == content["stage"])
    answer = verdict(stage, sure=content["sure"])
    warnings = "".join(f'<p class="warning">{html.escape(line)}</p>' for line in content["warnings"])
    notes = "".join(f"<li>{html.escape(line)}</li>" for line in content["notes"])
    dementia = content["probability_of_dementia"]
    threshold = (
        f"Dementia of any stage: {dementia:.2f}. The answer counts as sure where this is at least "
        f"{content['sure_above']:.2f} or at most {1 - content['sure_above']:.2f}, and nothing is odd about the input."
    )
    made = f"{content['bundle']['name']} {content['bundle']['version']}, weights {content['weights_sha256']}"
    parts = [
        f"<h1>{html.escape(answer[0].upper() + answer[1:])}</h1>",
        f"<p>{html.escape(content['input'])} · <b>{html.escape(content['notice'])}</b></p>",
        warnings,
        _chances(content),
        f"<p>{html.escape(threshold)}</p>",
        figure(picture, "image/png", html.escape("What each place adds to the answer: " + METHOD)),
        f"<h2>Notes</h2><ul>{notes}</ul>" if notes else "",
        f"<p>{html.escape(made)}; {content['seconds']['total']:.2f} s</p>",
    ]
    write_html(path, f"Dementia stage: {content['input']}", parts)


def _chances(content: Mapping[str, Any]) -> str:
    spread = cast("dict[str, list[float]] | None", content["spread"])
    header = ["Class", "CDR", "probability", *([] if spread is None else [SPREAD_HEADER])]
    rows = []
    for stage in STAGES:
        row = [stage.words, stage.cdr, f"{content['probabilities'][stage.name]:.2f}"]
        if spread is not None:
            row.append(f"{spread[stage.name][0]:.2f} to {spread[stage.name][1]:.2f}")
        rows.append(row)
    return table(header, rows)
