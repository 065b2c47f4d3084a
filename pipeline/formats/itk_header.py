"""The headers of NRRD and MetaImage files, judged before ITK reads them.

ITK's own readers wait for named pipes, fill up what cannot be unpacked, take 1 mm for a spacing that nobody
wrote, and end the process at some damaged headers. Here such files are refused by name.
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ScanError
from pipeline.formats.foreign import AGAIN, START_BYTES, describe_content
from pipeline.formats.nifti_header import MAX_DEFLATE_RATIO, MAX_VOXELS, check_geometry
from pipeline.formats.printable import printable

__all__ = ["ItkHeader", "read_itk_header"]

MAX_HEADER = 2**16  # bytes
MAX_TEXT = 40  # characters of a header in a message
MAX_DIMENSIONS = 10  # that ITK's MetaImage reader has room for
CHUNK = 2**20  # bytes unpacked at once
ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS
SAVE_ANEW = "copy it again, or save it anew"
BESIDE = "keep it beside its header, or save both as one .nrrd or .mha file"

TYPE_NAMES = {
    1: "signed char|int8|int8_t|uchar|unsigned char|uint8|uint8_t|MET_CHAR|MET_UCHAR",
    2: "short|short int|signed short|signed short int|int16|int16_t|MET_SHORT|"
    "ushort|unsigned short|unsigned short int|uint16|uint16_t|MET_USHORT",
    4: "int|signed int|int32|int32_t|uint|unsigned int|uint32|uint32_t|float|MET_INT|MET_UINT|MET_FLOAT",
    8: "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t|"
    "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t|double|"
    "MET_LONG_LONG|MET_ULONG_LONG|MET_DOUBLE",
}
TYPES = {name: size for size, names in TYPE_NAMES.items() for name in names.split("|")}
NRRD_ENCODINGS = {"raw": "raw", "gzip": "packed", "gz": "packed", "ascii": "text", "text": "text", "txt": "text"}
# The spaces that tell left from right; of any other ITK takes the numbers as if they were the last of these.
NRRD_SPACES = ("right-anterior-superior", "left-anterior-superior", "left-posterior-superior", "ras", "las", "lps")


@dataclass(frozen=True)
class ItkHeader:
    """What a header says.

    Attributes:
        shape: As the header has it, the fastest axis first.
        itemsize: Bytes of one value.
        channels: Values of a voxel that ``shape`` does not count.
        encoding: "raw", "packed" or "text".
        data: Name of the file that holds the data; None for the header's own.
        offset: Where in that file they begin; None if that cannot be told.
        packed_bytes: How many they are, where packed ones say so, as MetaImage's must.
        matrix: ``(3, 3)``, from voxels to mm of whatever space; None for other than three dimensions.
        has_spacing: Whether the file says how large its voxels are.
    """

    shape: tuple[int, ...]
    itemsize: int
    channels: int
    encoding: str
    data: str | None
    offset: int | None
    packed_bytes: int | None
    matrix: NDArray[np.float64] | None
    has_spacing: bool


def read_itk_header(path: Path) -> ItkHeader:
    """Read the header of an NRRD or MetaImage file, and refuse what ITK must not be given.

    Raises:
        ScanError: If the file, or the one with its data, is missing, cut off or damaged, has no credible geometry,
            or would take more memory than a scan does.
    """
    name = printable(path)
    _check_file(path, name)
    try:
        with path.open("rb") as file:
            start = file.read(MAX_HEADER)
    except OSError as error:
        raise ScanError(f"{name}: cannot be read: {error.strerror}") from error
    parse = _parse_nrrd if start.startswith(b"NRRD") else _parse_meta_image
    if parse is _parse_meta_image and not re.match(rb"[A-Z]\w* *= *\w", start):
        received = describe_content(start[:START_BYTES])
        raise ScanError(f"{name}: expected an NRRD or MetaImage volume, got {received}")
    try:
        header = parse(start)
    except (ValueError, KeyError) as error:
        reason = f"no {error.args[0]}" if isinstance(error, KeyError) else str(error)
        raise ScanError(f"{name}: expected a header that says all, got {reason}; {SAVE_ANEW}") from error
    if math.prod(header.shape) * header.channels > MAX_VOXELS:
        raise ScanError(f"{name}: expected at most {MAX_VOXELS:,} voxels, got shape {header.shape}")
    if header.matrix is not None:
        affine = np.eye(4)
        affine[:3, :3] = header.matrix
        check_geometry(name, affine, header.shape)
    _check_data(path, name, header)
    return header


def _check_file(path: Path, name: str) -> None:
    """Refuse what ITK could not open, or would wait for."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ScanError(f"{name}: expected a name in UTF-8, got other bytes; rename it") from error
    if not path.exists():
        raise ScanError(f"{name}: expected a file, got no such file; check the path")
    if not path.is_file():
        raise ScanError(f"{name}: expected a file, got a folder, device or pipe")


def _parse_nrrd(start: bytes) -> ItkHeader:
    end = re.search(rb"\r?\n\r?\n", start)
    fields: dict[str, str] = {}
    for line in start[: end.start() if end else None].decode("utf-8", "surrogateescape").splitlines()[1:]:
        key, separator, value = line.partition(": ")
        if separator and not key.startswith("#"):
            fields[key.strip().lower()] = value.strip()
    data = fields.get("data file", fields.get("datafile"))
    if data is None and end is None:
        raise ValueError("one that does not end")
    encoding = fields["encoding"].lower()
    if encoding not in NRRD_ENCODINGS:
        raise ValueError(f"encoding {encoding}, where raw and gzip are read")
    skip = int(fields.get("byte skip", fields.get("byteskip", "0")))
    lines = int(fields.get("line skip", fields.get("lineskip", "0")))
    offset = skip + (end.end() if end and data is None else 0)
    shape = _shape(fields["sizes"], int(fields["dimension"]))
    return ItkHeader(
        shape=shape,
        itemsize=_itemsize(fields["type"]),
        channels=1,
        encoding=NRRD_ENCODINGS[encoding],
        data=data,
        offset=None if skip < 0 or lines else offset,
        packed_bytes=None,
        matrix=_nrrd_matrix(fields) if len(shape) == 3 else None,
        has_spacing="spacings" in fields or "space directions" in fields,
    )


def _nrrd_matrix(fields: dict[str, str]) -> NDArray[np.float64]:
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", fields.get("units", ""))))
    if not units <= {"mm", ""}:
        raise ValueError(f"units {', '.join(sorted(units))} in place of mm")
    if "space directions" not in fields:
        return np.diag(_spacing(fields.get("spacings", "1 1 1"), "spacings"))
    space = fields.get("space", "none")
    if space.lower() not in NRRD_SPACES:
        raise ValueError(f"space {space}, where one of {', '.join(NRRD_SPACES[:3])} tells left from right")
    directions = re.sub(r"[(),]", " ", fields["space directions"])
    return _numbers(directions, 9, "space directions").reshape(3, 3).T


def _parse_meta_image(start: bytes) -> ItkHeader:
    fields: dict[str, str] = {}
    end = 0
    for line in start.splitlines(keepends=True):
        key, separator, value = line.decode("utf-8", "surrogateescape").partition("=")
        if not separator:
            raise ValueError(f"a line {key[:MAX_TEXT]!r}")
        fields[key.strip()] = value.strip()
        end += len(line)
        if key.strip() == "ElementDataFile":
            break
    data: str | None = fields["ElementDataFile"]
    data = None if data in ("LOCAL", "Local", "local") else data
    skip = int(fields.get("HeaderSize", "0"))
    shape = _shape(fields["DimSize"], int(fields["NDims"]))
    packed = fields.get("CompressedData", "False").lower() == "true"
    if fields["BinaryData"].lower() != "true":
        raise ValueError(f"BinaryData {fields['BinaryData']}")
    spacing = fields.get("ElementSpacing", fields.get("ElementSize"))
    matrix = None
    if len(shape) == 3:
        directions = [fields[key] for key in ("TransformMatrix", "Rotation", "Orientation") if key in fields]
        matrix = _numbers((directions or ["1 0 0 0 1 0 0 0 1"])[0], 9, "TransformMatrix").reshape(3, 3).T
        matrix = matrix * _spacing(spacing or "1 1 1", "ElementSpacing")
        for key in {"Offset", "Position", "Origin"} & set(fields):
            _numbers(fields[key], 3, key)
    return ItkHeader(
        shape=shape,
        itemsize=_itemsize(fields["ElementType"]),
        channels=int(fields.get("ElementNumberOfChannels", "1")),
        encoding="packed" if packed else "raw",
        data=data,
        offset=None if skip < 0 else skip + (end if data is None else 0),
        packed_bytes=int(fields["CompressedDataSize"]) if packed else None,
        matrix=matrix,
        has_spacing=spacing is not None,
    )


def _shape(sizes: str, dimensions: int) -> tuple[int, ...]:
    shape = tuple(int(size) for size in sizes.split())
    if len(shape) != dimensions or not 1 <= dimensions <= MAX_DIMENSIONS or min(shape) < 1:
        raise ValueError(f"{dimensions} dimensions of sizes {sizes}")
    return shape


def _itemsize(name: str) -> int:
    if name not in TYPES:
        raise ValueError(f"values of type {name}, where integers and real numbers are read")
    return TYPES[name]


def _numbers(text: str, count: int, what: str) -> NDArray[np.float64]:
    """Return so many finite numbers."""
    try:
        values = np.array([float(word) for word in text.split()])
    except ValueError:
        values = np.array([])
    if len(values) != count or not np.isfinite(values).all():
        raise ValueError(f"{what} {text!r}")
    return values


def _spacing(text: str, what: str) -> NDArray[np.float64]:
    values = _numbers(text, 3, what)
    if values.min() <= 0:
        raise ValueError(f"{what} {text!r}")
    return values


def _check_data(path: Path, name: str, header: ItkHeader) -> None:
    """Refuse data that are missing, cut off or damaged."""
    source = path
    if header.data is not None:
        beside = Path(header.data)
        source = path.parent / beside
        if "%" in header.data or header.data.startswith("LIST") or beside.is_absolute() or ".." in beside.parts:
            raise ScanError(f"{name}: expected one file of data beside it, got {printable(header.data)}; {BESIDE}")
        _check_file(source, f"{name}: its data {printable(beside)}")
    needed = math.prod(header.shape) * header.channels * header.itemsize
    if header.encoding == "text":
        needed = 2 * math.prod(header.shape) - 1  # a digit each, and a space between them
    offset = header.offset or 0
    available = source.stat().st_size - offset
    if (header.packed_bytes or 0) > available or needed > available * (
        MAX_DEFLATE_RATIO if header.encoding == "packed" else 1
    ):
        kind = "packed ones, too few to hold them" if header.encoding == "packed" else "bytes"
        received = f"{max(available, 0):,} {kind}; {AGAIN}"
        raise ScanError(f"{name}: expected {needed:,} bytes of data for shape {header.shape}, got {received}")
    packed = available if header.packed_bytes is None else header.packed_bytes
    if header.encoding == "packed" and header.offset is not None and not _unpacks(source, offset, packed, needed):
        raise ScanError(f"{name}: expected {needed:,} bytes of data once unpacked, got damaged or other ones; {AGAIN}")


def _unpacks(path: Path, offset: int, packed: int, needed: int) -> bool:
    """Return whether so many packed bytes are whole; ITK fills up with zeros what is not."""
    unpacker = zlib.decompressobj(ZLIB_OR_GZIP)
    count = 0
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while count <= needed and not unpacker.eof:
                part = unpacker.unconsumed_tail or file.read(max(0, min(packed, CHUNK)))
                if not part:
                    return False
                packed -= 0 if part is unpacker.unconsumed_tail else len(part)
                count += len(unpacker.decompress(part, CHUNK))
    except (zlib.error, OSError):
        return False
    return count == needed
