"""Which components of a mask are kept: fragments far smaller than the main lesion are not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["SMALLEST_SHARE", "keep_main_components"]

# Of the largest component, in voxels: the best on each four of the five folds (docs/results.md).
SMALLEST_SHARE = 0.3


def keep_main_components(mask: NDArray[np.uint8], *, smallest_share: float = SMALLEST_SHARE) -> NDArray[np.uint8]:
    """Leave the components out that are smaller than a share of the largest one.

    A lower-grade glioma is one region or a few of like size; what the network finds far smaller elsewhere is mostly not
    tumour. Voxels that touch, be it at a corner, belong together.

    Args:
        mask: ``(I, J, K)``, 0 and 1.
        smallest_share: Smallest number of voxels of a component that is kept, as a share of the largest one's. 0 keeps
            all, 1 the largest alone.

    Returns:
        A mask of the same shape; the given one itself where nothing is left out.
    """
    from scipy import ndimage

    box = next(iter(ndimage.find_objects(mask)), None)
    if box is None:
        return mask
    labels, count = ndimage.label(mask[box], structure=np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0  # the background
    kept = sizes >= smallest_share * sizes.max()
    kept[0] = False
    if np.count_nonzero(kept) == count:
        return mask
    result = np.zeros_like(mask)
    result[box] = kept[labels]
    return result
