"""The headers of many DICOM files, read up to their pixel data, and their values as plain numbers and words.

Only the elements that finding and stacking a series needs are read. No message holds a value that
could name a patient.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, BinaryIO

from pydicom import Dataset, config
from pydicom.datadict import tag_for_keyword
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

from pipeline.errors import ScanError
from pipeline.formats.dicom.files import MAX_FILE_BYTES, START_BYTES, DicomFile, starts_as_dicom

__all__ = ["Header", "find_value", "first_of", "numbers", "quiet_pydicom", "read_full_header", "read_headers", "text"]

KEYWORDS = (
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "StudyInstanceUID",
    "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "ProtocolName", "ContrastBolusAgent", "EchoTime",
    "RepetitionTime", "InversionTime", "EchoNumbers", "AcquisitionNumber", "TemporalPositionIdentifier",
    "FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns",
    "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "RescaleSlope",
    "RescaleIntercept", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
UNDEFINED_LENGTH = 0xFFFFFFFF  # of encapsulated, that is compressed, pixel data
PIXEL_DATA = 0x7FE00010
MAX_ELEMENTS = 20_000  # of one file; a header has a few hundred, and zeros make one of every 8 bytes
MAX_TEXT = 64  # characters of a description in a message


@dataclass(frozen=True, eq=False)
class Header:
    """What one file says before its pixel data.

    Attributes:
        file: Where it was read.
        dataset: The elements of ``KEYWORDS`` that it has.
        transfer_syntax: How its pixels are stored.
        pixel_bytes: How many bytes of pixel data the file holds, at most; None where it has none.
        declared_bytes: How many it declares; None for compressed pixel data, which does not say.
    """

    file: DicomFile
    dataset: Dataset
    transfer_syntax: UID
    pixel_bytes: int | None
    declared_bytes: int | None

    @property
    def frames(self) -> int:
        """Frames the file declares; 1 where it does not say."""
        count = find_value(self.dataset, "NumberOfFrames")
        return int(count) if str(count or "").strip().isdecimal() else 1


def quiet_pydicom() -> None:
    """Silence what pydicom warns of: values that break the standard's letter, which scanners write all the time.

    What cannot be read is an error all the same. It holds for the whole process, and for good: pydicom's settings and
    Python's warnings belong to all threads, so that no thread may put them back while another one reads.
    """
    config.settings.reading_validation_mode = config.IGNORE  # its warnings, and its log, show the values themselves
    warnings.filterwarnings("ignore", module="pydicom")


def read_headers(files: Iterable[DicomFile]) -> tuple[list[Header], list[str]]:
    """Read the header of every file that is DICOM.

    Args:
        files: Any files; what does not start as DICOM is left out in silence.

    Returns:
        The headers, and a line for each file that starts as DICOM but cannot be read, or is empty.
    """
    tags: list[BaseTag | int] = [tag for keyword in KEYWORDS if (tag := tag_for_keyword(keyword)) is not None]
    headers, damaged = [], []
    for file in files:
        try:
            with file.open() as stream:
                header = _read_header(file, stream, tags)
        except ScanError as error:
            damaged.append(str(error))
        # A damaged file surfaces as an error of pydicom, struct, zipfile, recursion and others.
        except Exception as error:
            damaged.append(f"{file.name}: cannot be read as DICOM ({type(error).__name__})")
        else:
            if header is not None:
                headers.append(header)
    return headers, damaged


def read_full_header(stream: BinaryIO) -> Dataset:
    """Read a whole file that ``read_headers`` took, pixel data included."""
    dataset = read_partial(stream, stop_when=_stop_behind_pixels(), force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = _guess_transfer_syntax(dataset)
    return dataset


def _read_header(file: DicomFile, stream: BinaryIO, tags: list[BaseTag | int]) -> Header | None:
    """Return what a file says before its pixel data; None where it is not a DICOM object of a series."""
    start = stream.read(START_BYTES)
    if not start:
        raise ScanError(f"{file.name}: is empty")
    if not starts_as_dicom(start):
        return None
    has_preamble = start[128:132] == b"DICM"
    if file.size > MAX_FILE_BYTES:
        raise ScanError(f"{file.name}: expected at most {MAX_FILE_BYTES:,} bytes, got {file.size:,}")
    stream.seek(len(start) if has_preamble else 0)
    # pydicom would inflate the whole file, whatever it grows to.
    check = _counter(file.name)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: check() or tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise ScanError(f"{file.name}: its transfer syntax (deflated) is not supported; save it as explicit VR")
    if stream.read(2) == b"\0\0" and has_preamble:
        raise ScanError(f"{file.name}: expected the elements of an image, got zeros (damaged?)")
    stream.seek(0)

    pixels: list[tuple[int, int]] = []  # where they start, and how many bytes there should be

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        check()
        if tag == PIXEL_DATA:
            pixels.append((stream.tell(), length))
        return bool(tag >= PIXEL_DATA)

    dataset = read_partial(stream, stop_when=at_pixels, force=True, specific_tags=tags)
    if not text(dataset, "SeriesInstanceUID"):
        if not has_preamble or meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
            return None
        raise ScanError(f"{file.name}: expected a SeriesInstanceUID, got a DICOM file without one (cut off?)")
    syntax = dataset.file_meta.get("TransferSyntaxUID") or _guess_transfer_syntax(dataset)
    start_of_pixels, length = pixels[0] if pixels else (None, UNDEFINED_LENGTH)
    return Header(
        file=file,
        dataset=dataset,
        transfer_syntax=UID(str(syntax)),
        pixel_bytes=None if start_of_pixels is None else file.size - start_of_pixels,
        declared_bytes=None if length == UNDEFINED_LENGTH else length,
    )


def _counter(name: str) -> Callable[[], bool]:
    """Return what is called with each element, to refuse a file of which pydicom would read them for hours."""
    elements = count(1)

    def check() -> bool:
        if next(elements) > MAX_ELEMENTS:
            raise ScanError(f"{name}: expected at most {MAX_ELEMENTS:,} elements, got more (damaged?)")
        return False

    return check


def _stop_behind_pixels() -> Callable[[BaseTag, str | None, int], bool]:
    """Return what stops reading behind the pixel data: what some files are filled up with is no element."""
    seen: list[BaseTag] = []

    def stop(tag: BaseTag, vr: str | None, length: int) -> bool:
        behind = PIXEL_DATA in seen
        seen[:] = [tag]
        return behind

    return stop


def _guess_transfer_syntax(dataset: Dataset) -> UID:
    """Return what pydicom found a file without a transfer syntax to be."""
    is_implicit, is_little_endian = dataset.original_encoding
    if is_implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if is_little_endian else ExplicitVRBigEndian


def find_value(dataset: Dataset, keyword: str, frame: int = 1, group: str | None = None) -> Any:
    """Return the value of an element: of a frame's functional groups if there are any, else of the dataset.

    Args:
        dataset: A header.
        keyword: Of the element.
        frame: Counted from 1.
        group: Keyword of the functional group's sequence that holds the element in multi-frame objects.

    Returns:
        The value; None where it is missing, empty, or not readable as what it should be.
    """
    places = []
    if group is not None:
        # A frame's own values come before those of all frames.
        for groups_of, index in (
            ("PerFrameFunctionalGroupsSequence", frame - 1),
            ("SharedFunctionalGroupsSequence", 0),
        ):
            groups = _get(dataset, groups_of)
            macros = _get(groups[index], group) if groups and index < len(groups) else None
            places += [macros[0]] if macros else []
    for place in (*places, dataset):
        value = _get(place, keyword)
        if value is not None and value != "":
            return value
    return None


def _get(dataset: Dataset, keyword: str) -> Any:
    try:
        return dataset.get(keyword)
    except Exception:  # the bytes of the element are no such value
        return None


def numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """Return a value as so many finite numbers; None where it is missing or anything else."""
    if value is None:
        return None
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    try:
        result = tuple(float(item) for item in values)
    except (TypeError, ValueError):
        return None
    return result if len(result) == count and all(math.isfinite(item) for item in result) else None


def first_of(value: Any) -> Any:
    """Return the first item of a value that has several, any other value as it is."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return value[0] if value else None
    return value


def text(dataset: Dataset, keyword: str) -> str:
    """Return an element as one printable, short line; empty where it is missing."""
    value = find_value(dataset, keyword)
    line = "".join(c if c.isprintable() else " " for c in str(value if value is not None else ""))
    return line.strip()[:MAX_TEXT]
