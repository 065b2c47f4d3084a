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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from transforms.intensity import find_head_box, replace_nonfinite
from transforms.resampling import resize_linear, resize_nearest

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

# Slices on their way at once: few enough to stay in the processor's cache, and where the slice axis is the
# volume's fastest they fill a cache line.
SLICES_AT_ONCE = 16


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
        box = find_head_box(replace_nonfinite(oriented.astype(np.float32, copy=False)))
        for axis, (extent, kept) in enumerate(zip(box, (margin, margin, 1), strict=True)):
            scale = scaled_shape[axis] / oriented.shape[axis]
            start[axis] = max(0, int(np.floor(extent.start * scale)) - kept)
            stop[axis] = min(scaled_shape[axis], int(np.ceil(extent.stop * scale)) + kept)
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
    if interpolation not in ("linear", "nearest"):
        raise ValueError(f"interpolation must be 'linear' or 'nearest', got {interpolation!r}")
    linear = interpolation == "linear"
    resize = resize_linear if linear else resize_nearest
    inside, target = _crop_slices(frame)
    # Slice by slice in memory, as the network takes it.
    height, width, count = frame.crop_shape
    result = np.empty((len(volume), count, height, width), dtype=np.float32 if linear else volume.dtype)
    result = result.transpose(0, 2, 3, 1)
    for channel, cropped in zip(volume, result, strict=True):
        # In the matrix products of interpolation one NaN would spread over its whole slice.
        finite = replace_nonfinite(channel) if linear else channel
        slices, filled = _by_slice(_orient(finite, frame.order, frame.flipped)), _by_slice(cropped[target])
        kept = slices[inside[2]]
        for part in _parts(len(kept)):
            filled[part] = resize(kept[part], frame.scaled_shape, inside)
        if filled.size < cropped.size:
            lowest = filled.min()
            # Nothing interpolated is smaller than the volume's smallest value, and mostly the crop gets down to it.
            if lowest > finite.min():
                lowest = min(resize(slices[part], frame.scaled_shape).min() for part in _parts(len(slices)))
            for axis, extent in enumerate(target):
                outside = np.moveaxis(cropped, axis, 0)
                outside[: extent.start] = outside[extent.stop :] = lowest
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
    height, width, _ = frame.scaled_shape
    # In the order of a NIfTI file, whose first axis is the fastest.
    result = np.empty((len(volume), *frame.spatial_shape[::-1]), dtype=np.float32).transpose(0, 3, 2, 1)
    for channel, whole in zip(volume, result, strict=True):
        # Writing through the oriented view undoes order and flips without working out their inverse.
        slices, cropped = _by_slice(_orient(whole, frame.order, frame.flipped)), _by_slice(channel[target])
        slices[: inside[2].start] = slices[inside[2].stop :] = fill
        kept = slices[inside[2]]
        transposed = abs(kept.strides[1]) < abs(kept.strides[2])
        for part in _parts(len(kept)):
            scaled = np.full((len(kept[part]), height, width), fill, dtype=np.float32)
            scaled[:, *inside[:2]] = cropped[part]
            kept[part] = resize_linear(scaled, frame.oriented_shape, transposed=transposed)
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


def _by_slice(volume: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return a view ``(K, H, W)`` of ``(H, W, K)``."""
    return volume.transpose(2, 0, 1)


def _parts(count: int) -> Iterator[slice]:
    """Yield the numbers of slices from 0 to ``count``, a few at a time."""
    for start in range(0, count, SLICES_AT_ONCE):
        yield slice(start, start + SLICES_AT_ONCE)


def _triple(values: object) -> tuple[int, int, int]:
    first, second, third = (int(value) for value in values)  # type: ignore[attr-defined]
    return first, second, third
