"""HTML pages that need nothing but themselves: styles and pictures are inside, and the browser holds them to it."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.formats.atomic import atomic_write

__all__ = ["figure", "table", "write_html"]

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.7rem; border-bottom: 1px solid #8884; text-align: right; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; } figcaption { max-width: 36rem; font-size: 0.9rem; } img { max-width: 100%; height: auto; }
.warning { border-left: 4px solid #b00020; padding-left: 1rem; overflow-wrap: anywhere; }
.key { display: inline-block; width: 1.2em; height: 0.35em; vertical-align: middle; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #151515; } a { color: #8ab4f8; } }
"""


def write_html(path: Path, title: str, parts: Iterable[str], *, style: str = "", script: str = "") -> None:
    """Write a page that may load nothing from elsewhere, under its name only when it is complete.

    Args:
        path: The HTML file; its folder must exist.
        title: Text.
        parts: HTML, one after the other; empty ones are left out.
        style: CSS on top of the pages' own.
        script: JavaScript; the browser runs this one and no other.

    Raises:
        AR2UNetError: If the file cannot be written.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
    text = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}{style}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + (f"\n<script>{script}</script>" if script else "")
        + "\n</body></html>\n"
    )
    with atomic_write(path) as file:
        # A file name may hold bytes that are no characters.
        file.write(text.encode("utf-8", "backslashreplace"))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; every cell is text and is escaped."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def figure(content: bytes, media_type: str, caption: str, *, alternative: str | None = None) -> str:
    """Return a figure with its picture inside.

    Args:
        content: The picture's file.
        media_type: Such as "image/png".
        caption: HTML.
        alternative: What a screen reader says in place of the picture, text; None says the caption.
    """
    data = base64.b64encode(content).decode()
    spoken = caption if alternative is None else html.escape(alternative)
    image = f'<img alt="{spoken}" src="data:{media_type};base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
