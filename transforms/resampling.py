"""Resize stacks of slices in plane, both fields of view aligned: by linear interpolation, or by the nearest pixel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["resize_linear", "resize_nearest"]

ROWS_AT_ONCE = 16  # of an interpolation matrix
WHOLE = (slice(None), slice(None))  # a crop that leaves nothing out


def resize_nearest(
    slices: NDArray[np.generic], shape: tuple[int, ...], crop: Sequence[slice] = WHOLE
) -> NDArray[np.generic]:
    """Resize slices ``(N, H, W)`` to ``shape``, both fields of view aligned; of that return the crop only."""
    rows, columns = (
        ((np.arange(new_size) + 0.5) * size / new_size).astype(int)[kept]
        for size, new_size, kept in zip(slices.shape[1:], shape, crop, strict=False)
    )
    return slices[:, rows][:, :, columns]


def resize_linear(
    slices: NDArray[np.generic], shape: tuple[int, ...], crop: Sequence[slice] = WHOLE, *, transposed: bool = False
) -> NDArray[np.generic]:
    """Resize slices ``(N, H, W)`` to ``shape``, both fields of view aligned; of that return the crop only.

    In memory the rows of the result lie next to each other, or its columns if it is to be ``transposed``.
    """
    count, height, width = slices.shape
    if (height, width) == shape[:2]:
        return slices[:, *crop[:2]]
    rows = _resize_matrix(height, shape[0])[crop[0]]
    columns = _resize_matrix(width, shape[1])[crop[1]]
    # Columns next to each other in between: the second product is the quicker for it.
    high = np.empty((count, width, len(rows)), dtype=np.float32).transpose(0, 2, 1)
    _multiply(rows, _for_blas(slices), high)
    if transposed:
        result = np.empty((count, len(columns), len(rows)), dtype=np.float32).transpose(0, 2, 1)
    else:
        result = np.empty((count, len(rows), len(columns)), dtype=np.float32)
    _multiply(columns, high.transpose(0, 2, 1), result.transpose(0, 2, 1))
    return result


def _multiply(matrix: NDArray[np.float32], slices: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Multiply a band matrix ``(M, L)`` with each slice of ``(N, L, W)``, into ``out`` ``(N, M, W)``.

    Linear interpolation looks at a few pixels only: the matrix holds next to nothing but zeros. A few of its rows at a
    time touch few columns, which leaves a tenth of the work, in products too small to be worth a second thread.
    """
    for start in range(0, len(matrix), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        used = np.flatnonzero(matrix[rows].any(axis=0))
        band = slice(used[0], used[-1] + 1)
        np.matmul(matrix[rows, band], slices[:, band], out=out[:, rows])


def _for_blas(slices: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return slices ``(N, H, W)`` whose rows or columns lie next to each other and run forwards, copied if need be."""
    values = slices.astype(np.float32, copy=False)
    if np.argmin(np.abs(values.strides)) == 0:
        return np.ascontiguousarray(values)
    return values if min(values.strides) > 0 else values.copy(order="K")


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
