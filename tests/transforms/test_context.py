"""Slices with their neighbours as further channels."""

import pytest
import torch

from transforms.context import slices_with_context

H, W, K = 3, 4, 5


@pytest.fixture
def volume():
    """A volume whose value tells channel and slice: 10 for the channel, 1 for the slice."""
    channel, slice_ = torch.arange(2.0), torch.arange(float(K))
    return (10 * channel[:, None, None, None] + slice_).expand(2, H, W, K)


def values(slices):
    """Return each slice's channels as their one value."""
    assert (slices == slices[..., :1, :1]).all()
    return slices[..., 0, 0].tolist()


def test_without_context_a_slice_comes_alone(volume):
    slices = slices_with_context(volume, [3, 0], 0)
    assert slices.shape == (2, 2, H, W)
    assert values(slices) == [[3, 13], [0, 10]]


def test_neighbours_come_below_and_above_the_slice(volume):
    assert values(slices_with_context(volume, [2], 1)) == [[1, 11, 2, 12, 3, 13]]
    assert values(slices_with_context(volume, [2], 2)) == [[0, 10, 1, 11, 2, 12, 3, 13, 4, 14]]


def test_the_outermost_slice_stands_in_for_missing_neighbours(volume):
    assert values(slices_with_context(volume, [0, 4], 2)) == [
        [0, 10, 0, 10, 0, 10, 1, 11, 2, 12],
        [2, 12, 3, 13, 4, 14, 4, 14, 4, 14],
    ]


def test_a_volume_of_one_slice_is_its_own_neighbour(volume):
    assert values(slices_with_context(volume[..., 2:3], [0], 1)) == [[2, 12, 2, 12, 2, 12]]


def test_rows_and_columns_stay_where_they_are():
    volume = torch.randn(3, H, W, K, generator=torch.Generator().manual_seed(0))
    (slice_,) = slices_with_context(volume, [1], 1)
    assert (slice_[3:6] == volume[..., 1]).all()
    assert (slice_[6:] == volume[..., 2]).all()


def test_a_negative_context_is_refused(volume):
    with pytest.raises(ValueError, match="context must be at least 0, got -1"):
        slices_with_context(volume, [0], -1)
