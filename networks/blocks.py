"""The building blocks the networks share: recurrent residual blocks, attention gates, upsampling.

Every block works on images ``(B, C, H, W)`` or volumes ``(B, C, I, J, K)``; ``...`` below stands for
the spatial axes. All of them script, export and run in channels-last memory.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from torch import nn

__all__ = [
    "AttentionGate",
    "ConvNormReLU",
    "RecurrentResidualBlock",
    "RecurrentUnit",
    "convolution",
    "patch_layers",
    "upsampling",
]

CONVOLUTION: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.ConvTranspose2d | nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
BATCH_NORM: dict[int, type[nn.BatchNorm2d | nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def convolution(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    followed_by: Literal["relu", "linear"] = "linear",
    *,
    stride: int = 1,
    groups: int = 1,
    bias: bool = True,
) -> nn.Conv2d | nn.Conv3d:
    """Make a convolution with He's initialisation and a zero bias, size-preserving unless it has a stride.

    Weights are drawn as in He et al. 2015, "Delving deep into rectifiers": normal, scaled by the
    fan-in, so that a signal keeps its size on the way forward. Their factor of two makes up for the
    half that a ReLU cuts off, so it is left out where no ReLU follows: the projections of nine blocks
    in a row would otherwise grow the untrained logits some twentyfold.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Features in.
        out_channels: Features out.
        kernel_size: Odd edge length of the kernel.
        followed_by: What the output meets next: ``"relu"`` (behind a norm or not) or ``"linear"``.
        stride: Voxels from one position to the next; equal to the kernel, positions share no voxel.
        groups: Into how many parts the features are divided that do not see each other.
        bias: False where a batch norm behind it, whose shift does the same, makes it redundant.
    """
    layer = CONVOLUTION[spatial_dims](
        in_channels, out_channels, kernel_size, stride, (kernel_size - stride) // 2, groups=groups, bias=bias
    )
    nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity=followed_by)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ConvNormReLU(nn.Module):
    """3x3 convolution, batch norm, ReLU; the batch norm starts as the identity (scale 1, shift 0).

    The bias that the batch norm makes redundant is kept: the published networks have it, and their
    weights could not be loaded without.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = convolution(spatial_dims, in_channels, out_channels, 3, followed_by="relu")
        self.norm = BATCH_NORM[spatial_dims](out_channels)
        self.relu = nn.ReLU(inplace=True)  # batch norm keeps its input, not its output, for the way back

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, in_channels, ...)`` to ``(B, out_channels, ...)``."""
        y: torch.Tensor = self.relu(self.norm(self.conv(x)))
        return y


class RecurrentUnit(nn.Module):
    """One convolution applied again and again to its own output plus its input.

    ``h_0 = f_0(x)``, ``h_t = f_t(x + h_{t-1})`` for ``t = 1 .. recurrences``, where each ``f_t`` is the same
    convolution, batch norm and ReLU: the field of view grows with every step, the number of parameters does
    not (Liang and Hu 2015, "Recurrent convolutional neural network for object recognition"; Alom et al. 2018,
    "Recurrent residual convolutional neural network based on U-Net"). We deviate from the former: one kernel
    serves input and state alike. And from the public implementations of the latter: each step has running
    statistics of its own, as Cooijmans et al. 2016 ("Recurrent batch normalization") have them. The sums grow
    from step to step, and an average over the steps fits none of them: the network in use would see other
    numbers than in training. On the LGG data that costs 0.03 to 0.1 of mean Dice; see docs/results.md.
    """

    def __init__(self, spatial_dims: int, channels: int, recurrences: int) -> None:
        super().__init__()
        self.conv = convolution(spatial_dims, channels, channels, 3, followed_by="relu")
        self.norms = nn.ModuleList(BATCH_NORM[spatial_dims](channels) for _ in range(recurrences + 1))
        for norm in self.norms[1:]:  # scale and shift are weights, and those are shared
            norm.weight, norm.bias = self.norms[0].weight, self.norms[0].bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last state ``(B, channels, ...)`` after ``recurrences + 1`` evaluations of f."""
        state = x
        for step, norm in enumerate(self.norms):
            state = torch.relu(norm(self.conv(x if step == 0 else x + state)))
        return state


class RecurrentResidualBlock(nn.Module):
    """A 1x1 projection, then two recurrent units inside a residual (Alom et al. 2018)."""

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, recurrences: int, rectify_projection: bool = False
    ) -> None:
        super().__init__()
        self.project = convolution(
            spatial_dims, in_channels, out_channels, 1, followed_by="relu" if rectify_projection else "linear"
        )
        self.rectify = nn.ReLU(inplace=True) if rectify_projection else nn.Identity()
        self.units = nn.Sequential(
            RecurrentUnit(spatial_dims, out_channels, recurrences),
            RecurrentUnit(spatial_dims, out_channels, recurrences),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, in_channels, ...)`` to ``(B, out_channels, ...)``."""
        x = self.rectify(self.project(x))  # (B, out_channels, ...)
        y: torch.Tensor = x + self.units(x)
        return y


class AttentionGate(nn.Module):
    """Weigh every voxel of some features by a number between 0 and 1 that a second signal decides.

    Additive attention of Oktay et al. 2018, "Attention U-Net: learning where to look for the
    pancreas". We deviate as the usual implementations do: signal and features lie on the same grid,
    so nothing is resampled inside the gate, and each 1x1 convolution has a batch norm behind it.
    """

    def __init__(self, spatial_dims: int, channels: int, inner_channels: int) -> None:
        super().__init__()

        def pointwise(in_channels: int, out_channels: int, followed_by: Literal["relu", "linear"]) -> nn.Sequential:
            conv = convolution(spatial_dims, in_channels, out_channels, 1, followed_by)
            return nn.Sequential(OrderedDict(conv=conv, norm=BATCH_NORM[spatial_dims](out_channels)))

        self.signal = pointwise(channels, inner_channels, "relu")  # W_g of the paper
        self.features = pointwise(channels, inner_channels, "relu")  # W_x of the paper
        self.score = pointwise(inner_channels, 1, "linear")  # psi of the paper

    def forward(self, features: torch.Tensor, signal: torch.Tensor) -> torch.Tensor:
        """Return ``features`` ``(B, channels, ...)``, each voxel scaled as ``signal``, same shape, decides."""
        evidence = torch.relu(self.signal(signal) + self.features(features))  # (B, inner_channels, ...)
        weight = torch.sigmoid(self.score(evidence))  # (B, 1, ...)
        return features * weight


def upsampling(spatial_dims: int, in_channels: int, out_channels: int, kind: Literal["deconv", "nearest"]) -> nn.Module:
    """Make a layer that doubles every spatial size and maps ``in_channels`` to ``out_channels``.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Features in.
        out_channels: Features out.
        kind: ``"deconv"`` is a transposed convolution whose kernel equals its stride, so no voxel is
            written twice and no checkerboard arises from overlap; ``"nearest"`` repeats voxels and
            smooths them with a 3x3 convolution, batch norm and ReLU.
    """
    if kind == "nearest":
        smooth = ConvNormReLU(spatial_dims, in_channels, out_channels)
        return nn.Sequential(OrderedDict(enlarge=nn.Upsample(scale_factor=2.0, mode="nearest"), smooth=smooth))
    return _transposed(spatial_dims, in_channels, out_channels, 2)


def patch_layers(
    spatial_dims: int, in_channels: int, out_channels: int, channels: int, patch_size: int
) -> tuple[nn.Module, nn.Module]:
    """Make the layers that lead from voxels to patches of them, and from patches back to voxels.

    Neither mixes patches: the first is a convolution whose stride is its kernel, the second its transpose.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Of the image.
        out_channels: Of the logits.
        channels: Features of a patch.
        patch_size: Edge length in voxels. With 1 there are no patches: the stem does nothing, and the head is a
            1x1 convolution.
    """
    if patch_size == 1:
        return nn.Identity(), convolution(spatial_dims, channels, out_channels, 1)
    stem = convolution(spatial_dims, in_channels, channels, patch_size, stride=patch_size)
    return stem, _transposed(spatial_dims, channels, out_channels, patch_size)


def _transposed(
    spatial_dims: int, in_channels: int, out_channels: int, size: int
) -> nn.ConvTranspose2d | nn.ConvTranspose3d:
    """Make a transposed convolution whose kernel equals its stride."""
    layer = TRANSPOSED[spatial_dims](in_channels, out_channels, kernel_size=size, stride=size)
    # Each output voxel sees one kernel position, so its fan-in is in_channels; torch would count otherwise.
    nn.init.normal_(layer.weight, std=in_channels**-0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
