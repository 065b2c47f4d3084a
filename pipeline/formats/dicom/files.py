"""The files that may be DICOM: below a folder, in a zip, or one by itself.

Nothing is ever extracted: the members of a zip are read in memory, and their names serve messages only.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import ScanError
from pipeline.formats.foreign import AGAIN
from pipeline.formats.printable import printable

__all__ = ["MAX_FILES", "MAX_FILE_BYTES", "MAX_ZIP_BYTES", "DicomFile", "is_dicom", "open_files", "starts_as_dicom"]

MAX_FILES = 100_000  # below one folder or in one zip: more than any study, less than an archive named by mistake
MAX_FILE_BYTES = 2**30  # of one file, unpacked: 512 M voxels of 16 bits, the largest scan that is read
MAX_ZIP_BYTES = 2**34  # of all members, unpacked
CHUNK = 2**20  # bytes unpacked at once
START_BYTES = 132  # preamble and magic

ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
# What a file without preamble may start with: an element that begins group 0002 or 0008.
BARE_TAGS = ((2, 0), (8, 0), (8, 1), (8, 5), (8, 8), (8, 0x12), (8, 0x16))
BARE_STARTS = tuple(struct.pack(f"{order}HH", *tag) for tag in BARE_TAGS for order in "<>")


@dataclass(frozen=True)
class DicomFile:
    """One file that may be DICOM.

    Attributes:
        name: For messages, on one line: relative to the folder or zip.
        size: In bytes, unpacked.
        open: Opens it for reading, seekable; the caller closes it. Raises OSError or an error of ``zipfile``.
    """

    name: str
    size: int
    open: Callable[[], BinaryIO]


@contextmanager
def open_files(path: Path) -> Iterator[list[DicomFile]]:
    """List the regular files of a folder (nested), of a zip, or the one file, sorted by name.

    Hidden files and folders are left out; links to folders are not followed. The files can be
    opened as long as the context lasts.

    Raises:
        ScanError: If there is no such thing, or it is too large or not a readable zip.
    """
    with ExitStack() as stack:
        try:
            files = _list_files(path, stack)
        except FileNotFoundError as error:
            raise ScanError(f"{printable(path)}: expected DICOM files, got no such file or folder") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ScanError(f"{printable(path)}: cannot be read: {reason}") from error
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise ScanError(
                f"{printable(path)}: expected a complete zip archive, got a damaged one; {AGAIN}"
            ) from error
        yield files


def is_dicom(path: Path) -> bool:
    """Whether a path is for ``read_dicom``: a zip, a DICOM file, or a folder with a DICOM file somewhere below.

    Files without a preamble count only in a folder, where nothing else reads them.
    """
    try:
        if not path.is_dir():
            start = _read_start(path) if path.is_file() else b""
            return start.startswith(ZIP_MAGIC) or start[128:] == b"DICM"
        return any(_file_starts_as_dicom(file) for file in _walk(path))
    except (OSError, ScanError):
        return False


def starts_as_dicom(start: bytes) -> bool:
    """Whether the first ``START_BYTES`` of a file may be those of DICOM, with preamble or without."""
    return start[128:132] == b"DICM" or start.startswith(BARE_STARTS)


def _list_files(path: Path, stack: ExitStack) -> list[DicomFile]:
    if path.is_dir():
        return _list_folder(path)
    if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe would wait for ever
        raise ScanError(f"{printable(path)}: expected a file or folder, got a device or pipe")
    if _read_start(path).startswith(ZIP_MAGIC):
        return _list_zip(path, stack.enter_context(zipfile.ZipFile(path)))
    return [DicomFile(printable(Path(path.name)), path.stat().st_size, _FileOpener(path))]


def _file_starts_as_dicom(path: Path) -> bool:
    try:
        return starts_as_dicom(_read_start(path))
    except OSError:
        return False


def _read_start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(START_BYTES)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the regular files below a folder, those of one folder sorted by name."""
    for parent, folders, names in os.walk(folder, onerror=_refuse_folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file():
                yield path


def _refuse_folder(error: OSError) -> None:
    """Refuse a folder that cannot be listed: slices may lie in it."""
    raise ScanError(f"{printable(Path(error.filename))}: cannot be read: {error.strerror}") from error


def _list_folder(folder: Path) -> list[DicomFile]:
    files: list[DicomFile] = []
    for path in _walk(folder):
        if len(files) == MAX_FILES:
            raise ScanError(f"{printable(folder)}: expected at most {MAX_FILES:,} files; name the folder of one study")
        opener = _FileOpener(path)
        files.append(DicomFile(printable(path.relative_to(folder)), path.stat().st_size, opener))
    return files


def _list_zip(path: Path, archive: zipfile.ZipFile) -> list[DicomFile]:
    members = [member for member in archive.infolist() if not member.is_dir() and not _is_hidden(member.filename)]
    if len(members) > MAX_FILES:
        raise ScanError(f"{printable(path)}: expected at most {MAX_FILES:,} files in the zip, got {len(members):,}")
    # zipfile never unpacks more than a member declares, so the declared sizes bound what can come.
    total = sum(member.file_size for member in members)
    if total > MAX_ZIP_BYTES:
        expected = f"at most {MAX_ZIP_BYTES:,} bytes unpacked"
        raise ScanError(f"{printable(path)}: expected {expected}, got a zip that declares {total:,}")
    if any(member.flag_bits & 1 for member in members):
        expected = "a zip that opens without a password"
        raise ScanError(f"{printable(path)}: expected {expected}, got an encrypted one; unpack it first")
    return [
        DicomFile(printable(Path(member.filename)), member.file_size, _MemberOpener(archive, member))
        for member in sorted(members, key=lambda member: member.filename)
    ]


def _is_hidden(name: str) -> bool:
    parts = [part for part in name.split("/") if part not in (".", "..")]
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


@dataclass(frozen=True)
class _FileOpener:
    path: Path

    def __call__(self) -> BinaryIO:
        return self.path.open("rb")


@dataclass(frozen=True)
class _MemberOpener:
    archive: zipfile.ZipFile
    member: zipfile.ZipInfo

    def __call__(self) -> BinaryIO:
        """Unpack a member into memory if it starts as DICOM; of any other file give the start only."""
        with self.archive.open(self.member) as file:
            start = file.read(START_BYTES)
            if not starts_as_dicom(start) or self.member.file_size > MAX_FILE_BYTES:
                return io.BytesIO(start)
            unpacked = io.BytesIO()  # filled bit by bit: its content is never there twice
            unpacked.write(start)
            shutil.copyfileobj(file, unpacked, CHUNK)
            unpacked.seek(0)
            return unpacked
