"""Two inferers that MONAI lacks: mixed precision that really is on, and slices that see their neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer

from transforms.context import slices_with_context

__all__ = ["AutocastInferer", "ContextSliceInferer"]


class ContextSliceInferer(Inferer):
    """Run a 2D network over all slices of a volume, each with its neighbours as further channels.

    MONAI's ``SliceInferer`` hands over each slice alone.

    Args:
        context: Neighbours on either side, as the network was trained with; 0 for none.
        slices_per_batch: Slices that go through the network at once.

    Raises:
        ValueError: If ``slices_per_batch`` is below 1.
    """

    def __init__(self, *, context: int, slices_per_batch: int = 8) -> None:
        super().__init__()
        if slices_per_batch < 1:
            raise ValueError(f"slices_per_batch must be at least 1, got {slices_per_batch}")
        self.context = context
        self.slices_per_batch = slices_per_batch

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return the logits ``(B, classes, H, W, K)`` of volumes ``(B, C, H, W, K)``."""
        return torch.stack([self._run(volume, network, *args, **kwargs) for volume in inputs])

    def _run(
        self, volume: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        indices = range(volume.shape[-1])
        batches = [indices[start : start + self.slices_per_batch] for start in indices[:: self.slices_per_batch]]
        logits = [network(slices_with_context(volume, batch, self.context), *args, **kwargs) for batch in batches]
        return torch.cat(logits).movedim(0, -1)


class AutocastInferer(Inferer):
    """Run another inferer under bfloat16 autocast, on the CPU as on CUDA, and return float32 logits.

    MONAI's own ``amp`` switch is CUDA's: on a CPU it warns and computes in float32.
    bfloat16 has the exponent of float32, so no gradient scaler is needed.

    Args:
        inferer: What calls the network, such as ``SimpleInferer`` or ``ContextSliceInferer``.
        enabled: False computes in float32.
    """

    def __init__(self, inferer: Inferer, *, enabled: bool = True) -> None:
        super().__init__()
        self.inferer = inferer
        self.enabled = enabled

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return the logits of ``network`` for ``inputs``, as float32."""
        # A MetaTensor would carry its metadata through every layer, at a cost in each.
        plain = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        with torch.autocast(plain.device.type, dtype=torch.bfloat16, enabled=self.enabled):
            logits = self.inferer(plain, network, *args, **kwargs)
        result: torch.Tensor = logits.float()
        return result
