"""The report of one case as a page to read, in one file that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.html_page import figure, table, write_html

if TYPE_CHECKING:
    from pipeline.contours import ContourPicture

__all__ = ["write_page"]

STYLE = """
body { max-width: 64rem; line-height: 1.45; }
h1 { font-size: 1.5rem; font-weight: 600; margin: 0 0 0.2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; font-weight: 600; margin: 2rem 0 0.4rem; padding-bottom: 0.2rem;
  border-bottom: 1px solid #8886; }
.quiet { color: #666; font-size: 0.88rem; } .quiet a { color: inherit; }
.verdict { border: 1px solid #8886; border-left: 5px solid #2f7d4f; border-radius: 4px; padding: 0.6rem 1rem;
  margin: 1.2rem 0; }
.verdict.review { border-left-color: #b3261e; } .verdict.unknown { border-left-color: #8a8a8a; }
.verdict p { margin: 0.2rem 0; } .verdict ul { margin: 0.4rem 0; padding-left: 1.2rem; overflow-wrap: anywhere; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 0.8rem 1.6rem;
  margin: 1.4rem 0; }
.facts div { border-top: 2px solid #8886; padding-top: 0.35rem; }
.facts dt { color: #666; font-size: 0.85rem; } .facts dd { margin: 0; font-size: 1.35rem; font-weight: 600; }
.facts dd + dd { font-size: 0.85rem; font-weight: 400; }
.pictures figure { flex: 1 1 20rem; max-width: 30rem; } .montage { margin-top: 0.6rem; }
figure img { display: block; width: 100%; background: #000; border-radius: 3px; }
figcaption { margin-top: 0.4rem; }
dl.made { display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 1.2rem; font-size: 0.9rem; }
dl.made dt { color: #666; } dl.made dd { margin: 0; overflow-wrap: anywhere; }
.notice { margin-top: 2.5rem; padding-top: 0.6rem; border-top: 1px solid #8886; }
@media (prefers-color-scheme: dark) {
  .quiet, .facts dt, dl.made dt { color: #a0a0a0; }
  .verdict { border-left-color: #58b37e; } .verdict.review { border-left-color: #f2766b; }
}
@page { size: A4; margin: 14mm; }
@media print {
  :root { color-scheme: light; }
  body { font-size: 10pt; max-width: none; margin: 0; padding: 0; color: #000; background: #fff; }
  .quiet, .facts dt, dl.made dt { color: #444; }
  .facts { grid-template-columns: repeat(4, 1fr); }
  figure, tr, .verdict, .facts div { break-inside: avoid; } h2 { break-after: avoid; }
  .pictures figure { max-width: 85mm; } .pictures { justify-content: flex-start; }
}
"""


def write_page(path: Path, report: Mapping[str, Any], overlay: bytes, contours: Sequence[ContourPicture] = ()) -> None:
    """Write the report of one case as one HTML file; pictures are inside, and no script.

    Args:
        path: The HTML file; its folder must exist.
        report: What ``build_report`` returned.
        overlay: PNG of the montage.
        contours: Slices with the diameters.

    Raises:
        AR2UNetError: If the file cannot be written.
    """
    name = report["inputs"]["flair"]
    montage = figure(overlay, "image/png", _montage_caption(report), alternative="Axial slices with the outline")
    parts = [
        "<h1>FLAIR abnormality</h1>",
        f'<p class="quiet">{html.escape(name)}{_sequences(report)} · {html.escape(report["notice"])}</p>',
        _verdict(report),
        _facts(report),
        _contours(report, contours),
        _lesions(report),
        "<h2>Slices</h2>",
        f'<div class="montage">{montage}</div>',
        _notes(report),
        _made(report),
        f'<p class="notice quiet">{html.escape(report["notice"])}</p>',
    ]
    write_html(path, f"FLAIR abnormality: {name}", parts, style=STYLE)


def _sequences(report: Mapping[str, Any]) -> str:
    others = [html.escape(f"{name}: {file}") for name, file in report["inputs"].items() if name != "flair"]
    return f" with {', '.join(others)}" if others else ""


def _verdict(report: Mapping[str, Any]) -> str:
    """Say in plain words how far the mask can be trusted."""
    confidence, warnings = report["confidence"], report["warnings"]
    kind = "unknown" if confidence is None else "review" if confidence["review"] else "trusted"
    if confidence is None:
        words = "<b>How far this mask can be trusted is not known:</b> the network was not assessed."
    elif report["lesion_count"] == 0:  # a Dice says little about a mask of nothing
        kind = "review" if confidence["review"] else "unknown"
        verdict = "Review this case: nothing was found." if confidence["review"] else "Nothing was found."
        words = f"<b>{verdict}</b> A small or faint lesion may have been missed, so look at the slices."
    else:
        verdict = "Review this case." if confidence["review"] else "No doubt was raised."
        words = (
            f"<b>{verdict}</b> The expected agreement with an expert's outline is Dice "
            f"{confidence['predicted_dice']:.2f} (1 is perfect; experts reach about 0.84 among themselves)."
        )
    items = "".join(f"<li>{html.escape(warning)}</li>" for warning in warnings)
    return f'<div class="verdict {kind}"><p>{words}</p>{f"<ul>{items}</ul>" if items else ""}</div>'


def _facts(report: Mapping[str, Any]) -> str:
    """Return the figures that are looked for first."""
    volume, interval, laterality = report["volume_ml"], report["volume_interval_ml"], report["laterality"]
    if volume is None:
        amount, more = f"{report['lesion_voxels']:,} voxels", report["volume_note"]
    elif interval is None:
        amount, more = f"{_ml(volume)} ml", report["volume_interval_note"]
    else:
        amount = f"{_ml(volume)} ml"
        more = f"{_ml(interval[0])} to {_ml(interval[1])} ml if the Dice is as expected"
    facts = [("Volume", amount, more), ("Lesions", str(report["lesion_count"]), "connected regions")]
    if report["lesion_count"]:
        if laterality is None:
            facts.append(("Side", "not known", "The scan does not state its orientation."))
        else:
            left = round(100 * laterality["left_fraction"])
            side = laterality["side"]
            share = f"{left} % on the patient's left, {100 - left} % on the right"
            facts.append(("Side", side[0].upper() + side[1:], share))
    slices = f"{report['slices_with_lesion']} of {report['slices_total']}"
    facts.append(("Axial slices", slices, "hold some of it"))
    cells = "".join(
        f"<div><dt>{label}</dt><dd>{html.escape(value)}</dd><dd>{html.escape(more)}</dd></div>"
        for label, value, more in facts
    )
    note = "" if interval is None else f'<p class="quiet">{html.escape(report["volume_interval_note"])}</p>'
    return f'<dl class="facts">{cells}</dl>{note}'


def _contours(report: Mapping[str, Any], contours: Sequence[ContourPicture]) -> str:
    if not contours:
        return ""
    figures = []
    for picture in contours:
        measured = [
            f"lesion {number}: {diameters['longest_mm']:.1f} × {diameters['perpendicular_mm']:.1f} mm"
            for number, diameters in ((n, report["lesions"][n - 1]["diameters"]) for n in picture.lesions)
        ]
        words = "; ".join(measured) or "the one with most lesion"
        figures.append(figure(picture.png, "image/png", f"Slice {picture.slice}, {words}."))
    title = "Diameters" if any(picture.lesions for picture in contours) else "Largest extent"
    return f'<h2>{title}</h2><div class="pictures">{"".join(figures)}</div>'


def _lesions(report: Mapping[str, Any]) -> str:
    if not report["lesions"]:
        return ""
    measured = report["spacing_mm"] is not None
    header = ["Lesion", "voxels", "side"]
    if measured:
        header = ["Lesion", "volume (ml)", "diameters (mm)", "product (mm²)", "on slice", "side", "centre R, A, S (mm)"]
    rows = []
    for number, lesion in enumerate(report["lesions"], 1):
        side = lesion["side"] or "not known"
        diameters, centre = lesion["diameters"], lesion["centre_ras_mm"]
        if not measured or diameters is None:
            rows.append([str(number), f"{lesion['voxels']:,}", side])
            continue
        lengths = f"{diameters['longest_mm']:.1f} × {diameters['perpendicular_mm']:.1f}"
        place = "–" if centre is None else ", ".join(f"{value:.1f}".replace("-", "−") for value in centre)
        size = _ml(lesion["volume_ml"]), lengths, f"{diameters['product_mm2']:.0f}", str(diameters["slice"])
        rows.append([str(number), *size, side, place])
    explained = (
        "Diameters after RANO: the longest inside the lesion's outline on any axial slice, and the longest "
        "perpendicular to it on that slice; holes count as lesion. The centre is in scanner "
        "coordinates, to the right, anterior and superior."
        if measured
        else report["volume_note"] + " Nor can diameters or a centre in millimetres."
    )
    return f'<h2>Lesions</h2>{table(header, rows)}<p class="quiet">{html.escape(explained)}</p>'


def _montage_caption(report: Mapping[str, Any]) -> str:
    side = "" if report["lesion_count"] and report["laterality"] is None else " The patient's right is on the left."
    return f"Axial slices of the FLAIR with the outline of the mask, numbered from the lowest.{side}"


def _notes(report: Mapping[str, Any]) -> str:
    items = "".join(f"<li>{html.escape(note)}</li>" for note in report["notes"])
    return f"<h2>Notes on reading the scan</h2><ul>{items}</ul>" if items else ""


def _made(report: Mapping[str, Any]) -> str:
    """Say with what the mask was made, and how long it took."""
    seconds = report["seconds"]
    stages = ", ".join(f"{stage} {seconds[stage]:.2f}" for stage in seconds if stage != "total")
    spacing = report["spacing_mm"]
    size = " × ".join(str(length) for length in report["shape"])
    grid = "spacing not stated" if spacing is None else f"{' × '.join(f'{length:.3g}' for length in spacing)} mm"
    facts = {
        "Scan": f"{size} voxels, {grid}",
        "Network": f"{report['bundle']['name']} {report['bundle']['version']}",
        "Weights (SHA-256)": report["weights_sha256"],
        "Computed by": report["engine"],
        "Time": f"{seconds['total']:.2f} s ({stages})",
        "Software": ", ".join(f"{name} {version}" for name, version in report["software"].items()),
    }
    cells = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items())
    return f'<h2>How it was made</h2><dl class="made">{cells}</dl>'


def _ml(volume: float) -> str:
    """Return a volume with as many digits as can be of use."""
    return f"{volume:.{1 if volume >= 10 else 2 if volume >= 0.1 else 3}f}"
