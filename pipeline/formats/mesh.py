"""The surface of the lesions as a mesh for viewers: binary STL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ScanError
from pipeline.formats.atomic import atomic_write

if TYPE_CHECKING:
    from pipeline.formats.scan import Scan

__all__ = ["make_mesh", "write_mesh"]

# STL knows no coordinate system. 3D Slicer writes it into the header like this, reads it there, and without it takes
# LPS, as other programs of DICOM's world do; so LPS it is. A binary file must not begin with "solid".
HEADER = b"FLAIR abnormality, mm, SPACE=LPS"
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attributes", "<u2")])

LEVELS = 0.02, 0.98  # between which the surface is laid: off the voxel centers, where triangles would vanish
VOLUME_TOLERANCE = 1e-3  # of the mesh, as a share of the mask's volume
MAX_STEPS = 12


def write_mesh(mask: NDArray[np.generic], scan: Scan, path: Path) -> None:
    """Write the surface of a mask as binary STL, in scanner coordinates, LPS mm.

    Args:
        mask: ``(I, J, K)``, nonzero in lesions.
        scan: Whose voxels the mask has.
        path: The STL file; its folder must exist.

    Raises:
        ScanError: If the spacing is unknown, or the mask is empty.
        ValueError: If the shape of the mask is not the scan's.
        AR2UNetError: If the file cannot be written.
    """
    if mask.shape != scan.spatial_shape:
        raise ValueError(f"mask must have the scan's shape {scan.spatial_shape}, got {mask.shape}")
    if scan.spacing is None:
        raise ScanError("a surface in mm needs the voxel spacing, which the scan does not state")
    if not mask.any():
        raise ScanError("there is no surface where no lesion was found")
    corners = make_mesh(mask, scan.affine) @ RAS_TO_LPS
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    triangles = np.zeros(len(corners), TRIANGLE)
    triangles["normal"] = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), np.finfo(float).tiny)
    triangles["corners"] = corners
    with atomic_write(path) as file:
        file.write(HEADER.ljust(80))
        file.write(np.array(len(triangles), "<u4").tobytes())
        file.write(triangles.tobytes())


def make_mesh(mask: NDArray[np.generic], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the closed surface of a mask as triangles, corners counterclockwise seen from outside.

    Marching cubes on the mask itself: nothing is smoothed, so that no small lesion is lost. The surface would lie
    half-way between voxels and cut off corners; it is laid as much farther out as makes it enclose the mask's
    volume, to 0.1 % but for masks full of holes, whose surface jumps.

    Args:
        mask: ``(I, J, K)``, nonzero in lesions; at least one voxel.
        affine: ``(4, 4)``, voxel to mm.

    Returns:
        ``(n, 3, 3)``: triangle, corner, mm.
    """
    from skimage.measure import marching_cubes

    found = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    box = tuple(slice(int(each[0]), int(each[-1]) + 1) for each in found)
    inside = np.pad(mask[box].astype(bool), 1).astype(np.float32)
    wanted = float(inside.sum())
    low, high = LEVELS
    level, triangles = 0.5, np.empty((0, 3, 3))
    for _ in range(MAX_STEPS):
        # "ascent" is what makes corners counterclockwise seen from outside, where inside is brighter.
        places, faces, _, _ = marching_cubes(inside, level, gradient_direction="ascent")  # type: ignore[no-untyped-call]
        triangles = places[faces].astype(np.float64)
        volume = float(np.einsum("ni,ni->", triangles[:, 0], np.cross(triangles[:, 1], triangles[:, 2]))) / 6
        if abs(volume / wanted - 1) <= VOLUME_TOLERANCE:
            break
        # The lower the level, the farther out.
        low, high = (low, level) if volume < wanted else (level, high)
        level = (low + high) / 2
    corner = np.array([part.start - 1 for part in box])
    if np.linalg.det(affine[:3, :3]) < 0:
        triangles = triangles[:, ::-1]
    corners: NDArray[np.float64] = (triangles + corner) @ affine[:3, :3].T + affine[:3, 3]
    return corners
