"""A plain convolutional network that says which class a slice belongs to, read from top to bottom.

::

    image ─ block 0 … block 4 ─ mean over the slice ─ dense, ReLU ─ dense, ReLU, norm ─ dense ─ logits
            └ conv, ReLU, conv, ReLU, norm, pool, dropout

The wiring of the classifiers that the four-class Alzheimer's MR slices are commonly given to.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from networks.ar2unet import is_scripting, is_tracing
from networks.blocks import convolution

__all__ = ["ConvolutionBlock", "SliceClassifier"]


class ConvolutionBlock(nn.Sequential):
    """Two 3x3 convolutions with their ReLUs, a batch norm, max pooling that halves, dropout.

    ``(B, in_channels, H, W)`` becomes ``(B, out_channels, ceil(H / 2), ceil(W / 2))``. The batch norm stands behind
    the ReLU, so the convolutions keep their bias. The pooling windows, 3x3 at a stride of 2, overlap by one.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        layers = OrderedDict[str, nn.Module]()
        layers["conv_0"] = convolution(2, in_channels, out_channels, 3, followed_by="relu")
        layers["relu_0"] = nn.ReLU()  # not in place: a saliency map may look at any layer
        layers["conv_1"] = convolution(2, out_channels, out_channels, 3, followed_by="relu")
        layers["relu_1"] = nn.ReLU()
        layers["norm"] = nn.BatchNorm2d(out_channels)
        layers["pool"] = nn.MaxPool2d(3, stride=2, padding=1)
        layers["dropout"] = nn.Dropout(dropout)
        super().__init__(layers)


class SliceClassifier(nn.Module):
    """Classify slices by blocks of convolutions, a global average and dense layers.

    Args:
        in_channels: Channels in: 1 for a grey slice, 3 for colours or for a slice between its neighbours.
        num_classes: Classes out.
        channels: Features per block, the first one at half the slice's size.
        dense: Units of the dense layers before the classes; a batch norm stands behind the last of them. With
            512 and 256, 3 channels and 4 classes, Keras would count 1,445,716 parameters, as the public model has.
        dropout: Probability of dropping a feature behind each block while training.

    Raises:
        ValueError: If an argument is outside what is described above.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        dense: Sequence[int] = (512, 256),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        _check_arguments(in_channels, num_classes, channels, dense, dropout)
        self.in_channels = in_channels
        self.blocks = nn.Sequential(
            *(ConvolutionBlock(before, after, dropout) for before, after in pairwise((in_channels, *channels)))
        )
        self.dense = nn.Sequential()
        for before, after in pairwise((channels[-1], *dense)):
            self.dense.append(_dense(before, after)).append(nn.ReLU())
        self.norm = nn.BatchNorm1d(dense[-1])
        self.head = nn.Linear(dense[-1], num_classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Compute logits.

        Args:
            image: Slices ``(B, in_channels, H, W)`` of any size; in training B is at least 2, for the batch norm.

        Returns:
            Logits ``(B, num_classes)``.

        Raises:
            ValueError: If ``image`` has another number of axes or channels.
        """
        self._check_image(image)
        features = self.blocks(image)  # (B, channels[-1], H / 2 ** blocks, W / 2 ** blocks), rounded up
        averages = features.mean(dim=(2, 3))  # (B, channels[-1])
        logits: torch.Tensor = self.head(self.norm(self.dense(averages)))
        return logits

    def _check_image(self, image: torch.Tensor) -> None:
        """Refuse an image that the first block would choke on with an obscure message."""
        if not is_scripting():  # noqa: SIM102 (TorchScript skips what it cannot compile only below this very test)
            if is_tracing() or torch.compiler.is_exporting():
                return  # a tracer or exporter would burn the sizes of its example into the graph
        shape = list(image.shape)
        if len(shape) != 4:
            raise ValueError(f"image must be (B, C, H, W), got shape {shape}")
        if shape[1] != self.in_channels:
            raise ValueError(f"image must have in_channels = {self.in_channels} channels, got shape {shape}")


def _dense(in_features: int, out_features: int) -> nn.Linear:
    """Make a dense layer that a ReLU follows, drawn as ``networks.blocks.convolution`` draws."""
    layer = nn.Linear(in_features, out_features)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


def _check_arguments(
    in_channels: int, num_classes: int, channels: Sequence[int], dense: Sequence[int], dropout: float
) -> None:
    if in_channels < 1:
        raise ValueError(f"in_channels must be at least 1, got {in_channels!r}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes!r}")
    if len(channels) < 1 or min(channels) < 1:
        raise ValueError(f"channels must name at least one block of at least 1 feature, got {channels!r}")
    if len(dense) < 1 or min(dense) < 1:
        raise ValueError(f"dense must name at least one layer of at least 1 unit, got {dense!r}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout!r}")
