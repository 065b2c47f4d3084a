"""The page of a comparison, for people."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.comparison.picture import AFTER_COLOR, BEFORE_COLOR
from pipeline.html_page import figure, table, write_html

__all__ = ["describe_category", "write_page"]

STYLE = """
.verdict { font-size: 1.15rem; border-left: 4px solid #0072b2; padding-left: 1rem; }
.verdict strong { font-size: 1.35rem; }
"""


def write_page(path: Path, content: Mapping[str, Any], picture: bytes) -> None:
    """Write a comparison as one HTML file with its picture inside.

    Args:
        path: The HTML file; its folder must exist.
        content: As ``schemas/comparison.schema.json`` describes it.
        picture: The PNG.

    Raises:
        AR2UNetError: If the file cannot be written.
    """
    names = f"{content['before']['input']} and {content['after']['input']}"
    parts = [
        "<h1>Two visits compared</h1>",
        f"<p>BEFORE: {html.escape(content['before']['input'])}<br>AFTER: {html.escape(content['after']['input'])}"
        f"{_days(content['days_between'])}</p>",
        _verdict(content),
        _list(content["warnings"], "Warnings", "warning"),
        _sizes(content),
        _picture(content, picture),
        _where(content),
        _rule(content),
        _registration(content["registration"]),
        _list(content["notes"], "Notes", ""),
        f"<p>{html.escape(content['notice'])}</p>",
    ]
    write_html(path, f"{names} compared", parts, style=STYLE)


def describe_category(content: Mapping[str, Any]) -> str:
    """Return the category as people say it, with what qualifies it."""
    name = content["category"]["name"]
    text = {None: "no category", "no lesion": "no lesion at either visit"}.get(name, name)
    if content["change"]["distinguishable_from_no_change"] is False:
        text += ", not distinguishable from no change"
    if content["registration"]["doubtful"]:
        text += ", DOUBTFUL: the scans do not seem to fit together"
    return str(text)


def _days(days: int | None) -> str:
    return "" if days is None else f"<br>{days:,} days lie between them."


def _verdict(content: Mapping[str, Any]) -> str:
    category = content["category"]
    name = "no category" if category["name"] is None else category["name"]
    doubt = {
        None: "How sure the volumes are is not known, so whether this differs from no change is not, either.",
        True: "The intervals of the two volumes lie apart.",
        False: "<b>Not distinguishable from no change:</b> the intervals of the two volumes overlap. They are "
        "cautious: each holds for its visit alone, and two masks of one patient often err in the same direction.",
    }[content["change"]["distinguishable_from_no_change"]]
    other = category["by_diameter_product"]
    if other not in (None, category["name"]):
        doubt += f" By the product of diameters it would be: {html.escape(other)}."
    return (
        f'<div class="verdict"><p><strong>{html.escape(name.capitalize())}</strong> (RANO-like, imaging only): '
        f"{html.escape(category['reason'])}.</p><p>{doubt}</p></div>"
    )


def _sizes(content: Mapping[str, Any]) -> str:
    before, after, change = content["before"], content["after"], content["change"]
    rows = [
        ["volume (ml)", _number(before["volume_ml"]), _number(after["volume_ml"]), _signed(change["volume_ml"]),
         _percent(change["percent"]) if change["volume_ml"] is not None else "–"],
        ["interval of the volume (ml)", _interval(before), _interval(after), "", ""],
        ["sum of products of diameters (mm²)", _number(before["diameter_product_mm2"], 0),
         _number(after["diameter_product_mm2"], 0), "", _percent(change["diameter_product_percent"])],
        ["voxels", f"{before['lesion_voxels']:,}", f"{after['lesion_voxels']:,}", "",
         _percent(change["percent"]) if change["volume_ml"] is None else ""],
        ["lesions", str(before["lesion_count"]), str(after["lesion_count"]), "", ""],
    ]  # fmt: skip
    return (
        "<h2>Sizes</h2>"
        + table(["", "BEFORE", "AFTER", "change", "change in %"], rows)
        + ("<p>Each visit is measured on its own voxels; no mask was resampled for it.</p>")
    )


def _picture(content: Mapping[str, Any], picture: bytes) -> str:
    keys = "".join(
        f'<span class="key" style="background:rgb{color}"></span> {name} &nbsp; '
        for name, color in (("BEFORE", BEFORE_COLOR), ("AFTER", AFTER_COLOR))
    )
    registered = content["registration"]["method"] == "rigid"
    how = "registered onto it" if registered else "voxel for voxel, not registered"
    caption = f"{keys}<br>Axial slices of BEFORE, numbered from the lowest; AFTER {how}."
    alternative = f"Axial FLAIR slices of both visits with the outlines of the lesion: {describe_category(content)}"
    return "<h2>Picture</h2>" + figure(picture, "image/png", caption, alternative=alternative)


def _where(content: Mapping[str, Any]) -> str:
    overlap = content["change"]["overlap"]
    unit = "voxels" if overlap["new_ml"] is None else "ml"
    rows = [
        [label, f"{overlap[f'{name}_voxels']:,}" if unit == "voxels" else _number(overlap[f"{name}_ml"])]
        for name, label in (("stable", "at both visits"), ("new", "AFTER only"), ("resolved", "BEFORE only"))
    ]
    text = (
        f"<h2>Where it changed</h2>{table(['lesion', unit], rows)}<p>Approximate: AFTER's mask is resampled onto "
        "BEFORE's voxels here, and every error of the registration counts as change.</p>"
    )
    lesions = content["change"]["new_lesions"]
    if lesions:
        cells = [
            [f"{n}", f"{lesion['voxels']:,}", _number(lesion["volume_ml"], 2), _number(lesion["distance_mm"]),
             "yes" if lesion["counts"] else "no"]
            for n, lesion in enumerate(lesions, 1)
        ]  # fmt: skip
        header = ["new lesion", "voxels", "ml", "mm from the nearest earlier one", "large enough to count"]
        text += table(header, cells)
    return text


def _rule(content: Mapping[str, Any]) -> str:
    category = content["category"]
    by_product = category["by_diameter_product"] or "not available"
    sources = "".join(f"<li>{html.escape(source)}</li>" for source in category["sources"])
    return (
        f"<h2>The rule</h2><p>{html.escape(category['rule'])}</p><p>{html.escape(category['why_volume'])}</p>"
        f"<p>By diameters instead: <b>{html.escape(by_product)}</b>. {html.escape(category['diameter_rule'])}</p>"
        f"<p>{html.escape(category['not_assessed'])}</p><ul>{sources}</ul>"
    )


def _registration(found: Mapping[str, Any]) -> str:
    if found["method"] == "none":
        text = (
            "<p>The voxel spacing is unknown, so nothing was registered: both scans are compared voxel for voxel.</p>"
        )
    else:
        text = f"<p>Rigid, AFTER onto BEFORE, by mutual information; the transform is in {found['transform']}.</p>"
    rows = [
        ["rotation (degrees)", _number(found["rotation_degrees"], 2)],
        ["shift of the middle of the volume (mm)", _number(found["translation_mm"], 2)],
        ["mutual information (nats)", _number(found["mutual_information"], 2)],
        ["correlation inside both heads", _number(found["correlation"], 2)],
        ["overlap of the heads (Dice)", _number(found["head_overlap"], 2)],
        ["doubtful", "yes" if found["doubtful"] else "no"],
    ]
    return f"<h2>Registration</h2>{text}{table(['', ''], rows)}"


def _list(lines: Sequence[str], heading: str, kind: str) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f'<div class="{kind}"><h2>{heading}</h2><ul>{items}</ul></div>'


def _interval(visit: Mapping[str, Any]) -> str:
    interval = visit["volume_interval_ml"]
    return "–" if interval is None else f"{_number(interval[0])} to {_number(interval[1])}"


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+,.1f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:+,.0f} %"
