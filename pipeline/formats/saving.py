"""The MONAI transform with which the bundle's configs write masks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import SaveImaged

from pipeline.formats.nifti import read_scan, write_mask

__all__ = ["SaveMaskd"]


class SaveMaskd(SaveImaged):
    """Write each mask as ``<subject>_mask.nii.gz``, with the very geometry of the scan's FLAIR header.

    MONAI's own writer keeps the affine, but not the qform and sform codes and units. It is
    subclassed so that whoever leaves writing out (MONAI Label does) recognises this one too.

    Args:
        keys: Masks ``(1, I, J, K)`` on the scan's grid.
        output_dir: Created when the first mask is written.
    """

    def __init__(self, keys: KeysCollection, output_dir: str | Path) -> None:
        super().__init__(keys, output_dir=output_dir)
        self.output_dir = Path(output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write; the dictionary needs ``subject``, and ``flair``, the path whose grid the mask lies on."""
        result = dict(data)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        for key in self.key_iterator(result):
            mask = np.asarray(result[key].cpu())[0]
            write_mask(mask, read_scan(Path(result["flair"])), self.output_dir / f"{result['subject']}_mask.nii.gz")
        return result
