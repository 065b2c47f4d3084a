"""A MONAI trainer for networks that are fitted at once, from all of their training data, instead of step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from monai.engines import Trainer
from torch import nn
from torch.utils.data import DataLoader

__all__ = ["ClosedFormTrainer"]


class ClosedFormTrainer(Trainer):
    """Gather the batches of an epoch, then call ``network.fit(images, labels, generator)`` with all of them.

    The fit is part of the epoch's last iteration, so a handler that runs when the epoch is complete, such as a
    validation or a checkpoint, finds a fitted network. What ``fit`` returns is put into ``state.metrics``. Subjects are
    sorted by name: neither their order nor the number of processes they are spread over changes the result, and one
    that two processes were handed counts once.

    Args:
        device: Where the network is fitted.
        train_data_loader: Yields ``image``, ``label`` and ``subject``, the subject's name.
        network: Has ``fit``.
        seed: Of the generator handed to ``fit``.
        max_epochs: Each epoch fits anew; one is enough, unless an epoch draws at random.
        train_handlers: MONAI and ignite handlers.
    """

    def __init__(
        self,
        device: torch.device | str,
        train_data_loader: DataLoader[Any],
        network: nn.Module,
        *,
        seed: int = 0,
        max_epochs: int = 1,
        train_handlers: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            handlers=train_handlers,
            decollate=False,  # there are no outputs to take apart
        )
        self.network = network
        self.seed = seed
        self._gathered: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Any]:
        """Keep a batch, and fit when it was the epoch's last one."""
        labels = torch.as_tensor(batchdata["label"])
        for subject, image, label in zip(batchdata["subject"], batchdata["image"], labels, strict=True):
            self._gathered[subject] = torch.as_tensor(image), label
        if engine.state.iteration % engine.state.epoch_length == 0:
            self._fit(engine)
        return {"subjects": len(self._gathered)}

    def _fit(self, engine: Any) -> None:
        gathered = _from_all_processes(self._gathered)
        images, labels = zip(*(gathered[subject] for subject in sorted(gathered)), strict=True)
        self._gathered = {}
        self.network.train()
        result = self.network.fit(  # type: ignore[operator]
            torch.stack(images).to(engine.state.device),
            torch.stack(labels).to(engine.state.device),
            torch.Generator().manual_seed(self.seed),
        )
        engine.state.metrics.update({f"train_loss_{name}": value for name, value in result.items()})


def _from_all_processes(gathered: dict[str, Any]) -> dict[str, Any]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return gathered
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, gathered)
    return {subject: sample for part in parts for subject, sample in part.items()}
