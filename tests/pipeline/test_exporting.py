from __future__ import annotations

import copy
import inspect
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
import yaml

from pipeline.engines.artefact import hash_file, read_artefact
from pipeline.errors import BundleError
from pipeline.exporting import export_bundle
from transforms.components import keep_main_components
from transforms.denoising import reduce_noise
from transforms.geometry import find_slice_frame
from transforms.intensity import normalize_intensity


def edit(bundle, change):
    """Change the bundle's inference.yaml."""
    path = bundle / "configs" / "inference.yaml"
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config, sort_keys=False))


def test_the_manifest_tells_the_parameters_of_the_shipped_config(exported_bundle):
    manifest = read_artefact(exported_bundle, hash_file(exported_bundle / "models" / "model.pt")).manifest
    # The shipped config leaves everything at its default, which transforms and functions share.
    steps = {
        "frame": find_slice_frame,
        "noise": reduce_noise,
        "intensity": normalize_intensity,
        "components": keep_main_components,
    }
    for found, function in ((getattr(manifest, step), function) for step, function in steps.items()):
        parameters = inspect.signature(function).parameters.values()
        assert found == {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert manifest.in_channels == 3


def test_parameters_that_the_config_changes_arrive_in_the_manifest(small_bundle):
    def change(config):
        config["volume_transforms"][0].update(margin=3, divisor=32)
        config["volume_transforms"][1]["highest_noise"] = 0.3
        config["volume_transforms"][2]["upper_percentile"] = 98.0
        config["mask_transforms"][1]["smallest_share"] = 0.5

    edit(small_bundle, change)
    manifest = export_bundle(small_bundle).manifest
    assert (manifest.frame["margin"], manifest.frame["divisor"]) == (3, 32)
    assert manifest.noise == {"highest_noise": 0.3}
    assert manifest.components == {"smallest_share": 0.5}
    assert manifest.intensity == {"lower_percentile": 0.5, "upper_percentile": 98.0}


def test_exporting_again_after_the_weights_changed_makes_the_network_fit_again(small_bundle):
    export_bundle(small_bundle)
    weights = small_bundle / "models" / "model.pt"
    state = torch.load(weights, weights_only=True)
    state["head.bias"] += 5
    torch.save(state, weights)
    with pytest.raises(BundleError, match="made from other weights"):
        read_artefact(small_bundle, hash_file(weights))
    artefact = export_bundle(small_bundle)
    assert read_artefact(small_bundle, hash_file(weights)) == artefact
    session = onnxruntime.InferenceSession(artefact.network)
    (logits,) = session.run(None, {"image": np.zeros((1, 3, 8, 12), np.float32)})
    assert logits.shape == (1, 2, 8, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["volume_transforms"].pop(3), "volume_transforms must be ToSliceFramed, Reduce.*got ToSlice"),
        (lambda c: c["volume_transforms"].reverse(), "volume_transforms must be"),
        (lambda c: c["mask_transforms"].insert(0, {"_target_": "FillHolesd", "keys": "pred"}), "mask_transforms"),
        (lambda c: c["probability_transforms"].pop(0), "probability_transforms must be"),
        (lambda c: c.update(slice_context=1), "slice_context must be 0"),
        (lambda c: c["network_def"].update(out_channels=3), "out_channels 2"),
    ],
)
def test_a_config_that_the_fast_road_cannot_follow_is_refused(small_bundle, change, message):
    edit(small_bundle, change)
    with pytest.raises(BundleError, match=message):
        export_bundle(small_bundle)
    assert not (small_bundle / "models" / "exported").exists()


def test_weights_that_do_not_fit_are_refused_and_what_was_exported_stays(small_bundle):
    artefact = export_bundle(small_bundle)
    before = artefact.network.read_bytes()
    torch.save({"head.weight": torch.zeros(1)}, small_bundle / "models" / "model.pt")
    with pytest.raises(BundleError, match="must hold the weights"):
        export_bundle(small_bundle)
    assert artefact.network.read_bytes() == before


def test_a_folder_that_is_no_bundle_is_refused(tmp_path, bundle):
    with pytest.raises(BundleError, match="must be a bundle"):
        export_bundle(tmp_path)
    shutil.rmtree(bundle / "configs")
    with pytest.raises(BundleError, match=r"inference\.yaml"):
        export_bundle(bundle)


def test_an_export_that_computes_something_else_is_refused(small_bundle, monkeypatch):
    import pipeline.exporting

    right = torch.onnx.export

    def wrong_export(network, *args, **kwargs):
        other = copy.deepcopy(network)
        other.head.bias.data += 1e4
        return right(other, *args, **kwargs)

    monkeypatch.setattr(torch.onnx, "export", wrong_export)
    with pytest.raises(BundleError, match=r"logits must equal the original's, they differ by \d+"):
        pipeline.exporting.export_bundle(small_bundle)
    assert not (small_bundle / "models" / "exported" / "network.onnx").exists()
