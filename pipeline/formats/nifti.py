"""Reading NIfTI scans and writing results on their grid.

Files come from anywhere, so the header is judged before a byte of data is allocated,
and every refusal is one line that names the file, what was expected and what came.
Reads NIfTI-1 and NIfTI-2 in a single file, plain or gzipped, by content and not by name.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pipeline.errors import ScanError
from pipeline.formats.atomic import atomic_write
from pipeline.formats.foreign import AGAIN, REPLACE
from pipeline.formats.nifti_header import (
    MILLIMETRE,
    NIFTI_KINDS,
    Header,
    Layout,
    check_same_grid,
    open_nifti,
    read_layout,
)
from pipeline.formats.printable import printable
from pipeline.formats.scan import Scan

__all__ = ["Mask", "read_mask", "read_scan", "write_mask", "write_probabilities"]

MAX_VALUES_SHOWN = 5  # of a file that is no mask
MAX_TRAILING_BYTES = 2**20  # read behind the data in search of gzip's checksum
SCANNER_COORDINATES, ALIGNED_COORDINATES = 1, 2  # NIfTI codes of what an affine leads to
COMPRESSION_LEVEL = 6  # measured: 9 takes twice as long for probabilities and saves little
# Measured: for results, long runs of one number, zlib's run-length strategy takes a third of the time and no more room.
COMPRESSION_STRATEGY = zlib.Z_RLE
GZIP_FRAME = 16 + zlib.MAX_WBITS  # what zlib calls a gzip header and checksum around the data


def read_scan(flair: Path, t1: Path | None = None, t1c: Path | None = None) -> Scan:
    """Read a scan from NIfTI files of its sequences.

    With FLAIR alone the image has one channel. With t1 or t1c it has three, and a
    sequence that is not given is replaced by FLAIR, as in the training data. A header
    without sform and qform gives nibabel's affine for such files: axes to L, A, S.

    Args:
        flair: The FLAIR file; its grid is the scan's.
        t1: Pre-contrast T1 on the same grid.
        t1c: Post-contrast T1 on the same grid.

    Raises:
        ScanError: If a file is missing, damaged, not one real-valued 3D volume of finite,
            varying intensities, or not on the grid of the FLAIR.
    """
    layouts = {path: read_layout(path) for path in (flair, t1, t1c) if path is not None}
    grid = layouts[flair]
    for layout in layouts.values():
        check_same_grid(layout, grid)
    channels = [flair] if t1 is None and t1c is None else [t1, flair, t1c]
    # Kept slice by slice, as the file has it: each channel is filled in place and viewed as (I, J, K).
    try:
        stored = np.empty((len(channels), *reversed(grid.spatial_shape)), dtype=np.float32)
    except MemoryError as error:
        raise ScanError(f"{printable(flair)}: not enough memory for a volume of shape {grid.spatial_shape}") from error
    for channel, path in enumerate(channels):
        if path is not None:
            _read_intensities(layouts[path], stored[channel])

    # Only here: it brings SciPy, for which no refusal shall wait.
    from transforms.geometry import FLAIR_CHANNEL, known_spacing

    for channel, path in enumerate(channels):
        if path is None:
            stored[channel] = stored[FLAIR_CHANNEL]
    return Scan(
        image=stored.transpose(0, 3, 2, 1),
        affine=grid.affine,
        spacing=known_spacing(grid.affine, grid.unit),
        source=str(flair),
        header=grid.header,
    )


def write_mask(mask: NDArray[np.generic], scan: Scan, path: Path) -> None:
    """Write a mask as uint8 NIfTI on the grid of its scan.

    Shape, affine, qform, sform, voxel sizes and units are those of the scan's header,
    bit by bit. The file appears under its name only when it is complete.

    Args:
        mask: ``(I, J, K)``, 0 background and 1 FLAIR abnormality, of any type.
        scan: The scan that the mask was made from.
        path: Ends in .nii or .nii.gz.

    Raises:
        ValueError: If the shape is not the scan's, a value is not 0 or 1, or the name ends otherwise.
        AR2UNetError: If the file cannot be written.
    """
    if not all((plane == plane.astype(bool)).all() for plane in mask.transpose()):  # plane by plane: no copy in memory
        raise ValueError(f"mask must hold 0 and 1 only, got values from {mask.min()} to {mask.max()}")
    _write_on_grid(mask, scan, path, np.uint8, b"FLAIR abnormality mask by AR2-UNet")


def write_probabilities(probabilities: NDArray[np.floating], scan: Scan, path: Path) -> None:
    """Write probabilities of FLAIR abnormality as float32 NIfTI on the grid of their scan.

    Args:
        probabilities: ``(I, J, K)``, from 0 to 1.
        scan: The scan that they were made from.
        path: Ends in .nii or .nii.gz.

    Raises:
        ValueError: If the shape is not the scan's, a value is not from 0 to 1, or the name ends otherwise.
        AR2UNetError: If the file cannot be written.
    """
    low, high = float(probabilities.min()), float(probabilities.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"probabilities must lie between 0 and 1, got values from {low:g} to {high:g}")
    _write_on_grid(probabilities, scan, path, np.float32, b"FLAIR abnormality probabilities by AR2-UNet")


def _read_intensities(layout: Layout, target: NDArray[np.float32], *, may_be_constant: bool = False) -> None:
    """Fill ``target`` ``(K, J, I)`` slice by slice, scaled as the header says, and refuse what is no picture."""
    path, name = layout.path, printable(layout.path)
    raw = bytearray(math.prod(target.shape[1:]) * layout.dtype.itemsize)
    stored = np.frombuffer(raw, layout.dtype).reshape(target.shape[1:])
    low, high, nonfinite = math.inf, -math.inf, 0
    with open_nifti(path) as file, np.errstate(all="ignore"):
        file.seek(layout.offset)
        for k, plane in enumerate(target):
            if not _fill(file, raw):
                raise ScanError(
                    f"{name}: expected {len(target)} slices, got a file that ends in slice {k + 1}; {AGAIN}"
                )
            if (layout.slope, layout.intercept) == (1.0, 0.0):
                np.copyto(plane, stored, casting="unsafe")
            else:
                plane[...] = stored.astype(np.float64) * layout.slope + layout.intercept
            plane_low, plane_high = float(plane.min()), float(plane.max())
            if math.isfinite(plane_low) and math.isfinite(plane_high):
                low, high = min(low, plane_low), max(high, plane_high)
            else:
                nonfinite += plane.size - int(np.count_nonzero(np.isfinite(plane)))
        if isinstance(file, gzip.GzipFile):
            # Only at the end of the data does gzip find out whether they are what was compressed.
            file.read(MAX_TRAILING_BYTES)
    if nonfinite:
        received = f"{nonfinite:,} NaN or infinite ({100 * nonfinite / target.size:.3g} %)"
        raise ScanError(f"{name}: expected finite intensities, got {received}; {REPLACE}")
    if low == high and not may_be_constant:
        received = "zeros only" if low == 0 else f"{low:g} in every voxel"
        raise ScanError(f"{name}: expected intensities that vary, got {received}")


def _fill(file: BinaryIO, buffer: bytearray) -> bool:
    """Fill a buffer from a file; False where the file ends before."""
    rest = memoryview(buffer)
    while rest:
        count = file.readinto(rest)  # type: ignore[attr-defined]
        if not count:
            return False
        rest = rest[count:]
    return True


def _write_on_grid(values: NDArray[np.generic], scan: Scan, path: Path, dtype: DTypeLike, description: bytes) -> None:
    """Write header and slices directly: an image object could touch qform, sform or units."""
    if values.shape != scan.spatial_shape:
        raise ValueError(f"values must have the scan's shape {scan.spatial_shape}, got {values.shape}")
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"path must end in .nii or .nii.gz, got {path.name!r}")
    header = _result_header(scan, dtype, description)
    content = _content(values, header, np.dtype(dtype).newbyteorder(header.endianness))
    if path.name.endswith(".gz"):
        content = _gzipped(content)
    with atomic_write(path) as file:
        file.writelines(content)


def _content(values: NDArray[np.generic], header: Header, dtype: np.dtype[np.generic]) -> Iterator[bytes]:
    """Yield a file's bytes slice by slice."""
    yield header.binaryblock + bytes(4)  # four zeros: no extensions
    for k in range(values.shape[2]):
        yield values[:, :, k].astype(dtype, copy=False).tobytes(order="F")


def _gzipped(content: Iterable[bytes]) -> Iterator[bytes]:
    """Yield bytes as a gzip file holds them; no name and no time inside, so the same result is the same file."""
    compressor = zlib.compressobj(COMPRESSION_LEVEL, zlib.DEFLATED, GZIP_FRAME, strategy=COMPRESSION_STRATEGY)
    for part in content:
        yield compressor.compress(part)
    yield compressor.flush()


def _new_header(scan: Scan) -> Header:
    """Return a header for a scan that did not come from NIfTI; without a spacing it claims no scanner's millimetres."""
    known = scan.spacing is not None
    header: Header = NIFTI_KINDS[348][0]()
    header.set_data_shape(scan.spatial_shape)
    code = SCANNER_COORDINATES if known else ALIGNED_COORDINATES
    header.set_sform(scan.affine, code=code)
    header.set_qform(scan.affine, code=code)
    header["xyzt_units"] = MILLIMETRE if known else 0
    return header


def _result_header(scan: Scan, dtype: DTypeLike, description: bytes) -> Header:
    """Return the scan's header for other values: geometry kept, what described the intensities cleared."""
    template: Header = scan.header
    header = _new_header(scan) if template is None else template.copy()
    header.set_data_dtype(dtype)
    header["vox_offset"] = header.sizeof_hdr + 4
    header["magic"] = NIFTI_KINDS[header.sizeof_hdr][1].rstrip(b"\0")
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["cal_min"], header["cal_max"] = 0, 0
    header["intent_code"], header["intent_name"] = 0, b""
    header["intent_p1"], header["intent_p2"], header["intent_p3"] = 0, 0, 0
    header["descrip"] = description
    return header


@dataclass(frozen=True, eq=False)
class Mask:
    """A mask as a file holds it.

    Attributes:
        mask: ``(I, J, K)``, bool.
        affine: ``(4, 4)``, float64, voxel to RAS+ mm.
        spacing: Voxel sizes in mm along I, J and K; None where the file does not know them.
    """

    mask: NDArray[np.bool_]
    affine: NDArray[np.float64]
    spacing: tuple[float, float, float] | None


def read_mask(path: Path) -> Mask:
    """Read a mask from a NIfTI file; a mask of zeros only is a mask, too.

    Raises:
        ScanError: If the file is missing, damaged, not one 3D volume, or holds anything but 0 and 1.
    """
    layout = read_layout(path)
    try:
        stored = np.empty(tuple(reversed(layout.spatial_shape)), dtype=np.float32)
    except MemoryError as error:
        raise ScanError(f"{printable(path)}: not enough memory for a mask of shape {layout.spatial_shape}") from error
    _read_intensities(layout, stored, may_be_constant=True)
    mask = stored == 1
    if not (mask | (stored == 0)).all():
        values = np.unique(stored)
        shown = ", ".join(f"{value:g}" for value in values[:MAX_VALUES_SHOWN])
        more = f", ... ({len(values):,} values)" if len(values) > MAX_VALUES_SHOWN else ""
        raise ScanError(f"{printable(path)}: expected a mask of 0 and 1, got {shown}{more}")

    # Only here: it brings SciPy, for which no refusal shall wait.
    from transforms.geometry import known_spacing

    return Mask(mask.transpose(2, 1, 0), layout.affine, known_spacing(layout.affine, layout.unit))
