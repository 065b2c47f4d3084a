"""The window that is cut out of a batch: one for all slices and labels, of the sizes asked for."""

from __future__ import annotations

import pytest
import torch

from pipeline.training.batches import RandWindow

SIZES, WEIGHTS = [(16, 32), (32, 16), (64, 80)], (0.5, 0.3, 0.2)


@pytest.fixture
def batch():
    """Images that tell their own rows and columns, and labels that do as well."""
    rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    image = torch.stack([rows, columns]).expand(5, 2, 48, 64)
    return {"image": image, "label": (1000 * rows + columns).expand(5, 1, 48, 64)}


def test_images_and_labels_are_cut_alike_and_whole(batch):
    window = RandWindow(SIZES, WEIGHTS, seed=0)
    for _ in range(20):
        image, label = window(batch)
        assert torch.equal(1000 * image[:, :1] + image[:, 1:], label)
        assert all(torch.equal(each, label[0]) for each in label)
        rows, columns = image[0, 0, :, 0], image[0, 1, 0]
        assert rows.diff().eq(1).all()
        assert columns.diff().eq(1).all()


def test_sizes_come_as_often_as_their_weights_say_and_never_larger_than_the_slice(batch):
    window = RandWindow(SIZES, WEIGHTS, seed=1)
    drawn = [tuple(window(batch)[0].shape[2:]) for _ in range(400)]
    shares = [drawn.count(size) / len(drawn) for size in ((16, 32), (32, 16), (48, 64))]
    assert shares == pytest.approx(WEIGHTS, abs=0.08)


def test_windows_reach_everywhere_and_prefer_the_middle(batch):
    window = RandWindow([(16, 32)], [1], seed=2)
    starts = torch.tensor([[part[0, axis, 0, 0] for axis in (0, 1)] for part, _ in (window(batch) for _ in range(600))])
    assert (starts.min(dim=0).values <= 2).all()
    assert (starts.max(dim=0).values >= 30).all()
    assert starts.mean(dim=0).tolist() == pytest.approx([16, 16], abs=1.5)
    middle = ((starts - 16).abs() <= 8).float().mean(dim=0)
    assert (middle > 0.65).all()  # half of them, were all starts as likely


def test_the_same_seed_draws_the_same(batch):
    first, second, other = (RandWindow(SIZES, WEIGHTS, seed=seed) for seed in (3, 3, 4))
    drawn = [[tuple(window(batch)[0][0, :, 0, 0].tolist()) for _ in range(10)] for window in (first, second, other)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_weights_without_sizes_are_refused():
    with pytest.raises(ValueError, match="weights must be as many as sizes, got 1 for 3"):
        RandWindow(SIZES, [1.0])
