"""What a mask amounts to: its lesions, counted and measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Lesion", "Measurements", "measure"]


@dataclass(frozen=True)
class Lesion:
    """One connected component of a mask.

    Attributes:
        voxels: Its size.
        volume_ml: Its volume; None where the spacing is unknown.
        centre_mm: Its centre of mass in scanner coordinates, RAS+ mm; None where the affine
            or the spacing is unknown.
    """

    voxels: int
    volume_ml: float | None
    centre_mm: tuple[float, float, float] | None


@dataclass(frozen=True)
class Measurements:
    """What a mask amounts to.

    Attributes:
        lesion_voxels: Voxels of all lesions.
        volume_ml: Their volume; None where the spacing is unknown.
        lesions: The connected components, the largest first.
        slices_total: Axial slices of the volume.
        slices_with_lesion: Axial slices that hold a lesion voxel.
    """

    lesion_voxels: int
    volume_ml: float | None
    lesions: tuple[Lesion, ...]
    slices_total: int
    slices_with_lesion: int

    @property
    def lesion_count(self) -> int:
        """How many lesions there are."""
        return len(self.lesions)


def measure(
    mask: NDArray[np.generic],
    spacing: tuple[float, float, float] | None,
    affine: NDArray[np.float64] | None = None,
) -> Measurements:
    """Measure the lesions of a mask.

    Voxels that share a face, an edge or a corner belong to one lesion (26-connectivity in
    three dimensions). Without a spacing there are no millilitres and no millimetres.

    Args:
        mask: ``(I, J, K)``, nonzero in lesions.
        spacing: Voxel sizes in mm along I, J and K, or None.
        affine: ``(4, 4)``, voxel to RAS+ mm; without it slices are taken along K.

    Raises:
        ValueError: If ``mask`` is not 3D.
    """
    from scipy import ndimage

    if mask.ndim != 3:
        raise ValueError(f"mask must be (I, J, K), got shape {mask.shape}")
    inside = mask.astype(bool)
    # In the order of memory, in which a volume is searched several times faster.
    order: Literal["F", "C"] = "F" if inside.flags.f_contiguous else "C"
    found = np.flatnonzero(inside.ravel(order=order))
    indices = np.stack(np.unravel_index(found, inside.shape, order=order), axis=1)
    axis = 2 if affine is None else _axial_axis(mask.shape, affine)
    lesions: list[Lesion] = []
    voxel_ml = None
    if spacing is not None:
        # The determinant also holds for sheared voxels, as gantry tilt makes them.
        voxel_mm3 = np.prod(spacing) if affine is None else abs(np.linalg.det(affine[:3, :3]))
        voxel_ml = float(voxel_mm3) / 1000
    if len(indices):
        start = indices.min(axis=0)
        box = tuple(slice(low, high) for low, high in zip(start, indices.max(axis=0) + 1, strict=True))
        labels, count = ndimage.label(inside[box], structure=np.ones((3, 3, 3)))
        label = labels[tuple((indices - start).T)]
        sizes = np.bincount(label, minlength=count + 1)
        centres = np.stack([np.bincount(label, indices[:, n], count + 1) / np.maximum(sizes, 1) for n in range(3)])
        for n in 1 + np.argsort(-sizes[1:], kind="stable"):
            volume = None if voxel_ml is None else int(sizes[n]) * voxel_ml
            centre = None
            if affine is not None and spacing is not None:
                first, second, third = (float(x) for x in affine[:3, :3] @ centres[:, n] + affine[:3, 3])
                centre = (first, second, third)
            lesions.append(Lesion(int(sizes[n]), volume, centre))
    return Measurements(
        lesion_voxels=len(indices),
        volume_ml=None if voxel_ml is None else len(indices) * voxel_ml,
        lesions=tuple(lesions),
        slices_total=mask.shape[axis],
        slices_with_lesion=len(np.unique(indices[:, axis])),
    )


def _axial_axis(shape: tuple[int, ...], affine: NDArray[np.float64]) -> int:
    """Return the axis of a volume along which its axial slices follow one another."""
    from transforms.geometry import find_slice_frame

    # For the order of the axes the image need not hold anything.
    nothing = np.broadcast_to(np.float32(0), (1, *shape))
    return find_slice_frame(nothing, affine, None, crop_to_head=False).order[2]
