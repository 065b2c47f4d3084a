"""Ridge regression on block features in closed form, whose scores a logistic regression turns into probabilities.

::

    features ─ minus the training mean ─ ridge: one score a threshold ─ logistic regression ─ logits

Nothing here has a gradient: what is learned are buffers, computed once by ``fit``.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["CalibratedRidge", "log_odds_of_any", "stratified_folds"]

FOLDS, REPEATS = 5, 3  # of the scores that calibration learns from
INVERSE_PENALTY = 1.0  # of the logistic regression's weights, on standardised scores
TINY = 1e-12  # instead of dividing by the nothing of features that never vary
PATH_STEPS = 256  # of the straight path along which contributions are summed up


class CalibratedRidge(nn.Module):
    """Order classes by severity with one ridge score a threshold, and calibrate the scores.

    Classes are 0 to ``classes - 1``; score ``t`` regresses whether the class is above ``t``. Several heads, one a
    slice position for instance, are fitted side by side, each on features of its own.

    Args:
        heads: Independent models.
        blocks: How many features each kind has, in the order in which they lie in the feature vector.
        norms: The mean squared norm each kind of feature is scaled to: how much it has to say.
        penalty: Of the ridge.
        classes: Classes out.
    """

    mean: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    calibration_weight: torch.Tensor
    calibration_bias: torch.Tensor

    def __init__(
        self, heads: int, blocks: Sequence[int], norms: Sequence[float], penalty: float, classes: int = 3
    ) -> None:
        super().__init__()
        self.blocks, self.norms, self.penalty = list(blocks), list(norms), penalty
        features, scores = sum(blocks), classes - 1
        self.register_buffer("mean", torch.zeros(heads, features))
        self.register_buffer("weight", torch.zeros(heads, scores, features))
        self.register_buffer("bias", torch.zeros(heads, scores))
        self.register_buffer("calibration_weight", torch.zeros(heads, classes, scores))
        self.register_buffer("calibration_bias", torch.zeros(heads, classes))

    def forward(self, features: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(B, classes)`` of features ``(B, F)``, each by the head ``(B,)`` named for it."""
        scores = (self.weight[head] @ features[:, :, None])[:, :, 0] + self.bias[head]  # (B, classes - 1)
        return (self.calibration_weight[head] @ scores[:, :, None])[:, :, 0] + self.calibration_bias[head]

    def contributions(self, features: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        """Return what each feature adds to the log odds of any class above 0, compared with the mean training features.

        The scores are linear in the features, and the log odds depend on the scores alone. The share of each feature is
        the integral of the odds' gradient along the straight line from the training mean (Sundararajan et al.,
        "Axiomatic attribution for deep networks", 2017), here of as few dimensions as there are scores. The shares of a
        sample sum up to its log odds minus those of the training mean.

        Args:
            features: ``(B, F)``.
            head: ``(B,)``.

        Returns:
            Contributions ``(B, F)``.
        """
        weight, calibration = self.weight[head], self.calibration_weight[head]
        from_mean = features - self.mean[head]
        start = (weight @ self.mean[head][:, :, None])[:, :, 0] + self.bias[head]
        step = (weight @ from_mean[:, :, None])[:, :, 0]
        at = (torch.arange(PATH_STEPS, device=features.device) + 0.5) / PATH_STEPS
        scores = start[:, None] + at[:, None] * step[:, None]  # (B, steps, classes - 1)
        logits = scores @ calibration.mT + self.calibration_bias[head][:, None]
        above = F.pad(logits[..., 1:].softmax(-1), (1, 0)) - F.pad(torch.ones_like(logits[..., :1]), (0, 2))
        gradient = above.mean(1, keepdim=True) @ calibration  # (B, 1, classes - 1)
        return (gradient @ weight)[:, 0] * from_mean

    def fit(self, features: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Compute everything from training samples.

        The ridge is fitted to all of them. The logistic regression sees scores of ridges that did not have the sample
        in question: of five folds, dealt three times, averaged.

        Args:
            features: ``(N, heads, F)``.
            labels: Classes ``(N,)``.
            generator: Deals the folds; on the CPU.

        Returns:
            The mean cross-entropy of each head's out-of-fold scores ``(heads,)``, after the calibration they taught.
        """
        samples = features.transpose(0, 1)  # (heads, N, F)
        targets = (labels[:, None] > torch.arange(self.bias.shape[1], device=labels.device)).float()  # (N, classes - 1)
        mean, weight, bias = self._ridge(samples, targets)
        scores = torch.zeros(*samples.shape[:2], targets.shape[1], device=features.device)  # (heads, N, classes - 1)
        for _ in range(REPEATS):
            fold = stratified_folds(labels, FOLDS, generator)
            for number in range(FOLDS):
                held, kept = fold == number, fold != number
                _, fold_weight, fold_bias = self._ridge(samples[:, kept], targets[kept])
                scores[:, held] += (samples[:, held] @ fold_weight.mT + fold_bias[:, None]) / REPEATS
        fits = [_fit_logistic(head, labels, self.calibration_bias.shape[1]) for head in scores]
        self.mean.copy_(mean)
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        self.calibration_weight.copy_(torch.stack([fit[0] for fit in fits]))
        self.calibration_bias.copy_(torch.stack([fit[1] for fit in fits]))
        logits = scores @ self.calibration_weight.mT + self.calibration_bias[:, None]
        return torch.stack([F.cross_entropy(head, labels) for head in logits])

    def _ridge(self, samples: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return mean ``(heads, F)``, weight ``(heads, T, F)`` and bias ``(heads, T)`` of a ridge, solved in the dual.

        There are far more features than samples: the system to solve is as large as there are samples.
        """
        mean = samples.mean(1, keepdim=True)
        parts = torch.split(samples - mean, self.blocks, dim=2)
        scales = [
            (norm / part.square().sum(2).mean(1).clamp_min(TINY)).sqrt()[:, None, None].expand(-1, 1, part.shape[2])
            for part, norm in zip(parts, self.norms, strict=True)
        ]
        scale = torch.cat(scales, dim=2)  # (heads, 1, F)
        scaled = (samples - mean) * scale
        offset = targets.mean(0)
        kernel = (scaled @ scaled.mT).double() + self.penalty * torch.eye(len(targets), device=samples.device).double()
        dual = torch.linalg.solve(kernel, (targets - offset).double()).to(scaled.dtype)  # (heads, N, T)
        weight = dual.mT @ scaled * scale
        return mean[:, 0], weight, offset - (weight @ mean.mT)[:, :, 0]


def log_odds_of_any(logits: torch.Tensor) -> torch.Tensor:
    """Return the log odds ``(B,)`` of any class above 0, of logits ``(B, classes)``."""
    return logits[:, 1:].logsumexp(1) - logits[:, 0]


def stratified_folds(labels: torch.Tensor, folds: int, generator: torch.Generator) -> torch.Tensor:
    """Deal samples ``(N,)`` into folds by chance, each class spread evenly; returns each sample's fold ``(N,)``."""
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    dealt = order[labels[order].argsort(stable=True)]  # class by class, by chance within
    fold = torch.empty_like(labels)
    fold[dealt] = torch.arange(len(labels), device=labels.device) % folds
    return fold


def _fit_logistic(scores: torch.Tensor, labels: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight ``(classes, T)`` and bias ``(classes,)`` of a multinomial logistic regression on scores ``(N, T)``.

    The scores are standardised for the penalty's sake; what is returned takes them as they are.
    """
    scores = scores.double()
    mean, spread = scores.mean(0), scores.std(0).clamp_min(TINY)
    standardised = (scores - mean) / spread
    with torch.enable_grad():
        weight = torch.zeros(classes, scores.shape[1], dtype=scores.dtype, device=scores.device, requires_grad=True)
        bias = torch.zeros(classes, dtype=scores.dtype, device=scores.device, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

        def loss() -> float:
            optimizer.zero_grad()
            fit = F.cross_entropy(standardised @ weight.T + bias, labels, reduction="sum")
            total = fit + weight.square().sum() / (2 * INVERSE_PENALTY)
            total.backward()  # type: ignore[no-untyped-call]
            return total.item()

        optimizer.step(loss)  # type: ignore[no-untyped-call]
    weight, bias = weight.detach() / spread, bias.detach()
    return weight.float(), (bias - weight @ mean).float()
