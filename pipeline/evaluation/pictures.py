"""The picture of a scored case: where prediction and truth differ."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from transforms.geometry import SliceFrame

__all__ = ["PREDICTION_COLOR", "TRUTH_COLOR", "draw_case"]

Voxel = TypeVar("Voxel", bound=np.generic)

# Told apart from each other and from every grey also by color-blind readers.
TRUTH_COLOR = "#4da3ff"
PREDICTION_COLOR = "#ffb000"
BACKGROUND_COLOR = "#202020"
PANEL_SIZE = 3.2  # inches
DOTS_PER_INCH = 90


def draw_case(
    prediction: NDArray[np.generic],
    truth: NDArray[np.generic],
    affine: NDArray[np.float64],
    *,
    spacing: tuple[float, float, float] | None = None,
    image: NDArray[np.floating] | None = None,
) -> bytes:
    """Draw both masks' outlines on the axial slice with most lesion and on that with most wrong voxels, as PNG.

    Slices are shown from the feet, the patient's right on the left, numbered from the lowest, from 1.

    Args:
        prediction: Mask ``(I, J, K)``; nonzero is lesion.
        truth: Mask of the same shape.
        affine: ``(4, 4)``, voxel to RAS+.
        spacing: Voxel sizes in mm for true proportions; None draws square voxels.
        image: Scan of the same shape, drawn below the outlines; None draws the outlines alone.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from transforms.geometry import find_slice_frame

    # Only for the order and direction of the axes.
    frame = find_slice_frame(np.broadcast_to(np.float32(0), (1, *truth.shape)), affine, None, crop_to_head=False)
    predicted, true = _axial_view(prediction != 0, frame), _axial_view(truth != 0, frame)
    picture = None if image is None else _axial_view(image, frame)
    chosen = _choose_slices(predicted, true)
    aspect = 1.0 if spacing is None else spacing[frame.order[1]] / spacing[frame.order[0]]
    low, high = (0.0, 1.0) if picture is None else np.percentile(picture, (1, 99.7))
    figure = Figure(figsize=(len(chosen) * PANEL_SIZE, PANEL_SIZE))
    FigureCanvasAgg(figure)
    for position, index in enumerate(chosen):
        axes = figure.add_axes((position / len(chosen), 0, 1 / len(chosen), 1))
        axes.set_axis_off()
        plane = np.zeros(true.shape[1:]) if picture is None else picture[index]
        axes.imshow(plane, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect)
        _draw_outline(axes, true[index], TRUTH_COLOR, 2.4)
        _draw_outline(axes, predicted[index], PREDICTION_COLOR, 1.2)
        axes.text(0.97, 0.03, f"{index + 1}", transform=axes.transAxes, color="#c8c8c8", ha="right", va="bottom")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DOTS_PER_INCH, facecolor=BACKGROUND_COLOR)
    return file.getvalue()


def _axial_view(volume: NDArray[Voxel], frame: SliceFrame) -> NDArray[Voxel]:
    """Return a view ``(slice, row, column)``: slices upwards, rows to posterior, columns to the patient's left."""
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in frame.flipped)
    return volume.transpose(frame.order)[steps].transpose(2, 1, 0)


def _choose_slices(predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> list[int]:
    """Return the slice with most lesion, of the prediction if the truth is empty, and that with most wrong voxels."""
    wrong = predicted ^ true
    if not (predicted | true).any():
        return [len(true) // 2]
    most, worst = (int(planes.sum(axis=(1, 2)).argmax()) for planes in (true if true.any() else predicted, wrong))
    return [most] if most == worst or not wrong.any() else [most, worst]


def _draw_outline(axes: Axes, mask: NDArray[np.bool_], color: str, width: float) -> None:
    if mask.any():
        # A border of background closes the outline of a lesion at the edge.
        padded = np.pad(mask.astype(float), 1)
        y, x = (np.arange(-1, size + 1) for size in mask.shape)
        axes.contour(x, y, padded, levels=[0.5], colors=color, linewidths=width)
