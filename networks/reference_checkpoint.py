"""Read a checkpoint of the public reference implementation, under the names of ``AR2UNet``.

The reference is the class ``AttentionR2UNet`` of Mausoleoo, "Attention Recurrent Residual U-Net for Brain MR
Image Segmentation"; ``docs/networks.md`` tells how its wiring differs from ours.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence

import torch

__all__ = ["read_reference_checkpoint", "rename_to_ours"]

REFERENCE_LEVELS = 5  # the reference spells its levels out: Encoder1 to Encoder5
STEPS = 3  # of its recurrent units; it has one batch norm for all of them, we have one for each
PROJECTIONS = [f"Encoder{number}.Conv_1x1.weight" for number in range(1, REFERENCE_LEVELS + 1)]


def read_reference_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], int, int, list[int]]:
    """Read the reference's weights, without wrappers and without the unused ``Decoder1``.

    Args:
        path: As ``AR2UNet.from_reference_checkpoint`` takes it.

    Returns:
        The state dict under the reference's names, and what its shapes tell: in_channels, out_channels, channels.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no state dict, or the weights that tell the sizes are missing or mis-shaped.
    """
    state = _read_state_dict(path)
    anchors = [*PROJECTIONS, "Conv_1x1.weight"]
    _refuse(path, "missing", [key for key in anchors if key not in state])
    _refuse(path, "mis-shaped", [f"{key} {list(state[key].shape)}" for key in anchors if state[key].ndim != 4])
    channels = [state[key].shape[0] for key in PROJECTIONS]
    return state, state[PROJECTIONS[0]].shape[1], state["Conv_1x1.weight"].shape[0], channels


def rename_to_ours(
    path: str | os.PathLike[str], state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the reference's weights under our names.

    Args:
        path: Where they came from, for messages.
        state: Under the reference's names.
        own: The state dict of an ``AR2UNet`` of the same sizes.

    Raises:
        ValueError: If weights are missing, unexpected or of another shape.
    """
    layers = _reference_layers()
    theirs = {key: ".".join((layers[key.rpartition(".")[0]], key.rpartition(".")[2])) for key in own}
    _refuse(path, "missing", [name for name in theirs.values() if name not in state])
    _refuse(path, "unexpected", sorted(state.keys() - theirs.values()))
    shapes = [
        f"{name} {list(state[name].shape)} instead of {list(own[key].shape)}"
        for key, name in theirs.items()
        if state[name].shape != own[key].shape
    ]
    _refuse(path, "mis-shaped", shapes)
    return {key: state[name] for key, name in theirs.items()}


def _read_state_dict(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read a reference checkpoint's weights, without wrappers and without the unused ``Decoder1``."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{os.fspath(path)} must be a state dict saved by torch.save, got: {reason}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"{os.fspath(path)} must hold a state dict of tensors, got {type(content).__name__}")
    plain = {str(key).removeprefix("module."): value for key, value in content.items()}
    return {key: value for key, value in plain.items() if not key.startswith("Decoder1.")}


def _reference_layers() -> dict[str, str]:
    """Name the reference's layer for each of ours that holds weights."""
    block = {"project": "Conv_1x1"}
    for unit in (0, 1):
        block[f"units.{unit}.conv"] = f"RCNN.{unit}.conv.0"
        block |= {f"units.{unit}.norms.{step}": f"RCNN.{unit}.conv.1" for step in range(STEPS)}
    gate: dict[str, str] = {}
    for ours, theirs in {"signal": "W_g", "features": "W_x", "score": "psi"}.items():
        gate |= {f"gate.{ours}.conv": f"{theirs}.0", f"gate.{ours}.norm": f"{theirs}.1"}

    layers = {"head": "Conv_1x1"}
    for level in range(REFERENCE_LEVELS):
        layers |= {f"encoders.{level}.{ours}": f"Encoder{level + 1}.{theirs}" for ours, theirs in block.items()}
    for position, number in enumerate(range(REFERENCE_LEVELS - 1, 0, -1)):  # Attention4 belongs to Decoder5
        decoder = f"decoders.{position}"
        layers |= {f"{decoder}.{ours}": f"Attention{number}.{theirs}" for ours, theirs in gate.items()}
        layers |= {f"{decoder}.block.{ours}": f"UPRecurrent{number}.{theirs}" for ours, theirs in block.items()}
        layers[f"{decoder}.upsample.smooth.conv"] = f"Decoder{number + 1}.Deconv.1"
        layers[f"{decoder}.upsample.smooth.norm"] = f"Decoder{number + 1}.Deconv.2"
    return layers


def _refuse(path: str | os.PathLike[str], fault: str, names: Sequence[str]) -> None:
    """Raise if any weights have this fault, naming the first few."""
    if names:
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        raise ValueError(f"{os.fspath(path)} must be an AttentionR2UNet state dict, got {fault} weights: {shown}")
