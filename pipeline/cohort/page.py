"""The page of a cohort: every case a row that links its report, what most needs a look on top."""

from __future__ import annotations

import csv
import heapq
import html
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from pipeline.cohort.folder import CASES, CohortFolder
from pipeline.cohort.rows import COLUMNS, FAILED
from pipeline.html_page import figure, write_html
from pipeline.report import NOTICE

__all__ = ["PAGE_FILE", "write_page"]

PAGE_FILE = "cohort.html"
MAX_ROWS = 10_000  # of the table; a browser takes seconds for as many
PICTURED = 10  # cases with the least confidence, shown above the table
PICTURE_WIDTH = 440  # pixels
LABELS = {
    "case": "case",
    "status": "status",
    "volume_ml": "volume (ml)",
    "lesions": "lesions",
    "expected_dice": "expected Dice",
    "review": "review",
    "seconds": "seconds",
    "reason": "reason or warnings",
}
NUMBERS = {"volume_ml": 1, "lesions": 0, "expected_dice": 2, "seconds": 1}  # and their decimals
STYLE = """
th { cursor: pointer; position: sticky; top: 0; background: Canvas; } th[aria-sort=ascending]::after { content: " ▲"; }
th[aria-sort=descending]::after { content: " ▼"; } td:last-child, th:last-child { text-align: left; max-width: 30rem;
  overflow-wrap: anywhere; } tr.failed { color: #b00020; } tr.review td { background: #f5b00022; }
.pictures figure { width: 13.2rem; } #filter { font: inherit; width: 20rem; max-width: 100%; }
@media (prefers-color-scheme: dark) { tr.failed { color: #ff8a80; } }
"""
# Cells hold what they are sorted by in data-v; what is missing goes to the end either way.
SCRIPT = """
const body = document.querySelector('tbody'), heads = [...document.querySelectorAll('th')];
heads.forEach((head, column) => head.addEventListener('click', () => {
  const down = head.getAttribute('aria-sort') === 'ascending', sign = down ? -1 : 1;
  heads.forEach(each => each.removeAttribute('aria-sort'));
  head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
  const keyed = [...body.rows].map(row => [row.cells[column].dataset.v, row]);
  const numeric = head.dataset.n === '1';
  keyed.sort(([a], [b]) => a === '' || b === '' ? (a === '') - (b === '')
    : sign * (numeric ? a - b : a.localeCompare(b, undefined, {numeric: true})));
  body.append(...keyed.map(([, row]) => row));
}));
document.querySelector('#filter').addEventListener('input', event => {
  const wanted = event.target.value.toLowerCase();
  for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
});
"""


def write_page(path: Path, folder: CohortFolder, lines: Iterable[bytes], total: int) -> None:
    """Write the page of a cohort: failed cases on top, then by expected Dice from the lowest.

    Args:
        path: The HTML file, in the cohort's folder.
        folder: Of the results that are linked.
        lines: Of the table, as CSV.
        total: Cases found; more than lines where the run is not complete.

    Raises:
        AR2UNetError: If the file cannot be written.
    """
    counts = {"rows": 0, "failed": 0, "review": 0}

    def read() -> Iterator[Mapping[str, str]]:
        for cells in csv.reader(line.decode() for line in lines):
            row = dict(zip(COLUMNS, cells, strict=True))
            counts["rows"] += 1
            counts["failed"] += row["status"] == FAILED
            counts["review"] += row["review"] == "yes"
            yield row

    rows = heapq.nsmallest(MAX_ROWS, read(), key=_urgency)
    parts = [
        "<h1>Cohort</h1>",
        _overall(**counts, total=total),
        _pictures(folder, rows),
        _table(folder, rows),
        f"<p>{NOTICE}</p>",
    ]
    write_html(path, f"Cohort of {total} scans", parts, style=STYLE, script=SCRIPT)


def _urgency(row: Mapping[str, str]) -> tuple[bool, float, str]:
    """Return what rows are sorted by: failed ones first, then the least expected Dice."""
    return row["status"] != FAILED, float(row["expected_dice"] or math.inf), row["case"]


def _overall(*, rows: int, failed: int, review: int, total: int) -> str:
    text = f"{rows - failed:,} of {total:,} scans segmented"
    if failed:
        text += f", {failed:,} failed"
    if rows < total:
        text += f", {total - rows:,} not reached yet: the run was interrupted"
    shown = f"Below are the {MAX_ROWS:,} that most need a look, all" if rows > MAX_ROWS else "The same rows"
    return f"<p>{text}. {review:,} of the masks are for review. {shown} are in cohort.csv.</p>"


def _pictures(folder: CohortFolder, rows: Sequence[Mapping[str, str]]) -> str:
    figures: list[str] = []
    for row in rows:
        if len(figures) == PICTURED:
            break
        picture = _thumbnail(folder.place(row["case"]) / "overlay.png") if row["status"] != FAILED else None
        if picture is not None:
            dice = row["expected_dice"]
            caption = f"{_linked(folder, row['case'])}{f', expected Dice {float(dice):.2f}' if dice else ''}"
            figures.append(figure(picture, "image/jpeg", caption, alternative=f"mask of {row['case']}"))
    if not figures:
        return ""
    return f'<h2>The least certain</h2><div class="pictures">{"".join(figures)}</div><h2>All</h2>'


def _thumbnail(path: Path) -> bytes | None:
    """Return a picture in small, as JPEG; None where there is none."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except OSError:
        return None
    height = max(1, round(small.height * PICTURE_WIDTH / small.width))
    content = io.BytesIO()
    small.resize((PICTURE_WIDTH, height), Image.Resampling.LANCZOS).save(content, "JPEG", quality=75)
    return content.getvalue()


def _table(folder: CohortFolder, rows: Iterable[Mapping[str, str]]) -> str:
    head = "".join(f'<th data-n="{int(name in NUMBERS)}">{label}</th>' for name, label in LABELS.items())
    body = "\n".join(_row(folder, row) for row in rows)
    search = '<p><input id="filter" type="search" placeholder="show rows with …" aria-label="show rows with"></p>'
    return f"{search}<div><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"


def _row(folder: CohortFolder, row: Mapping[str, str]) -> str:
    failed = row["status"] == FAILED
    cells = []
    for name in LABELS:
        value = row[name]
        shown = html.escape(value)
        if name == "case" and not failed:
            shown = _linked(folder, value)
        elif name == "reason" and not failed:
            value = row["warnings"]
            shown = html.escape(value)
        elif name in NUMBERS and value:
            shown = f"{float(value):,.{NUMBERS[name]}f}"
        cells.append(f'<td data-v="{html.escape(value)}">{shown}</td>')
    kind = "failed" if failed else "review" if row["review"] == "yes" else "done"
    return f'<tr class="{kind}" title="{html.escape(row["path"])}">{"".join(cells)}</tr>'


def _linked(folder: CohortFolder, case: str) -> str:
    """Return a link to a case's report; where it has no page, to its picture."""
    name = next(
        (name for name in ("report.html", "overlay.png") if (folder.place(case) / name).exists()), "report.json"
    )
    return f'<a href="{CASES}/{quote(case)}/{name}">{html.escape(case)}</a>'
