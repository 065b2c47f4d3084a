"""Batch norms know features without dropout whenever somebody looks, and train on as before."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events

from networks.slice_classifier import SliceClassifier
from pipeline.training.settling import NormSettler, settle_norms


@pytest.fixture
def network():
    torch.manual_seed(0)
    return SliceClassifier(1, 4, (4, 8), (6,), dropout=0.5)


@pytest.fixture
def images():
    return torch.randn(40, 1, 16, 12, generator=torch.Generator().manual_seed(0))


def last_normed(network, images):
    """Return what the last batch norm makes of images in inference."""
    seen = []
    hook = network.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    network.eval()(images)
    hook.remove()
    return seen[0].detach()


def test_statistics_are_those_of_features_without_dropout(network, images):
    network.train()(images)  # statistics with dropout
    assert last_normed(network, images).mean(dim=0).abs().max() > 0.3
    settle_norms(network, [images])
    assert not any(module.training for module in network.modules())
    torch.testing.assert_close(last_normed(network, images).mean(dim=0), torch.zeros(6), atol=0.05, rtol=0)


def test_the_mean_over_batches_is_taken_and_training_goes_on_as_before(network, images):
    settle_norms(network, images.split(10))
    assert network.norm.num_batches_tracked == 4
    assert {module.momentum for module in network.modules() if hasattr(module, "momentum")} == {0.1}


def test_a_trainer_settles_before_each_look_and_at_its_end(network, images):
    calls = []

    class Loader:
        def __iter__(self):
            calls.append("settled")
            return iter([{"image": images[:20]}, {"image": images[20:]}, {"image": None}])

    trainer = Engine(lambda engine, batch: network.train())
    NormSettler(network, Loader(), torch.device("cpu"), interval=2, batches=2).attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED(every=2), lambda: calls.append("looked"))
    trainer.add_event_handler(Events.COMPLETED, lambda: calls.append("saved"))
    trainer.run([0], max_epochs=3)
    assert calls == ["settled", "looked", "settled", "saved"]
    torch.testing.assert_close(last_normed(network, images).mean(dim=0), torch.zeros(6), atol=0.05, rtol=0)
