"""What happens to a whole batch of slices between the loader and the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from monai.engines.utils import default_prepare_batch
from monai.transforms import Randomizable

__all__ = ["RandWindow"]


class RandWindow(Randomizable):
    """Cut the same random window out of all slices of a batch: MONAI's ``prepare_batch`` with a crop behind it.

    Heads differ in size on the network's grid, and a network that has seen slices of one size alone takes the distance
    to their border for a place in the head. A batch's slices are of one shape, so no transform of a single slice can
    vary it.

    Args:
        sizes: Heights and widths to draw from; where a slice is smaller, it is taken as far as it goes.
        weights: How often each is drawn, in relation to the others.
        seed: Of the draws.

    Raises:
        ValueError: If there are not as many weights as sizes.
    """

    def __init__(self, sizes: Sequence[Sequence[int]], weights: Sequence[float], seed: int | None = None) -> None:
        if len(sizes) != len(weights):
            raise ValueError(f"weights must be as many as sizes, got {len(weights)} for {len(sizes)}")
        self.sizes = [tuple(size) for size in sizes]
        self.weights = [weight / sum(weights) for weight in weights]
        self.set_random_state(seed)

    def __call__(
        self,
        batchdata: dict[str, torch.Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images ``(B, C, H, W)`` and labels ``(B, 1, H, W)`` of one of the sizes."""
        prepared = default_prepare_batch(batchdata, device, non_blocking, **kwargs)
        image, label = cast(tuple[torch.Tensor, torch.Tensor], prepared)
        size = self.sizes[self.R.choice(len(self.sizes), p=self.weights)]
        window = [slice(None), slice(None)]
        for whole, part in zip(image.shape[2:], size, strict=True):
            spare = max(0, whole - part)
            start = round(spare * self.R.random(2).mean())  # more often near the middle, where the head is
            window.append(slice(start, start + part))
        return image[tuple(window)], label[tuple(window)]
