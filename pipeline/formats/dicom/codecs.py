"""A pydicom plug-in that decodes JPEG, JPEG-LS and JPEG 2000 with imagecodecs.

Of the decoders that pydicom knows, GDCM ends the whole process at a damaged stream, CharLS by itself takes
seconds over a cut one, and libjpeg is under the GPL. Here each stream is judged first: its own size must be
that of the header, so that nothing larger is ever allocated, and it must have an end. RLE and uncompressed
pixels are pydicom's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import DecodeRunner

__all__ = ["DECODER_DEPENDENCIES", "choose_plugin", "decode_frame", "is_available"]

PLUGIN = "imagecodecs"  # its label in pydicom
FUNCTIONS = {
    JPEGBaseline8Bit: "jpeg_decode",
    JPEGExtended12Bit: "jpeg_decode",
    # Not jpeg_decode, which fills what is missing with grey, nor ljpeg_decode, which breaks down at a damaged stream.
    JPEGLossless: "jpegsof3_decode",
    JPEGLosslessSV1: "jpegsof3_decode",
    JPEGLSLossless: "jpegls_decode",
    JPEGLSNearLossless: "jpegls_decode",
    JPEG2000Lossless: "jpeg2k_decode",
    JPEG2000: "jpeg2k_decode",
}
UNCOMPRESSED = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
DECODER_DEPENDENCIES = dict.fromkeys(FUNCTIONS, ("imagecodecs",))

J2K_START = b"\xff\x4f\xff\x51"  # start of codestream, then its size
JPEG_START = b"\xff\xd8"
JPEG_END = b"\xff\xd9"
# Markers of a JPEG frame header: the baseline, extended, progressive and lossless ones, and that of JPEG-LS.
FRAME_MARKERS = (0xC0, 0xC1, 0xC2, 0xC3, 0xF7)


def choose_plugin(syntax: UID) -> str | None:
    """Return the label of the pydicom plug-in that decodes a transfer syntax.

    It is empty where the pixels are not compressed, and None where the transfer syntax is not supported.
    """
    if syntax in FUNCTIONS:
        return PLUGIN
    if syntax == RLELossless:
        return "pydicom"
    return "" if syntax in UNCOMPRESSED else None


def is_available(uid: str) -> bool:
    """Whether the plug-in decodes a transfer syntax; asked by pydicom."""
    return uid in FUNCTIONS


def decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """Decode one frame; called by pydicom.

    Args:
        src: The frame's compressed stream.
        runner: Knows what the header says of it, and is told what the stream holds instead.

    Raises:
        ValueError: If the stream is cut off, or its size is not the header's.
    """
    import imagecodecs

    stream = src.rstrip(b"\0")
    shape = read_stream_shape(stream)
    if shape != (runner.rows, runner.columns):
        raise ValueError(f"stream must hold {(runner.rows, runner.columns)} pixels, got {shape}")
    if stream.startswith(JPEG_START) and not stream.endswith(JPEG_END):
        raise ValueError("stream must end with an end-of-image marker")
    decode: Callable[[bytes], Any] = getattr(imagecodecs, FUNCTIONS[runner.transfer_syntax])
    pixels = decode(stream)
    if pixels.shape != shape:
        raise ValueError(f"stream must hold grey pixels of shape {shape}, got {pixels.shape}")
    runner.set_option("bits_allocated", 8 * pixels.dtype.itemsize)
    frame: bytes = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()
    return frame


def read_stream_shape(stream: bytes) -> tuple[int, int] | None:
    """Return rows and columns that a JPEG, JPEG-LS or JPEG 2000 stream declares; None where it does not."""
    if stream.startswith(JPEG_START):
        return _read_jpeg_shape(stream)
    start = stream.find(J2K_START, 0, 4096)  # at its very start, or behind the boxes of a JP2 file
    if start < 0 or len(stream) < start + 24:
        return None
    right, bottom, left, top = (int.from_bytes(stream[start + at : start + at + 4], "big") for at in (8, 12, 16, 20))
    return bottom - top, right - left


def _read_jpeg_shape(stream: bytes) -> tuple[int, int] | None:
    position = len(JPEG_START)
    while position + 9 <= len(stream) and stream[position] == 0xFF:
        marker = stream[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker in FRAME_MARKERS:
            rows, columns = (int.from_bytes(stream[position + at : position + at + 2], "big") for at in (5, 7))
            return rows, columns
        position += 2 + int.from_bytes(stream[position + 2 : position + 4], "big")
    return None


# While it is imported, which one thread does for all: pydicom takes a plug-in once only.
for _syntax in FUNCTIONS:
    get_decoder(_syntax).add_plugin(PLUGIN, (__name__, "decode_frame"))
