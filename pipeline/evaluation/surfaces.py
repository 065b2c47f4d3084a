"""How far apart the surfaces of two masks lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["SurfaceDistances", "surface_distances"]

PERCENTILE = 95


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between the surfaces of a prediction and its truth, in the unit they were measured in.

    Attributes:
        hd95: The larger of the two directed 95th percentiles.
        mean: The mean over all surface voxels of both masks.
    """

    hd95: float
    mean: float


def surface_distances(
    prediction: NDArray[np.generic], truth: NDArray[np.generic], voxel_steps: NDArray[np.float64] | None = None
) -> SurfaceDistances | None:
    """Measure the distances between the surfaces of two masks.

    A mask's surface are its voxels with at least one of six face neighbours outside of it;
    beyond the edge of the volume is outside. From each surface voxel of one mask the
    distance goes to the nearest surface voxel of the other, from centre to centre. HD95 is
    the 95th percentile of these (interpolated linearly), taken from the prediction to the
    truth and from the truth to the prediction, and then the larger of both (Huttenlocher et
    al., "Comparing images using the Hausdorff distance", 1993, with a percentile in place of
    the maximum). The mean is taken over the distances of both directions together: the
    average symmetric surface distance.

    Args:
        prediction: Mask ``(I, J, K)``; nonzero is lesion.
        truth: Mask of the same shape.
        voxel_steps: ``(3, 3)``, whose columns are the steps in mm from a voxel to the next
            along I, J and K, as in an affine; also oblique and sheared ones. None measures in voxels.

    Returns:
        The distances, or None where a mask is empty and so has no surface.

    Raises:
        ValueError: If the masks are not 3D or differ in shape.
    """
    if prediction.ndim != 3 or prediction.shape != truth.shape:
        raise ValueError(f"masks must be (I, J, K) and of one shape, got {prediction.shape} and {truth.shape}")
    if not prediction.any() or not truth.any():
        return None
    from scipy.spatial import KDTree

    steps = np.eye(3) if voxel_steps is None else voxel_steps
    predicted, true = (_surface_voxels(mask != 0) @ steps.T for mask in (prediction, truth))
    # Surfaces are points of a grid, where a tree that is not balanced is built faster.
    there, _ = KDTree(true, balanced_tree=False).query(predicted)
    back, _ = KDTree(predicted, balanced_tree=False).query(true)
    hd95 = max(float(np.percentile(there, PERCENTILE)), float(np.percentile(back, PERCENTILE)))
    return SurfaceDistances(hd95=hd95, mean=float(np.concatenate([there, back]).mean()))


def _surface_voxels(inside: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the indices ``(N, 3)`` of a mask's surface voxels."""
    from scipy import ndimage

    box = ndimage.find_objects(inside.astype(np.uint8))[0]
    part = inside[box]
    # Erosion counts what is beyond the array as outside, which beyond the box it is.
    surface = part & ~ndimage.binary_erosion(part)
    voxels: NDArray[np.int64] = np.argwhere(surface) + [side.start for side in box]
    return voxels
