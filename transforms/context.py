"""Slices that carry their neighbours along as further channels, the one definition for training and inference."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["slices_with_context"]


def slices_with_context(volume: torch.Tensor, indices: Sequence[int], context: int) -> torch.Tensor:
    """Take slices of a volume, each with its neighbours below and above as further channels.

    At either end the outermost slice stands in for the neighbours that are missing.

    Args:
        volume: ``(C, H, W, K)``, K slices.
        indices: Slices to take, from 0 to K - 1.
        context: Neighbours on either side; 0 takes each slice alone.

    Returns:
        ``(len(indices), (2 * context + 1) * C, H, W)``, channels from the lowest neighbour to the highest:
        those of the slice itself are number ``context * C`` to ``(context + 1) * C - 1``.

    Raises:
        ValueError: If ``context`` is negative.
    """
    if context < 0:
        raise ValueError(f"context must be at least 0, got {context}")
    offsets = torch.arange(-context, context + 1)
    wanted = (torch.as_tensor(indices)[:, None] + offsets).clamp(0, volume.shape[-1] - 1)  # (N, 2 context + 1)
    slices = volume.movedim(-1, 0)[wanted.to(volume.device)]  # (N, 2 context + 1, C, H, W)
    return slices.flatten(1, 2)
