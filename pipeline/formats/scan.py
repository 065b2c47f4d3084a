"""A scan in memory: what every reader returns and everything behind the door takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

__all__ = ["CHANNELS", "Scan"]

CHANNELS = ("t1", "flair", "t1c")


@dataclass(frozen=True, eq=False)
class Scan:
    """One patient's sequences on the voxel grid of the FLAIR.

    Attributes:
        image: Intensities ``(C, I, J, K)``, float32. C is 1 (FLAIR alone) or 3 (t1, flair, t1c).
        affine: ``(4, 4)``, float64, voxel to RAS+ mm.
        spacing: Voxel sizes in mm along I, J and K; None where the source does not know them.
        source: Where the scan was read from, for messages and the report.
        header: NIfTI header of the FLAIR, for writing results on exactly its grid; None where
            the source was not NIfTI.

    Raises:
        ValueError: If a shape, a data type or the spacing is not as described.
    """

    image: NDArray[np.float32]
    affine: NDArray[np.float64]
    spacing: tuple[float, float, float] | None
    source: str
    header: Nifti1Header | None = None

    def __post_init__(self) -> None:
        """Refuse what no later step could make sense of."""
        if self.image.ndim != 4 or len(self.image) not in (1, len(CHANNELS)):
            raise ValueError(f"image must be (1 or 3, I, J, K), got shape {self.image.shape}")
        if self.image.dtype != np.float32:
            raise ValueError(f"image must be float32, got {self.image.dtype}")
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all():
            raise ValueError(f"affine must be a finite (4, 4) matrix, got {self.affine.tolist()}")
        if self.spacing is not None and (len(self.spacing) != 3 or not all(size > 0 for size in self.spacing)):
            raise ValueError(f"spacing must be three positive voxel sizes in mm or None, got {self.spacing}")

    @property
    def spatial_shape(self) -> tuple[int, int, int]:
        """Voxels along I, J and K."""
        _, first, second, third = self.image.shape
        return first, second, third

    @property
    def flair(self) -> NDArray[np.float32]:
        """The FLAIR channel ``(I, J, K)``, a view."""
        # Only here: it brings SciPy, which reading a scan and refusing one do without.
        from transforms.geometry import FLAIR_CHANNEL

        flair: NDArray[np.float32] = self.image[FLAIR_CHANNEL if len(self.image) > 1 else 0]
        return flair
