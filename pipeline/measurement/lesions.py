"""What a mask amounts to: its lesions, counted and measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.measurement.diameters import Diameters, find_diameters
from pipeline.measurement.laterality import (
    Laterality,
    MidsagittalPlane,
    find_midsagittal_plane,
    is_orientation_stated,
    name_side,
)

if TYPE_CHECKING:
    from pipeline.formats.scan import Scan
    from transforms.geometry import SliceFrame

__all__ = ["Lesion", "Measurements", "measure", "measure_scan"]


@dataclass(frozen=True)
class Lesion:
    """One connected component of a mask.

    Attributes:
        voxels: Its size.
        volume_ml: Its volume; None where the spacing is unknown.
        centre_mm: Its centre of mass in scanner coordinates, RAS+ mm; None where the affine
            or the spacing is unknown.
        diameters: The two perpendicular ones; None where the spacing is unknown.
        laterality: On which side of the head it lies; None where that is unknown.
    """

    voxels: int
    volume_ml: float | None
    centre_mm: tuple[float, float, float] | None
    diameters: Diameters | None = None
    laterality: Laterality | None = None


@dataclass(frozen=True)
class Measurements:
    """What a mask amounts to.

    Attributes:
        lesion_voxels: Voxels of all lesions.
        volume_ml: Their volume; None where the spacing is unknown.
        lesions: The connected components, the largest first.
        slices_total: Axial slices of the volume.
        slices_with_lesion: Axial slices that hold a lesion voxel.
        laterality: On which side of the head all of them lie; None where that is unknown or there is none.
    """

    lesion_voxels: int
    volume_ml: float | None
    lesions: tuple[Lesion, ...]
    slices_total: int
    slices_with_lesion: int
    laterality: Laterality | None = None

    @property
    def lesion_count(self) -> int:
        """How many lesions there are."""
        return len(self.lesions)


def measure_scan(scan: Scan, mask: NDArray[np.generic]) -> Measurements:
    """Measure the lesions that were found in a scan: sizes, and sides where the scan states its orientation.

    Args:
        scan: What was segmented.
        mask: ``(I, J, K)``, nonzero in lesions.

    Raises:
        ValueError: If the shape of the mask is not the scan's.
    """
    if mask.shape != scan.spatial_shape:
        raise ValueError(f"mask must have the scan's shape {scan.spatial_shape}, got {mask.shape}")
    plane = None
    if is_orientation_stated(scan) and mask.any():
        plane = find_midsagittal_plane(scan.flair, _find_frame(mask.shape, scan.affine))
    return measure(mask, scan.spacing, scan.affine, plane)


def measure(
    mask: NDArray[np.generic],
    spacing: tuple[float, float, float] | None,
    affine: NDArray[np.float64] | None = None,
    plane: MidsagittalPlane | None = None,
) -> Measurements:
    """Measure the lesions of a mask.

    Voxels that share a face, an edge or a corner belong to one lesion (26-connectivity in
    three dimensions). Without a spacing there are no millilitres and no millimetres.

    Args:
        mask: ``(I, J, K)``, nonzero in lesions.
        spacing: Voxel sizes in mm along I, J and K, or None.
        affine: ``(4, 4)``, voxel to RAS+ mm; without it slices are taken along K.
        plane: Between the halves of the head; None where left and right are unknown.

    Raises:
        ValueError: If ``mask`` is not 3D.
    """
    if mask.ndim != 3:
        raise ValueError(f"mask must be (I, J, K), got shape {mask.shape}")
    inside = mask.astype(bool)
    # In the order of memory, in which a volume is searched several times faster.
    order: Literal["F", "C"] = "F" if inside.flags.f_contiguous else "C"
    found = np.flatnonzero(inside.ravel(order=order))
    indices = np.stack(np.unravel_index(found, inside.shape, order=order), axis=1)
    frame = _find_frame(mask.shape, np.diag([*(spacing or (1, 1, 1)), 1]) if affine is None else affine)
    # The determinant also holds for sheared voxels, as gantry tilt makes them.
    voxel_ml = None if spacing is None else abs(float(np.linalg.det(np.asarray(frame.affine)[:3, :3]))) / 1000
    left = None if plane is None or not len(indices) else plane.on_left(indices)
    lesions = _measure_lesions(inside, indices, left, frame, voxel_ml) if len(indices) else []
    if affine is None:  # the axes are known, where they begin is not
        lesions = [replace(lesion, centre_mm=None) for lesion in lesions]
    axis = frame.order[2]
    return Measurements(
        lesion_voxels=len(indices),
        volume_ml=None if voxel_ml is None else len(indices) * voxel_ml,
        lesions=tuple(lesions),
        slices_total=mask.shape[axis],
        slices_with_lesion=len(np.unique(indices[:, axis])),
        laterality=None if left is None else name_side(float(left.mean())),
    )


def _measure_lesions(
    inside: NDArray[np.bool_],
    indices: NDArray[np.intp],
    left: NDArray[np.bool_] | None,
    frame: SliceFrame,
    voxel_ml: float | None,
) -> list[Lesion]:
    """Measure each connected component, the largest first.

    Args:
        inside: The mask ``(I, J, K)``.
        indices: Of its voxels ``(n, 3)``, at least one.
        left: Which of them are on the patient's left; None where that is unknown.
        frame: Of the volume.
        voxel_ml: Volume of a voxel; None where the spacing is unknown.
    """
    from scipy import ndimage

    start = indices.min(axis=0)
    box = tuple(slice(low, high) for low, high in zip(start, indices.max(axis=0) + 1, strict=True))
    labels, count = ndimage.label(inside[box], structure=np.ones((3, 3, 3)))
    label = labels[tuple((indices - start).T)]
    sizes = np.bincount(label, minlength=count + 1)
    centres = np.stack([np.bincount(label, indices[:, n], count + 1) / np.maximum(sizes, 1) for n in range(3)])
    on_left = None if left is None else np.bincount(label[left], minlength=count + 1)
    extents = ndimage.find_objects(labels)
    affine = np.asarray(frame.affine)
    lesions = []
    for n in 1 + np.argsort(-sizes[1:], kind="stable"):
        size, volume, centre, diameters = int(sizes[n]), None, None, None
        if voxel_ml is not None:
            volume = size * voxel_ml
            first, second, third = (float(x) for x in affine[:3, :3] @ centres[:, n] + affine[:3, 3])
            centre = first, second, third
            extent = extents[n - 1]
            corner = [int(low) + part.start for low, part in zip(start, extent, strict=True)]
            diameters = find_diameters(labels[extent] == n, frame, (corner[0], corner[1], corner[2]))
        side = None if on_left is None else name_side(float(on_left[n]) / size)
        lesions.append(Lesion(size, volume, centre, diameters, side))
    return lesions


def _find_frame(shape: tuple[int, ...], affine: NDArray[np.float64]) -> SliceFrame:
    """Return the order and direction of a volume's axes as radiologists look at it."""
    from transforms.geometry import find_slice_frame

    # For these the image need not hold anything.
    nothing = np.broadcast_to(np.float32(0), (1, *shape))
    return find_slice_frame(nothing, affine, None, crop_to_head=False)
