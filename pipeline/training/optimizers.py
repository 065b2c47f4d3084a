"""Muon for the kernels of convolutions and AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from pipeline.training.precision import computes_bfloat16

__all__ = ["MuonAdamW", "orthogonalize", "parameter_groups"]

SMALLEST_SIDE = 16  # of a kernel as a matrix; smaller ones (first and last layers, gates) are AdamW's
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of Keller Jordan's quintic, steepest at 0
NEWTON_SCHULZ_STEPS = 5
ADAMW_UPDATE = 0.2  # typical root mean square of AdamW's updates, in learning rates


class MuonAdamW(torch.optim.AdamW):
    """Step along the orthogonalised momentum of the convolution kernels, and as AdamW does along the rest.

    A kernel ``(out, in, height, width)`` counts as the matrix ``(out, in * height * width)``. Its step is made equally
    long in every direction of that matrix, so that what only small gradients speak for is learned as well. Steps
    are scaled to the size of AdamW's, so both parts share one learning rate and weight decay.

    torch's own Muon refuses kernels, hence this class.

    Args:
        params: Parameters of a network, of any shape, or groups of them; a group with ``muon=False`` is all AdamW's.
        lr: Learning rate of both parts.
        weight_decay: Decoupled weight decay of both parts.
        momentum: Share of the old momentum that a kernel's step keeps, 0 to 1.

    Sources: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024),
    https://kellerjordan.github.io/posts/muon; J. Liu et al., "Muon is scalable for LLM training" (2025),
    https://arxiv.org/abs/2502.16982, for the scale.
    """

    def __init__(
        self, params: Iterable[Any], *, lr: float = 1e-3, weight_decay: float = 1e-2, momentum: float = 0.95
    ) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update every parameter that has a gradient; the kernels' gradients are used up.

        Raises:
            ValueError: If a closure is given.
        """
        if closure is not None:
            raise ValueError("MuonAdamW takes no closure")
        for group in self.param_groups:
            for parameter in group["params"] if group.get("muon", True) else ():
                if parameter.grad is not None and _is_kernel(parameter):
                    self._step_kernel(parameter, parameter.grad, group["lr"], group["weight_decay"])
                    parameter.grad = None  # which AdamW passes over
        return super().step()

    def _step_kernel(self, kernel: Tensor, gradient: Tensor, learning_rate: float, weight_decay: float) -> None:
        state = self.state[kernel]
        if not state:
            state["step"] = torch.tensor(0.0)  # AdamW looks for it in whatever state it loads
            state["momentum"] = torch.zeros_like(kernel)
        state["step"] += 1
        state["momentum"].lerp_(gradient, 1 - self.momentum)
        update = gradient.lerp(state["momentum"], self.momentum)  # Nesterov's look ahead
        matrix = orthogonalize(update.flatten(1))
        kernel.mul_(1 - learning_rate * weight_decay)
        kernel.add_(matrix.view_as(kernel), alpha=-learning_rate * ADAMW_UPDATE * max(matrix.shape) ** 0.5)


def parameter_groups(network: torch.nn.Module, learning_rate: float, backbone_share: float) -> list[dict[str, Any]]:
    """Split a network's parameters, so that what has already learned changes slowly.

    Args:
        network: Its ``backbone``, where it has one, is taken for learned; bare or in DistributedDataParallel.
        learning_rate: Of everything else.
        backbone_share: Of that rate, for the backbone, whose kernels are AdamW's as well: Muon would move them in all
            directions alike, those that matter to what they know included.

    Returns:
        One group, or two, for an optimizer.
    """
    module = getattr(getattr(network, "module", network), "backbone", None)
    backbone = list(module.parameters()) if isinstance(module, torch.nn.Module) else []
    learned = {id(parameter) for parameter in backbone}
    groups = [{"params": [each for each in network.parameters() if id(each) not in learned], "lr": learning_rate}]
    if backbone:
        groups.append({"params": backbone, "lr": learning_rate * backbone_share, "muon": False})
    return groups


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return the matrix with its singular values brought near 1, its singular vectors kept.

    Five Newton-Schulz steps, in bfloat16 where the device computes it: training does not need the values more exact
    than to within 0.7 to 1.2.

    Args:
        matrix: ``(rows, columns)``, of any floating-point type.

    Returns:
        ``(rows, columns)``, of the same type.
    """
    a, b, c = NEWTON_SCHULZ
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    result: Tensor = wide.bfloat16() if computes_bfloat16(wide.device) else wide.float()
    result = result / result.norm().clamp(min=1e-7)  # so that no singular value is above 1
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = result @ result.T
        result = a * result + (b * gram + c * gram @ gram) @ result
    return (result if wide is matrix else result.T).to(matrix.dtype)


def _is_kernel(parameter: Tensor) -> bool:
    return parameter.ndim == 4 and min(len(parameter), parameter[0].numel()) >= SMALLEST_SIDE
