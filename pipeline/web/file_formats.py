"""What an uploaded file is, told by its content alone: names say nothing here.

Only a file's first bytes are looked at. Nothing is unpacked or parsed in the server's own process; that is for the
readers, in the worker process.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.formats.dicom.files import ZIP_MAGIC, starts_as_dicom
from pipeline.formats.nifti_header import NIFTI_KINDS
from pipeline.web.index import JobRecord
from pipeline.web.kinds import JobKind
from pipeline.web.models import JobState
from pipeline.web.refusals import Refusal

__all__ = ["FileFormat", "detect_format", "stored_name"]

STUDY, ZIP_NAME = "study", "study.zip"
GZIP_MAGIC = b"\x1f\x8b"
# A header of text is at the start of the file and far shorter.
MAX_TEXT_HEADER = 2**16
NRRD_MAGIC = b"NRRD000"
# Both formats can name another file as the one with the data; such a name would be opened on the server.
NRRD_DATA_FILE = re.compile(rb"^\s*data\s*file\s*:", re.IGNORECASE | re.MULTILINE)
NRRD_HEADER_END = re.compile(rb"\n\r?\n")
META_START = re.compile(rb"\s*(ObjectType|NDims|Comment)\s*[=:]", re.IGNORECASE)
META_DATA_FILE = re.compile(rb"ElementDataFile", re.IGNORECASE)
META_LOCAL = re.compile(rb"^[ \t]*ElementDataFile[ \t]*[=:][ \t]*LOCAL[ \t]*\r?\n", re.MULTILINE)


@dataclass(frozen=True)
class FileFormat:
    """A format that can be uploaded.

    Attributes:
        name: For people and programs.
        ending: What a stored file is called, by which the readers choose.
        several: Whether a job may have many, all of one role.
        roles: Whether a job may have one for each role; else it is the first role's.
    """

    name: str
    ending: str
    several: bool = False
    roles: bool = True


NIFTI, NIFTI_GZ = FileFormat("nifti", ".nii"), FileFormat("nifti", ".nii.gz")
NRRD, META_IMAGE = FileFormat("nrrd", ".nrrd"), FileFormat("metaimage", ".mha")
PNG, JPEG = FileFormat("png", ".png"), FileFormat("jpeg", ".jpg")
PNG_MAGIC, JPEG_MAGIC = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
DICOM = FileFormat("dicom", ".dcm", several=True, roles=False)
ZIP = FileFormat("zip", ".zip", roles=False)


def detect_format(path: Path) -> FileFormat:
    """Tell what a file is.

    Raises:
        Refusal: If it is nothing that can be segmented.
    """
    with path.open("rb") as file:
        start = file.read(MAX_TEXT_HEADER)
    if not start:
        raise Refusal("unknown_format", "expected a scan, got an empty file")
    if start.startswith(GZIP_MAGIC):  # what is inside the reader will see
        return NIFTI_GZ
    if _is_nifti(start):
        return NIFTI
    if start.startswith(PNG_MAGIC):
        return PNG
    if start.startswith(JPEG_MAGIC):
        return JPEG
    if start.startswith(ZIP_MAGIC):
        return ZIP
    if starts_as_dicom(start):
        return DICOM
    if start.startswith(NRRD_MAGIC):
        if NRRD_DATA_FILE.search(start) or NRRD_HEADER_END.search(start) is None:
            raise Refusal("unknown_format", "expected an NRRD volume with its data inside, got one that names a file")
        return NRRD
    if META_START.match(start):
        if len(META_DATA_FILE.findall(start)) != 1 or META_LOCAL.search(start) is None:
            raise Refusal("unknown_format", "expected a MetaImage with its data inside, got one that names a file")
        return META_IMAGE
    raise Refusal("unknown_format", f"expected a scan, got other content (it starts with {start[:8]!r})")


def _is_nifti(start: bytes) -> bool:
    return any(start[position : position + len(magic)] == magic for _, magic, position in NIFTI_KINDS.values())


def stored_name(record: JobRecord, kind: JobKind, file_format: FileFormat, role: str) -> str:
    """Return what an uploaded file is called, or the folder that it goes to: nothing of it comes from outside.

    Args:
        record: Of the job.
        kind: Of the job.
        file_format: Of the file.
        role: That was asked for.

    Raises:
        Refusal: If the job does not take it.
    """
    if record.state is not JobState.UPLOADING:
        raise Refusal("wrong_state", f"expected a job that is uploading, got one that is {record.state.value}")
    if file_format.name not in kind.accepts:
        raise Refusal("not_accepted", f"expected {', '.join(kind.accepts)}, got {file_format.name}")
    if not file_format.roles and role != kind.roles[0]:
        raise Refusal("invalid", f"a {file_format.name} file holds all sequences: role must be {kind.roles[0]}")
    alone = not file_format.roles or record.format in ("dicom", "zip")
    if record.format is not None and alone and record.format != file_format.name:
        raise Refusal("mixed_formats", f"expected {record.format} as before, got {file_format.name}")
    if role in record.roles and not file_format.several:
        raise Refusal("role_taken", f"expected one file of the role {role}, got another")
    if file_format.several:
        return STUDY
    return f"{role}{file_format.ending}" if file_format.roles else ZIP_NAME
