"""Attention residual U-Net: a U-Net of plain residual blocks with attention gates on its skips.

The second segmenter, lighter than AR2-UNet: each weight is used once. ``networks/ar2unet.py`` draws and
computes the whole, ``networks/blocks.py`` its gates; what follows is its block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from networks.ar2unet import GatedUNet
from networks.blocks import BATCH_NORM, convolution

__all__ = ["AttentionResidualUNet", "ResidualBlock", "separable_convolution"]


def separable_convolution(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Sequential:
    """Make a 3x3 convolution of each feature by itself, then a 1x1 convolution across them.

    Chollet 2017, "Xception: deep learning with depthwise separable convolutions": about a ninth of a
    whole 3x3 convolution's parameters and work, a twenty-seventh in 3D. It has no bias: the batch norm
    behind it shifts.
    """
    depthwise = convolution(spatial_dims, in_channels, in_channels, 3, groups=in_channels, bias=False)
    pointwise = convolution(spatial_dims, in_channels, out_channels, 1, followed_by="relu", bias=False)
    return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=pointwise))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norms and a 1x1 shortcut around both, a ReLU behind their sum.

    He et al. 2016, "Deep residual learning for image recognition", whose first batch norm is followed
    by a ReLU too: without one the two convolutions would be a single 5x5 one. We deviate in two ways:
    the shortcut is a 1x1 convolution everywhere, since every block changes the number of features, and
    it has no batch norm, so that it carries the signal as it is.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, separable: bool = False) -> None:
        super().__init__()

        def conv(before: int) -> nn.Module:
            if separable:
                return separable_convolution(spatial_dims, before, out_channels)
            return convolution(spatial_dims, before, out_channels, 3, followed_by="relu", bias=False)

        norm = BATCH_NORM[spatial_dims]
        layers = OrderedDict[str, nn.Module]()
        layers["conv_0"] = conv(in_channels)
        layers["norm_0"] = norm(out_channels)
        layers["relu_0"] = nn.ReLU(inplace=True)  # batch norm keeps its input, not its output, for the way back
        layers["conv_1"] = conv(out_channels)
        layers["norm_1"] = norm(out_channels)
        self.residual = nn.Sequential(layers)
        self.shortcut = convolution(spatial_dims, in_channels, out_channels, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)  # a sum keeps nothing for the way back

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, in_channels, ...)`` to ``(B, out_channels, ...)``, nowhere negative."""
        y: torch.Tensor = self.relu(self.residual(x) + self.shortcut(x))
        return y


class AttentionResidualUNet(GatedUNet):
    """Attention residual U-Net for images and volumes.

    Its skips are weighed by the decoder's signal, and its decoder enlarges by transposed convolutions, as
    ``AR2UNet`` by default.

    Args:
        spatial_dims: 2 for slices ``(B, C, H, W)``, 3 for volumes ``(B, C, I, J, K)``.
        in_channels: Sequences in, such as 3 for t1, flair, t1c.
        out_channels: Classes out, background included.
        channels: Features per level, top first. The default is that of ``AR2UNet``, for a fair comparison.
        separable: Whether the blocks' 3x3 convolutions are depthwise separable: a quarter of the parameters
            in 2D and an eighth in 3D. Off by default; it is for where memory or time is short.
        patch_size: Edge length of the patches of voxels that become one position of the top level, as in
            ``AR2UNet``.

    Raises:
        ValueError: If an argument is outside what is described above.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (64, 128, 256, 512, 1024),
        separable: bool = False,
        patch_size: int = 1,
    ) -> None:
        def block(before: int, after: int) -> ResidualBlock:
            return ResidualBlock(spatial_dims, before, after, separable)

        super().__init__(spatial_dims, in_channels, out_channels, channels, block, patch_size=patch_size)
