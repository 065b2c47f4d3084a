"""The door for DICOM: a folder, a zip or one multi-frame file goes in, a FLAIR scan comes out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ScanError
from pipeline.formats.dicom.files import DicomFile, open_files
from pipeline.formats.dicom.headers import quiet_pydicom, read_headers
from pipeline.formats.dicom.pixels import have_same_pixels, read_volume
from pipeline.formats.dicom.planes import list_planes
from pipeline.formats.dicom.series import Series, choose_flair, choose_t1, describe, group_series
from pipeline.formats.dicom.source import DicomScan, DicomSource
from pipeline.formats.dicom.stacking import stack_planes
from pipeline.formats.foreign import AGAIN
from pipeline.formats.printable import printable
from pipeline.formats.resampling import MIN_COVERED_SHARE, covered_share
from pipeline.formats.scan import Scan

__all__ = ["read_dicom"]

# Up to this ratio of the longest to the shortest voxel edge, a volume looks the same from every side.
ISOTROPY_RATIO = 1.5
MAX_NAMED = 3  # damaged files in a line


def read_dicom(path: Path, *, series: str | None = None, with_t1: bool = True) -> DicomScan:
    """Read the FLAIR of a study, and its T1 before and after contrast where they are clear.

    Which series is which is decided by the rule in ``series.py``; slices are sorted by their position.

    Args:
        path: Folder (nested, other series and other files among the slices), zip of one, or a multi-frame file.
        series: SeriesInstanceUID to read as FLAIR, whatever its tags say; None to find it.
        with_t1: Whether to look for t1 and t1c as well. One that is damaged or of another place is left
            out with a note, for the FLAIR is enough.

    Returns:
        The FLAIR with the headers of its slices, the other sequences, notes and warnings.

    Raises:
        ScanError: One line that names the path, and the file or the series: if there is no DICOM, if the FLAIR is
            missing or not the only one (the line lists the series), or if its slices do not form a volume.
    """
    quiet_pydicom()
    with open_files(path) as files:
        headers, damaged = read_headers(files)
        try:
            found = group_series(headers)
            if not found:
                raise ScanError(_describe_nothing(files, len(headers), len(damaged)))
            flair, notes = choose_flair(found, series)
            scan, source, own_notes = _read_series(flair, path)
        except ScanError as error:
            # What is damaged may be the very slice that is missing.
            unreadable = f" [unreadable: {_name_some(damaged)}]" if damaged else ""
            raise ScanError(f"{printable(path)}: {error}{unreadable}") from error
        notes += [f"FLAIR: {describe(flair)}", *own_notes]
        others: dict[str, Scan | None] = {}
        for role in ("t1", "t1c") if with_t1 else ():
            others[role], role_notes = _read_other(found, flair, scan, role, path)
            notes += role_notes
    unread = [f"files left out, slices of this scan perhaps: {_name_some(damaged)}"] if damaged else []
    return DicomScan(scan, source, others.get("t1"), others.get("t1c"), tuple(notes), (*_find_warnings(scan), *unread))


def _read_series(series: Series, path: Path) -> tuple[Scan, DicomSource, tuple[str, ...]]:
    stack = stack_planes(list_planes(series.headers), have_same_pixels)
    volume, source = read_volume(stack.planes)
    return Scan(volume[None], stack.affine, stack.spacing, str(path)), source, stack.notes


def _read_other(found: list[Series], flair: Series, scan: Scan, role: str, path: Path) -> tuple[Scan | None, list[str]]:
    """Read t1 or t1c, or say in a note why it is left out."""
    chosen, notes = choose_t1(found, flair, role)
    if chosen is None:
        return None, notes
    try:
        other, _, own_notes = _read_series(chosen, path)
    except ScanError as error:
        return None, [*notes, f"no {role} taken: {describe(chosen)}: {error}"]
    share = covered_share(other, scan)
    if share < MIN_COVERED_SHARE:
        return None, [*notes, f"no {role} taken: {describe(chosen)}: it shows only {share:.0%} of what the FLAIR does"]
    return other, [*notes, f"{role}: {describe(chosen)}", *own_notes]


def _find_warnings(scan: Scan) -> list[str]:
    """Warn of thick slices that are not axial: each slice that the network sees is made up of rows of them."""
    edges: NDArray[np.float64] = np.linalg.norm(scan.affine[:3, :3], axis=0)
    plane = ("sagittal", "coronal", "axial")[int(np.abs(scan.affine[:3, 2] / edges[2]).argmax())]
    if plane == "axial" or edges.max() <= ISOTROPY_RATIO * edges.min():
        return []
    return [
        f"{plane} slices {edges[2]:.1f} mm apart: the network works on axial ones, which are made from these "
        "with as few pixels across; expect a worse mask than from an axial or an isotropic series"
    ]


def _describe_nothing(files: Sequence[DicomFile], headers: int, damaged: int) -> str:
    if not files:
        return "expected DICOM files or LGG slices, got no files; name the folder that holds them"
    if headers:
        return f"expected images of an MR series, got {headers} DICOM files without pixels (reports, plans, ...)"
    if damaged:
        return f"expected DICOM files, got none that can be read; {AGAIN}"
    names = ", ".join(file.name for file in files[:MAX_NAMED]) + (", ..." if len(files) > MAX_NAMED else "")
    received = f"{len(files)} of other kinds ({names})" if len(files) > 1 else f"another kind ({names})"
    if any(file.name.upper() == "DICOMDIR" for file in files):
        return f"expected DICOM files, got {received}; name the folder that the DICOMDIR lies in"
    return f"expected DICOM files, got {received}; name a NIfTI file or an LGG patient's folder itself, unpacked"


def _name_some(damaged: list[str]) -> str:
    more = f"; and {len(damaged) - MAX_NAMED} more" if len(damaged) > MAX_NAMED else ""
    return "; ".join(damaged[:MAX_NAMED]) + more
