"""What reading DICOM gives: the scan, and the headers that results in DICOM refer to.

The scan's axes are DICOM's own: I counts columns (along a row of pixels), J counts rows, and K
counts slices along the normal (the row's direction cross the column's, in LPS). So plane k of
anything on the scan's grid is, transposed, the ``(rows, columns)`` of frame k:
``mask[:, :, k].T`` lies on ``frames[k]`` of ``header_of(k)``. Only the scan's affine is RAS+;
the headers keep DICOM's LPS.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.formats.scan import Scan

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["DicomScan", "DicomSource"]


@dataclass(frozen=True, eq=False)
class DicomSource:
    """The headers a scan was read from, in the order of its slices.

    Attributes:
        datasets: Headers without pixel data, with their ``file_meta``. One a slice, in the order of the
            scan's K axis; or the one enhanced multi-frame dataset that holds all slices.
        frames: For each slice, in the order of the scan's K axis, the number of its frame within its
            dataset, counted from 1 as DICOM does; all 1 for one dataset a slice. A multi-frame dataset
            may hold frames that are not listed here, and hold them in another order.

    Raises:
        ValueError: If there is neither one dataset a slice nor one in all, or a frame is below 1.
    """

    datasets: tuple[Dataset, ...] = field(repr=False)  # they name the patient
    frames: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse what would put a result on another slice than its own."""
        if not self.frames or len(self.datasets) not in (1, len(self.frames)):
            raise ValueError(f"datasets must be 1 or one a slice ({len(self.frames)}), got {len(self.datasets)}")
        if min(self.frames) < 1:
            raise ValueError(f"frames must count from 1, got {min(self.frames)}")

    @property
    def is_multiframe(self) -> bool:
        """Whether one dataset holds all slices."""
        return len(self.datasets) == 1

    def header_of(self, k: int) -> Dataset:
        """Return the dataset that holds slice ``k`` of the scan, counted from 0."""
        return self.datasets[0 if self.is_multiframe else k]


@dataclass(frozen=True, eq=False)
class DicomScan:
    """A FLAIR series as a scan, and what else was found beside it.

    Attributes:
        scan: The FLAIR alone, image ``(1, I, J, K)`` on the series' own grid; its spacing is known.
        source: Headers of the FLAIR's slices.
        t1: Pre-contrast T1 on its own grid, in the FLAIR's scanner coordinates; None where there is none,
            or more than one to choose from. ``resampling.combine_sequences`` brings it onto the FLAIR's grid.
        t1c: Post-contrast T1; as ``t1``.
        notes: What was set aside or decided, a line each, for the report. No patient's name is in them.
        warnings: What may make the mask worse, a line each, for the report and the user's eyes.
    """

    scan: Scan
    source: DicomSource
    t1: Scan | None = None
    t1c: Scan | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
