"""Inferers: every slice meets the network once, with its neighbours, in the precision asked for."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SimpleInferer

from pipeline.training.inferers import AutocastInferer, ContextSliceInferer

H, W, K = 4, 6, 7


@pytest.fixture
def volumes():
    """Two volumes of one channel whose value is the slice's number, in the second one plus 100."""
    slices = torch.arange(float(K)).expand(1, H, W, K)
    return torch.stack([slices, slices + 100])


class Recorder(torch.nn.Module):
    """Return each slice's channels as they came, and remember how many slices came at once."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, slices):
        self.batches.append(len(slices))
        return slices


def test_every_slice_comes_back_in_its_place_with_its_neighbours(volumes):
    logits = ContextSliceInferer(context=1, slices_per_batch=3)(volumes, Recorder())
    assert logits.shape == (2, 3, H, W, K)
    below, itself, above = logits[1, :, 0, 0] - 100
    assert itself.tolist() == list(range(K))
    assert below.tolist() == [0, *range(K - 1)]
    assert above.tolist() == [*range(1, K), K - 1]
    assert (logits[0] == logits[1] - 100).all()


@pytest.mark.parametrize(("slices_per_batch", "batches"), [(3, [3, 3, 1]), (7, [7]), (50, [7])])
def test_slices_go_through_in_batches_and_none_twice(volumes, slices_per_batch, batches):
    network = Recorder()
    result = ContextSliceInferer(context=0, slices_per_batch=slices_per_batch)(volumes[:1], network)
    assert network.batches == batches
    assert (result == volumes[:1]).all()


def test_without_context_it_is_the_slice_inferer_of_monai():
    from monai.inferers import SliceInferer

    network = torch.nn.Conv2d(3, 2, 3, padding=1)
    volume = torch.randn(1, 3, 16, 16, 5, generator=torch.Generator().manual_seed(0))
    expected = SliceInferer(roi_size=(-1, -1), spatial_dim=2, sw_batch_size=2)(volume, network)
    torch.testing.assert_close(ContextSliceInferer(context=0)(volume, network), expected)


def test_a_batch_of_no_slices_is_refused():
    with pytest.raises(ValueError, match="slices_per_batch must be at least 1, got 0"):
        ContextSliceInferer(context=0, slices_per_batch=0)


@pytest.mark.parametrize(("enabled", "inside"), [(True, torch.bfloat16), (False, torch.float32)])
def test_logits_are_float32_whatever_the_network_computed_in(enabled, inside):
    seen = []

    def network(slices):
        logits = torch.nn.functional.conv2d(slices, torch.ones(1, 1, 1, 1))
        seen.append(logits.dtype)
        return logits

    logits = AutocastInferer(SimpleInferer(), enabled=enabled)(torch.ones(1, 1, 4, 4), network)
    assert seen == [inside]
    assert logits.dtype == torch.float32
