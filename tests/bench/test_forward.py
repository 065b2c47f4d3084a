"""Ways to send slices through a network: each sends what it says, and the table puts them side by side."""

from __future__ import annotations

import numpy as np
import pytest
import torch

SHAPE = (3, 16, 24, 5)  # of a volume (C, H, W, K)


@pytest.fixture
def script(load_script):
    return load_script("forward")


@pytest.fixture
def volume():
    return np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)


class Listener(torch.nn.Module):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 2, 1)
        self.inputs = []

    def forward(self, image):
        self.inputs.append(image)
        return self.convolution(image)


class StandIn:
    """An engine that keeps what it is given."""

    name = "onnx f32"

    def __init__(self):
        self.images = []

    def infer(self, image, receive):
        self.images.append(image)
        for k in range(image.shape[-1]):
            receive(k, image[:2, ..., k])


def test_plain_monai_sends_one_slice_after_the_other_and_each_once(script, volume):
    network = Listener()
    script.plain_run(network, volume)()
    assert [tuple(image.shape) for image in network.inputs] == [(1, 3, 16, 24)] * 5
    for k, image in enumerate(network.inputs):
        np.testing.assert_array_equal(image[0], volume[..., k])
        assert image.dtype == torch.float32


def test_torch_computes_a_batch_in_bfloat16_and_channels_last(script, volume):
    network = Listener()
    ways = [way for way in script.make_ways({script.OURS: network}, None, volume, [2, 7]) if way.engine != script.PLAIN]
    for way in ways:
        way.run()
    assert [(way.batch, way.slices, way.precision) for way in ways] == [(2, 2, "bf16"), (7, 7, "bf16")]
    assert network.inputs == []  # a copy ran: the next way finds the network as it was
    assert network.convolution.weight.is_contiguous()
    run = script._torch_batch(network, script._batch_of(volume, 7))
    inside = next(cell.cell_contents for cell in run.__closure__ if isinstance(cell.cell_contents, Listener))
    inside.convolution.register_forward_hook(lambda _module, _inputs, output: inside.inputs.append(output))
    run()
    image, output = inside.inputs
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert output.dtype == torch.bfloat16
    np.testing.assert_array_equal(image[6], volume[..., 1])  # 5 slices, then from the beginning


def test_every_engine_is_measured_slice_by_slice_and_in_batches(script, volume, monkeypatch, tmp_path):
    engine, batches = StandIn(), []

    def batched(_exported, _precision, images):
        batches.append(images.shape)
        return lambda: None

    monkeypatch.setattr(script, "exported_engines", lambda _exported: iter([engine]))
    monkeypatch.setattr(script, "_onnx_batch", batched)
    networks = {script.OURS: Listener(), script.OTHER: Listener()}
    ways = list(script.make_ways(networks, tmp_path, volume, [1, 3]))
    for way in ways:
        way.run()
    assert engine.images[0] is volume
    assert batches == [(1, 3, 16, 24), (3, 3, 16, 24)]
    assert [(way.network, way.engine, way.batch) for way in ways] == [
        (script.OURS, "onnx", script.STREAM),
        (script.OURS, "onnx", 1),
        (script.OURS, "onnx", 3),
        (script.OURS, "torch, channels last", 1),
        (script.OURS, "torch, channels last", 3),
        (script.OURS, script.PLAIN, 1),
        (script.OTHER, script.PLAIN, 1),
    ]
    assert ways[0].slices == 5


def test_seconds_are_those_of_one_slice_in_the_best_run(script, monkeypatch, capsys):
    timing = type("Timing", (), {"best": 6.0})
    monkeypatch.setattr(script, "time_calls", lambda _run, runs: timing if runs == 4 else None)
    way = script.Way("AR2-UNet", "onnx", "f32", script.STREAM, 12, lambda: None)
    assert script.measure_way(way, 77, runs=4) == script.Forward("AR2-UNet", "onnx", "f32", script.STREAM, 77, 0.5)
    assert "0.5000 s a slice" in capsys.readouterr().err


def test_each_convolution_counts_as_often_as_it_is_called(script, monkeypatch):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.twice = torch.nn.Conv2d(3, 3, 3, padding=1)
            self.once = torch.nn.Conv2d(3, 5, 1)
            self.up = torch.nn.ConvTranspose2d(5, 2, 2, 2)

        def forward(self, image):
            return self.up(self.once(self.twice(self.twice(image))))

    seconds = {(4, 3, 16, 24): 10.0, (4, 5, 16, 24): 1.0, (4, 2, 32, 48): 0.5}  # by the shape of what comes out

    def fake(call, *, runs):
        output = call()
        assert output.dtype == torch.bfloat16
        return type("Timing", (), {"best": seconds[tuple(output.shape)] * runs})

    monkeypatch.setattr(script, "time_calls", fake)
    found = script.measure_convolutions(Network(), (4, 3, 16, 24), "bf16", runs=2)
    assert found == 2 * (10.0 + 10.0 + 1.0 + 0.5) / 4


# --- the table ---------------------------------------------------------------------------------------


@pytest.fixture
def forwards(script):
    make = script.Forward
    return [
        make(script.OURS, "openvino", "f16", 8, 1000, 0.025),
        make(script.OURS, "openvino", "f16", script.STREAM, 1000, 0.02),
        make(script.OURS, script.PLAIN, "f32", 1, 1000, 0.10),
        make(script.OTHER, script.PLAIN, "f32", 1, 400, 0.05),
    ]


@pytest.fixture
def floors(load_script):
    floor = load_script("floor").Floor
    return {"f16": floor("f16", 100_000.0, ""), "f32": floor("f32", 20_000.0, "")}


def test_a_row_has_the_times_of_one_engine_and_its_best_is_compared(script, forwards, floors):
    lines = script.forward_table(forwards, floors).splitlines()
    header, _, ours, plain, other = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert header[3:6] == [script.STREAM, "batch 1", "batch 8"]
    # floor 1000 / 100,000 = 0.01 s, half of 0.02 s; and 0.10 / 0.02 times plain MONAI
    assert ours[3:] == ["0.0200", "–", "0.0250", "0.00000100", "0.0100", "50%", "5.00"]
    assert plain[3:] == ["–", "0.100", "–", "0.00000100", "0.0500", "50%", "1.00"]
    assert other[-2:] == ["40%", "2.00"]


@pytest.mark.parametrize(
    ("rate", "top", "reached"), [(58_000.0, 16, [True, True]), (100_000.0, 16, [False, True]), (5e4, 32, [True, True])]
)
def test_goals_are_those_of_the_shipped_engine_slice_by_slice(script, forwards, floors, rate, top, reached):
    floors["f16"] = floors["f16"].__class__("f16", rate, "")
    goals = script.forward_goals(forwards, floors, "openvino f16", top)
    assert [goal.reached for goal in goals] == reached
    assert [goal.wanted for goal in goals] == ["85%", "3.5" if top == 16 else "3"]


def test_wide_networks_may_gain_less(script, forwards, floors):
    slower = [script.Forward(script.OURS, "openvino", "f16", script.STREAM, 1000, 0.031), *forwards[2:]]
    reached = {top: script.forward_goals(slower, floors, "openvino f16", top)[1].reached for top in (16, 32)}
    assert reached == {16: False, 32: True}


def test_the_reference_has_nothing_to_reach(script, forwards, floors):
    assert script.forward_goals(forwards, floors, "torch f32", 16) == []
