"""The door: whatever a scan comes as, it is recognised by its content here and read by its own reader."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import DatasetError, ScanError
from pipeline.formats.itk import ITK_ENDINGS, read_itk
from pipeline.formats.nifti import read_scan
from pipeline.formats.printable import printable
from pipeline.formats.scan import Scan

if TYPE_CHECKING:
    from pipeline.formats.dicom.source import DicomSource

__all__ = ["ReadScan", "case_name", "read_case"]

ENDINGS = (".nii.gz", ".nii", ".zip", ".dcm", ".ima", *ITK_ENDINGS)


@dataclass(frozen=True, eq=False)
class ReadScan:
    """A scan, and what is to be said of its reading.

    Attributes:
        scan: What was read.
        source: Headers of the slices, where they were DICOM.
        notes: What was decided on the way, a line each, for the report.
        warnings: What may make the mask worse, a line each, for the report and the user's eyes.
    """

    scan: Scan
    source: DicomSource | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def case_name(path: Path) -> str:
    """Return a scan's name for its results: the file's without its ending, or the folder's."""
    folder = os.path.isdir(path)  # noqa: PTH112 (unlike Path's own it has no error for a name that cannot be)
    for ending in ENDINGS:
        name = path.name[: -len(ending)]
        # Results called ".." would lie above the folder that they are for.
        if path.name.lower().endswith(ending) and name not in ("", ".", "..") and not folder:
            return name
    return path.resolve().name if folder else path.name


def read_case(path: Path, t1: Path | None = None, t1c: Path | None = None, series: str | None = None) -> ReadScan:
    """Read a scan: FLAIR as NIfTI, NRRD or MetaImage, a study as DICOM, or one patient's folder of the LGG slices.

    Args:
        path: NIfTI, NRRD or MetaImage file; folder or zip of DICOM files, or one multi-frame file; folder of
            ``<patient>_<k>.tif`` slices.
        t1: Pre-contrast T1 beside a FLAIR file; DICOM and LGG slices bring their own.
        t1c: Post-contrast T1; as ``t1``.
        series: SeriesInstanceUID to read as FLAIR; None to find it.

    Raises:
        ScanError: If there is no scan that can be segmented.
        DatasetError: If a folder of slices is incomplete or damaged.
    """
    from pipeline.formats.dicom.files import is_dicom

    folder = os.path.isdir(path)  # noqa: PTH112 (as in case_name)
    has_slices = folder and _has_slices(path)
    dicom = not has_slices and (folder or is_dicom(path))
    if series is not None and not dicom:
        raise ScanError(f"{printable(path)}: --series goes with DICOM, got none; leave it out")
    if not dicom and not has_slices:
        return _read_files(path, t1, t1c)
    if t1 is not None or t1c is not None:
        kind = "a folder of slices" if has_slices else "a DICOM study"
        raise ScanError(f"{printable(path)}: {kind} holds its own t1 and t1c; leave out --t1 and --t1c")
    return _read_slices(path) if has_slices else _read_dicom(path, series)


def _read_files(path: Path, t1: Path | None, t1c: Path | None) -> ReadScan:
    if t1 is None and t1c is None:
        return ReadScan(_read_volume(path))
    from pipeline.formats.resampling import combine_sequences, is_same_grid

    flair, others = _read_volume(path), {"t1": t1, "t1c": t1c}
    scans = {name: _read_volume(file) for name, file in others.items() if file is not None}
    moved = [name for name, scan in scans.items() if not is_same_grid(scan, flair)]
    if moved and any(scan.spacing is None for scan in (flair, *scans.values())):
        # Without millimetres there is no common space: only the very same grid will do.
        other = scans[moved[0]]
        expected = (
            f"the voxel grid of {printable(path)}, shape {flair.spatial_shape}, for one of the two has no spacing"
        )
        same = other.spatial_shape == flair.spatial_shape
        received = f"shape {other.spatial_shape}{' in another place' if same else ''}"
        raise ScanError(f"{printable(other.source)}: expected {expected}, got {received}")
    combined = combine_sequences(flair, scans.get("t1"), scans.get("t1c"))
    return ReadScan(combined, notes=tuple(f"{name} was resampled onto the FLAIR's grid" for name in moved))


def _read_volume(path: Path) -> Scan:
    return read_itk(path) if path.name.lower().endswith(ITK_ENDINGS) else read_scan(path)


def _read_dicom(path: Path, series: str | None) -> ReadScan:
    from pipeline.formats.dicom.reading import read_dicom
    from pipeline.formats.resampling import combine_sequences

    found = read_dicom(path, series=series)
    return ReadScan(combine_sequences(found.scan, found.t1, found.t1c), found.source, found.notes, found.warnings)


def _has_slices(folder: Path) -> bool:
    """Whether there is anything in a folder that is named as an LGG slice or its mask."""
    from pipeline.datasets.lgg_slices import list_slices

    try:
        return bool(list_slices(folder))
    except DatasetError:  # it cannot be listed, which reading DICOM will say
        return False


def _read_slices(path: Path) -> ReadScan:
    from pipeline.datasets.lgg_slices import read_lgg_patient

    try:
        patient = read_lgg_patient(path, with_mask=False)
    except DatasetError as error:
        # It names patient and slice, of a folder that may lie anywhere.
        where = str(error).removeprefix(printable(path.name))
        raise DatasetError(f"{printable(path)}{where if where.startswith((':', ',')) else f': {error}'}") from error
    image = patient.volume.astype("float32")
    if min(image.shape[1:]) < 2:
        raise ScanError(f"{printable(path)}: expected at least 2 voxels along each axis, got shape {image.shape[1:]}")
    if image[1].min() == image[1].max():
        raise ScanError(f"{printable(path)}: all FLAIR voxels are {image[1].min():g}; an image must vary")
    return ReadScan(Scan(image=image, affine=patient.affine, spacing=None, source=str(path)))
