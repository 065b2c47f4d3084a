"""The two perpendicular diameters of a lesion, as the RANO criteria take them.

Wen et al., "Updated response assessment criteria for high-grade gliomas: Response Assessment in Neuro-Oncology working
group", 2010, and Wen et al., "RANO 2.0: update to the Response Assessment in Neuro-Oncology criteria for high- and
low-grade gliomas in adults", 2023, measure a lesion in two dimensions: by its longest diameter on an axial slice and
the longest one perpendicular to that, on the same slice. What they leave to the reader is settled here:

- The slice is the one on which the longest diameter is largest; slices are the scan's own.
- A diameter lies wholly inside the lesion's outline, so none crosses the gap of a crescent. Holes count as lesion: a
  reader measures from outer border to outer border.
- The outline runs half-way between voxels of the lesion and others, as it is drawn in the pictures, and the longest
  diameter joins two points at which it passes between two pixels. A voxel is as long as its edge.
- The perpendicular diameter need not meet the longest one, but lies in the same part of the lesion on that slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.measurement.outlines import Outline, find_first_inside, may_be_inside, trace_outlines

if TYPE_CHECKING:
    from transforms.geometry import SliceFrame

__all__ = ["Diameters", "find_diameters"]

Point = tuple[float, float, float]

DIRECTIONS = 12  # in which slices are measured roughly, to leave out those that cannot hold the longest diameter
COARSE = 96  # points of an outline that find a long diameter, so that few longer ones are left to be tested
POINTS_AT_ONCE = 128  # of an outline, for the lengths between them
TOUCHING = 1e-9  # mm between two runs of a line through the lesion that are one


@dataclass(frozen=True)
class Diameters:
    """The two diameters of a lesion.

    Attributes:
        longest_mm: The longest diameter on an axial slice.
        perpendicular_mm: The longest one perpendicular to it on that slice.
        slice: Number of the slice, from 1, the lowest.
        longest_ends: Both ends of the longest, in voxels along I, J, K; whole numbers are voxel centers.
        perpendicular_ends: Those of the other.
    """

    longest_mm: float
    perpendicular_mm: float
    slice: int
    longest_ends: tuple[Point, Point]
    perpendicular_ends: tuple[Point, Point]

    @property
    def product_mm2(self) -> float:
        """The product of both."""
        return self.longest_mm * self.perpendicular_mm


def find_diameters(lesion: NDArray[np.bool_], frame: SliceFrame, start: tuple[int, int, int] = (0, 0, 0)) -> Diameters:
    """Find the two perpendicular diameters of a lesion.

    Lengths are those in space, so pixels may be of any proportion and sheared.

    Args:
        lesion: ``(I, J, K)``, a box of the volume that holds the lesion; at least one voxel.
        frame: Of the volume: its affine in mm, its axial axis and that axis's direction.
        start: First voxel of the box in the volume.

    Raises:
        ValueError: If ``lesion`` is not 3D or is empty.
    """
    if lesion.ndim != 3 or not lesion.any():
        raise ValueError(f"lesion must be (I, J, K) with at least one voxel, got shape {lesion.shape}")
    axes = frame.order[2], frame.order[0], frame.order[1]
    slices = np.ascontiguousarray(lesion.transpose(axes))
    # In-plane mm of rows and columns: lengths and angles in the plane are all that matters.
    to_mm: NDArray[np.float64] = np.linalg.qr(np.asarray(frame.affine)[:3, axes[1:]])[1]
    best: tuple[float, int, NDArray[np.float64], Outline] | None = None
    bounds = _bound_diameters(slices, to_mm)
    for number in np.argsort(-bounds, kind="stable"):
        if best is not None and bounds[number] <= best[0]:
            break
        for outline in trace_outlines(slices[number]):
            found = _find_longest(outline, to_mm, 0.0 if best is None else best[0])
            if found is not None:
                best = (found[0], int(number), found[1], outline)
    if best is None:
        raise ValueError(f"affine must have in-plane voxel sizes above zero, got {frame.affine}")
    longest, number, ends, outline = best
    perpendicular, other_ends = _find_perpendicular(outline, to_mm, ends)
    along = number + start[axes[0]]
    total = frame.spatial_shape[axes[0]]

    def in_volume(point: NDArray[np.float64]) -> Point:
        place = {axes[0]: float(along)} | {a: float(x) + start[a] for a, x in zip(axes[1:], point, strict=True)}
        return place[0], place[1], place[2]

    return Diameters(
        longest_mm=longest,
        perpendicular_mm=perpendicular,
        slice=total - along if frame.flipped[2] else along + 1,
        longest_ends=(in_volume(ends[0]), in_volume(ends[1])),
        perpendicular_ends=(in_volume(other_ends[0]), in_volume(other_ends[1])),
    )


def _bound_diameters(slices: NDArray[np.bool_], to_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for each slice of ``(K, R, C)`` a length that no diameter on it exceeds, 0 for an empty one."""
    number, row = np.nonzero(slices.any(axis=2))
    rows = slices[number, row]
    ends = rows.argmax(axis=1), rows.shape[1] - 1 - rows[:, ::-1].argmax(axis=1)
    first = np.flatnonzero(np.diff(number, prepend=-1))
    angles = np.arange(DIRECTIONS) * (np.pi / DIRECTIONS)
    directions = np.stack([np.cos(angles), np.sin(angles)])
    low, high = (np.stack([row, end], axis=1) @ to_mm.T @ directions for end in ends)
    highest = np.maximum.reduceat(np.maximum(low, high), first)
    extent = highest - np.minimum.reduceat(np.minimum(low, high), first)
    # A diameter lies within half a step of one of the directions; the outline half a pixel beyond the centers.
    bounds = np.zeros(len(slices))
    bounds[number[first]] = extent.max(axis=1) / np.cos(np.pi / (2 * DIRECTIONS)) + np.linalg.norm(to_mm, axis=0).max()
    return bounds * (1 + 1e-9)


def _find_longest(
    outline: Outline, to_mm: NDArray[np.float64], above: float
) -> tuple[float, NDArray[np.float64]] | None:
    """Return the longest diameter inside the outline, in mm, and its ends in pixels; None if none is above that."""
    found = None
    for step in sorted({max(1, len(outline.points) // COARSE), 1}, reverse=True):
        points = outline.points[::step]
        places = points / 2 @ to_mm.T
        for first in range(0, len(points), POINTS_AT_ONCE):
            pairs = _find_pairs(places, first, above)
            pairs = pairs[may_be_inside(outline, points[pairs])]
            length = np.linalg.norm(places[pairs[:, 0]] - places[pairs[:, 1]], axis=1)
            pairs = pairs[np.argsort(-length, kind="stable")]
            hit = find_first_inside(outline, points[pairs])
            if hit is not None:
                ends = pairs[hit]
                reached = float(np.linalg.norm(places[ends[0]] - places[ends[1]]))
                if reached > above:
                    above, found = reached, (reached, points[ends] / 2)
    return found


def _find_pairs(places: NDArray[np.float64], first: int, above: float) -> NDArray[np.intp]:
    """Return pairs ``(n, 2)`` of one of some points, from that number on, and a later one farther apart than that."""
    # Rounded numbers take half of the time; a hair too short is kept, and sorted out where lengths are exact.
    rounded = (places - places[0]).astype(np.float32)
    apart = rounded[first : first + POINTS_AT_ONCE, None] - rounded[None, first:]
    np.square(apart, out=apart)
    one, other = np.nonzero(apart[..., 0] + apart[..., 1] > np.float32(above * above * (1 - 1e-5)))
    later = one < other
    return np.stack([one[later], other[later]], axis=1) + first


def _find_perpendicular(
    outline: Outline, to_mm: NDArray[np.float64], ends: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """Return the longest line inside the outline perpendicular to that between two points: mm, and ends in pixels.

    Between two corners of the outline the length of what a line moved along cuts out of it changes evenly, so the
    longest is found at a corner, come at from one side or the other.
    """
    way = to_mm @ (ends[1] - ends[0])
    way /= np.linalg.norm(way)
    axes = np.stack([way, [-way[1], way[0]]])
    corners, order = np.unique(outline.segments.reshape(-1, 2), axis=0, return_inverse=True)
    places = corners / 2 @ to_mm.T @ axes.T  # along the longest diameter, and across
    rank = np.empty(len(places), int)
    rank[np.argsort(places[:, 0], kind="stable")] = np.arange(len(places))
    offsets = np.sort(places[:, 0])
    piece = order.reshape(-1, 2)
    piece = np.where((rank[piece[:, 0]] <= rank[piece[:, 1]])[:, None], piece, piece[:, ::-1])
    # Each piece meets the lines between the corners that it leads past.
    low, high = rank[piece].T
    number = np.repeat(np.arange(len(piece)), high - low)
    gap = np.arange(len(number)) - np.repeat(np.cumsum(high - low) - (high - low), high - low) + low[number]
    (near, far), (start, stop) = places[piece[number]].transpose(1, 0, 2)[:, :, 0], places[piece[number]][..., 1].T
    span = np.maximum(far - near, np.finfo(float).tiny)

    def height(offset: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(start + (stop - start) * np.clip((offset - near) / span, 0, 1))

    sorting = np.lexsort((height((offsets[gap] + offsets[gap + 1]) / 2), gap))
    best, found = -1.0, np.zeros((2, 2))
    for offset in (offsets[gap], offsets[gap + 1]):
        heights, lines = height(offset)[sorting].reshape(-1, 2), gap[sorting][::2]
        # Runs of one line that touch are one.
        apart = np.append(True, (lines[1:] != lines[:-1]) | (heights[1:, 0] - heights[:-1, 1] > TOUCHING))
        first = np.flatnonzero(apart)
        last = np.append(first[1:], len(apart)) - 1
        length = heights[last, 1] - heights[first, 0]
        n = int(np.argmax(length))
        if length[n] > best:
            best = float(length[n])
            across = np.array([heights[first[n], 0], heights[last[n], 1]])
            along = np.full(2, offset[sorting][2 * first[n]])
            found = np.linalg.solve(to_mm, axes.T @ np.stack([along, across])).T
    return best, found
