"""The outline of a lesion on one slice, and which straight lines stay inside it.

The outline runs half-way between pixels of the lesion and others. In half pixels all of its corners are whole numbers,
so that inside and outside are told exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Outline", "find_first_inside", "may_be_inside", "trace_outlines"]

# Places along a line: most that leave the lesion do so at one of them.
SAMPLED = (0.5, 0.25, 0.75, 0.125, 0.375, 0.625, 0.875)
FIRST_TESTED, MOST_TESTED = 16, 2048  # lines tested at once


@dataclass(frozen=True, eq=False)
class Outline:
    """The outline of one part of a lesion on one slice.

    Attributes:
        segments: Its straight pieces ``(S, 2, 2)``: piece, end, row and column in half pixels, which makes them whole.
        points: Their ends ``(N, 2)``, each once.
        cells: ``(R, C)``, whether the square between four pixels, the first at (r - 1, c - 1), holds anything of it.
    """

    segments: NDArray[np.int64]
    points: NDArray[np.int64]
    cells: NDArray[np.bool_]


def trace_outlines(lesion: NDArray[np.bool_]) -> Iterator[Outline]:
    """Yield the outer outline of each part of a lesion ``(R, C)`` on one slice; parts may touch by a corner."""
    from scipy import ndimage

    labels, _ = ndimage.label(lesion, structure=np.ones((3, 3)))
    for label, box in enumerate(ndimage.find_objects(labels), 1):
        part = np.pad(labels[box] == label, 1)
        outside, _ = ndimage.label(~part)  # by faces: what is not joined with the border is a hole
        part = outside != outside[0, 0]
        corner = np.array([box[0].start - 1, box[1].start - 1])
        segments = _trace(part) + 2 * corner
        cells = np.zeros(lesion.shape + np.array(1), bool)
        held = part[:-1, :-1] | part[:-1, 1:] | part[1:, :-1] | part[1:, 1:]
        cells[box[0].start : box[0].stop + 1, box[1].start : box[1].stop + 1] = held
        yield Outline(segments, np.unique(segments.reshape(-1, 2), axis=0), cells)


def _trace(part: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the pieces ``(S, 2, 2)`` of the outline of a padded part, in half pixels, in no order.

    In each square between four pixels the outline joins the middles of those sides whose ends differ.
    """
    corners = part[:-1, :-1], part[:-1, 1:], part[1:, 1:], part[1:, :-1]
    sides = [corners[n] != corners[(n + 1) % 4] for n in range(4)]
    middles = np.array([(0, 1), (1, 2), (2, 1), (1, 0)])
    crossing = sides[0] & sides[1] & sides[2] & sides[3]  # two diagonal pixels, which belong together
    pieces = []
    for one, other in combinations(range(4), 2):
        here = sides[one] & sides[other] & ~crossing
        if other - one != 2:
            # Beside a corner outside, which the outline cuts off.
            between = corners[other if other - one == 1 else 0]
            here |= crossing & ~between
        pieces.append(2 * np.argwhere(here)[:, None] + middles[[one, other]])
    return np.concatenate(pieces)


def may_be_inside(outline: Outline, ends: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return the numbers of those lines ``(n, 2, 2)``, in half pixels, that do not leave it at some places tried."""
    left = np.arange(len(ends))
    for share in SAMPLED:
        start = ends[left, 0]
        row, column = np.floor((start + (ends[left, 1] - start) * share) / 2).astype(int).T + 1
        left = left[outline.cells[row, column]]
    return left


def find_first_inside(outline: Outline, ends: NDArray[np.int64]) -> int | None:
    """Return the number of the first line ``(n, 2, 2)``, in half pixels, that lies inside the outline."""
    size, done = FIRST_TESTED, 0
    while done < len(ends):
        part = ends[done : done + size]
        for number in np.flatnonzero(~_leaves(outline, part)):
            if _touches_only(outline, *part[number]):
                return done + int(number)
        done, size = done + size, min(2 * size, MOST_TESTED)
    return None


def _cross(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return on which side of one vector the other points."""
    crossed: NDArray[np.int64] = one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0]
    return crossed


def _leaves(outline: Outline, ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which lines ``(n, 2, 2)`` cross a piece of the outline, not only touch it."""
    start, way = ends[:, None, 0], ends[:, None, 1] - ends[:, None, 0]
    first, second = outline.segments[None, :, 0], outline.segments[None, :, 1]
    before, behind = _cross(way, first - start), _cross(way, second - start)
    crossed = np.sign(before) * np.sign(behind) < 0
    piece = second - first
    from_start, from_end = _cross(piece, start - first), _cross(piece, ends[:, None, 1] - first)
    crossed = np.logical_and(crossed, np.sign(from_start) * np.sign(from_end) < 0)
    return np.asarray(crossed.any(axis=1))


def _touches_only(outline: Outline, start: NDArray[np.int64], end: NDArray[np.int64]) -> bool:
    """Return whether a line that crosses no piece of the outline stays inside, also where it meets corners of it."""
    way = end - start
    met = outline.points[_cross(way, outline.points - start) == 0]
    along = (met - start) @ way
    kept = (along >= 0) & (along <= way @ way)
    stops = met[kept][np.argsort(along[kept])]
    # Between two stops the line is inside or outside as a whole. Doubled, their middles are whole numbers, too.
    first, second = 2 * outline.segments[:, 0], 2 * outline.segments[:, 1]
    for middle in stops[:-1] + stops[1:]:
        on_line = _cross(second - first, middle - first) == 0
        if (on_line & (((first - middle) * (second - middle)).sum(axis=1) <= 0)).any():
            continue
        above = first[:, 0] > middle[0]
        passes = above != (second[:, 0] > middle[0])
        turn = _cross(second - first, middle - first)
        # To the right of the middle, as many pieces pass as lie on the one side of it.
        if np.count_nonzero(passes & ((turn > 0) == above)) % 2 == 0:
            return False
    return True
