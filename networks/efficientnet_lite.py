"""EfficientNet-Lite0 as far as a sixteenth of the image: features learned from photographs, for ``AR2UNet``'s encoder.

Tan and Le 2019 ("EfficientNet: rethinking model scaling for convolutional neural networks") in its Lite form of 2020,
without squeeze-and-excitation and with ReLU6. What follows its last features at a sixteenth (two stages at a
thirty-second, and the classifier) is left out: the encoder that these features go to has no such level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["LEVELS", "EfficientNetLite", "NoBackbone", "rename_published"]


class Stage(NamedTuple):
    """Blocks of one width.

    Attributes:
        blocks: How many.
        channels: Features out.
        kernel_size: Of the depthwise convolutions.
        stride: Of the first block.
        expansion: Features inside of a block for each one that enters it.
    """

    blocks: int
    channels: int
    kernel_size: int
    stride: int
    expansion: int


STEM_CHANNELS = 32
LEVELS = (  # at a half (where the stem leads), a quarter, an eighth and a sixteenth of the image
    (Stage(1, 16, 3, 1, 1),),
    (Stage(2, 24, 3, 2, 6),),
    (Stage(2, 40, 5, 2, 6),),
    (Stage(3, 80, 3, 2, 6), Stage(3, 112, 5, 1, 6)),
)
BLOCKS_OF_THE_WHOLE = 16  # those left out included
HIGHEST_DROP_RATE = 0.1  # of a block behind the last; an early block is dropped less often

# The names of a block's layers in the published weights, and here.
PUBLISHED_NAMES = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


class ConvNorm(nn.Module):
    """Convolution without a bias, and batch norm; a stride of 2 halves even sizes exactly.

    A strided convolution has one more row and column of zeros behind the image than before it, as TensorFlow, in which
    the published weights were learned, has them for even sizes.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        before = (kernel_size - stride) // 2
        after = kernel_size - stride - before
        self.pad = nn.ZeroPad2d((before, after, before, after)) if stride > 1 else nn.Identity()
        padding = 0 if stride > 1 else kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.norm = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, H / stride, W / stride)``."""
        y: torch.Tensor = self.norm(self.conv(self.pad(x)))
        return y


class InvertedResidual(nn.Module):
    """Widen, convolve each feature by itself, narrow; the input is added where it has the output's shape.

    Sandler et al. 2018, "MobileNetV2: inverted residuals and linear bottlenecks". In training the sum leaves a
    slice's residual out at times (Huang et al. 2016, "Deep networks with stochastic depth").
    """

    def __init__(self, in_channels: int, stage: Stage, stride: int, drop_rate: float) -> None:
        super().__init__()
        inside = in_channels * stage.expansion
        self.expand = ConvNorm(in_channels, inside, 1) if stage.expansion > 1 else None
        self.depthwise = ConvNorm(inside, inside, stage.kernel_size, stride, groups=inside)
        self.project = ConvNorm(inside, stage.channels, 1)
        self.adds_input = stride == 1 and in_channels == stage.channels
        self.drop_rate = drop_rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, channels, H / stride, W / stride)``."""
        wide: torch.Tensor = x if self.expand is None else F.relu6(self.expand(x))
        y: torch.Tensor = self.project(F.relu6(self.depthwise(wide)))
        if not self.adds_input:
            return y
        if self.training:
            y = y * F.dropout(torch.ones_like(y[:, :1, :1, :1]), self.drop_rate)  # all of a slice or nothing
        return x + y


class EfficientNetLite(nn.Module):
    """The features of EfficientNet-Lite0 at a half, a quarter, an eighth and a sixteenth of the image.

    Random until the published weights are loaded: ``load_state_dict(rename_published(weights))``.

    Args:
        levels: How many levels the network beside it has; those below a sixteenth get no features.

    Attributes:
        channels: Features at each level, 0 where there are none.
    """

    def __init__(self, levels: int = len(LEVELS)) -> None:
        super().__init__()
        self.channels = (*(stages[-1].channels for stages in LEVELS[:levels]), *[0] * (levels - len(LEVELS)))
        self.stem = ConvNorm(3, STEM_CHANNELS, 3, stride=2)
        self.levels = nn.ModuleList()
        before, count = STEM_CHANNELS, 0
        for stages in LEVELS[:levels]:
            blocks = []
            for stage, number in _blocks(stages):
                drop_rate = HIGHEST_DROP_RATE * count / BLOCKS_OF_THE_WHOLE
                blocks.append(InvertedResidual(before, stage, stage.stride if number == 0 else 1, drop_rate))
                before, count = stage.channels, count + 1
            self.levels.append(nn.Sequential(*blocks))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Return the features ``(B, channels[i], H / 2**(i + 1), W / 2**(i + 1))`` of an image ``(B, 3, H, W)``."""
        x = F.relu6(self.stem(image))
        features: list[torch.Tensor] = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


class NoBackbone(nn.Module):
    """What a network without a backbone has in its place: no features at any of its levels, no weights."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.channels = (0,) * levels

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Return an empty list."""
        features: list[torch.Tensor] = []
        return features


def rename_published(weights: Mapping[str, torch.Tensor], levels: int = len(LEVELS)) -> dict[str, torch.Tensor]:
    """Return the published weights of EfficientNet-Lite0 by the names they have here, less those left out.

    Args:
        weights: As ``efficientnet_lite_pytorch`` has them, ``_blocks.3._bn1.weight`` for example.
        levels: Of the ``EfficientNetLite`` that they are for.

    Raises:
        KeyError: If some are missing.
    """
    layers = {"stem.conv": "_conv_stem", "stem.norm": "_bn0"}
    count = 0
    for level, stages in enumerate(LEVELS[:levels]):
        for block, (stage, _) in enumerate(_blocks(stages)):
            for theirs, ours in PUBLISHED_NAMES.items():
                if stage.expansion > 1 or not ours.startswith("expand"):
                    layers[f"levels.{level}.{block}.{ours}"] = f"_blocks.{count}.{theirs}"
            count += 1
    leaves = {"conv": ("weight",), "norm": ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    return {
        f"{ours}.{leaf}": weights[f"{theirs}.{leaf}"]
        for ours, theirs in layers.items()
        for leaf in leaves[ours.rpartition(".")[2]]
    }


def _blocks(stages: Sequence[Stage]) -> list[tuple[Stage, int]]:
    """Return the stage of each block of a level, and its number within it."""
    return [(stage, number) for stage in stages for number in range(stage.blocks)]
