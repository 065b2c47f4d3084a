"""Mixed precision that really is on, for MONAI's trainers, evaluators and inferers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer

__all__ = ["AutocastInferer"]


class AutocastInferer(Inferer):
    """Run another inferer under bfloat16 autocast, on the CPU as on CUDA, and return float32 logits.

    MONAI's own ``amp`` switch is CUDA's: on a CPU it warns and computes in float32.
    bfloat16 has the exponent of float32, so no gradient scaler is needed.

    Args:
        inferer: What calls the network, such as ``SimpleInferer`` or ``SliceInferer``.
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
