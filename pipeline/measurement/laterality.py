"""On which side of the head a lesion lies, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pipeline.formats.scan import Scan
    from transforms.geometry import SliceFrame

__all__ = ["Laterality", "MidsagittalPlane", "find_midsagittal_plane", "is_orientation_stated", "name_side"]

Side = Literal["left", "right", "both sides"]

# A lesion is on one side if this share of it is. On the 100 LGG patients the share is at most 0.035 off, compared with
# the plane about which the head is most symmetrical, and no side is named otherwise.
ONE_SIDED = 0.9

# To which a volume is thinned out for the search. With more pixels ``find_head`` would thin it out itself, and each of
# its pixels stand for the next as well, which moves the middle.
GRID_PIXELS, GRID_SLICES = 63, 40
ROUNDS = 5  # of the fit; after each, rows whose middle lies off count less
TOLERANCE = 0.6  # pixels of the grid: a row that lies no farther off than this counts fully


@dataclass(frozen=True)
class Laterality:
    """On which side a lesion lies.

    Attributes:
        side: "left" or "right" of the patient where nearly all of it lies there, otherwise "both sides".
        left_fraction: Share of its voxels on the patient's left, 0 to 1.
    """

    side: Side
    left_fraction: float


@dataclass(frozen=True, eq=False)
class MidsagittalPlane:
    """The plane between the halves of a head.

    Attributes:
        normal: ``(3,)`` along I, J, K.
        offset: ``voxels @ normal + offset`` is above zero on the patient's left: voxels from the plane along that axis.
    """

    normal: NDArray[np.float64]
    offset: float

    def on_left(self, voxels: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Return which of the voxels ``(n, 3)`` lie on the patient's left."""
        left: NDArray[np.bool_] = voxels @ self.normal + self.offset > 0
        return left


def name_side(left_fraction: float) -> Laterality:
    """Return the laterality of a lesion with that share on the patient's left."""
    if left_fraction >= ONE_SIDED:
        return Laterality("left", left_fraction)
    return Laterality("right" if 1 - left_fraction >= ONE_SIDED else "both sides", left_fraction)


def is_orientation_stated(scan: Scan) -> bool:
    """Whether left and right are known: a header with neither sform nor qform does not tell."""
    return scan.header is None or bool(scan.header["sform_code"] or scan.header["qform_code"])


def find_midsagittal_plane(flair: NDArray[np.floating], frame: SliceFrame) -> MidsagittalPlane:
    """Find the plane between the halves of the head: the one that best goes through the middle of each of its rows.

    A row runs from the right border of the head to the left one. The fit is robust, for an ear or a nose is
    no middle. Measured on the 100 LGG patients, it lies 0.4 pixels (median; at most 1.2) from the plane about which the
    head's intensities are most symmetrical, so a search for that does not pay. The middle of the head's box lies 2.5
    pixels from it (at most 6.9), and would name the side of 12 lesions otherwise.

    Args:
        flair: ``(I, J, K)``.
        frame: Of the volume: the order and direction of its axes.
    """
    from transforms.intensity import find_head, replace_nonfinite

    steps = tuple(
        -(-flair.shape[axis] // size)
        for axis, size in zip(frame.order, (GRID_PIXELS, GRID_PIXELS, GRID_SLICES), strict=True)
    )
    # Axes as they lie in the volume, not flipped; slices last.
    coarse = flair.transpose(frame.order)[tuple(slice(step // 2, None, step) for step in steps)]
    head = find_head(replace_nonfinite(coarse.astype(np.float32, copy=False)))
    row, number = np.nonzero(head.any(axis=0))
    across = head[:, row, number]
    first, last = across.argmax(axis=0), len(across) - 1 - across[::-1].argmax(axis=0)
    middle, width = (first + last) / 2, last - first + 1.0
    center = np.array([row.mean(), number.mean()])
    places = np.stack([np.ones(len(row)), row - center[0], number - center[1]], axis=1)
    weights = width
    for _ in range(ROUNDS):
        root = np.sqrt(weights)
        fitted = np.linalg.lstsq(places * root[:, None], middle * root, rcond=None)[0]
        off = np.abs(middle - places @ fitted)
        weights = width / (1 + np.square(off / (TOLERANCE + 3 * np.median(off))))
    # middle = fitted[0] + fitted[1] * (row - center) + …, in voxels of the grid; back to those of the volume.
    scale, shift = np.array(steps), np.array(steps) // 2
    slopes = steps[0] * np.array([1.0, -fitted[1], -fitted[2]]) / scale
    offset = steps[0] * (fitted[1:] @ center - fitted[0]) - slopes @ shift
    sign = -1.0 if frame.flipped[0] else 1.0
    normal = np.empty(3)
    normal[list(frame.order)] = sign * slopes
    return MidsagittalPlane(normal, sign * float(offset))
