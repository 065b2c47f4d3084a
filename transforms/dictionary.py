"""MONAI dictionary transforms: the pure functions of this package, under names a bundle's config can use.

Each takes and returns a dictionary of ``MetaTensor`` volumes ``(C, I, J, K)``.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray

from transforms.components import SMALLEST_SHARE, keep_main_components
from transforms.denoising import HIGHEST_TRAINING_NOISE, reduce_noise
from transforms.geometry import (
    TRAINING_PIXEL_SPACING,
    SliceFrame,
    find_slice_frame,
    from_slice_frame,
    known_spacing,
    to_slice_frame,
)
from transforms.intensity import normalize_intensity

__all__ = [
    "FillSequencesd",
    "FromSliceFramed",
    "KeepMainComponentsd",
    "LabelToSliceFramed",
    "NormalizeHeadIntensityd",
    "ReduceNoised",
    "SliceMajord",
    "ToSliceFramed",
]

# Key of the volume's metadata under which ToSliceFramed leaves what FromSliceFramed needs.
FRAME_META_KEY = "slice_frame"

# Key of the volume's metadata under which ReduceNoised tells whether it had anything to do.
NOISE_META_KEY = "noise_reduced"

UNIT_MASK = 0b111  # the bits of NIfTI's xyzt_units that name the spatial unit
MILLIMETRE = 2


class ToSliceFramed(MapTransform):
    """Bring an image into the slice frame of the network: axial, at the training scale, cropped to the head.

    The way back is kept in the image's metadata, for ``FromSliceFramed`` and ``LabelToSliceFramed``.

    Args:
        keys: Images to bring over, each into its own frame.
        pixel_spacing: In-plane spacing to resample to where the file's spacing is known, in mm.
        divisor: The slices' height and width become multiples of this.
        crop_to_head: Whether to leave out what lies outside of the head's box.
        margin: Pixels kept around the head.
        allow_missing_keys: Whether a missing key is passed over.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        pixel_spacing: float = TRAINING_PIXEL_SPACING,
        divisor: int = 16,
        crop_to_head: bool = True,
        margin: int = 6,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.pixel_spacing = pixel_spacing
        self.divisor = divisor
        self.crop_to_head = crop_to_head
        self.margin = margin

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with every key in its slice frame, float32."""
        result = dict(data)
        for key in self.key_iterator(result):
            image, affine = _array(result[key]), np.asarray(result[key].affine, dtype=np.float64)
            # Readers of other formats name no unit because their spacing is always in mm.
            unit = int(result[key].meta.get("xyzt_units", MILLIMETRE)) & UNIT_MASK
            frame = find_slice_frame(
                image,
                affine,
                known_spacing(affine, unit),
                pixel_spacing=self.pixel_spacing,
                divisor=self.divisor,
                crop_to_head=self.crop_to_head,
                margin=self.margin,
            )
            result[key] = _on_grid(to_slice_frame(image, frame), result[key], frame.crop_affine)
            result[key].meta[FRAME_META_KEY] = frame.to_json()
        return result


class LabelToSliceFramed(MapTransform):
    """Bring labels along into the slice frame that ``ToSliceFramed`` found for their image.

    Args:
        keys: Labels on the image's original grid.
        image_key: The image whose metadata holds the frame.
        allow_missing_keys: Whether a missing key is passed over.
    """

    def __init__(self, keys: KeysCollection, *, image_key: str = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with every key in the image's slice frame, its type kept."""
        result = dict(data)
        frame = SliceFrame.from_json(result[self.image_key].meta[FRAME_META_KEY])
        for key in self.key_iterator(result):
            label = to_slice_frame(_array(result[key]), frame, interpolation="nearest")
            result[key] = _on_grid(label, result[key], frame.crop_affine)
        return result


class FromSliceFramed(MapTransform):
    """Bring results back onto the voxels of the volume that ``ToSliceFramed`` was given.

    Args:
        keys: Results in the slice frame, such as probabilities; never label numbers, which
            cannot be interpolated.
        image_key: The image whose metadata holds the frame.
        allow_missing_keys: Whether a missing key is passed over.
    """

    def __init__(self, keys: KeysCollection, *, image_key: str = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with every key on the original grid."""
        result = dict(data)
        image = result[self.image_key]
        frame = SliceFrame.from_json(image.meta[FRAME_META_KEY])
        for key in self.key_iterator(result):
            volume = _array(result[key]).astype(np.float32, copy=False)
            result[key] = _on_grid(from_slice_frame(volume, frame), image, np.asarray(frame.affine))
        return result


class KeepMainComponentsd(MapTransform):
    """Leave fragments out of masks that are far smaller than the main lesion; see ``keep_main_components``.

    Args:
        keys: Masks ``(1, I, J, K)``, 0 and 1.
        smallest_share: Smallest size of a component that is kept, as a share of the largest one's, 0 to 1.
        allow_missing_keys: Whether a missing key is passed over.
    """

    def __init__(
        self, keys: KeysCollection, *, smallest_share: float = SMALLEST_SHARE, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not 0 <= smallest_share <= 1:
            raise ValueError(f"smallest_share must be from 0 to 1, got {smallest_share}")
        self.smallest_share = smallest_share

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with every mask reduced to its main components."""
        result = dict(data)
        for key in self.key_iterator(result):
            mask = _array(result[key])[0].astype(np.uint8)
            kept = keep_main_components(mask, smallest_share=self.smallest_share)
            if kept is not mask:
                result[key] = result[key] * torch.from_numpy(kept).to(result[key].device)
        return result


class ReduceNoised(MapTransform):
    """Smooth what has more noise than the training scans; leave everything else as it is.

    Which of the two it was is kept in the volume's metadata.

    Args:
        keys: Volumes ``(C, H, W, K)`` in the slice frame, before they are normalised.
        highest_noise: Noise as a share of the tissue's standard deviation, up to which nothing is done.
        allow_missing_keys: Whether a missing key is passed over.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        highest_noise: float = HIGHEST_TRAINING_NOISE,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.highest_noise = highest_noise

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with the noise of every key reduced."""
        result = dict(data)
        for key in self.key_iterator(result):
            before = _array(result[key])
            volume = reduce_noise(before, highest_noise=self.highest_noise)
            result[key] = _on_grid(volume, result[key], result[key].affine)
            result[key].meta[NOISE_META_KEY] = volume is not before
        return result


class NormalizeHeadIntensityd(MapTransform):
    """Give each channel of a volume mean 0 and variance 1 inside of its head, after clipping outliers.

    Args:
        keys: Volumes with slices along the last axis.
        lower_percentile: Of the head's intensities, in percent.
        upper_percentile: Of the head's intensities, in percent.
        allow_missing_keys: Whether a missing key is passed over.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        lower_percentile: float = 0.5,
        upper_percentile: float = 99.5,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.lower_percentile = lower_percentile
        self.upper_percentile = upper_percentile

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with every key normalised."""
        result = dict(data)
        for key in self.key_iterator(result):
            volume = normalize_intensity(
                _array(result[key]), lower_percentile=self.lower_percentile, upper_percentile=self.upper_percentile
            )
            result[key] = _on_grid(volume, result[key], result[key].affine)
        return result


class FillSequencesd(MapTransform):
    """Make three channels t1, flair, t1c of FLAIR alone, as the training set fills a missing sequence.

    A volume of three channels is left as it is.

    Args:
        keys: Volumes of one or three channels.
        allow_missing_keys: Whether a missing key is passed over.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with every key of three channels.

        Raises:
            ValueError: If a volume has neither one nor three channels.
        """
        result = dict(data)
        for key in self.key_iterator(result):
            volume = result[key]
            if len(volume) not in (1, 3):
                raise ValueError(f"{key} must have 1 channel (FLAIR) or 3 (t1, flair, t1c), got {len(volume)}")
            if len(volume) == 1:
                result[key] = volume.repeat(3, 1, 1, 1)
        return result


class SliceMajord(MapTransform):
    """Lay volumes out slice by slice in memory; shapes and values stay.

    A slice is then one piece of memory. Drawn from a volume whose neighbouring voxels lie in neighbouring slices, as
    NIfTI readers leave it, it would cost reading the whole volume.

    Args:
        keys: Volumes ``(C, I, J, K)``, K slices.
        allow_missing_keys: Whether a missing key is passed over.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with every key laid out anew."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = result[key].movedim(-1, 0).contiguous().movedim(0, -1)
        return result


def _array(volume: torch.Tensor) -> NDArray[Any]:
    array: NDArray[Any] = torch.as_tensor(volume).detach().cpu().numpy()
    return array


def _on_grid(volume: NDArray[Any], like: MetaTensor, affine: Any) -> MetaTensor:
    """Return the array as a MetaTensor with the metadata of ``like`` and an affine of its own."""
    meta = {**like.meta, "affine": torch.as_tensor(affine, dtype=torch.float64)}
    return MetaTensor(torch.from_numpy(volume), meta=meta)
