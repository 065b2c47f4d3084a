"""Reading NIfTI scans and writing results on their grid.

Files come from anywhere, so the header is judged before a byte of data is allocated,
and every refusal is one line that names the file, what was expected and what came.
Reads NIfTI-1 and NIfTI-2 in a single file, plain or gzipped, by content and not by name.
"""

from __future__ import annotations

import gzip
import math
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from numpy.typing import DTypeLike, NDArray

from pipeline.errors import ScanError
from pipeline.formats.atomic import atomic_write
from pipeline.formats.scan import FLAIR_CHANNEL, Scan

__all__ = [
    "GRID_TOLERANCE",
    "MAX_EXTENT",
    "MAX_VOXELS",
    "MIN_VOXEL_SIZE",
    "read_scan",
    "write_mask",
    "write_probabilities",
]

# 1024 x 1024 x 512: beyond the finest brain MR published (880 x 880 x 640); 2 GiB a channel as float32.
MAX_VOXELS = 2**29
# No head reaches it; a file that does names the wrong unit, and resampling it would ask for any amount of memory.
MAX_EXTENT = 3000.0  # mm, along one axis
MIN_VOXEL_SIZE = 0.01  # mm
# Two sequences share a grid if no corner voxel lies farther apart; quaternions in float32 are off by 0.001 mm at most.
GRID_TOLERANCE = 0.1  # mm
# Volume of the voxel over the product of its edges: 1 for a box, 0.5 for a shear of 60 degrees, 0 for no volume.
MIN_VOXEL_VOLUME_RATIO = 1e-3
# Deflate cannot compress better (zlib's documentation), so a gzip file bounds what it can hold before it is opened.
MAX_DEFLATE_RATIO = 1032
MAX_DATA_OFFSET = 2**26  # bytes of header extensions
MAX_TRAILING_BYTES = 2**20  # read behind the data in search of gzip's checksum
COMPRESSION_LEVEL = 6  # measured: 9 takes twice as long for probabilities, 16 times for masks, and saves little

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
FOREIGN_CONTENT = (
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"II*\0", "a TIFF picture"),
    (0, b"MM\0*", "a TIFF picture"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"NRRD", "an NRRD volume"),
    (0, b"\x89HDF", "an HDF5 file"),
    (128, b"DICM", "a DICOM file"),
    (257, b"ustar", "a tar archive"),
    (344, b"ni1\0", "one half of an .hdr/.img pair"),
    (4, b"ni2\0", "one half of an .hdr/.img pair"),
)


_Header: TypeAlias = Any  # nibabel's Nifti1Header, whose methods carry no types


@dataclass(frozen=True)
class _Layout:
    """What a file's header promises, already found sane."""

    path: Path
    header: _Header
    spatial_shape: tuple[int, int, int]
    dtype: np.dtype[np.generic]
    offset: int
    slope: float
    intercept: float
    affine: NDArray[np.float64]  # voxel to RAS+ mm
    unit: int  # NIfTI code of the affine's unit: 2 (mm) or 0 (unknown)


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
    layouts = {path: _read_layout(path) for path in (flair, t1, t1c) if path is not None}
    grid = layouts[flair]
    for layout in layouts.values():
        _check_same_grid(layout, grid)
    channels = [flair] if t1 is None and t1c is None else [t1, flair, t1c]
    # Kept slice by slice, as the file has it: each channel is filled in place and viewed as (I, J, K).
    try:
        stored = np.empty((len(channels), *reversed(grid.spatial_shape)), dtype=np.float32)
    except MemoryError as error:
        raise ScanError(f"{_name(flair)}: not enough memory for a volume of shape {grid.spatial_shape}") from error
    for channel, path in enumerate(channels):
        if path is not None:
            _read_intensities(layouts[path], stored[channel])
    for channel, path in enumerate(channels):
        if path is None:
            stored[channel] = stored[FLAIR_CHANNEL]

    from transforms.geometry import known_spacing

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
    if not ((mask == 0) | (mask == 1)).all():
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


def _name(path: Path) -> str:
    """Return a path for a message: on one line, whatever characters it holds."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Open a file, through gzip if its content is gzip; damage becomes a ScanError."""
    try:
        with ExitStack() as stack:
            file: BinaryIO = stack.enter_context(path.open("rb"))
            if _is_gzip(file):
                file = cast("BinaryIO", stack.enter_context(gzip.GzipFile(fileobj=file)))
            yield file
    except EOFError as error:
        raise ScanError(f"{_name(path)}: expected a complete gzip file, got a truncated one") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ScanError(f"{_name(path)}: expected intact gzip data, got a damaged file ({error})") from error
    except OSError as error:
        raise ScanError(f"{_name(path)}: cannot be read: {error.strerror or error}") from error


def _is_gzip(file: BinaryIO) -> bool:
    start = file.read(2)
    file.seek(0)
    return start == b"\x1f\x8b"


def _file_size(path: Path) -> int:
    """Return the size in bytes, or refuse what is not a file with something in it."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise ScanError(f"{_name(path)}: expected a NIfTI file, got no such file") from error
    except (OSError, ValueError) as error:
        raise ScanError(f"{_name(path)}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise ScanError(f"{_name(path)}: expected a NIfTI file, got a folder")
    if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
        raise ScanError(f"{_name(path)}: expected a NIfTI file, got a device or pipe")
    if status.st_size == 0:
        raise ScanError(f"{_name(path)}: expected a NIfTI file, got an empty file")
    return status.st_size


@np.errstate(all="ignore")  # a header of any bytes holds numbers of any kind, signaling NaN included
def _read_layout(path: Path) -> _Layout:
    """Read a header and refuse whatever it promises that cannot be kept."""
    file_size = _file_size(path)
    with _open(path) as file:
        compressed = isinstance(file, gzip.GzipFile)
        header = _parse_header(path, file.read(max(NIFTI_KINDS)))
    spatial_shape = _checked_shape(path, header)
    dtype = _checked_dtype(path, header)
    offset = float(header["vox_offset"])
    if not header.sizeof_hdr <= offset <= MAX_DATA_OFFSET:
        expected = f"{header.sizeof_hdr} to {MAX_DATA_OFFSET}"
        raise ScanError(f"{_name(path)}: expected data {expected} bytes into the file, got offset {offset:g}")
    needed = int(offset) + math.prod(spatial_shape) * dtype.itemsize
    available = file_size * MAX_DEFLATE_RATIO if compressed else file_size
    if needed > available:
        kind = "gzip file, too small to hold them" if compressed else "file (truncated?)"
        expected = f"{needed:,} bytes for shape {spatial_shape} of {dtype.name}"
        raise ScanError(f"{_name(path)}: expected {expected}, got a {file_size:,}-byte {kind}")
    affine, unit = _checked_affine(path, header, spatial_shape)
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise ScanError(f"{_name(path)}: expected a finite scl_inter, got {header['scl_inter']}") from error
    scaling = (1.0, 0.0) if slope is None else (float(slope), float(intercept))
    return _Layout(path, header, spatial_shape, dtype, int(offset), *scaling, affine, unit)


def _parse_header(path: Path, start: bytes) -> _Header:
    """Return the header that a file starts with, extensions left out."""
    for endianness in "<>":
        (size,) = struct.unpack(f"{endianness}i", start[:4].ljust(4, b"\0"))
        if size not in NIFTI_KINDS or len(start) < size:
            continue
        header_class, magic, position = NIFTI_KINDS[size]
        if start[position : position + len(magic)] == magic:
            return header_class(start[:size], endianness, check=False)
        if position == 344 and start[position : position + 3] != b"ni1":
            raise ScanError(f"{_name(path)}: expected a NIfTI file, got an Analyze header without NIfTI's magic")
    for position, signature, content in FOREIGN_CONTENT:
        if start[position : position + len(signature)] == signature:
            raise ScanError(f"{_name(path)}: expected a NIfTI file, got {content}")
    raise ScanError(f"{_name(path)}: expected a NIfTI file, got other content (it starts with {start[:8]!r})")


def _checked_shape(path: Path, header: _Header) -> tuple[int, int, int]:
    dimensions, *sizes = (int(size) for size in header["dim"])
    if not 1 <= dimensions <= 7:
        raise ScanError(f"{_name(path)}: expected 3 dimensions, got {dimensions} in the header")
    shape = tuple(sizes[:dimensions])
    if min(shape) < 1:
        raise ScanError(f"{_name(path)}: expected sizes of at least 1, got shape {shape} in the header")
    if dimensions < 3:
        raise ScanError(f"{_name(path)}: expected a 3D volume, got a {dimensions}D image of shape {shape}")
    volumes = math.prod(shape[3:])
    if volumes > 1:
        raise ScanError(f"{_name(path)}: expected one 3D volume, got {volumes} volumes (shape {shape})")
    if min(shape[:3]) < 2:
        raise ScanError(f"{_name(path)}: expected a volume of at least 2 slices along each axis, got shape {shape}")
    if math.prod(shape) > MAX_VOXELS:
        raise ScanError(f"{_name(path)}: expected at most {MAX_VOXELS:,} voxels, got {math.prod(shape):,} {shape}")
    return shape[0], shape[1], shape[2]


def _checked_dtype(path: Path, header: _Header) -> np.dtype[np.generic]:
    code = int(header["datatype"])
    if code not in DATA_TYPES:
        received = REFUSED_DATA_TYPES.get(code, "an unknown type")
        raise ScanError(f"{_name(path)}: expected integers or real numbers, got {received} (datatype {code})")
    dtype: np.dtype[np.generic] = np.dtype(header.endianness + DATA_TYPES[code])
    return dtype


def _checked_affine(
    path: Path, header: _Header, spatial_shape: tuple[int, int, int]
) -> tuple[NDArray[np.float64], int]:
    """Return the affine to RAS+ mm and the NIfTI code of its unit."""
    pixdim = header["pixdim"][1:4]
    if not pixdim.any():
        raise ScanError(f"{_name(path)}: expected voxel sizes, got a pixdim of zeros")
    geometry = header.copy()
    # As the NIfTI library reads them: a qfac of 0 means 1, and a voxel size has no sign.
    geometry["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1
    geometry["pixdim"][1:4] = np.abs(pixdim)
    unit = int(header["xyzt_units"]) & 7
    to_mm = MILLIMETRES_PER_UNIT.get(unit, 1.0)
    try:
        affine = np.array(geometry.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:  # a quaternion longer than 1
        raise ScanError(f"{_name(path)}: expected a rotation in the qform, got no unit quaternion") from error
    affine[:3] *= to_mm
    edges = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    ratio = abs(np.linalg.det(affine[:3, :3] / edges)) if np.isfinite(affine).all() else math.nan
    if not ratio > MIN_VOXEL_VOLUME_RATIO:
        rows = np.array2string(affine[:3], separator=", ").replace("\n", "")
        raise ScanError(f"{_name(path)}: expected an invertible, finite affine, got {rows}")
    if edges.min() < MIN_VOXEL_SIZE or (edges * spatial_shape).max() > MAX_EXTENT:
        sizes = " x ".join(f"{edge:g}" for edge in edges)
        expected = f"voxels of at least {MIN_VOXEL_SIZE} mm and at most {MAX_EXTENT:g} mm in all along an axis"
        raise ScanError(f"{_name(path)}: expected {expected}, got {sizes} mm for shape {spatial_shape}")
    return affine, MILLIMETRE if unit in MILLIMETRES_PER_UNIT else 0


def _check_same_grid(layout: _Layout, grid: _Layout) -> None:
    expected = f"{_name(layout.path)}: expected the voxel grid of {_name(grid.path)}"
    if layout.spatial_shape != grid.spatial_shape:
        raise ScanError(f"{expected}, shape {grid.spatial_shape}, got shape {layout.spatial_shape}")
    corners = np.indices((2, 2, 2)).reshape(3, 8) * (np.array(grid.spatial_shape)[:, None] - 1)
    difference = (layout.affine - grid.affine) @ np.vstack([corners, np.ones(8)])
    distance = np.linalg.norm(difference[:3], axis=0).max()
    if distance > GRID_TOLERANCE:
        raise ScanError(f"{expected} within {GRID_TOLERANCE} mm, got voxels up to {distance:.3g} mm away")


def _read_intensities(layout: _Layout, target: NDArray[np.float32]) -> None:
    """Fill ``target`` ``(K, J, I)`` slice by slice, scaled as the header says, and refuse what is no picture."""
    path, name = layout.path, _name(layout.path)
    raw = bytearray(math.prod(target.shape[1:]) * layout.dtype.itemsize)
    stored = np.frombuffer(raw, layout.dtype).reshape(target.shape[1:])
    low, high, nonfinite = math.inf, -math.inf, 0
    with _open(path) as file, np.errstate(all="ignore"):
        file.seek(layout.offset)
        for k, plane in enumerate(target):
            if not _fill(file, raw):
                raise ScanError(f"{name}: expected {len(target)} slices, got a file that ends in slice {k + 1}")
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
        share = 100 * nonfinite / target.size
        raise ScanError(f"{name}: expected finite intensities, got {nonfinite:,} NaN or infinite ({share:.3g} %)")
    if low == high:
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
    with atomic_write(path) as file, ExitStack() as stack:
        if path.name.endswith(".gz"):
            # No name and no time inside, so the same result is the same file.
            compressed = gzip.GzipFile("", "wb", COMPRESSION_LEVEL, file, mtime=0)
            file = cast("BinaryIO", stack.enter_context(compressed))
        file.write(header.binaryblock + bytes(4))  # four zeros: no extensions
        for k in range(values.shape[2]):
            file.write(values[:, :, k].astype(np.dtype(dtype).newbyteorder(header.endianness)).tobytes(order="F"))


def _result_header(scan: Scan, dtype: DTypeLike, description: bytes) -> _Header:
    """Return the scan's header for other values: geometry kept, what described the intensities cleared."""
    template: _Header = scan.header
    if template is not None:
        header = template.copy()
    else:
        header = NIFTI_KINDS[348][0]()
        header.set_data_shape(scan.spatial_shape)
        header.set_sform(scan.affine, code=1)
        header.set_qform(scan.affine, code=1)
        header["xyzt_units"] = 0 if scan.spacing is None else MILLIMETRE
    header.set_data_dtype(dtype)
    header["vox_offset"] = header.sizeof_hdr + 4
    header["magic"] = NIFTI_KINDS[header.sizeof_hdr][1].rstrip(b"\0")
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["cal_min"], header["cal_max"] = 0, 0
    header["intent_code"], header["intent_name"] = 0, b""
    header["intent_p1"], header["intent_p2"], header["intent_p3"] = 0, 0, 0
    header["descrip"] = description
    return header
