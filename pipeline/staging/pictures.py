"""One slice from a picture file, which comes from anywhere: its size is judged before a pixel is decoded."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ScanError
from pipeline.formats.foreign import AGAIN
from pipeline.formats.printable import printable
from pipeline.staging.frame import COLUMNS, EXPECTED, ROWS

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["PICTURE_STARTS", "Picture", "read_picture"]

PICTURE_STARTS = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG"}  # how the files begin, and what Pillow calls them
# 16-bit greys by Pillow's names. Of RGB with 16 bits Pillow keeps the upper 8: enough to see that it has color.
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I")
OPAQUE = 255
# Red, green and blue to grey as in ITU-R BT.601, which Pillow's own conversion uses as well.
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, eq=False)
class Picture:
    """A slice from a picture file.

    Attributes:
        pixels: Greys ``(rows, columns)``, float32, as stored.
        color: How far red, green and blue lie apart in the mean pixel, 0 (grey) to 255.
        notes: What was decided on the way, a line each.
    """

    pixels: NDArray[np.float32]
    color: float
    notes: tuple[str, ...]


def read_picture(path: Path) -> Picture:
    """Read one slice from PNG or JPEG: grey of 8 or 16 bits, RGB, a palette; transparency lies on black.

    Raises:
        ScanError: If the file is damaged, animated, of another size than the training slices', of an unsupported
            kind, or of one grey only.
    """
    from PIL import Image

    name = printable(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns of absurd sizes and of some damage
            with Image.open(path, formats=tuple(PICTURE_STARTS.values())) as image:
                _check(image, name)
                notes = _turn_note(image)
                pixels, color, transparent = _decode(_upright(image))
    except (ScanError, MemoryError):
        raise
    # Damaged files surface as OSError, SyntaxError, struct.error and others: all mean that the file is not readable.
    except Exception as error:
        reason = printable(str(error)).rstrip(".") or type(error).__name__
        if type(error).__name__ == "UnidentifiedImageError":
            reason = "it begins as one, but is none"
        raise ScanError(f"{name}: cannot be read as PNG or JPEG: {reason}; {AGAIN}") from error
    if pixels.min() == pixels.max():
        raise ScanError(f"{name}: expected a slice whose pixels vary, got {pixels.min():g} in every pixel")
    if transparent:
        notes += ("the picture's transparent parts were laid on black",)
    return Picture(pixels, color, notes)


def _check(image: Image.Image, name: str) -> None:
    """Refuse by what the header says."""
    if getattr(image, "n_frames", 1) > 1:
        frames = getattr(image, "n_frames", 1)
        raise ScanError(f"{name}: expected one slice, got a picture of {frames} frames; save one of them")
    width, height = image.size
    if sorted((width, height)) != [COLUMNS, ROWS]:
        raise ScanError(f"{name}: expected {EXPECTED}; got a picture of {width}x{height} pixels")
    if image.mode not in ("L", "LA", "P", "PA", "RGB", "RGBA", *DEEP_MODES):
        raise ScanError(f"{name}: expected a grey or RGB picture, got pixels of kind {image.mode}; save it as grey PNG")
    oriented = _upright(image).size
    if oriented != (COLUMNS, ROWS):
        received = f"{oriented[0]}x{oriented[1]}, as of a slice on its side; turn it so that the front is up"
        raise ScanError(f"{name}: expected a slice of {COLUMNS}x{ROWS} pixels, got {received}")


def _turn_note(image: Image.Image) -> tuple[str, ...]:
    """Return a note where the file itself says that it is to be turned before it is shown."""
    orientation = image.getexif().get(0x0112, 1)
    return () if orientation == 1 else ("the picture was turned as its EXIF orientation says",)


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def _decode(image: Image.Image) -> tuple[NDArray[np.float32], float, bool]:
    """Return the greys, how much color there was, and whether anything was transparent."""
    if image.mode in DEEP_MODES:
        return np.asarray(image, dtype=np.float32), 0.0, False
    if image.mode == "L" and "transparency" not in image.info:
        return np.asarray(image, dtype=np.float32), 0.0, False
    values: NDArray[Any] = np.asarray(image.convert("RGBA")).astype(np.float32)
    color, alpha = values[..., :3], values[..., 3]
    shown = color * (alpha[..., None] / OPAQUE)
    grey: NDArray[np.float32] = (shown @ np.array(LUMA, np.float32)).astype(np.float32)
    return grey, float(np.ptp(shown, axis=-1).mean()), bool((alpha < OPAQUE).any())
