"""Each format computes what the reference does, on slices of other sizes than any that it was made with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest
import torch

from networks.ar2unet import AR2UNet
from pipeline.errors import AR2UNetError, BundleError
from pipeline.export_formats import ENDINGS, export_network
from pipeline.exporting import export_bundle
from pipeline.predictor import Predictor

SHAPES = [(1, 3, 32, 48), (3, 3, 64, 16)]


def run(format_name, file, bundle, image):
    if format_name == "onnx":
        return onnxruntime.InferenceSession(file).run(None, {"image": image})[0]
    if format_name == "openvino":
        model = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return next(iter(model(image).values()))
    if format_name == "torchscript":
        return torch.jit.load(file)(torch.from_numpy(image)).detach().numpy()
    network = AR2UNet(2, 3, 2, (2, 4), recurrences=1, patch_size=2)
    network.load_state_dict(torch.load(file, weights_only=True))
    return network.eval()(torch.from_numpy(image)).detach().numpy()


@pytest.mark.parametrize("format_name", ENDINGS)
def test_a_format_computes_what_the_reference_does_on_any_size(format_name, small_bundle, tmp_path):
    path = tmp_path / "new" / f"network{ENDINGS[format_name]}"
    written = export_network(small_bundle, format_name, path)
    assert path in written
    assert all(file.is_file() for file in written)
    assert sorted(path.parent.iterdir()) == sorted(written)
    reference = Predictor(small_bundle, device="cpu", engine="torch").road.network
    for seed, shape in enumerate(SHAPES):
        image = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        with torch.inference_mode():
            expected = reference(torch.from_numpy(image)).numpy()
        np.testing.assert_allclose(run(format_name, path, small_bundle, image), expected, atol=1e-4)


def test_the_json_beside_it_says_what_surrounds_the_network(small_bundle, tmp_path):
    *_, path = export_network(small_bundle, "onnx", tmp_path / "network.onnx")
    described = json.loads(path.read_text())
    manifest = export_bundle(small_bundle).manifest
    assert described["input"]["channels"] == ["t1", "flair", "t1c"]
    assert described["input"]["shape"] == ["slices", 3, "height", "width"]
    assert described["input"]["sizes"] == f"height and width are multiples of {manifest.frame['divisor']}"
    assert (described["frame"], described["noise"], described["intensity"]) == (
        manifest.frame,
        manifest.noise,
        manifest.intensity,
    )
    assert described["weights_sha256"] == manifest.weights_sha256
    assert described["output"]["channels"][1] == "lesion"


def test_an_export_that_fits_is_used_and_one_that_does_not_is_made_anew(small_bundle, tmp_path):
    network = export_bundle(small_bundle).network
    written = network.stat().st_mtime_ns
    export_network(small_bundle, "torchscript", tmp_path / "network.ts")
    assert network.stat().st_mtime_ns == written
    weights = small_bundle / "models" / "model.pt"
    state = torch.load(weights, weights_only=True)
    state["head.bias"] += 5
    torch.save(state, weights)
    export_network(small_bundle, "onnx", tmp_path / "network.onnx")
    assert network.stat().st_mtime_ns != written
    assert (tmp_path / "network.onnx").read_bytes() == network.read_bytes()


def test_another_ending_or_folder_is_refused_in_a_line(small_bundle, tmp_path):
    with pytest.raises(BundleError, match=r"network\.bin: a file of the format onnx must end in \.onnx"):
        export_network(small_bundle, "onnx", tmp_path / "network.bin")
    (tmp_path / "file").touch()
    with pytest.raises(AR2UNetError, match="cannot make the folder"):
        export_network(small_bundle, "onnx", tmp_path / "file" / "network.onnx")


def test_the_command_wants_format_and_file_together(ar2unet, tmp_path):
    for arguments in (["--format", "onnx"], ["-o", tmp_path / "x.onnx"]):
        result = ar2unet("export", *arguments)
        assert result.returncode == 2
        assert "--format and -o go together" in " ".join(result.stderr.split())
    assert list(Path(tmp_path).glob("*.onnx")) == []
