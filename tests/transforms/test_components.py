"""Which components stay: by size relative to the largest, whatever their place."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from transforms.components import SMALLEST_SHARE, keep_main_components
from transforms.dictionary import KeepMainComponentsd

SHAPE = (13, 11, 7)


@pytest.fixture
def mask():
    """Components of 12, 6 and 2 voxels, the last beside the border."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[1:3, 1:4, 1:3] = 1
    mask[6:9, 5:7, 4] = 1
    mask[11:13, 10, 6] = 1
    return mask


@pytest.mark.parametrize(
    ("share", "voxels"), [(0, 20), (2 / 12, 20), (0.17, 18), (0.5, 18), (0.51, 12), (1, 12), (SMALLEST_SHARE, 18)]
)
def test_components_below_the_share_are_left_out(mask, share, voxels):
    before = mask.copy()
    kept = keep_main_components(mask, smallest_share=share)
    assert np.count_nonzero(kept) == voxels
    assert not np.any(kept & ~mask)
    assert kept.dtype == np.uint8
    np.testing.assert_array_equal(mask, before)
    assert kept[1:3, 1:4, 1:3].all()


def test_components_of_equal_size_all_stay():
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[0, 0, 0] = mask[12, 10, 6] = 1
    assert keep_main_components(mask, smallest_share=1) is mask


def test_voxels_that_touch_at_a_corner_belong_together():
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[2:6, 2:6, 2:6] = 1
    mask[6, 6, 6] = 1
    assert keep_main_components(mask, smallest_share=1) is mask


def test_an_empty_mask_stays_empty():
    mask = np.zeros(SHAPE, dtype=np.uint8)
    assert keep_main_components(mask) is mask


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_transform_keeps_type_and_metadata(mask, dtype):
    volume = MetaTensor(torch.from_numpy(mask)[None].to(dtype), affine=torch.diag(torch.tensor([2.0, 3, 4, 1])))
    data = KeepMainComponentsd(keys="pred", smallest_share=1)({"pred": volume, "other": 1})
    assert data["other"] == 1
    assert data["pred"].dtype == dtype
    assert torch.equal(data["pred"].affine, volume.affine)
    np.testing.assert_array_equal(data["pred"].numpy()[0], keep_main_components(mask, smallest_share=1))
    assert volume.sum() == 20


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=f"smallest_share must be from 0 to 1, got {share}"):
        KeepMainComponentsd(keys="pred", smallest_share=share)
