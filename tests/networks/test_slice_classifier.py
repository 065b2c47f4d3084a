import inspect
import re
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from networks.slice_classifier import ConvolutionBlock, SliceClassifier

PUBLIC = {"in_channels": 3, "num_classes": 4}
SHAPE, OTHER_SHAPE = (2, 3, 17, 22), (5, 3, 9, 31)  # all sizes differ, none is a power of two


@pytest.fixture
def make_network():
    """Make a small network ready for inference, every weight and running statistic drawn anew."""

    def make(**changes):
        arguments = {"in_channels": 3, "num_classes": 4, "channels": (5, 6), "dense": (8, 7), **changes}
        network = SliceClassifier(**arguments).eval()
        for key, value in network.state_dict().items():  # shares its memory with the network
            if value.is_floating_point():
                value.copy_(
                    torch.rand_like(value) + 0.5 if key.endswith("running_var") else torch.randn_like(value) / 3
                )
        return network

    return make


def count(network):
    """All that Keras counts as parameters, and the trainable ones: it counts running means and variances too."""
    trainable = sum(parameter.numel() for parameter in network.parameters())
    running = sum(value.numel() for name, value in network.named_buffers() if "running" in name)
    return trainable + running, trainable


def count_by_hand(in_channels, num_classes, channels, dense):
    convolutions = sum(
        9 * before * after + after + 9 * after * after + after for before, after in pairwise((in_channels, *channels))
    )
    units = sum(before * after + after for before, after in pairwise((channels[-1], *dense, num_classes)))
    normed = sum(channels) + dense[-1]
    return convolutions + units + 4 * normed, convolutions + units + 2 * normed


# --- structure ---------------------------------------------------------------------------------------


def test_the_public_models_parameters_come_out_of_its_wiring():
    # The 752 normed features fix batch norms behind the blocks and one dense layer of 256 units. The rest of the sum
    # needs one more dense layer of 512 units before it: 256-512-256-4, every layer with its bias.
    assert count(SliceClassifier(**PUBLIC)) == (1_445_716, 1_444_212)
    assert count_by_hand(3, 4, (16, 32, 64, 128, 256), (512, 256)) == (1_445_716, 1_444_212)


def test_no_other_first_dense_layer_and_none_at_all_gives_the_public_models_parameters():
    totals = {
        dense: count_by_hand(3, 4, (16, 32, 64, 128, 256), dense)[0]
        for dense in ((256,), *((units, 256) for units in range(1, 4097)))
    }
    assert [dense for dense, total in totals.items() if total == 1_445_716] == [(512, 256)]


@pytest.mark.parametrize(
    ("in_channels", "num_classes", "channels", "dense"), [(1, 2, (5,), (7,)), (3, 4, (5, 6, 8), (9, 7))]
)
def test_the_parameters_are_as_many_as_counted_by_hand(in_channels, num_classes, channels, dense):
    network = SliceClassifier(in_channels, num_classes, channels, dense)
    assert count(network) == count_by_hand(in_channels, num_classes, channels, dense)


def test_there_are_at_most_eight_arguments():
    assert len(inspect.signature(SliceClassifier).parameters) <= 8


def test_a_block_is_conv_conv_norm_pool_dropout_and_halves_the_slice():
    block = ConvolutionBlock(3, 5, 0.2)
    kinds = ["Conv2d", "ReLU", "Conv2d", "ReLU", "BatchNorm2d", "MaxPool2d", "Dropout"]
    assert [type(layer).__name__ for layer in block] == kinds
    assert block(torch.randn(2, 3, 17, 22)).shape == (2, 5, 9, 11)
    assert block.dropout.p == 0.2


def test_the_network_drops_as_much_as_it_is_told_behind_every_block():
    network = SliceClassifier(1, 2, (4, 5, 6), (7,), dropout=0.35)
    assert [module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)] == [0.35] * 3


# --- the wiring, computed a second time from the weights alone ---------------------------------------


def compute_logits(state, image):
    def norm(name, x):
        leaves = [state[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")]
        mean, var, weight, bias = (leaf.reshape(-1, *[1] * (x.ndim - 2)) for leaf in leaves)
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def conv(name, x):
        return F.relu(F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1))

    def linear(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    x = image
    for block in ("blocks.0", "blocks.1"):
        x = norm(f"{block}.norm", conv(f"{block}.conv_1", conv(f"{block}.conv_0", x)))
        x = F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-torch.inf), 3, 2)
    x = x.flatten(2).mean(-1)
    return linear("head", norm("norm", F.relu(linear("dense.2", F.relu(linear("dense.0", x))))))


def test_the_logits_are_those_computed_a_second_time(make_network):
    network = make_network().double()
    image = torch.randn(SHAPE, dtype=torch.float64)
    assert network(image).shape == (2, 4)
    torch.testing.assert_close(network(image), compute_logits(network.state_dict(), image))


# --- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"channels": ()}, "channels must name at least one block of at least 1 feature, got ()"),
        ({"channels": (8, 0)}, "channels must name at least one block of at least 1 feature, got (8, 0)"),
        ({"dense": ()}, "dense must name at least one layer of at least 1 unit, got ()"),
        ({"dense": (8, -1)}, "dense must name at least one layer of at least 1 unit, got (8, -1)"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"dropout": float("nan")}, "dropout must be at least 0 and below 1, got nan"),
    ],
)
def test_an_argument_out_of_range_is_named_with_what_was_expected(changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SliceClassifier(**{**PUBLIC, **changes})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 1, 16, 24), "image must have in_channels = 3 channels, got shape [2, 1, 16, 24]"),
        ((3, 16, 24), "image must be (B, C, H, W), got shape [3, 16, 24]"),
    ],
)
def test_an_image_that_does_not_fit_is_refused_scripted_or_not(make_network, shape, message):
    network = make_network()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        network(torch.zeros(shape))
    with pytest.raises(torch.jit.Error, match=re.escape(message)):
        torch.jit.script(network)(torch.zeros(shape))


# --- the same numbers every way ----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning")  # inside torch's exporter
@pytest.mark.parametrize("way", ["script", "trace", "compile_whole", "export_onnx"])
def test_a_converted_network_gives_the_same_logits_on_any_batch_and_size(make_network, request, way):
    convert = torch.jit.trace if way == "trace" else request.getfixturevalue(way)
    network, example = make_network(), torch.randn(SHAPE)
    converted = convert(network, example)
    with torch.no_grad():
        for image in (example, torch.randn(OTHER_SHAPE)):
            torch.testing.assert_close(converted(image), network(image), rtol=1e-4, atol=1e-4)


# --- training ----------------------------------------------------------------------------------------


def test_every_weight_learns_in_bfloat16_and_channels_last():
    network = SliceClassifier(**PUBLIC, channels=(5, 6, 8), dense=(9, 7)).to(memory_format=torch.channels_last)
    image = torch.randn(7, 3, 32, 44).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(image)
    logits.float().square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()] == []
    assert [name for name, gradient in gradients.items() if name.endswith("weight") and not gradient.any()] == []


def test_a_signal_keeps_its_size_through_the_untrained_network():
    with torch.no_grad():
        logits = SliceClassifier(**PUBLIC, dropout=0.0)(torch.randn(16, 3, 44, 52))
    assert 0.1 < logits.std() < 3
