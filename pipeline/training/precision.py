"""In which precision a device trains fastest."""

from __future__ import annotations

from functools import cache

import torch

__all__ = ["computes_bfloat16"]

# As torch.cpu.get_capabilities names them, on x86-64 and on ARM.
BFLOAT16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")


@cache
def computes_bfloat16(device: torch.device) -> bool:
    """Tell whether a device has instructions for bfloat16; where it has none, torch imitates them many times slower.

    Args:
        device: A CPU or CUDA device; of any other kind nothing is known, and the answer is no.
    """
    if device.type == "cuda":
        supported: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return supported
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in BFLOAT16_INSTRUCTIONS)
    return False
