"""Bring t1 and t1c onto the voxel grid of the FLAIR."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ScanError
from pipeline.formats.nifti_header import GRID_TOLERANCE
from pipeline.formats.scan import CHANNELS, Scan

__all__ = ["combine_sequences", "covered_share", "is_same_grid", "resample_onto"]

# Below it, a sequence is of another body part or another table position, and FLAIR serves better in its place.
MIN_COVERED_SHARE = 0.5  # of the FLAIR's voxels
MAX_SAMPLES = 32  # voxels along an axis that are looked at to find the covered share


def combine_sequences(flair: Scan, t1: Scan | None, t1c: Scan | None) -> Scan:
    """Return a scan of the three sequences on the grid of the FLAIR; what is missing is replaced by FLAIR.

    Args:
        flair: Image of one channel.
        t1: Pre-contrast T1 of one channel, on any grid in the same scanner coordinates; None where missing.
        t1c: Post-contrast T1; as ``t1``.

    Returns:
        Image ``(3, I, J, K)``, t1, flair, t1c; all else is the FLAIR's. With neither t1 nor t1c, ``flair`` itself.

    Raises:
        ScanError: If t1 or t1c covers too little of the FLAIR.
        ValueError: If a scan has more than one channel.
    """
    if t1 is None and t1c is None:
        return flair
    image = np.empty((len(CHANNELS), *flair.spatial_shape), dtype=np.float32)
    for channel, sequence in zip(image, (t1, flair, t1c), strict=True):
        channel[...] = resample_onto(flair if sequence is None else sequence, flair)
    return Scan(image, flair.affine, flair.spacing, flair.source, flair.header)


def resample_onto(scan: Scan, grid: Scan) -> NDArray[np.float32]:
    """Resample a scan of one channel onto the grid of another, linearly.

    Voxels outside of ``scan`` take its smallest intensity. On the very same grid nothing is interpolated.

    Returns:
        Intensities ``(I, J, K)`` on the grid of ``grid``.

    Raises:
        ScanError: If ``scan`` covers less than ``MIN_COVERED_SHARE`` of the grid.
        ValueError: If ``scan`` has more than one channel.
    """
    if len(scan.image) != 1:
        raise ValueError(f"image must have one channel, got shape {scan.image.shape}")
    volume: NDArray[np.float32] = scan.image[0]
    if is_same_grid(scan, grid):
        return volume
    share = covered_share(scan, grid)
    if share < MIN_COVERED_SHARE:
        expected = f"at least {MIN_COVERED_SHARE:.0%} of the FLAIR's voxels inside of it"
        raise ScanError(f"{scan.source}: expected {expected}, got {share:.0%}; the two do not show the same place")

    import SimpleITK

    sitk: Any = SimpleITK  # published with a marker of types, but without most of them
    moving = sitk.GetImageFromArray(volume.transpose(2, 1, 0))
    origin, spacing, direction = _to_itk(scan.affine)
    moving.SetOrigin(origin)
    moving.SetSpacing(spacing)
    moving.SetDirection(direction)
    resample = sitk.ResampleImageFilter()
    resample.SetSize(grid.spatial_shape)
    origin, spacing, direction = _to_itk(grid.affine)
    resample.SetOutputOrigin(origin)
    resample.SetOutputSpacing(spacing)
    resample.SetOutputDirection(direction)
    resample.SetInterpolator(sitk.sitkLinear)
    resample.SetDefaultPixelValue(float(volume.min()))
    resampled: NDArray[np.float32] = sitk.GetArrayFromImage(resample.Execute(moving))
    return resampled.transpose(2, 1, 0)


def covered_share(scan: Scan, grid: Scan) -> float:
    """Return which share of a grid's voxels has its centre inside of a scan's, from 0 to 1."""
    # A few voxels along each axis, the outermost ones among them, tell as much as all.
    indices = [np.linspace(0, size - 1, min(size, MAX_SAMPLES)) for size in grid.spatial_shape]
    voxels = np.stack(np.meshgrid(*indices, indexing="ij")).reshape(3, -1)
    to_scan = np.linalg.inv(scan.affine) @ grid.affine
    places = to_scan[:3, :3] @ voxels + to_scan[:3, 3:]
    size = np.array(scan.spatial_shape)[:, None]
    return float(((places >= -0.5) & (places <= size - 0.5)).all(axis=0).mean())


def _to_itk(affine: NDArray[np.float64]) -> tuple[list[float], list[float], list[float]]:
    """Return origin, spacing and direction, row by row. In RAS+, for it is the same on both sides of a resampling."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return affine[:3, 3].tolist(), spacing.tolist(), (affine[:3, :3] / spacing).ravel().tolist()


def is_same_grid(scan: Scan, grid: Scan) -> bool:
    """Return whether voxel by voxel two scans lie in the same place, as ``check_same_grid`` of NIfTI files has it."""
    if scan.spatial_shape != grid.spatial_shape:
        return False
    corners = np.indices((2, 2, 2)).reshape(3, 8) * (np.array(grid.spatial_shape)[:, None] - 1)
    difference = (scan.affine - grid.affine) @ np.vstack([corners, np.ones(8)])
    return bool(np.linalg.norm(difference[:3], axis=0).max() <= GRID_TOLERANCE)
