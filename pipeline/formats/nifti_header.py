"""What a NIfTI file's header promises, and the refusal of what cannot be kept.

The header is judged before a byte of data is allocated. Every refusal is one line that
names the file, what was expected and what came.
"""

from __future__ import annotations

import gzip
import math
import stat
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ScanError
from pipeline.formats.foreign import AGAIN, describe_content
from pipeline.formats.printable import printable


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Let a package that is not loaded yet seem not to be installed, to whatever is imported meanwhile."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # Python's own mark of what cannot be imported
    try:
        yield
    finally:
        del sys.modules[package]


# Where pydicom is installed nibabel imports it, for DICOM headers inside of NIfTI files, and takes four times as long.
with _hidden("pydicom"):
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header
    from nibabel.spatialimages import HeaderDataError

__all__ = [
    "GRID_TOLERANCE",
    "MAX_EXTENT",
    "MAX_VOXELS",
    "MILLIMETRE",
    "MIN_VOXEL_SIZE",
    "NIFTI_KINDS",
    "Header",
    "Layout",
    "check_geometry",
    "check_same_grid",
    "open_nifti",
    "printable",
    "read_layout",
]

# 1024 x 1024 x 512: beyond the finest brain MR published (880 x 880 x 640); 2 GiB a channel as float32.
MAX_VOXELS = 2**29
# No head reaches it, nor does a scanner's field of view; a file that does names the wrong unit. Measured: slices that
# large take 1.5 GB in the network, and twice as large ones 7 GB.
MAX_EXTENT = 1200.0  # mm, along one axis
MIN_VOXEL_SIZE = 0.01  # mm
# Two sequences share a grid if no corner voxel lies farther apart; quaternions in float32 are off by 0.001 mm at most.
GRID_TOLERANCE = 0.1  # mm
# Volume of the voxel over the product of its edges: 1 for a box, 0.5 for a shear of 60 degrees, 0 for no volume.
MIN_VOXEL_VOLUME_RATIO = 1e-3
# Deflate cannot compress better (zlib's documentation), so a gzip file bounds what it can hold before it is opened.
MAX_DEFLATE_RATIO = 1032
MAX_DATA_OFFSET = 2**26  # bytes of header extensions
REPAIR_GEOMETRY = "convert it from DICOM again, or repair the header"

# By size of the header: its class, its magic, and where that stands.
NIFTI_KINDS: dict[int, tuple[Any, bytes, int]] = {
    348: (Nifti1Header, b"n+1\0", 344),
    540: (Nifti2Header, b"n+2\0\r\n\x1a\n", 4),
}
DATA_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
REFUSED_DATA_TYPES = {
    1: "1-bit", 32: "complex64", 128: "RGB", 1536: "float128", 1792: "complex128", 2048: "complex256", 2304: "RGBA",
}  # fmt: skip
MILLIMETRES_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}  # by NIfTI code; any other code is an unknown unit
MILLIMETRE = 2
Header: TypeAlias = Any  # nibabel's Nifti1Header, whose methods carry no types


@dataclass(frozen=True)
class Layout:
    """What a file's header promises, already found sane."""

    path: Path
    header: Header
    spatial_shape: tuple[int, int, int]
    dtype: np.dtype[np.generic]
    offset: int
    slope: float
    intercept: float
    affine: NDArray[np.float64]  # voxel to RAS+ mm
    unit: int  # NIfTI code of the affine's unit: 2 (mm) or 0 (unknown)


@np.errstate(all="ignore")  # a header of any bytes holds numbers of any kind, signaling NaN included
def read_layout(path: Path) -> Layout:
    """Read a header and refuse whatever it promises that cannot be kept.

    Raises:
        ScanError: If there is no such file, or it does not begin as one volume of real
            numbers of sane size and affine in a single NIfTI file.
    """
    file_size = _file_size(path)
    with open_nifti(path) as file:
        compressed = isinstance(file, gzip.GzipFile)
        header = _parse_header(path, file.read(max(NIFTI_KINDS)))
    spatial_shape = _checked_shape(path, header)
    dtype = _checked_dtype(path, header)
    offset = float(header["vox_offset"])
    if not header.sizeof_hdr <= offset <= MAX_DATA_OFFSET:
        expected = f"{header.sizeof_hdr} to {MAX_DATA_OFFSET}"
        raise ScanError(f"{printable(path)}: expected data {expected} bytes into the file, got offset {offset:g}")
    needed = int(offset) + math.prod(spatial_shape) * dtype.itemsize
    available = file_size * MAX_DEFLATE_RATIO if compressed else file_size
    if needed > available:
        kind = "gzip file, too small to hold them" if compressed else "file (truncated?)"
        expected = f"{needed:,} bytes for shape {spatial_shape} of {dtype.name}"
        raise ScanError(f"{printable(path)}: expected {expected}, got a {file_size:,}-byte {kind}; {AGAIN}")
    affine, unit = _checked_affine(path, header, spatial_shape)
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise ScanError(f"{printable(path)}: expected a finite scl_inter, got {header['scl_inter']}") from error
    scaling = (1.0, 0.0) if slope is None else (float(slope), float(intercept))
    return Layout(path, header, spatial_shape, dtype, int(offset), *scaling, affine, unit)


def _parse_header(path: Path, start: bytes) -> Header:
    """Return the header that a file starts with, extensions left out."""
    for endianness in "<>":
        (size,) = struct.unpack(f"{endianness}i", start[:4].ljust(4, b"\0"))
        if size not in NIFTI_KINDS:
            continue
        if len(start) < size:
            raise ScanError(f"{printable(path)}: expected a header of {size} bytes, got {len(start)} in all; {AGAIN}")
        header_class, magic, position = NIFTI_KINDS[size]
        if start[position : position + len(magic)] == magic:
            return header_class(start[:size], endianness, check=False)
        if position == 344 and start[position : position + 3] != b"ni1":
            raise ScanError(f"{printable(path)}: expected a NIfTI file, got an Analyze header; convert it to NIfTI")
    raise ScanError(f"{printable(path)}: expected a NIfTI file, got {describe_content(start)}")


def _checked_shape(path: Path, header: Header) -> tuple[int, int, int]:
    dimensions, *sizes = (int(size) for size in header["dim"])
    if not 1 <= dimensions <= 7:
        raise ScanError(f"{printable(path)}: expected 3 dimensions, got {dimensions} in the header")
    shape = tuple(sizes[:dimensions])
    if min(shape) < 1:
        raise ScanError(f"{printable(path)}: expected sizes of at least 1, got shape {shape} in the header")
    if dimensions < 3:
        raise ScanError(
            f"{printable(path)}: expected a 3D volume, got a {dimensions}D image of shape {shape}; name the whole scan"
        )
    volumes = math.prod(shape[3:])
    if volumes > 1:
        received = f"{volumes} volumes (shape {shape}); save the FLAIR as a file of its own"
        raise ScanError(f"{printable(path)}: expected one 3D volume, got {received}")
    if min(shape[:3]) < 2:
        raise ScanError(f"{printable(path)}: expected a volume of at least 2 slices along each axis, got shape {shape}")
    if math.prod(shape) > MAX_VOXELS:
        raise ScanError(f"{printable(path)}: expected at most {MAX_VOXELS:,} voxels, got {math.prod(shape):,} {shape}")
    return shape[0], shape[1], shape[2]


def _checked_dtype(path: Path, header: Header) -> np.dtype[np.generic]:
    code = int(header["datatype"])
    if code not in DATA_TYPES:
        received = (
            f"{REFUSED_DATA_TYPES.get(code, 'an unknown type')} (datatype {code}); save its magnitude or grey values"
        )
        raise ScanError(f"{printable(path)}: expected integers or real numbers, got {received}")
    dtype: np.dtype[np.generic] = np.dtype(header.endianness + DATA_TYPES[code])
    return dtype


def _checked_affine(path: Path, header: Header, spatial_shape: tuple[int, int, int]) -> tuple[NDArray[np.float64], int]:
    """Return the affine to RAS+ mm and the NIfTI code of its unit."""
    pixdim = header["pixdim"][1:4]
    if not pixdim.any():
        raise ScanError(f"{printable(path)}: expected voxel sizes, got a pixdim of zeros; {REPAIR_GEOMETRY}")
    geometry = header.copy()
    # As the NIfTI library reads them: a qfac of 0 means 1, and a voxel size has no sign.
    geometry["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1
    geometry["pixdim"][1:4] = np.abs(pixdim)
    unit = int(header["xyzt_units"]) & 7
    to_mm = MILLIMETRES_PER_UNIT.get(unit, 1.0)
    try:
        affine = np.array(geometry.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:  # a quaternion longer than 1
        received = f"no unit quaternion; {REPAIR_GEOMETRY}"
        raise ScanError(f"{printable(path)}: expected a rotation in the qform, got {received}") from error
    affine[:3] *= to_mm
    check_geometry(printable(path), affine, spatial_shape)
    return affine, MILLIMETRE if unit in MILLIMETRES_PER_UNIT else 0


def check_geometry(name: str, affine: NDArray[np.float64], spatial_shape: tuple[int, ...]) -> None:
    """Refuse an affine ``(4, 4)``, voxel to mm, that no scan has.

    Raises:
        ScanError: If it is not finite, has no inverse, or makes voxels or the whole of no credible size.
    """
    with np.errstate(all="ignore"):
        edges = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
        ratio = abs(np.linalg.det(affine[:3, :3] / edges)) if np.isfinite(affine).all() else math.nan
    if not ratio > MIN_VOXEL_VOLUME_RATIO:
        rows = np.array2string(affine[:3], separator=", ").replace("\n", "")
        raise ScanError(f"{name}: expected an invertible, finite affine, got {rows}; {REPAIR_GEOMETRY}")
    if edges.min() < MIN_VOXEL_SIZE or (edges * spatial_shape).max() > MAX_EXTENT:
        sizes = " x ".join(f"{edge:g}" for edge in edges)
        expected = f"voxels of at least {MIN_VOXEL_SIZE} mm and at most {MAX_EXTENT:g} mm in all along an axis"
        raise ScanError(f"{name}: expected {expected}, got {sizes} mm for shape {spatial_shape}; {REPAIR_GEOMETRY}")


def check_same_grid(layout: Layout, grid: Layout) -> None:
    """Refuse a file whose voxels do not lie on those of another within ``GRID_TOLERANCE``.

    Raises:
        ScanError: Naming both files, if the shapes differ or a corner lies farther away.
    """
    expected = f"{printable(layout.path)}: expected the voxel grid of {printable(grid.path)}"
    if layout.spatial_shape != grid.spatial_shape:
        raise ScanError(f"{expected}, shape {grid.spatial_shape}, got shape {layout.spatial_shape}")
    corners = np.indices((2, 2, 2)).reshape(3, 8) * (np.array(grid.spatial_shape)[:, None] - 1)
    difference = (layout.affine - grid.affine) @ np.vstack([corners, np.ones(8)])
    distance = np.linalg.norm(difference[:3], axis=0).max()
    if distance > GRID_TOLERANCE:
        raise ScanError(f"{expected} within {GRID_TOLERANCE} mm, got voxels up to {distance:.3g} mm away")


@contextmanager
def open_nifti(path: Path) -> Iterator[BinaryIO]:
    """Open a file, through gzip if its content is gzip, however it is named.

    Raises:
        ScanError: If the file cannot be opened, or proves damaged while it is open.
    """
    try:
        with ExitStack() as stack:
            file: BinaryIO = stack.enter_context(path.open("rb"))
            if _is_gzip(file):
                file = cast("BinaryIO", stack.enter_context(gzip.GzipFile(fileobj=file)))
            yield file
    except EOFError as error:
        raise ScanError(f"{printable(path)}: expected a complete gzip file, got a truncated one; {AGAIN}") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ScanError(f"{printable(path)}: expected intact gzip data, got damaged ones ({error}); {AGAIN}") from error
    except OSError as error:
        raise ScanError(f"{printable(path)}: cannot be read: {error.strerror or error}") from error


def _is_gzip(file: BinaryIO) -> bool:
    start = file.read(2)
    file.seek(0)
    return start == b"\x1f\x8b"


def _file_size(path: Path) -> int:
    """Return the size in bytes, or refuse what is not a file with something in it."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise ScanError(f"{printable(path)}: expected a scan, got no such file; check the path") from error
    except (OSError, ValueError) as error:
        raise ScanError(f"{printable(path)}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise ScanError(f"{printable(path)}: expected a NIfTI file, got a folder; name the file in it")
    if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
        raise ScanError(f"{printable(path)}: expected a NIfTI file, got a device or pipe; save it as a file")
    if status.st_size == 0:
        raise ScanError(f"{printable(path)}: expected a NIfTI file, got an empty file; {AGAIN}")
    return status.st_size
