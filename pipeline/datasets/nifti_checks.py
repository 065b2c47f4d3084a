"""Reading a scan with its mask for training, and telling at once all that is wrong with it."""

from __future__ import annotations

import gzip
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.datasets.nifti_pairs import Finding, LabelScheme, Pair
from pipeline.errors import ScanError
from pipeline.formats.nifti import read_scan
from pipeline.formats.nifti_header import check_same_grid, open_nifti, printable, read_layout
from pipeline.formats.resampling import is_same_grid, resample_onto
from pipeline.formats.scan import CHANNELS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.formats.scan import Scan

__all__ = ["Sample", "read_labels", "read_pair"]

MAX_VALUES_SHOWN = 5
MAX_TRAILING_BYTES = 2**20  # read behind the data in search of gzip's checksum


@dataclass(frozen=True, eq=False)
class Sample:
    """A scan as it is trained on.

    Attributes:
        volumes: Intensities ``(I, J, K)``, float32, of t1, flair and t1c, on the grid of the FLAIR.
        label: Mask ``(I, J, K)``, uint8, 0 and 1.
        affine: Voxel to RAS+ mm, ``(4, 4)``.
        spacing_known: Whether the FLAIR's file knows its voxel sizes.
        filled: Sequences that are missing, and FLAIR in their place.
        resampled: Sequences that lay on another grid.
        flair_sha256: Of the FLAIR's intensities, by which a scan is known again under another name.
    """

    volumes: Mapping[str, NDArray[np.float32]]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]
    spacing_known: bool
    filled: tuple[str, ...]
    resampled: tuple[str, ...]
    flair_sha256: str


def read_pair(pair: Pair, scheme: LabelScheme) -> tuple[Sample | None, list[Finding]]:
    """Read a scan and its mask; all that is wrong with its files is told, not the first fault only.

    Returns:
        The sample, None where a finding is an error; and the findings.
    """
    problems: list[str] = []
    scans: dict[str, Scan] = {}
    for name, path in pair.images.items():
        try:
            scans[name] = read_scan(path)
        except ScanError as error:
            problems.append(str(error))
    label = _read_lesion(pair, scheme, problems)
    volumes: dict[str, NDArray[np.float32]] = {}
    resampled: list[str] = []
    if "flair" in scans:
        for name, scan in scans.items():
            try:
                volumes[name] = _onto_flair(scan, scans["flair"], pair)
            except ScanError as error:
                problems.append(str(error))
            if not is_same_grid(scan, scans["flair"]):
                resampled.append(name)
    findings = [Finding(pair.subject, f"{pair.source}: {problem}") for problem in problems]
    if findings or label is None:
        return None, findings
    if not label.any():
        text = f"{pair.source}: {printable(pair.label)}: no lesion in the mask"
        findings.append(Finding(pair.subject, text, is_error=False))
    flair = scans["flair"]
    sample = Sample(
        volumes={name: volumes.get(name, volumes["flair"]) for name in CHANNELS},
        label=label,
        affine=flair.affine,
        spacing_known=flair.spacing is not None,
        filled=tuple(name for name in CHANNELS if name not in volumes),
        resampled=tuple(resampled),
        flair_sha256=hashlib.sha256(volumes["flair"].tobytes()).hexdigest(),
    )
    return sample, findings


def _onto_flair(scan: Scan, flair: Scan, pair: Pair) -> NDArray[np.float32]:
    if not is_same_grid(scan, flair) and (scan.spacing is None or flair.spacing is None):
        # Without millimetres there is no common space: only the very same grid will do.
        check_same_grid(read_layout(Path(scan.source)), read_layout(pair.flair))
    return resample_onto(scan, flair)


def _read_lesion(pair: Pair, scheme: LabelScheme, problems: list[str]) -> NDArray[np.uint8] | None:
    """Return the lesion as uint8, None where the mask has a problem, which is added to the others."""
    import numpy as np

    try:
        values = read_labels(pair.label)
    except ScanError as error:
        problems.append(str(error))
        return None
    present = np.unique(values)
    allowed = present == np.round(present)
    if scheme.allowed is not None:
        allowed &= np.isin(present, sorted(scheme.allowed))
    good = bool(allowed.all())
    if not good:
        shown = ", ".join(f"{value:g}" for value in present[:MAX_VALUES_SHOWN])
        more = f", ... ({len(present):,} values)" if len(present) > MAX_VALUES_SHOWN else ""
        expected = "whole numbers"
        if scheme.allowed is not None:
            expected = f"the values {', '.join(map(str, sorted(scheme.allowed)))}"
        advice = f"; {scheme.advice}" if scheme.advice else ""
        problems.append(f"{printable(pair.label)}: expected {expected}, got {shown}{more}{advice}")
    try:
        check_same_grid(read_layout(pair.label), read_layout(pair.flair))
    except ScanError as error:
        # A FLAIR that cannot be read has been told of already.
        if str(error) not in problems:
            problems.append(str(error))
        good = False
    return np.isin(values, sorted(scheme.lesion)).astype(np.uint8) if good else None


def read_labels(path: Path) -> NDArray[np.float64]:
    """Read the values of a mask ``(I, J, K)`` from a NIfTI file, whatever they mean.

    Raises:
        ScanError: If the file is missing, damaged, not one 3D volume, or holds NaN or infinite values.
    """
    import numpy as np

    layout = read_layout(path)
    size = math.prod(layout.spatial_shape) * layout.dtype.itemsize
    with open_nifti(path) as file:
        file.seek(layout.offset)
        raw = file.read(size)
        if isinstance(file, gzip.GzipFile):
            file.read(MAX_TRAILING_BYTES)  # only there does gzip find out whether the data are what was compressed
    if len(raw) < size:
        raise ScanError(f"{printable(path)}: expected {size:,} bytes of voxels, got {len(raw):,} (truncated?)")
    stored = np.frombuffer(raw, layout.dtype).reshape(layout.spatial_shape, order="F")
    values: NDArray[np.float64] = stored.astype(np.float64) * layout.slope + layout.intercept
    nonfinite = int(np.count_nonzero(~np.isfinite(values)))
    if nonfinite:
        raise ScanError(f"{printable(path)}: expected the values of labels, got {nonfinite:,} NaN or infinite")
    return values
