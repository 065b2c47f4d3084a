"""Train the five-block network on single slices of some subjects, and classify slices of others with it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from networks.slice_classifier import SliceClassifier
from pipeline.training.settling import settle_norms

STAGES = 4
SETTLING = 1024  # slices that the statistics of the batch norms are taken from
HEAD_ABOVE = 10  # grey values; JPEG leaves some noise on the black background
BRIGHT = 90  # percentile of the head's pixels that becomes 1
CENTRE, SCALE = 0.5, 0.4  # of such pixels, about their mean and standard deviation
SHIFT, ZOOM, TURN, GAIN = 0.06, 0.07, 0.1, 0.075  # half a slice is 1; radians; most that augmentation changes


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: How many.
        share: Of the training slices, drawn anew for each epoch: neighbours tell nearly the same.
        batch_size: Slices.
        learning_rate: Its highest, after a tenth of the steps; falls to 0 along a cosine.
        weight_decay: Of AdamW.
        channels: Features per block.
        seed: Of the weights, the order and the augmentation.
    """

    epochs: int = 10
    share: float = 0.5
    batch_size: int = 32
    learning_rate: float = 1.0e-3
    weight_decay: float = 0.05
    channels: tuple[int, ...] = (16, 32, 64, 128, 256)
    seed: int = 0


def prepare_slices(slices: NDArray[np.uint8]) -> torch.Tensor:
    """Halve slices ``(N, rows, columns)``, each by its own brightness, to ``(N, 1, rows / 2, columns / 2)``."""
    bright = [np.percentile(each[each > HEAD_ABOVE], BRIGHT) if (each > HEAD_ABOVE).any() else 1 for each in slices]
    halved = functional.avg_pool2d(torch.from_numpy(slices).float()[:, None], 2)
    return (halved / torch.tensor(bright).float()[:, None, None, None] - CENTRE) / SCALE


def stage_weights(stages: torch.Tensor) -> torch.Tensor:
    """Return a weight a stage, larger the rarer it is: one over the root of its share, 1 on the average slice."""
    shares = torch.bincount(stages, minlength=STAGES) / len(stages)
    weights = shares.clamp(min=1 / len(stages)).rsqrt()
    return weights / (weights * shares).sum()


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror, shift, zoom, turn and brighten each slice ``(B, 1, H, W)`` a little, differently each time."""
    count = len(images)

    def draw(*shape: int) -> torch.Tensor:
        return 2 * torch.rand(count, *shape, generator=generator) - 1

    angle, zoom, mirror = TURN * draw(), 1 + ZOOM * draw(), draw().sign()
    matrices = torch.stack(
        [mirror * zoom * angle.cos(), -zoom * angle.sin(), mirror * zoom * angle.sin(), zoom * angle.cos()], dim=1
    )
    matrices = torch.cat([matrices.reshape(count, 2, 2), SHIFT * draw(2, 1)], dim=2)
    grid = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return moved * (1 + GAIN * draw(1, 1, 1)) + GAIN * draw(1, 1, 1)


def train(images: torch.Tensor, stages: torch.Tensor, recipe: Recipe) -> SliceClassifier:
    """Train a network on slices ``(N, 1, H, W)`` and their stages ``(N,)``."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    network = SliceClassifier(1, STAGES, recipe.channels).to(memory_format=torch.channels_last)
    steps = recipe.epochs * (int(recipe.share * len(images)) // recipe.batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps, pct_start=0.1)
    loss_of = nn.CrossEntropyLoss(stage_weights(stages))
    for chosen in _batches(len(images), recipe, generator):
        batch = augment(images[chosen], generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(batch)
        loss = loss_of(logits.float(), stages[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    settling = images[torch.randperm(len(images), generator=generator)[:SETTLING]].split(SETTLING // 8)
    settle_norms(network, (batch.contiguous(memory_format=torch.channels_last) for batch in settling if len(batch) > 1))
    return network


def _batches(count: int, recipe: Recipe, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Draw the slices of every step."""
    full = int(recipe.share * count) // recipe.batch_size
    for _ in range(recipe.epochs):
        yield from torch.randperm(count, generator=generator)[: full * recipe.batch_size].split(recipe.batch_size)


@torch.no_grad()
def classify(network: SliceClassifier, images: torch.Tensor, weights: torch.Tensor) -> NDArray[np.float64]:
    """Return each slice's probabilities ``(N, 4)``, the weights of the training taken out of them again."""
    logits = [network(batch.contiguous(memory_format=torch.channels_last)) for batch in images.split(256)]
    # Weighted training learns probabilities of stages as frequent as their weights make them.
    probabilities: NDArray[np.float64] = (torch.cat(logits) - weights.log()).double().softmax(1).numpy()
    return probabilities


def hold_out(
    slices: NDArray[np.uint8], stages: NDArray[np.int64], held_out: NDArray[np.bool_], recipe: Recipe
) -> dict[str, NDArray[np.float64]]:
    """Train on all slices but some, and classify those.

    Args:
        slices: ``(N, rows, columns)``.
        stages: ``(N,)``.
        held_out: ``(N,)``.
        recipe: How to train.

    Returns:
        ``probabilities`` of the four stages ``(held out, 4)``; ``seconds`` of the training.
    """
    images, truth = prepare_slices(slices), torch.from_numpy(stages)
    inside = torch.from_numpy(~held_out)
    start = time.perf_counter()
    network = train(images[inside], truth[inside], recipe)
    seconds = time.perf_counter() - start
    probabilities = classify(network, images[~inside], stage_weights(truth[inside]))
    return {"probabilities": probabilities, "seconds": np.array(seconds)}
