"""AR2-UNet: a U-Net of recurrent residual blocks with attention gates on its skips, read from top to bottom.

::

    image ─ encoder 0 ───────────────── gate ─ concat ─ block ─ head ─ logits
              │ pool                     │  └─ up ─┘
              encoder 1 ────────────── gate ─ concat ─ block
                │ pool                   │  └─ up ─┘
                …                        …
                encoder n (bottleneck) ──┘

Alom et al. 2018 ("Recurrent residual convolutional neural network based on U-Net") with the attention
gates of Oktay et al. 2018 ("Attention U-Net"); ``docs/networks.md`` tells the wirings apart. With a ``patch_size``
above 1 a strided convolution in front of encoder 0 makes one position of each patch of voxels, and the head gives
each voxel of the patch its logits. With a ``backbone`` each encoder also sees what a network that has learned from
photographs makes of the image at that level. The blocks are in ``networks/blocks.py``; ``GatedUNet``, the shape around
them, serves ``AttentionResidualUNet`` too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from networks.blocks import AttentionGate, RecurrentResidualBlock, patch_layers, upsampling
from networks.efficientnet_lite import EfficientNetLite, NoBackbone
from networks.reference_checkpoint import read_reference_checkpoint, rename_to_ours

__all__ = ["AR2UNet", "DecoderLevel", "GatedUNet"]

# Named here because torch leaves them untyped, and TorchScript rejects a comment for mypy inside a function.
is_scripting: Callable[[], bool] = torch.jit.is_scripting  # type: ignore[attr-defined]
is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]


class DecoderLevel(nn.Module):
    """Upsample, gate, concatenate, convolve: one level of the way up."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        block: Callable[[int, int], nn.Module],
        upsample: Literal["deconv", "nearest"],
        gate: Literal["skip", "decoder"],
    ) -> None:
        super().__init__()
        self.gate_weighs_skip = gate == "skip"
        # Half the channels inside, as the widely used R2AttU-Net has it; the public reference does not halve.
        inner_channels = max(1, out_channels // 2) if self.gate_weighs_skip else out_channels
        self.upsample = upsampling(spatial_dims, in_channels, out_channels, upsample)
        self.gate = AttentionGate(spatial_dims, out_channels, inner_channels)
        self.block = block(2 * out_channels, out_channels)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Join ``x`` ``(B, in_channels, ...)`` and ``skip`` ``(B, out_channels, ...)``, twice as large as ``x``."""
        x = self.upsample(x)  # (B, out_channels, ...), on the grid of skip
        # In the public reference the skip only decides; its own features never pass.
        gated = self.gate(skip, x) if self.gate_weighs_skip else self.gate(x, skip)
        y: torch.Tensor = self.block(torch.cat((gated, x), dim=1))  # (B, 2 * out_channels, ...) -> half
        return y


class GatedUNet(nn.Module):
    """U-Net for images and volumes whose skips pass attention gates; its subclasses say what a block is.

    Args:
        spatial_dims: 2 for slices ``(B, C, H, W)``, 3 for volumes ``(B, C, I, J, K)``.
        in_channels: Sequences in, such as 3 for t1, flair, t1c.
        out_channels: Classes out, background included.
        channels: Features per level, top first.
        block: Makes the block that maps so many features to so many, on the same grid.
        upsample: ``"deconv"`` or ``"nearest"``, see ``networks.blocks.upsampling``.
        gate: ``"skip"`` weighs the encoder's features by the decoder's signal, ``"decoder"`` the reverse.
        patch_size: Edge length of the patches of voxels that become one position of the top level.
        backbone: ``"none"`` or ``"efficientnet_lite0"``, see ``AR2UNet``.

    Raises:
        ValueError: If an argument is outside what is described above.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        block: Callable[[int, int], nn.Module],
        upsample: Literal["deconv", "nearest"] = "deconv",
        gate: Literal["skip", "decoder"] = "skip",
        patch_size: int = 1,
        backbone: Literal["none", "efficientnet_lite0"] = "none",
    ) -> None:
        super().__init__()
        _check_sizes(spatial_dims, in_channels, out_channels, channels, patch_size)
        _check_options(upsample, gate)
        _check_backbone(backbone, spatial_dims, in_channels, patch_size)
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        # Patches do not overlap, and every spatial size is halved once between two levels.
        self.divisor = patch_size * 2 ** (len(channels) - 1)

        self.stem, head = patch_layers(spatial_dims, in_channels, out_channels, channels[0], patch_size)
        first = in_channels if patch_size == 1 else channels[0]
        self.backbone = (NoBackbone if backbone == "none" else EfficientNetLite)(len(channels))
        self.encoders = nn.ModuleList(
            block(before + features, after)
            for (before, after), features in zip(pairwise((first, *channels)), self.backbone.channels, strict=True)
        )
        self.pool = nn.MaxPool2d(2) if spatial_dims == 2 else nn.MaxPool3d(2)
        self.decoders = nn.ModuleList(  # deepest first: the order in which they run
            DecoderLevel(spatial_dims, below, here, block, upsample, gate)
            for below, here in pairwise(reversed(channels))
        )
        self.head = head

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Compute logits.

        Args:
            image: ``(B, in_channels, ...)``, every spatial size divisible by ``patch_size * 2 ** (levels - 1)``.

        Returns:
            Logits ``(B, out_channels, ...)`` on the grid of ``image``; under autocast in its lower precision.

        Raises:
            ValueError: If ``image`` has another number of axes or channels, or a size does not divide.
        """
        self._check_image(image)
        skips: list[torch.Tensor] = []
        features: list[torch.Tensor] = self.backbone(image)  # of the first levels, or of none
        x = self.stem(image)  # every spatial size divided by patch_size
        for level, encoder in enumerate(self.encoders):
            if level > 0:
                x = self.pool(x)  # every spatial size halved
            if level < len(features):
                x = torch.cat((x, features[level]), dim=1)
            x = encoder(x)  # (B, channels[level], ...)
            skips.append(x)
        x = skips.pop()
        for decoder in self.decoders:
            x = decoder(x, skips.pop())  # every spatial size doubled
        logits: torch.Tensor = self.head(x)  # (B, out_channels, ...), on the grid of image
        return logits

    def _check_image(self, image: torch.Tensor) -> None:
        """Refuse an image that the levels below would choke on with an obscure message."""
        if not is_scripting():  # noqa: SIM102 (TorchScript skips what it cannot compile only below this very test)
            if is_tracing() or torch.compiler.is_exporting():
                return  # a tracer or exporter would burn the sizes of its example into the graph
        shape = list(image.shape)
        if len(shape) != self.spatial_dims + 2:
            axes = "(B, C, H, W)" if self.spatial_dims == 2 else "(B, C, I, J, K)"
            raise ValueError(f"image must be {axes}, got shape {shape}")
        if shape[1] != self.in_channels:
            raise ValueError(f"image must have in_channels = {self.in_channels} channels, got shape {shape}")
        for size in shape[2:]:
            if size % self.divisor != 0:
                raise ValueError(f"image must have spatial sizes divisible by {self.divisor}, got shape {shape}")


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
        patch_size: Edge length, in voxels, of the patches that become one position of the top level, as the
            stems of Dosovitskiy et al. 2021 ("An image is worth 16x16 words") and Liu et al. 2022 ("A ConvNet
            for the 2020s") have it. 1 is the published network. With 2, twice the channels and a level less
            are the same work on the same fields of view, over half as many numbers to read and write: what
            bounds the speed at 16 channels is memory.
        backbone: ``"efficientnet_lite0"`` concatenates to the input of each encoder the features that
            ``networks.efficientnet_lite`` has at that level, the first four at most, for slices of 3 sequences and
            patches of 2 x 2. Its weights are random here; ``pipeline.weights.load_backbone`` brings those learned from
            photographs, which a hundred patients cannot teach. ``"none"``, the default, is the published network.

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
        patch_size: int = 1,
        backbone: Literal["none", "efficientnet_lite0"] = "none",
    ) -> None:
        if recurrences < 0:
            raise ValueError(f"recurrences must be at least 0, got {recurrences!r}")

        def block(before: int, after: int) -> RecurrentResidualBlock:
            return RecurrentResidualBlock(
                spatial_dims, before, after, recurrences, rectify_projection=gate == "decoder"
            )

        super().__init__(spatial_dims, in_channels, out_channels, channels, block, upsample, gate, patch_size, backbone)

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
        state, in_channels, out_channels, channels = read_reference_checkpoint(path)
        network = cls(2, in_channels, out_channels, channels, recurrences=2, upsample="nearest", gate="decoder")
        network.load_state_dict(rename_to_ours(path, state, network.state_dict()))
        return network


def _check_sizes(
    spatial_dims: int, in_channels: int, out_channels: int, channels: Sequence[int], patch_size: int
) -> None:
    """Refuse numbers that no network can be built from."""
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims!r}")
    if in_channels < 1:
        raise ValueError(f"in_channels must be at least 1, got {in_channels!r}")
    if out_channels < 1:
        raise ValueError(f"out_channels must be at least 1, got {out_channels!r}")
    if len(channels) < 2 or min(channels) < 1:
        raise ValueError(f"channels must name at least two levels of at least 1 feature each, got {channels!r}")
    if patch_size < 1:
        raise ValueError(f"patch_size must be at least 1, got {patch_size!r}")


def _check_options(upsample: str, gate: str) -> None:
    """Refuse options that do not exist or do not go together."""
    if upsample not in ("deconv", "nearest"):
        raise ValueError(f"upsample must be 'deconv' or 'nearest', got {upsample!r}")
    if gate not in ("skip", "decoder"):
        raise ValueError(f"gate must be 'skip' or 'decoder', got {gate!r}")
    if gate == "decoder" and upsample != "nearest":
        raise ValueError(f"upsample must be 'nearest' with gate='decoder' (the reference's wiring), got {upsample!r}")


def _check_backbone(backbone: str, spatial_dims: int, in_channels: int, patch_size: int) -> None:
    """Refuse a backbone that does not exist, or whose features lie on other grids than the encoders."""
    if backbone not in ("none", "efficientnet_lite0"):
        raise ValueError(f"backbone must be 'none' or 'efficientnet_lite0', got {backbone!r}")
    if backbone == "none":
        return
    needed = {"spatial_dims": 2, "in_channels": 3, "patch_size": 2}
    given = {"spatial_dims": spatial_dims, "in_channels": in_channels, "patch_size": patch_size}
    for name, value in needed.items():
        if given[name] != value:
            raise ValueError(f"{name} must be {value} with backbone={backbone!r}, got {given[name]!r}")
