"""The frame that every T1 slice comes in: the training slices', which nothing is resampled to."""

from __future__ import annotations

__all__ = ["COLUMNS", "EXPECTED", "ROWS", "SLICES"]

ROWS, COLUMNS = 208, 176  # of a slice: front to back, and across; pixels of 1 mm
SLICES = 32  # of a subject, adjacent, from below the ventricles upwards
EXPECTED = (
    f"a brain-extracted T1 in the OASIS/Talairach atlas frame: axial slices of {COLUMNS}x{ROWS} pixels of 1 mm, the "
    f"front up, one of them or a volume of at least {SLICES}"
)
