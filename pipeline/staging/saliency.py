"""The picture that goes with a stage: the slices, and over them what each place adds to the answer."""

from __future__ import annotations

import unicodedata
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.staging.frame import COLUMNS, ROWS
from pipeline.staging.stager import Staging
from pipeline.staging.stages import NOTICE, STAGES, verdict

__all__ = ["draw_saliency"]

MARGIN = 5  # pixels of the slice that are left around the brain
THICK = 4  # slices that share one contribution in a volume, of which one is shown
COLUMNS_OF_PANELS = 4
TITLE, FOOT = 92, 112  # heights
PANEL, LARGE_PANEL = 290, 480  # widths
GAP = 8
BLOCK = 4  # pixels along an edge of the smallest of the network's blocks
FULL = 99.5  # percentile of the contributions that gets the full color
MOST_OPAQUE = 0.8
# Told apart by color-blind readers as well, and neither of them a grey.
FOR, AGAINST = np.array([255, 122, 20], np.float32), np.array([40, 140, 255], np.float32)
GROUND, TEXT, QUIET = (0, 0, 0), (255, 255, 255), (165, 165, 165)
BAR = 300, 14  # of the legend

Floats = NDArray[np.float32]


def draw_saliency(staging: Staging, name: str, *, sides_known: bool) -> bytes:
    """Draw the slices with the exact contributions over them, as PNG.

    Of one slice there are two panels, without colors and with them; of a volume one of every four slices, which share
    one contribution. Slices are shown as they are stored in the training data: the front up, the patient's left on the
    left, with a question mark where the file does not state the sides.

    Args:
        staging: What was found.
        name: Of the input.
        sides_known: Whether the file states which side is left.
    """
    single = len(staging.slices) == 1
    chosen = [0] if single else list(range(THICK // 2, len(staging.slices), THICK))
    window = _brain_window(staging.slices)
    width = LARGE_PANEL if single else PANEL
    height = round(width * (window[0].stop - window[0].start) / (window[1].stop - window[1].start))
    some = np.abs(staging.contributions[staging.contributions != 0])
    largest = float(np.percentile(some, FULL)) if some.size else 1.0
    panels = [_panel(staging, k, window, (width, height), largest) for k in chosen]
    if single:
        plain = _grey(staging.slices[0][window], staging.slices, (width, height))
        panels.insert(0, plain.repeat(3, axis=2))
    across = min(COLUMNS_OF_PANELS, len(panels))
    down = -(-len(panels) // across)
    size = across * (width + GAP) + GAP, TITLE + down * (height + GAP) + FOOT
    canvas = Image.new("RGB", size, GROUND)
    draw = ImageDraw.Draw(canvas)
    left, right = ("L", "R") if sides_known else ("L?", "R?")
    for number, panel in enumerate(panels):
        x, y = GAP + number % across * (width + GAP), TITLE + number // across * (height + GAP)
        canvas.paste(Image.fromarray(panel), (x, y))
        font = ImageFont.load_default(20)
        draw.text((x + 8, y + 8), left, QUIET, font, "lt")
        draw.text((x + width - 8, y + 8), right, QUIET, font, "rt")
        place = staging.positions[chosen[min(number, len(chosen) - 1)]] + 1
        draw.text((x + width - 8, y + height - 8), f"slice {'~' if single else ''}{place}", QUIET, font, "rs")
    _write_title(draw, staging, name, size[0])
    _write_legend(draw, canvas, staging, largest, sides_known=sides_known)
    file = BytesIO()
    canvas.save(file, "PNG", compress_level=6)
    return file.getvalue()


def _brain_window(slices: Floats) -> tuple[slice, slice]:
    """Return the rows and columns that hold the brain on any slice, columns about the middle of the frame."""
    bright = slices.max(axis=0) > 0.1 * float(np.percentile(slices, FULL))
    rows, columns = (np.flatnonzero(bright.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return slice(0, ROWS), slice(0, COLUMNS)
    side = max(0, min(int(columns[0]), COLUMNS - 1 - int(columns[-1])) - MARGIN)
    return slice(max(0, int(rows[0]) - MARGIN), min(ROWS, int(rows[-1]) + 1 + MARGIN)), slice(side, COLUMNS - side)


def _grey(image: Floats, slices: Floats, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a slice ``(height, width, 1)`` in greys."""
    low, high = np.percentile(slices, (0, 99.8))
    grey = ((image - low) * (255 / max(1e-6, high - low))).clip(0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.LANCZOS))[..., None]


def _panel(
    staging: Staging, k: int, window: tuple[slice, slice], size: tuple[int, int], largest: float
) -> NDArray[np.uint8]:
    """Return a slice ``(height, width, 3)`` with its contributions over it."""
    grey = _grey(staging.slices[k][window], staging.slices, size).astype(np.float32)
    # Block by block it would look like a mosaic: the blocks' values are interpolated between their middles.
    blocks = Image.fromarray(staging.contributions[k]).resize((COLUMNS // BLOCK, ROWS // BLOCK), Image.Resampling.BOX)
    edges = window[1].start, window[0].start, window[1].stop, window[0].stop
    box = tuple(edge / BLOCK for edge in edges)
    signed = np.asarray(blocks.resize(size, Image.Resampling.BICUBIC, box=box))[..., None] / largest
    signed = signed.clip(-1, 1)
    opacity = MOST_OPAQUE * np.abs(signed)
    mixed = (1 - opacity) * grey + opacity * np.where(signed > 0, FOR, AGAINST)
    return mixed.round().astype(np.uint8)


def _write_title(draw: ImageDraw.ImageDraw, staging: Staging, name: str, width: int) -> None:
    answer = verdict(staging.stage, sure=staging.sure)
    title = answer[0].upper() + answer[1:]
    draw.text((GAP + 6, 30), title, TEXT, ImageFont.load_default(30), "lm")
    # The font has ASCII and little more; what it lacks would be a box. Accents are left out.
    plain = "".join(c for c in unicodedata.normalize("NFKD", Path(name).name) if not unicodedata.combining(c))
    plain = "".join(c if " " <= c <= "~" else "?" for c in plain)
    chances = ", ".join(f"CDR {s.cdr}: {p:.2f}" for s, p in zip(STAGES, staging.probabilities, strict=True))
    below, font = f"probabilities {chances}  ·  {plain}", ImageFont.load_default(19)
    while font.getlength(below) > width - 2 * GAP - 12:
        below = below[:-4] + "..."
    draw.text((GAP + 6, 68), below, QUIET, font, "lm")


def _write_legend(
    draw: ImageDraw.ImageDraw, canvas: Image.Image, staging: Staging, largest: float, *, sides_known: bool
) -> None:
    """Draw the scale of colors, and say what they add up to."""
    left, top = GAP + 6, canvas.height - FOOT + 22
    signed = np.linspace(-1, 1, BAR[0], dtype=np.float32)[None, :, None].repeat(BAR[1], axis=0)
    opacity = MOST_OPAQUE * np.abs(signed)
    mixed = (1 - opacity) * 110 + opacity * np.where(signed > 0, FOR, AGAINST)
    canvas.paste(Image.fromarray(mixed.round().astype(np.uint8)), (left, top))
    small = ImageFont.load_default(16)
    area, unit = (100, "square cm") if len(staging.slices) == 1 else (1000, "cubic cm")
    for place, anchor, value in ((0, "la", -largest), (BAR[0] // 2, "ma", 0.0), (BAR[0], "ra", largest)):
        number = f"{value * area:+.2f}" if value else f"0 log odds per {unit}"
        draw.text((left + place, top + BAR[1] + 4), number, QUIET, small, anchor)
    found = staging.contributions
    raised, lowered = float(found[found > 0].sum()), float(found[found < 0].sum())
    lines = (
        f"orange speaks for dementia ({raised:+.2f}), blue against it ({lowered:+.2f})",
        f"together {raised + lowered:+.2f} log odds, compared with the mean training subject",
        NOTICE,
        *(() if sides_known else ("L? and R?: the file does not state the sides, the training data suggest them",)),
    )
    for line_number, line in enumerate(lines):
        color = TEXT if line_number < 2 else QUIET
        draw.text((left + BAR[0] + 28, top + 22 * line_number), line, color, small, "lm")
