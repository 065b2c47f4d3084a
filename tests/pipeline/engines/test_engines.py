from __future__ import annotations

import numpy as np
import openvino
import pytest
import torch

from pipeline.engines import openvino_engine
from pipeline.engines.onnx_engine import OnnxEngine
from pipeline.engines.openvino_engine import OpenVINOEngine, best_precision
from pipeline.errors import BundleError
from pipeline.reference_road import ReferenceRoad

# Of logits, whose spread is about 10: float16 has 11 bits, bfloat16 has 8.
TOLERANCE = {"f32": 2e-3, "f16": 0.15, "bf16": 1.5}
ENGINES = {
    "onnx": OnnxEngine,
    **{precision: lambda network, p=precision: OpenVINOEngine(network, p) for precision in TOLERANCE},
}


@pytest.fixture(scope="module")
def network(exported_bundle):
    return exported_bundle / "models" / "exported" / "network.onnx"


@pytest.fixture(scope="module")
def reference(exported_bundle):
    return ReferenceRoad(exported_bundle, exported_bundle / "models" / "model.pt", "cpu").network


def image_of(height, width, slices):
    """Slices ``(3, H, W, K)`` that all differ: smooth, as scans are."""
    coarse = np.random.default_rng(slices).normal(0, 1.5, (3, height // 8, width // 8, slices)).astype(np.float32)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


@pytest.mark.parametrize("kind", ENGINES)
def test_an_engine_computes_what_torch_computes_at_any_size_and_number(kind, network, reference):
    engine = ENGINES[kind](network)
    for height, width, slices in ((48, 64, 3), (80, 32, 5)):
        image = image_of(height, width, slices)
        found = np.full((slices, 2, height, width), np.nan, dtype=np.float32)

        def receive(k, logits, found=found):
            found[k] = logits

        engine.infer(image, receive)
        with torch.inference_mode():
            expected = reference(torch.from_numpy(np.moveaxis(image, -1, 0).copy())).numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE.get(kind, TOLERANCE["f32"]))


@pytest.mark.parametrize("kind", ENGINES)
def test_views_of_one_channel_are_taken_as_three(kind, network):
    engine = ENGINES[kind](network)
    image = image_of(32, 48, 2)[:1]
    results = []
    for given in (np.broadcast_to(image, (3, *image.shape[1:])), np.repeat(image, 3, axis=0)):
        found = {}
        engine.infer(given, lambda k, logits, found=found: found.__setitem__(k, logits.copy()))
        results.append(np.stack([found[k] for k in range(2)]))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("kind", ENGINES)
def test_what_goes_wrong_in_the_receiver_is_raised_and_the_engine_serves_on(kind, network):
    engine = ENGINES[kind](network)
    image = image_of(32, 48, 4)

    def refuse(k, logits):
        raise KeyError(f"slice {k}")

    with pytest.raises(KeyError, match="slice"):
        engine.infer(image, refuse)
    found = {}
    engine.infer(image, found.__setitem__)
    assert sorted(found) == [0, 1, 2, 3]


@pytest.mark.parametrize("make", [OnnxEngine, OpenVINOEngine])
def test_a_file_that_is_no_network_is_refused_in_one_line(make, tmp_path):
    path = tmp_path / "network.onnx"
    path.write_bytes(b"no network")
    with pytest.raises(BundleError, match=r"network\.onnx must be a network that .* can run") as caught:
        make(path)
    assert "\n" not in str(caught.value)


def test_names_say_the_precision(network):
    assert OnnxEngine(network).name == "onnx f32"
    assert OpenVINOEngine(network, "bf16").name == "openvino bf16"
    assert OpenVINOEngine(network).name == f"openvino {best_precision()}"


@pytest.mark.parametrize(
    ("capabilities", "flags", "precision"),
    [
        (["FP32", "FP16", "BF16"], "flags : avx512_fp16 amx_bf16 amx_tile amx_fp16", "f16"),
        (["FP32", "FP16", "BF16"], "flags : avx512_fp16 amx_bf16 amx_tile", "f32"),  # float16 in AVX-512 alone
        (["FP32", "FP16", "BF16"], None, "f32"),  # no Linux
        (["FP32", "FP16"], None, "f16"),  # ARM
        (["BF16", "FP32", "INT8"], "flags : avx512_bf16", "f32"),
        (["FP32", "INT8"], "flags : avx2", "f32"),
    ],
)
def test_the_precision_is_the_fastest_that_leaves_the_masks_as_they_are(
    capabilities, flags, precision, monkeypatch, tmp_path
):
    monkeypatch.setattr(openvino.Core, "get_property", lambda *args: capabilities)
    monkeypatch.setattr(openvino_engine, "CPU_INFO", tmp_path / "cpuinfo")
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"model name : a processor\n{flags}\n")
    assert best_precision() == precision
