"""Random MONAI transforms that MONAI itself lacks: drawing slices, losing sequences, shading a normalised head."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandBiasField, Randomizable, RandomizableTransform
from monai.utils import convert_to_tensor
from numpy.typing import NDArray

from transforms.context import slices_with_context
from transforms.geometry import FLAIR_CHANNEL

__all__ = ["RandHeadBiasFieldd", "RandSequenceDropoutd", "RandSlicesd"]

SEQUENCES = 3  # t1, flair, t1c


class RandSlicesd(Randomizable, MapTransform):
    """Draw slices from a volume, a given share of them from those with lesion.

    Two thirds of all slices are free of lesion; drawn evenly, the network would see
    mostly those.

    Args:
        keys: Volumes ``(C, H, W, K)`` of one patient on one grid.
        label_key: The label among them, above 0 in the lesion.
        num_slices: Slices drawn from each volume; without repetition while it has enough.
        lesion_share: Expected share of them that show lesion, 0 to 1.
        context: Neighbouring slices on either side that each image brings along as further channels;
            see ``slices_with_context``. A label comes alone.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        label_key: str = "label",
        num_slices: int = 1,
        lesion_share: float = 0.6,
        context: int = 0,
    ) -> None:
        MapTransform.__init__(self, keys)
        if num_slices < 1:
            raise ValueError(f"num_slices must be at least 1, got {num_slices}")
        if not 0 <= lesion_share <= 1:
            raise ValueError(f"lesion_share must be from 0 to 1, got {lesion_share}")
        self.label_key = label_key
        self.num_slices = num_slices
        self.lesion_share = lesion_share
        self.context = context

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        """Return one dictionary a drawn slice; its keys hold ``(C, H, W)``, with C times 2 context + 1 in images."""
        slices_with_lesion = np.asarray(data[self.label_key].movedim(-1, 0).flatten(1).amax(dim=1) > 0)
        with_lesion, without = np.flatnonzero(slices_with_lesion), np.flatnonzero(~slices_with_lesion)
        wanted = int(self.R.binomial(self.num_slices, self.lesion_share))
        if len(with_lesion) == 0 or len(without) == 0:
            wanted = self.num_slices if len(with_lesion) else 0
        drawn = [*self._draw(with_lesion, wanted), *self._draw(without, self.num_slices - wanted)]
        # A slice has no affine of its own, and plain tensors are several times faster to augment.
        slices = {
            key: slices_with_context(
                convert_to_tensor(data[key], track_meta=False), drawn, 0 if key == self.label_key else self.context
            )
            for key in self.keys
        }
        return [{key: slices[key][position].clone() for key in self.keys} for position in range(len(drawn))]

    def _draw(self, indices: NDArray[np.integer], count: int) -> NDArray[np.integer]:
        if count == 0:
            return indices[:0]
        return self.R.choice(indices, size=count, replace=count > len(indices))


class RandSequenceDropoutd(RandomizableTransform, MapTransform):
    """Replace t1, t1c or both by FLAIR, so that the network also learns to work without them.

    Args:
        keys: Images of three channels t1, flair, t1c, or of as many times three as slices were taken together.
        prob_both: Probability that FLAIR alone is left.
        prob_each: Probability of losing t1, and of losing t1c, where not both are lost at once.
    """

    def __init__(self, keys: KeysCollection, *, prob_both: float = 0.25, prob_each: float = 0.1) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob=1.0)
        for name, value in (("prob_both", prob_both), ("prob_each", prob_each)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {value}")
        self.prob_both = prob_both
        self.prob_each = prob_each

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with the same sequences lost in every key."""
        result = dict(data)
        lose_both = self.R.random() < self.prob_both
        lost = [channel for channel in (0, 2) if self.R.random() < self.prob_each or lose_both]
        for key in self.keys:
            image = result[key].clone()
            for slice_ in image.split(SEQUENCES):  # views into the image: a slice and its neighbours lose the same
                slice_[lost] = slice_[FLAIR_CHANNEL].clone()
            result[key] = image
        return result


class RandHeadBiasFieldd(RandomizableTransform, MapTransform):
    """Shade an image smoothly, as an uneven receive coil does, with air staying dark.

    MONAI's field multiplies; an image normalised to mean 0 would have its dark half
    turned the wrong way. Here the darkest value is what stays fixed.

    Args:
        keys: Images ``(C, H, W)``; every channel gets the same field.
        prob: Probability of shading.
        strength: Coefficients of the field's logarithm are drawn from -strength to strength.
    """

    def __init__(self, keys: KeysCollection, *, prob: float = 0.2, strength: float = 0.15) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.field = RandBiasField(coeff_range=(-strength, strength), prob=1.0)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandHeadBiasFieldd:
        """Seed this transform and the field inside of it."""
        super().set_random_state(seed, state)
        self.field.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with every key shaded, or as it was."""
        self.randomize(None)
        result = dict(data)
        if self._do_transform:
            for key in self.keys:
                darkest = result[key].amin(dim=(1, 2), keepdim=True)
                result[key] = self.field(result[key] - darkest) + darkest
        return result
