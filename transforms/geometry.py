"""Bring a volume of any orientation into the slice frame of the network, and exactly back.

The slice frame is an array ``(C, H, W, K)`` whose slices ``[..., k]`` are axial: its
first spatial axis runs to the patient's left, the second to posterior, the third to
superior (axis codes L, P, S), as the training slices do. Slices are resampled in plane
to the training scale where the spacing is known, and cropped to the head. Between
slices nothing is ever interpolated, and oblique volumes keep their own axes: the
closest anatomical axis names each.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from transforms.intensity import find_head, replace_nonfinite

__all__ = [
    "FLAIR_CHANNEL",
    "TRAINING_PIXEL_SPACING",
    "SliceFrame",
    "find_slice_frame",
    "from_slice_frame",
    "known_spacing",
    "to_slice_frame",
]

# The training slices carry no spacing. Their heads measure 170 x 213 pixels in the middle
# slice (median width and length); adult heads measure about 149 x 188 mm.
TRAINING_PIXEL_SPACING = 0.88  # mm

FLAIR_CHANNEL = 1  # of t1, flair, t1c

# NIfTI-1 codes of spatial units (the lowest three bits of xyzt_units), in mm.
UNKNOWN_UNIT = 0
MILLIMETRES_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}


@dataclass(frozen=True)
class SliceFrame:
    """How a volume was brought into the slice frame; all that is needed to come back.

    Attributes:
        spatial_shape: Of the volume ``(I, J, K)``.
        affine: Of the volume, voxel to RAS+ mm, as four rows.
        order: ``order[n]`` is the volume's axis that became axis n of the slice frame.
        flipped: Whether axis n of the slice frame runs against the volume's axis.
        scaled_shape: After resampling in plane, before cropping.
        crop_start: First voxel of the crop; negative where the crop reaches outside.
        crop_shape: Of the slice frame ``(H, W, K)``.
    """

    spatial_shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    order: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    scaled_shape: tuple[int, int, int]
    crop_start: tuple[int, int, int]
    crop_shape: tuple[int, int, int]

    @property
    def oriented_shape(self) -> tuple[int, int, int]:
        """Shape after reordering the axes, before resampling."""
        first, second, third = (self.spatial_shape[axis] for axis in self.order)
        return first, second, third

    @property
    def crop_affine(self) -> NDArray[np.float64]:
        """Affine ``(4, 4)`` from voxels of the slice frame to RAS+ mm."""
        to_volume = np.zeros((4, 4))
        to_volume[3, 3] = 1
        for axis, source in enumerate(self.order):
            # Pixel centers: voxel v of n scaled ones lies at (v + 0.5) * scale - 0.5.
            scale = self.oriented_shape[axis] / self.scaled_shape[axis]
            offset = (self.crop_start[axis] + 0.5) * scale - 0.5
            last = self.spatial_shape[source] - 1
            to_volume[source, axis] = -scale if self.flipped[axis] else scale
            to_volume[source, 3] = last - offset if self.flipped[axis] else offset
        return np.asarray(self.affine) @ to_volume

    def to_json(self) -> str:
        """Return the frame as JSON, a form that survives batching and exports."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SliceFrame:
        """Return the frame that ``to_json`` wrote."""
        fields = json.loads(text)
        affine = tuple(tuple(row) for row in fields.pop("affine"))
        return cls(affine=affine, **{name: tuple(value) for name, value in fields.items()})


def known_spacing(affine: NDArray[np.floating], spatial_unit_code: int) -> tuple[float, float, float] | None:
    """Return the voxel sizes in mm, or None where the file does not know them.

    The spacing is unknown where the header names no unit and every voxel size is
    exactly 1: nobody wrote one. Any other size without a unit counts as mm, as every
    viewer takes it.

    Args:
        affine: ``(4, 4)``, voxel to world, in the file's unit.
        spatial_unit_code: NIfTI-1 code: 0 unknown, 1 metre, 2 millimetre, 3 micron.
    """
    sizes = np.sqrt((np.asarray(affine, dtype=np.float64)[:3, :3] ** 2).sum(axis=0))
    if spatial_unit_code == UNKNOWN_UNIT and np.allclose(sizes, 1.0, rtol=0, atol=1e-6):
        return None
    first, second, third = (float(size) * MILLIMETRES_PER_UNIT.get(spatial_unit_code, 1.0) for size in sizes)
    return first, second, third


def find_slice_frame(
    image: NDArray[np.floating],
    affine: NDArray[np.floating],
    spacing: tuple[float, float, float] | None,
    *,
    pixel_spacing: float = TRAINING_PIXEL_SPACING,
    divisor: int = 16,
    crop_to_head: bool = True,
    margin: int = 6,
) -> SliceFrame:
    """Find the slice frame of a volume: its axes, its scale, and the box around its head.

    Args:
        image: Intensities ``(C, I, J, K)``; the head is searched in FLAIR, the second of
            three channels or the only one.
        affine: ``(4, 4)``, voxel to RAS+.
        spacing: Voxel sizes in mm along I, J, K; None leaves the scale as it is.
        pixel_spacing: In-plane spacing to resample to, in mm.
        divisor: The slices' height and width become multiples of this, as the network's pooling needs.
        crop_to_head: Whether to leave out what lies outside of the head's box.
        margin: Pixels kept around the head in plane; one slice is kept above and below.

    Raises:
        ValueError: If ``image`` is not 4D, or ``affine`` is singular or not ``(4, 4)``.
    """
    if image.ndim != 4:
        raise ValueError(f"image must be (C, I, J, K), got shape {image.shape}")
    order, flipped = _axes_to_lps(affine)
    oriented = _orient(image[FLAIR_CHANNEL if len(image) > FLAIR_CHANNEL else 0], order, flipped)
    scaled_shape = list(oriented.shape)
    if spacing is not None:
        for axis in (0, 1):
            scaled_shape[axis] = max(1, round(oriented.shape[axis] * spacing[order[axis]] / pixel_spacing))
    start, stop = np.zeros(3, dtype=int), np.asarray(scaled_shape)
    if crop_to_head:
        head = find_head(replace_nonfinite(oriented.astype(np.float32, copy=False)))
        for axis, kept in enumerate((margin, margin, 1)):
            inside = np.flatnonzero(head.any(axis=tuple({0, 1, 2} - {axis})))
            scale = scaled_shape[axis] / oriented.shape[axis]
            start[axis] = max(0, int(np.floor(inside[0] * scale)) - kept)
            stop[axis] = min(scaled_shape[axis], int(np.ceil((inside[-1] + 1) * scale)) + kept)
    shape = stop - start
    for axis in (0, 1):
        surplus = -shape[axis] % divisor
        start[axis] -= surplus // 2
        shape[axis] += surplus
    return SliceFrame(
        spatial_shape=_triple(image.shape[1:]),
        affine=tuple(tuple(float(value) for value in row) for row in np.asarray(affine)),
        order=order,
        flipped=flipped,
        scaled_shape=_triple(scaled_shape),
        crop_start=_triple(start),
        crop_shape=_triple(shape),
    )


def to_slice_frame(
    volume: NDArray[np.generic], frame: SliceFrame, *, interpolation: str = "linear"
) -> NDArray[np.generic]:
    """Bring a volume into its slice frame.

    Args:
        volume: ``(C, I, J, K)`` on the grid that the frame was found for.
        frame: From ``find_slice_frame``.
        interpolation: "linear" (float32 out, averaging where pixels get larger; NaN and
            infinite voxels count as air) or "nearest" (for labels, type kept).

    Returns:
        ``(C, H, W, K)``; outside of the volume each channel's smallest value.

    Raises:
        ValueError: If the shape is not the frame's, or the interpolation is unknown.
    """
    if volume.shape[1:] != frame.spatial_shape:
        raise ValueError(f"volume must be (C, *{frame.spatial_shape}), got shape {volume.shape}")
    # In the matrix products of interpolation one NaN would spread over its whole slice.
    channels = [replace_nonfinite(channel) for channel in volume] if interpolation == "linear" else volume
    oriented = np.stack([_orient(channel, frame.order, frame.flipped) for channel in channels])
    scaled = _resize_in_plane(oriented, frame.scaled_shape[:2], interpolation)
    inside, target = _crop_slices(frame)
    result = np.empty((len(volume), *frame.crop_shape), dtype=scaled.dtype)
    result[...] = scaled.min(axis=(1, 2, 3), keepdims=True)
    result[(slice(None), *target)] = scaled[(slice(None), *inside)]
    return result


def from_slice_frame(volume: NDArray[np.floating], frame: SliceFrame, *, fill: float = 0.0) -> NDArray[np.float32]:
    """Bring a result of the network back onto the voxels of the volume it came from.

    Args:
        volume: ``(C, H, W, K)`` in the slice frame, such as probabilities.
        frame: From ``find_slice_frame``.
        fill: Value outside of the crop.

    Returns:
        ``(C, I, J, K)`` on the grid of the original volume.

    Raises:
        ValueError: If the shape is not the frame's.
    """
    if volume.shape[1:] != frame.crop_shape:
        raise ValueError(f"volume must be (C, *{frame.crop_shape}), got shape {volume.shape}")
    inside, target = _crop_slices(frame)
    scaled = np.full((len(volume), *frame.scaled_shape), fill, dtype=np.float32)
    scaled[(slice(None), *inside)] = volume[(slice(None), *target)]
    oriented = _resize_in_plane(scaled, frame.oriented_shape[:2], "linear")
    result = np.empty((len(volume), *frame.spatial_shape), dtype=np.float32)
    for channel, target_channel in zip(oriented, result, strict=True):
        # Writing through the oriented view undoes order and flips without working out their inverse.
        _orient(target_channel, frame.order, frame.flipped)[...] = channel
    return result


def _axes_to_lps(affine: NDArray[np.floating]) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Return which volume axis is closest to left, posterior and superior, and whether it runs against it."""
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or np.linalg.matrix_rank(matrix[:3, :3]) < 3:
        raise ValueError(f"affine must be an invertible (4, 4) matrix, got {matrix.tolist()}")
    cosines = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)  # [world axis, volume axis]
    # Of the six ways to pair volume axes with world axes, the one that turns the least.
    first, second, third = max(permutations(range(3)), key=lambda order: sum(np.abs(cosines[[0, 1, 2], order])))
    flipped = (bool(cosines[0, first] > 0), bool(cosines[1, second] > 0), bool(cosines[2, third] < 0))
    return (first, second, third), flipped


def _orient(
    volume: NDArray[np.generic], order: tuple[int, int, int], flipped: tuple[bool, bool, bool]
) -> NDArray[np.generic]:
    """Return a view of ``(I, J, K)`` with axes reordered and flipped."""
    return volume.transpose(order)[tuple(slice(None, None, -1 if flip else 1) for flip in flipped)]


def _crop_slices(frame: SliceFrame) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the crop inside of the scaled volume, and where it lies in the slice frame."""
    inside, target = [], []
    for start, size, length in zip(frame.crop_start, frame.crop_shape, frame.scaled_shape, strict=True):
        low, high = max(start, 0), min(start + size, length)
        inside.append(slice(low, high))
        target.append(slice(low - start, high - start))
    return tuple(inside), tuple(target)


def _resize_in_plane(volume: NDArray[np.generic], shape: tuple[int, ...], interpolation: str) -> NDArray[np.generic]:
    """Resize the first two spatial axes of ``(C, H, W, K)``, both fields of view aligned."""
    if interpolation not in ("linear", "nearest"):
        raise ValueError(f"interpolation must be 'linear' or 'nearest', got {interpolation!r}")
    height, width = volume.shape[1:3]
    if interpolation == "nearest":
        rows = ((np.arange(shape[0]) + 0.5) * height / shape[0]).astype(int)
        columns = ((np.arange(shape[1]) + 0.5) * width / shape[1]).astype(int)
        return volume[:, rows][:, :, columns]
    values = volume.astype(np.float32, copy=False)
    if (height, width) == tuple(shape):
        return values
    rows_matrix, columns_matrix = _resize_matrix(height, shape[0]), _resize_matrix(width, shape[1])
    # Two matrix products: (H', H) with (H, W * K), then (W', W) with (W, K).
    channels, _, _, slices = values.shape
    high = rows_matrix @ np.ascontiguousarray(values).reshape(channels, height, width * slices)
    return columns_matrix @ high.reshape(channels, shape[0], width, slices)


@lru_cache(maxsize=64)
def _resize_matrix(size: int, new_size: int) -> NDArray[np.float32]:
    """Return the ``(new_size, size)`` matrix of linear interpolation along one axis.

    Where pixels get larger, the triangle widens with them, so fine detail is averaged
    instead of aliased. Rows sum to 1, so a constant stays constant up to the border.
    """
    scale = size / new_size
    centers = (np.arange(new_size) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(size) - np.clip(centers, 0, size - 1)[:, None])
    weights = np.clip(1 - distance / max(1.0, scale), 0, None)
    matrix: NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return matrix


def _triple(values: object) -> tuple[int, int, int]:
    first, second, third = (int(value) for value in values)  # type: ignore[attr-defined]
    return first, second, third
