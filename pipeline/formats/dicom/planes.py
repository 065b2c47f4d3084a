"""The planes of one series: where each lies in the patient and how its pixels become intensities.

A plane is one slice's image, a file of its own or a frame of a multi-frame file. What a header promises
is judged here, before a byte of pixel data is read or allocated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ScanError
from pipeline.formats.dicom.codecs import choose_plugin
from pipeline.formats.dicom.headers import Header, find_value, numbers, text
from pipeline.formats.nifti_header import MAX_EXTENT, MAX_VOXELS, MIN_VOXEL_SIZE

__all__ = ["Plane", "list_planes"]

# A slice of nothing but zeros shrinks to its header of one or two kilobytes: 330 times at 512 x 512, 1,300 at 1024.
MAX_COMPRESSION_RATIO = 2000  # of a whole file
COSINE_TOLERANCE = 1e-3  # how far direction cosines may be from unit length and from a right angle
GREY = ("MONOCHROME1", "MONOCHROME2")


@dataclass(frozen=True, eq=False)
class Plane:
    """One slice's image.

    Attributes:
        header: Of its file.
        frame: Counted from 1; 1 in a file of one image.
        shape: Rows, columns.
        pixel_spacing: Between rows, between columns, in mm.
        directions: ``(2, 3)`` unit vectors in LPS: along a row (the column index grows), down a column.
        position: Of the first pixel's centre, LPS, in mm.
        slope: Of stored values to intensities.
        intercept: Of stored values to intensities.
        inverted: Whether high values are dark (MONOCHROME1).
    """

    header: Header
    frame: int
    shape: tuple[int, int]
    pixel_spacing: tuple[float, float]
    directions: NDArray[np.float64]
    position: NDArray[np.float64]
    slope: float
    intercept: float
    inverted: bool

    @property
    def name(self) -> str:
        """As a message shows it."""
        frames = self.header.frames
        return self.header.file.name + (f", frame {self.frame} of {frames}" if frames > 1 else "")


def list_planes(headers: Iterable[Header]) -> list[Plane]:
    """Return the planes of a series' files, in the order of the files.

    Raises:
        ScanError: Naming the first file (and frame) whose geometry or pixels are missing, cannot be
            so, or are more than the file can hold.
    """
    planes: list[Plane] = []
    voxels = 0
    for header in headers:
        _check_pixels(header)
        for frame in range(1, header.frames + 1):
            plane = _make_plane(header, frame)
            voxels += plane.shape[0] * plane.shape[1]
            if voxels > MAX_VOXELS:
                raise ScanError(f"{header.file.name}: expected at most {MAX_VOXELS:,} voxels in the series, got more")
            planes.append(plane)
    return planes


def _check_pixels(header: Header) -> None:
    """Refuse a file that is not a grey picture, or declares more pixels than it can hold."""
    name, dataset = header.file.name, header.dataset
    samples = find_value(dataset, "SamplesPerPixel")
    photometric = text(dataset, "PhotometricInterpretation")
    if samples != 1 or photometric not in GREY:
        raise ScanError(f"{name}: expected one grey value a pixel, got {photometric or 'no PhotometricInterpretation'}")
    bits = find_value(dataset, "BitsAllocated")
    if bits not in (8, 16, 32):
        raise ScanError(f"{name}: expected 8, 16 or 32 bits a pixel, got BitsAllocated {bits}")
    syntax = header.transfer_syntax
    if choose_plugin(syntax) is None:
        called = "".join(c for c in syntax.name if c.isprintable())
        kind = f"({called}) is not supported; decompress it first, for example with gdcmconv --raw"
        raise ScanError(f"{name}: its transfer syntax {kind}")
    rows, columns = _size(header)
    if header.pixel_bytes is None:
        raise ScanError(f"{name}: expected PixelData, got a file without (cut off?)")
    needed = rows * columns * header.frames * bits // 8
    compressed = syntax.is_encapsulated
    there = header.file.size * MAX_COMPRESSION_RATIO if compressed else header.pixel_bytes
    if needed > there or (header.declared_bytes or 0) > header.pixel_bytes:
        expected = f"{needed:,} bytes of pixels for {header.frames} x {rows} x {columns} of {bits} bits"
        kind = "compressed ones, too few to hold them" if compressed else "(cut off?)"
        raise ScanError(f"{name}: expected {expected}, got {header.pixel_bytes:,} {kind}")
    per_frame = find_value(dataset, "PerFrameFunctionalGroupsSequence")
    if header.frames > 1 and len(per_frame or ()) != header.frames:
        expected = f"the position of each of {header.frames} frames (PerFrameFunctionalGroupsSequence)"
        raise ScanError(f"{name}: expected {expected}, got {len(per_frame or ())}")


def _size(header: Header) -> tuple[int, int]:
    rows, columns = (numbers(find_value(header.dataset, keyword), 1) for keyword in ("Rows", "Columns"))
    if rows is None or columns is None or min(rows[0], columns[0]) < 2:
        received = f"Rows {text(header.dataset, 'Rows')!r} and Columns {text(header.dataset, 'Columns')!r}"
        raise ScanError(f"{header.file.name}: expected at least 2 x 2 pixels, got {received}")
    return int(rows[0]), int(columns[0])


def _make_plane(header: Header, frame: int) -> Plane:
    values = dict(_read_geometry(header, frame))
    name = header.file.name + (f", frame {frame}" if header.frames > 1 else "")
    for keyword, (value, meaning) in values.items():
        if value is None:
            raise ScanError(f"{name}: expected {meaning} ({keyword}), got none that can be read")
    spacing, orientation, position = (np.array(value) for value, _ in values.values())
    shape = _size(header)
    if spacing.min() < MIN_VOXEL_SIZE or (spacing * shape).max() > MAX_EXTENT:
        expected = f"pixels of at least {MIN_VOXEL_SIZE} mm and at most {MAX_EXTENT:g} mm in all along an axis"
        raise ScanError(f"{name}: expected {expected}, got PixelSpacing {spacing[0]:g} x {spacing[1]:g} mm for {shape}")
    directions = orientation.reshape(2, 3)
    gram = directions @ directions.T
    if not np.allclose(gram, np.eye(2), rtol=0, atol=COSINE_TOLERANCE):
        received = ", ".join(f"{cosine:g}" for cosine in orientation)
        raise ScanError(f"{name}: expected two unit vectors at right angles (ImageOrientationPatient), got {received}")
    slope, intercept = _rescaling(header, frame, name)
    first, second, third = (float(value) for value in position)
    return Plane(
        header=header,
        frame=frame,
        shape=shape,
        pixel_spacing=(float(spacing[0]), float(spacing[1])),
        directions=directions / np.linalg.norm(directions, axis=1, keepdims=True),
        position=np.array([first, second, third]),
        slope=slope,
        intercept=intercept,
        inverted=text(header.dataset, "PhotometricInterpretation") == "MONOCHROME1",
    )


def _read_geometry(header: Header, frame: int) -> Iterator[tuple[str, tuple[tuple[float, ...] | None, str]]]:
    for keyword, group, count, meaning in (
        ("PixelSpacing", "PixelMeasuresSequence", 2, "the distance of its pixels"),
        ("ImageOrientationPatient", "PlaneOrientationSequence", 6, "the directions of its rows and columns"),
        ("ImagePositionPatient", "PlanePositionSequence", 3, "its position in the patient"),
    ):
        yield keyword, (numbers(find_value(header.dataset, keyword, frame, group), count), meaning)


def _rescaling(header: Header, frame: int, name: str) -> tuple[float, float]:
    """Return slope and intercept; 1 and 0 where the file has none, as most MR files do."""
    result = []
    for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        value = find_value(header.dataset, keyword, frame, "PixelValueTransformationSequence")
        number = (default,) if value is None else numbers(value, 1)
        if number is None or (keyword == "RescaleSlope" and number[0] == 0):
            raise ScanError(f"{name}: expected a finite {keyword} other than 0, got {value}")
        result.append(number[0])
    return result[0], result[1]
