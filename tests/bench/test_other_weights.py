"""What is scored are the weights that were given, never the shipped ones, which saw every patient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from networks.attention_residual_unet import AttentionResidualUNet
from pipeline.engines.artefact import hash_file
from pipeline.errors import AR2UNetError
from pipeline.exporting import export_bundle
from pipeline.predictor import SEGMENTATION_BUNDLE, Predictor
from pipeline.weights import load_weights

FOLDS = Path(__file__).parents[2] / "bench" / "folds"


@pytest.fixture
def script(load_script):
    return load_script("other_weights")


def test_a_fast_engine_runs_the_weights_that_were_given(script, small_bundle, tmp_path):
    own = small_bundle / "models" / "model.pt"
    given = tmp_path / "trained.pt"
    torch.save({name: value + 1 for name, value in torch.load(own, weights_only=True).items()}, given)
    export_bundle(small_bundle)  # which is not to be taken for an export of what is given
    before = hash_file(own)
    predictor = Predictor(script.bundle_with(given, small_bundle, tmp_path / "copy"))
    assert predictor.note is None
    assert "torch" not in predictor.engine
    assert predictor.weights_sha256 == hash_file(given) != before
    assert hash_file(own) == before


def test_weights_that_are_not_there_are_refused(script, tmp_path):
    with pytest.raises(AR2UNetError, match=r"gone\.pt must be the weights of a training, got no file"):
        script.bundle_with(tmp_path / "gone.pt", SEGMENTATION_BUNDLE, tmp_path / "copy")


def test_weights_of_another_network_are_taken_with_its_config(script, tmp_path):
    network = AttentionResidualUNet(2, 3, 2, (32, 64, 128, 256), patch_size=2)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    on_top = SEGMENTATION_BUNDLE / "configs" / "network_attention_residual_unet.yaml"
    copy = script.bundle_with(tmp_path / "weights.pt", SEGMENTATION_BUNDLE, tmp_path / "copy", on_top)
    assert Predictor(copy, device="cpu", engine="torch").weights_sha256 == hash_file(tmp_path / "weights.pt")
    config = yaml.safe_load((copy / "configs" / "inference.yaml").read_text())
    shipped = yaml.safe_load((SEGMENTATION_BUNDLE / "configs" / "inference.yaml").read_text())
    assert {name for name in shipped if config[name] != shipped[name]} == {"network_def"}
    assert config["network_def"] == yaml.safe_load(on_top.read_text())["network_def"]


def test_a_config_that_is_not_there_is_refused(script, tmp_path):
    with pytest.raises(AR2UNetError, match=r"gone\.yaml must be a config, got no file"):
        script.bundle_with(FOLDS / "fold_0.pt", SEGMENTATION_BUNDLE, tmp_path / "copy", tmp_path / "gone.yaml")


@pytest.mark.parametrize("fold", range(5))
def test_the_weights_of_the_folds_fit_the_bundles_network_and_are_not_the_shipped_ones(fold, make_bundle_network):
    network = load_weights(make_bundle_network(), FOLDS / f"fold_{fold}.pt")
    shipped = torch.load(SEGMENTATION_BUNDLE / "models" / "model.pt", weights_only=True)
    assert any(not torch.equal(value, shipped[name]) for name, value in network.state_dict().items())
