"""AR2-UNet: a U-Net of recurrent residual blocks with attention gates on its skips.

Alom et al. 2018 ("Recurrent residual convolutional neural network based on U-Net") with the attention
gates of Oktay et al. 2018 ("Attention U-Net"). ``networks/gated_unet.py`` draws and computes the whole,
``networks/blocks.py`` its blocks; ``docs/networks.md`` tells the wirings apart.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from typing import Literal

import torch

from networks.blocks import RecurrentResidualBlock
from networks.gated_unet import GatedUNet

__all__ = ["AR2UNet"]


class AR2UNet(GatedUNet):
    """Attention recurrent residual U-Net for images and volumes.

    Args:
        spatial_dims: 2 for slices ``(B, C, H, W)``, 3 for volumes ``(B, C, I, J, K)``.
        in_channels: Sequences in, such as 3 for t1, flair, t1c.
        out_channels: Classes out, background included.
        channels: Features per level, top first. 64 doubling to 1024 are the widths of the published
            networks; 16 to 256 do well on small data at a sixteenth of the work.
        recurrences: How often a unit is applied to its own output. 2 is the t of Alom et al. 2018
            (three evaluations); 0 makes plain residual blocks.
        upsample: ``"deconv"`` (default: nine tenths of the parameters of ``"nearest"``, and no
            3x3 convolution on the enlarged grid) or ``"nearest"`` followed by a 3x3 convolution.
        gate: ``"skip"`` (default) weighs the encoder's features by the decoder's signal, as Oktay et
            al. 2018 describe it. ``"decoder"`` is the wiring of the public reference, whose gates
            weigh the decoder's own features and whose skips are never concatenated; it has nearest
            upsampling, full-width gates and a ReLU behind each block's projection.
        dropout: Probability of dropping a whole feature map of the bottleneck while training, where
            Ronneberger et al. 2015 ("U-Net") drop: it holds about half of all weights, and the fine
            detail of the skips stays whole. Whole maps, because neighbouring voxels tell the same
            thing. 0 by default: batch norm and augmentation regularise already.

    Raises:
        ValueError: If an argument is outside what is described above.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (64, 128, 256, 512, 1024),
        recurrences: int = 2,
        upsample: Literal["deconv", "nearest"] = "deconv",
        gate: Literal["skip", "decoder"] = "skip",
        dropout: float = 0.0,
    ) -> None:
        if recurrences < 0:
            raise ValueError(f"recurrences must be at least 0, got {recurrences!r}")

        def block(before: int, after: int) -> RecurrentResidualBlock:
            return RecurrentResidualBlock(
                spatial_dims, before, after, recurrences, rectify_projection=gate == "decoder"
            )

        super().__init__(spatial_dims, in_channels, out_channels, channels, block, upsample, gate, dropout)

    @classmethod
    def from_reference_checkpoint(cls, path: str | os.PathLike[str]) -> AR2UNet:
        """Load a checkpoint of the public reference implementation.

        The reference is the class ``AttentionR2UNet`` of Mausoleoo, "Attention Recurrent Residual U-Net
        for Brain MR Image Segmentation". Its ``Decoder1`` takes no part in its forward pass and is
        left out. The numbers of channels are read from the weights.

        Args:
            path: A state dict saved by ``torch.save``, plain or under ``"state_dict"`` or ``"model"``,
                with or without the ``module.`` that ``DataParallel`` puts before each name.

        Returns:
            The network with ``gate="decoder"`` and ``upsample="nearest"``, in training mode as any new module.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is no state dict, or weights are missing, unexpected or of another shape.
        """
        state = _read_state_dict(path)
        projections = [f"Encoder{number}.Conv_1x1.weight" for number in range(1, REFERENCE_LEVELS + 1)]
        anchors = [*projections, "Conv_1x1.weight"]
        _refuse(path, "missing", [key for key in anchors if key not in state])
        _refuse(path, "mis-shaped", [f"{key} {list(state[key].shape)}" for key in anchors if state[key].ndim != 4])
        network = cls(
            spatial_dims=2,
            in_channels=state[projections[0]].shape[1],
            out_channels=state["Conv_1x1.weight"].shape[0],
            channels=[state[key].shape[0] for key in projections],
            recurrences=2,
            upsample="nearest",
            gate="decoder",
        )
        layers = _reference_layers()
        own = network.state_dict()
        theirs = {key: ".".join((layers[key.rpartition(".")[0]], key.rpartition(".")[2])) for key in own}
        _refuse(path, "missing", [name for name in theirs.values() if name not in state])
        _refuse(path, "unexpected", sorted(state.keys() - theirs.values()))
        shapes = [
            f"{name} {list(state[name].shape)} instead of {list(own[key].shape)}"
            for key, name in theirs.items()
            if state[name].shape != own[key].shape
        ]
        _refuse(path, "mis-shaped", shapes)
        network.load_state_dict({key: state[name] for key, name in theirs.items()})
        return network


REFERENCE_LEVELS = 5  # the reference spells its levels out: Encoder1 to Encoder5


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
        block |= {f"units.{unit}.step.conv": f"RCNN.{unit}.conv.0", f"units.{unit}.step.norm": f"RCNN.{unit}.conv.1"}
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
