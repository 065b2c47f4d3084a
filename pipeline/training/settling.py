"""Batch norm statistics for a network with dropout, retaken from training batches without it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["NormSettler", "settle_norms"]


@torch.no_grad()
def settle_norms(network: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Take the statistics of all batch norms anew, the mean over some batches without dropout; ends in eval mode.

    Those gathered in training are of features with dropout, which vary otherwise than without (Li et al.,
    "Understanding the disharmony between dropout and batch normalization by variance shift", 2019); where features
    vary little from image to image, a network is of no use with them.

    Args:
        network: Changed in place.
        batches: Training images as the network takes them, two or more in each.
    """
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for batch in batches:
        network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


class NormSettler:
    """Settle a network's batch norms before each validation and at the end of training; a handler.

    It has to stand in front of the handlers that validate and save.

    Args:
        network: In training.
        dataloader: Yields dictionaries with ``image``, as the trainer's.
        device: Of the network.
        interval: Epochs between validations.
        batches: How many to take the statistics from.
    """

    def __init__(
        self,
        network: nn.Module,
        dataloader: Iterable[dict[str, Any]],
        device: torch.device,
        interval: int,
        batches: int = 16,
    ) -> None:
        self.network, self.dataloader, self.device = network, dataloader, device
        self.interval, self.batches = interval, batches

    def attach(self, engine: Engine) -> None:
        """Let a trainer call it."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Settle; the trainer itself puts the network back into training mode."""
        settle_norms(self.network, (each["image"].to(self.device) for each in islice(self.dataloader, self.batches)))
