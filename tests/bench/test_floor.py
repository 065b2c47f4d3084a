"""The floor: its arithmetic under a clock of the test's own, the work that is counted, and bad precisions."""

from __future__ import annotations

import itertools

import pytest
import torch


@pytest.fixture
def script(load_script):
    return load_script("floor")


def ticking(*steps):
    """A clock that is read again and again, and goes on by these steps, the last for ever."""
    times = itertools.accumulate(itertools.chain([0], steps, itertools.repeat(steps[-1])))
    return lambda: next(times)


def test_calls_for_warming_up_are_not_timed(script):
    calls = []
    # Each call is between two readings: 3, 1 and 8 seconds.
    timing = script.time_calls(lambda: calls.append(1), runs=3, warmup=2, clock=ticking(3, 10, 1, 10, 8))
    assert len(calls) == 5
    assert timing.runs == (3, 1, 8)
    assert timing.best == 1
    assert timing.median == 3


def test_the_floor_is_the_work_divided_by_the_rate(script):
    assert script.Floor("bf16", 4e12, "").seconds(6e12) == 1.5


def test_the_rate_is_that_of_the_fastest_convolution(script, monkeypatch):
    monkeypatch.setattr(script, "FLOOR_CHANNELS", 4)
    monkeypatch.setattr(script, "FLOOR_SIZES", {"cpu": ((1, 8), (3, 16), (2, 8))})
    floor = script.measure_floor("f32", seconds=0, clock=ticking(0.5))
    # Every call takes half a second, so the one with the most work is the fastest.
    assert floor.rate == 2 * 4 * 4 * 9 * (3 * 16 * 16) / 0.5
    assert floor.work == "3x3 convolution of 3 x 4 x 16 x 16"
    assert floor.precision == "f32"


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_convolution_is_computed_in_the_precision_asked_for(script, monkeypatch, precision):
    monkeypatch.setattr(script, "FLOOR_CHANNELS", 4)
    monkeypatch.setattr(script, "FLOOR_SIZES", {"cpu": ((1, 8),)})
    seen = []

    def spy(call, *_further):
        seen.append(call())
        return 1.0

    monkeypatch.setattr(script, "_best_seconds", spy)
    script.measure_floor(precision)
    assert seen[0].dtype == script.torch_type(precision)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_a_rate_of_matrix_products_counts_two_operations_a_multiplication(script, monkeypatch):
    monkeypatch.setattr(script, "MATRIX_SIZE", 6)
    floor = script.measure_matrix_floor("f32", device="cpu", seconds=0, clock=ticking(0.25))
    assert floor.rate == 2 * 6**3 / 0.25


def test_calls_go_on_until_the_time_is_spent_and_the_shortest_counts(script):
    calls = []
    # Readings: end = 0 + 10; each further pair is a call, each check in between takes no time.
    clock = ticking(0, 4, 0, 2, 0, 3, 0, 5, 0, 1)
    assert script._best_seconds(lambda: calls.append(1), 10.0, "cpu", clock) < 4
    assert len(calls) > 3


def test_an_unknown_precision_is_refused(script):
    with pytest.raises(script.AR2UNetError, match="precision must be f32, bf16, f16, got 'int8'"):
        script.measure_floor("int8")


@pytest.mark.parametrize(("name", "kind"), [("ar2unet", "AR2UNet"), ("attention_unet", "AttentionUnet")])
def test_a_network_has_the_widths_asked_for(script, monkeypatch, name, kind):
    network = script.make_network(name, (3, 5, 7))
    assert type(network).__name__ == kind
    widths = {module.out_channels for module in network.modules() if isinstance(module, torch.nn.Conv2d)}
    assert {3, 5, 7} <= widths
    assert network.eval()(torch.zeros(2, 3, 16, 24)).shape == (2, 2, 16, 24)


def test_work_is_that_of_a_convolution_counted_by_hand_and_nothing_is_computed(script):
    network = torch.nn.Conv2d(5, 7, 3, padding=1)
    assert script.count_flops(network, (2, 5, 12, 10)) == 2 * 2 * 12 * 10 * 7 * 5 * 9
    assert network.weight.device.type == "cpu"
    assert network.training
