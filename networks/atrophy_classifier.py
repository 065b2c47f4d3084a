"""A classifier of dementia that reads how much of each place is fluid and how much is bright white matter.

::

    32 slices ─ crop ─ ÷ 90th percentile ─┬ darker than 0.45, in 4x4x4 blocks: √ share of fluid     ┐
                                          └ brighter than 1.05, in 4x8x8 blocks: √ share of white ──┴ ridge ─ logits
    1 slice ─ crop ─ its position ─ ÷ 90th percentile ─ the same in 4x4 and 8x8 blocks ─ ridge of its position ─ logits

Atrophy shows as fluid where tissue was. With 200 subjects, a linear model of where that is does better than
convolutional networks, and what each place adds to an answer can be told exactly.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import nn

from networks.ar2unet import is_scripting, is_tracing
from networks.calibrated_ridge import CalibratedRidge

__all__ = ["CLASSES", "AtrophyClassifier"]

CLASSES = ("NonDemented", "VeryMildDemented", "Mild or Moderate")  # CDR 0, 0.5, and 1 or more

BRIGHT_NORM = 0.3  # what bright matter has to say; that of fluid is 1
PENALTY, SLICE_PENALTY = 1.0, 3.0
AT_ONCE = 8  # subjects whose features are computed together: a gigabyte otherwise


class AtrophyClassifier(nn.Module):
    """Tell the stage of dementia from a subject's slices, or from one slice.

    Everything learned is a buffer that ``fit`` computes from training subjects; before that all logits are 0. Images
    are raw intensities in the frame of the training data: axial, rows from anterior to posterior, columns from the
    patient's left to right, slices upwards, skull-stripped and aligned. Their scale does not matter, except to ``fit``.

    Args:
        slices: Of a subject; a multiple of 4.
        size: Rows and columns of a slice.
        window: First and last (excluded) row and column looked at; both sizes multiples of 8.
        fluid_slices: The lowest slices are looked at for fluid; a multiple of 4.
        fluid_window: As ``window``, of these; both sizes multiples of 4. It lies inside of ``window``.

    Raises:
        ValueError: If an argument is outside what is described above.
    """

    BACKGROUND: Final[int] = 10  # of 255: what is not brighter in over half of the training subjects is no brain
    PERCENTILE: Final[float] = 0.9  # of the brain's intensities: about that of white matter, which is 1 from here on
    FLUID: Final[float] = 0.45  # below
    BRIGHT: Final[float] = 1.05  # above
    FLUID_BLOCK: Final[int] = 4  # pixels
    BRIGHT_BLOCK: Final[int] = 8
    THICK: Final[int] = 4  # slices

    mask: torch.Tensor
    templates: torch.Tensor

    def __init__(
        self,
        slices: int = 32,
        size: Sequence[int] = (208, 176),
        window: Sequence[Sequence[int]] = ((16, 192), (15, 159)),
        fluid_slices: int = 12,
        fluid_window: Sequence[Sequence[int]] = ((48, 112), (31, 143)),
    ) -> None:
        super().__init__()
        _check_arguments(slices, size, window, fluid_slices, fluid_window)
        (top, bottom), (left, right) = window
        (fluid_top, fluid_bottom), (fluid_left, fluid_right) = fluid_window
        height, width = bottom - top, right - left
        self.slices, self.rows, self.columns, self.fluid_slices = slices, int(size[0]), int(size[1]), fluid_slices
        self.top, self.bottom, self.left, self.right = top, bottom, left, right
        # Within the window:
        self.fluid_top, self.fluid_bottom = fluid_top - top, fluid_bottom - top
        self.fluid_left, self.fluid_right = fluid_left - left, fluid_right - left
        fluid = (
            fluid_slices * (fluid_bottom - fluid_top) * (fluid_right - fluid_left) // (self.THICK * self.FLUID_BLOCK**2)
        )
        bright = slices * height * width // (self.THICK * self.BRIGHT_BLOCK**2)
        slice_fluid, slice_bright = height * width // self.FLUID_BLOCK**2, height * width // self.BRIGHT_BLOCK**2
        self.register_buffer("mask", torch.ones(slices, height, width, dtype=torch.bool))  # the brain of most
        self.register_buffer("templates", torch.zeros(slices, slice_fluid))  # mean slices, small, of unit length
        self.subject_head = CalibratedRidge(1, (fluid, bright), (1.0, BRIGHT_NORM), PENALTY)
        self.slice_heads = CalibratedRidge(slices, (slice_fluid, slice_bright), (1.0, BRIGHT_NORM), SLICE_PENALTY)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Compute the calibrated logits of subjects.

        Args:
            image: A subject's slices ``(B, slices, H, W)``, the lowest first.

        Returns:
            Logits ``(B, 3)`` of ``CLASSES``; their softmax are the probabilities.

        Raises:
            ValueError: If ``image`` is of another shape.
        """
        self._check_image(image, self.slices)
        features = self._subject_features(self._crop(image))
        head = torch.zeros(image.shape[0], dtype=torch.long, device=image.device)
        logits: torch.Tensor = self.subject_head(features, head)
        return logits

    @torch.jit.unused
    def slice_logits(self, image: torch.Tensor, position: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the calibrated logits ``(B, 3)`` of single slices ``(B, 1, H, W)``.

        Args:
            image: Slices.
            position: Their places among a subject's slices ``(B,)``, 0 for the lowest; None finds them.

        Raises:
            ValueError: If ``image`` is of another shape.
        """
        self._check_image(image, 1)
        crop = self._crop(image)
        position = self._correlate(crop)[:, 0].argmax(1) if position is None else position
        logits: torch.Tensor = self.slice_heads(self._slice_features(crop[:, 0], self.mask[position]), position)
        return logits

    @torch.jit.unused
    def slice_positions(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which of the training subjects' mean slices each slice ``(B, 1, H, W)`` is most like.

        Returns:
            Positions ``(B,)``, and how well each correlates with the mean slice there ``(B,)``: 1 is the same picture.

        Raises:
            ValueError: If ``image`` is of another shape.
        """
        self._check_image(image, 1)
        best = self._correlate(self._crop(image))[:, 0].max(1)
        return best.indices, best.values

    @torch.jit.unused
    def find_slices(self, volume: torch.Tensor) -> tuple[int, float]:
        """Return where in a taller volume ``(N, H, W)`` the subject's slices begin, and their mean correlation.

        The run of neighbouring slices is taken that is most like the training subjects' mean slices.

        Raises:
            ValueError: If a slice is of another size, or there are too few.
        """
        count, shape = len(volume), list(volume.shape)
        if shape[1:] != [self.rows, self.columns] or count < self.slices:
            wanted = f"(N, {self.rows}, {self.columns}) with N of at least {self.slices}"
            raise ValueError(f"volume must be {wanted}, got shape {shape}")
        correlations = self._correlate(self._crop(volume[None]))[0]  # (N, slices)
        fits = torch.stack(
            [correlations[start : start + self.slices].diagonal().mean() for start in range(count - self.slices + 1)]
        )
        return int(fits.argmax()), float(fits.max())

    @torch.jit.unused
    def contributions(self, image: torch.Tensor) -> torch.Tensor:
        """Return what each place adds to the log odds of any dementia, compared with the mean training subject.

        Exact, not an approximation: the map of a subject sums up to its log odds minus those of the mean training
        features (see ``networks.calibrated_ridge``). Each block's share is spread evenly over its voxels.

        Args:
            image: Subjects ``(B, slices, H, W)``.

        Returns:
            Maps ``(B, slices, H, W)``; above 0 speaks for dementia, below 0 against it.

        Raises:
            ValueError: If ``image`` is of another shape.
        """
        self._check_image(image, self.slices)
        head = torch.zeros(len(image), dtype=torch.long, device=image.device)
        shares = self.subject_head.contributions(self._subject_features(self._crop(image)), head)
        fluid, bright = torch.split(shares, self.subject_head.blocks, dim=1)
        deep = self.fluid_slices // self.THICK
        high = (self.fluid_bottom - self.fluid_top) // self.FLUID_BLOCK
        result = torch.zeros(image.shape, device=image.device)
        crop = self._crop(result)  # a view: what is added to it is added to the result
        crop += _spread(
            bright.view(len(image), self.slices // self.THICK, *self._blocks(self.BRIGHT_BLOCK)),
            self.BRIGHT_BLOCK,
            self.THICK,
        )
        self._fluid(crop).add_(_spread(fluid.view(len(image), deep, high, -1), self.FLUID_BLOCK, self.THICK))
        return result

    @torch.jit.unused
    def slice_contributions(self, image: torch.Tensor, position: torch.Tensor | None = None) -> torch.Tensor:
        """Return the same of single slices ``(B, 1, H, W)``, compared with the mean slice at their position.

        Args:
            image: Slices.
            position: As for ``slice_logits``.

        Returns:
            Maps ``(B, 1, H, W)``.

        Raises:
            ValueError: If ``image`` is of another shape.
        """
        self._check_image(image, 1)
        crop = self._crop(image)
        position = self._correlate(crop)[:, 0].argmax(1) if position is None else position
        shares = self.slice_heads.contributions(self._slice_features(crop[:, 0], self.mask[position]), position)
        fluid, bright = torch.split(shares, self.slice_heads.blocks, dim=1)
        result = torch.zeros(image.shape, device=image.device)
        crop = self._crop(result)
        crop += _spread(bright.view(len(image), 1, *self._blocks(self.BRIGHT_BLOCK)), self.BRIGHT_BLOCK, 1)
        crop += _spread(fluid.view(len(image), 1, *self._blocks(self.FLUID_BLOCK)), self.FLUID_BLOCK, 1)
        return result

    @torch.jit.unused
    @torch.no_grad()
    def fit(
        self, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator | None = None
    ) -> dict[str, float]:
        """Compute everything that is learned, in closed form but for the calibration; the same input, the same result.

        Args:
            images: Training subjects ``(N, slices, H, W)``, intensities 0 to 255 of any type.
            labels: Their stages ``(N,)``, 0 to 3; Mild and Moderate (2 and 3) become one class.
            generator: Deals the folds that calibration learns from; None takes seed 0.

        Returns:
            The out-of-fold cross-entropy of ``subjects`` and, the mean over all positions, of ``slices``.

        Raises:
            ValueError: If shapes do not fit, or a class has fewer than two subjects.
        """
        self._check_image(images, self.slices)
        labels = labels.long().clamp(max=len(CLASSES) - 1)
        counts = torch.bincount(labels, minlength=len(CLASSES)).tolist()
        if len(labels) != len(images) or min(counts) < 2:
            raise ValueError(f"each of {CLASSES} needs 2 subjects, got {counts} of {len(images)} images")
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        above, mean = torch.zeros_like(self.mask, dtype=torch.float32), torch.zeros_like(self.mask, dtype=torch.float32)
        for part in self._parts(images):
            above += (part > self.BACKGROUND).sum(0)
        self.mask.copy_(above * 2 > len(images))
        subjects, slices = [], []
        for part in self._parts(images):
            mean += (part / self._white(part)).sum(0) / len(images)
            subjects.append(self._subject_features(part))
            features = self._slice_features(part.flatten(0, 1), self.mask.repeat(len(part), 1, 1))
            slices.append(features.view(len(part), self.slices, -1))
        self.templates.copy_(_standardised(F.avg_pool2d(mean, self.FLUID_BLOCK).flatten(1)))
        losses = {
            "subjects": self.subject_head.fit(torch.cat(subjects)[:, None], labels, generator),
            "slices": self.slice_heads.fit(torch.cat(slices), labels, generator),
        }
        return {name: float(loss.mean()) for name, loss in losses.items()}

    def _parts(self, images: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the windows of some subjects at a time, float."""
        return (self._crop(part).float() for part in torch.split(images, AT_ONCE))

    def _crop(self, image: torch.Tensor) -> torch.Tensor:
        return image[:, :, self.top : self.bottom, self.left : self.right]

    def _fluid(self, crop: torch.Tensor) -> torch.Tensor:
        """Return where fluid is looked at, a view."""
        rows, columns = (
            crop[:, : self.fluid_slices, self.fluid_top : self.fluid_bottom],
            (self.fluid_left, self.fluid_right),
        )
        return rows[..., columns[0] : columns[1]]

    def _blocks(self, block: int) -> tuple[int, int]:
        return (self.bottom - self.top) // block, (self.right - self.left) // block

    def _white(self, crop: torch.Tensor) -> torch.Tensor:
        """Return the intensity ``(B, 1, 1, 1)`` that stands for white matter in subjects' windows ``(B, S, h, w)``."""
        return _percentile(crop.flatten(1), self.mask.flatten()[None], self.PERCENTILE)[:, None, None, None]

    def _subject_features(self, crop: torch.Tensor) -> torch.Tensor:
        """Compute fluid and bright matter by block ``(B, F)`` in windows ``(B, slices, h, w)``."""
        crop = crop.float()
        relative = crop / self._white(crop)
        fluid = (self._fluid(relative) < self.FLUID) & self._fluid(self.mask[None])
        fluid_shares = F.avg_pool3d(fluid.float()[:, None], self.FLUID_BLOCK).flatten(1)
        thick_blocks = [self.THICK, self.BRIGHT_BLOCK, self.BRIGHT_BLOCK]
        bright_shares = F.avg_pool3d((relative > self.BRIGHT).float()[:, None], thick_blocks).flatten(1)
        return torch.cat([fluid_shares, bright_shares], dim=1).sqrt()

    def _slice_features(self, crop: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Compute the same ``(B, F)`` in windows of slices ``(B, h, w)`` with the masks of their positions."""
        crop = crop.float()
        relative = crop / _percentile(crop.flatten(1), mask.flatten(1), self.PERCENTILE)[:, None, None]
        fluid_shares = F.avg_pool2d(((relative < self.FLUID) & mask).float(), self.FLUID_BLOCK).flatten(1)
        bright_shares = F.avg_pool2d((relative > self.BRIGHT).float(), self.BRIGHT_BLOCK).flatten(1)
        return torch.cat([fluid_shares, bright_shares], dim=1).sqrt()

    def _correlate(self, crop: torch.Tensor) -> torch.Tensor:
        """Return the correlation ``(B, N, slices)`` of each slice of windows ``(B, N, h, w)`` with each mean slice."""
        return _standardised(F.avg_pool2d(crop.float(), self.FLUID_BLOCK).flatten(2)) @ self.templates.T

    def _check_image(self, image: torch.Tensor, slices: int) -> None:
        """Refuse an image of another shape."""
        if not is_scripting():  # noqa: SIM102 (TorchScript skips what it cannot compile only below this very test)
            if is_tracing() or torch.compiler.is_exporting():
                return  # a tracer or exporter would burn the sizes of its example into the graph
        shape = list(image.shape)
        if len(shape) != 4 or shape[1:] != [slices, self.rows, self.columns]:
            raise ValueError(f"image must be (B, {slices}, {self.rows}, {self.columns}), got shape {shape}")


def _percentile(values: torch.Tensor, mask: torch.Tensor, rank: float) -> torch.Tensor:
    """Return a high quantile ``(B,)`` of values ``(B, N)`` inside of masks ``(B, N)`` or ``(1, N)``, above 0.

    Linear between neighbours, as NumPy's. Counted from the largest down, so that sizes do not depend on the mask.
    """
    most = int((1 - rank) * values.shape[1]) + 2
    largest = torch.where(mask, values, torch.zeros_like(values)).topk(most, dim=1).values
    place = (1 - rank) * (mask.sum(1) - 1).clamp(min=0)  # (B,) or (1,)
    place = place.expand(values.shape[0])[:, None]
    lower = place.floor().long()
    ends: torch.Tensor = largest.gather(1, torch.cat([lower, lower + 1], dim=1))  # (B, 2)
    between: torch.Tensor = (place - lower)[:, 0]
    percentile: torch.Tensor = (ends[:, 0] * (1 - between) + ends[:, 1] * between).clamp(min=1e-6)
    return percentile


def _standardised(pictures: torch.Tensor) -> torch.Tensor:
    """Return flat pictures ``(..., N)`` with mean 0 and length 1: products of two are correlations."""
    centred = pictures - pictures.mean(-1, keepdim=True)
    length: torch.Tensor = centred.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return centred / length


def _spread(blocks: torch.Tensor, block: int, thick: int) -> torch.Tensor:
    """Spread each value of ``(B, K, h, w)`` evenly over its block's voxels."""
    voxels = blocks.repeat_interleave(thick, 1).repeat_interleave(block, 2).repeat_interleave(block, 3)
    return voxels / (thick * block * block)


def _check_arguments(
    slices: int,
    size: Sequence[int],
    window: Sequence[Sequence[int]],
    fluid_slices: int,
    fluid_window: Sequence[Sequence[int]],
) -> None:
    thick = AtrophyClassifier.THICK
    if slices < 1 or slices % thick:
        raise ValueError(f"slices must be a multiple of {thick}, got {slices!r}")
    if not 0 < fluid_slices <= slices or fluid_slices % thick:
        raise ValueError(f"fluid_slices must be a multiple of {thick} up to slices = {slices}, got {fluid_slices!r}")
    for name, ranges, outer, block in (
        ("window", window, [(0, length) for length in size], AtrophyClassifier.BRIGHT_BLOCK),
        ("fluid_window", fluid_window, window, AtrophyClassifier.FLUID_BLOCK),
    ):
        for (start, end), (first, last) in zip(ranges, outer, strict=True):
            if not first <= start < end <= last or (end - start) % block:
                raise ValueError(f"{name} must span multiples of {block} pixels inside of {outer}, got {ranges!r}")
