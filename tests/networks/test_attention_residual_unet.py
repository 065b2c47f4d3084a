import inspect
import re
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from networks.ar2unet import AR2UNet
from networks.attention_residual_unet import AttentionResidualUNet, ResidualBlock, separable_convolution

# All sizes differ, so a swapped axis cannot pass unseen; three levels halve a size twice.
KINDS = {
    "plain": {"spatial_dims": 2},
    "separable": {"spatial_dims": 2, "separable": True},
    "volume": {"spatial_dims": 3},
    "separable_volume": {"spatial_dims": 3, "separable": True},
}
# No grid is 2 deep: there torch 2.13's Conv3d returns uninitialised memory as its bfloat16 weight gradient on CPU.
SHAPES = {2: (2, 3, 16, 24), 3: (2, 3, 12, 8, 16)}
OTHER_SHAPES = {2: (5, 3, 20, 8), 3: (1, 3, 4, 8, 20)}


@pytest.fixture
def make_network():
    """Make a small network ready for inference, every weight and running statistic drawn anew."""

    def make(kind, **changes):
        arguments = {"in_channels": 3, "out_channels": 2, "channels": (4, 6, 10), **KINDS[kind], **changes}
        network = AttentionResidualUNet(**arguments).eval()
        for key, value in network.state_dict().items():  # shares its memory with the network
            if value.is_floating_point():
                value.copy_(
                    torch.rand_like(value) + 0.5 if key.endswith("running_var") else torch.randn_like(value) / 3
                )
        return network

    return make


# --- structure ---------------------------------------------------------------------------------------


def count_by_hand(spatial_dims, in_channels, out_channels, channels, separable):
    """Add up the parameters from the widths alone."""
    voxels = 3**spatial_dims  # of a kernel

    def conv(before, after):
        return voxels * before + before * after if separable else voxels * before * after

    def block(before, after):  # two convolutions, two norms of scale and shift, the shortcut; no bias anywhere
        return conv(before, after) + conv(after, after) + 2 * 2 * after + before * after

    def level(below, here):
        up = 2**spatial_dims * below * here + here
        inner = here // 2
        gate = 2 * (here * inner + inner + 2 * inner) + (inner + 1 + 2)  # signal, features; score
        return up + gate + block(2 * here, here)

    encoders = sum(block(before, after) for before, after in pairwise((in_channels, *channels)))
    decoders = sum(level(below, here) for here, below in pairwise(channels))
    return encoders + decoders + channels[0] * out_channels + out_channels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [(4, 6, 10), (16, 32, 64, 128, 256)])
def test_the_parameters_are_as_many_as_counted_by_hand(kind, channels):
    with torch.device("meta"):
        network = AttentionResidualUNet(in_channels=3, out_channels=2, channels=channels, **KINDS[kind])
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == count_by_hand(network.spatial_dims, 3, 2, channels, KINDS[kind].get("separable", False))


# The table of docs/networks.md.
@pytest.mark.parametrize(
    ("width", "plain", "separable", "volume", "separable_volume"),
    [
        (16, 2_052_277, 496_256, 5_756_949, 696_598),
        (32, 8_200_029, 1_950_424, 23_016_989, 2_699_214),
        (64, 32_781_997, 7_732_616, 92_046_381, 10_622_782),
    ],
)
def test_the_documented_counts_are_those_counted_by_hand(width, plain, separable, volume, separable_volume):
    channels = [width * 2**level for level in range(5)]
    counts = [count_by_hand(dims, 3, 1, channels, lean) for dims in (2, 3) for lean in (False, True)]
    assert counts == [plain, separable, volume, separable_volume]


def test_the_names_of_the_weights_never_change():
    def norm(layer):
        return [f"{layer}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]

    def conv(layer):
        return [f"{layer}.weight", f"{layer}.bias"]

    def block(name, leaves):
        first, second = ([f"{name}.residual.conv_{n}{leaf}" for leaf in leaves] for n in (0, 1))
        layers = first + norm(f"{name}.residual.norm_0") + second + norm(f"{name}.residual.norm_1")
        return [*layers, f"{name}.shortcut.weight"]

    for separable, leaves in ((False, [".weight"]), (True, [".depthwise.weight", ".pointwise.weight"])):
        expected = block("encoders.0", leaves) + block("encoders.1", leaves) + conv("decoders.0.upsample")
        for part in ("signal", "features", "score"):
            expected += conv(f"decoders.0.gate.{part}.conv") + norm(f"decoders.0.gate.{part}.norm")
        expected += block("decoders.0.block", leaves) + conv("head")
        network = AttentionResidualUNet(2, 3, 2, channels=(4, 8), separable=separable)
        assert list(network.state_dict()) == expected


def test_it_is_built_by_the_same_names_as_the_first_segmenter():
    own, first = (inspect.signature(network).parameters for network in (AttentionResidualUNet, AR2UNet))
    assert list(own) == ["spatial_dims", "in_channels", "out_channels", "channels", "separable", "patch_size"]
    assert [own[name].default for name in own.keys() & first.keys()] == [
        first[name].default for name in own.keys() & first.keys()
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_lie_on_the_grid_of_the_image(kind):
    network = AttentionResidualUNet(in_channels=3, out_channels=2, channels=(4, 6, 10), **KINDS[kind])
    shape = OTHER_SHAPES[network.spatial_dims]
    logits = network(torch.randn(shape))
    assert logits.shape == (shape[0], 2, *shape[2:])
    assert logits.dtype == torch.float32
    assert logits.min() < 0 < logits.max()  # logits, not probabilities


def test_the_channels_may_be_a_list_and_of_any_widths():
    network = AttentionResidualUNet(2, 1, 4, channels=[1, 5, 3, 7])
    assert network(torch.randn(2, 1, 16, 24)).shape == (2, 4, 16, 24)


@pytest.mark.parametrize("separable", [False, True])
def test_the_untrained_logits_are_of_the_size_of_the_image(separable):
    network = AttentionResidualUNet(2, 3, 2, channels=(8, 16, 32, 64, 128), separable=separable)
    with torch.no_grad():
        assert 0.3 < network(torch.randn(2, 3, 48, 64)).std() < 4


# --- the block ---------------------------------------------------------------------------------------


def test_a_separable_convolution_lets_each_feature_see_its_neighbours_before_it_mixes_features():
    layer = separable_convolution(2, 3, 4)
    image = torch.randn(2, 3, 5, 6)
    depthwise = torch.cat(
        [F.conv2d(image[:, n : n + 1], layer.depthwise.weight[n : n + 1], padding=1) for n in range(3)], dim=1
    )
    mixed = torch.einsum("oi,bihw->bohw", layer.pointwise.weight[:, :, 0, 0], depthwise)
    torch.testing.assert_close(layer(image), mixed)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_separable_convolution_keeps_the_size_of_its_signal_for_the_relu_to_halve(spatial_dims):
    with torch.no_grad():
        signal = separable_convolution(spatial_dims, 128, 64)(torch.randn(4, 128, *(10, 12, 14)[:spatial_dims]))
    inside = signal[(..., *[slice(1, -1)] * spatial_dims)]
    assert inside.var().item() == pytest.approx(2.0, rel=0.15)


@pytest.mark.parametrize("separable", [False, True])
def test_a_block_whose_residual_says_nothing_is_its_rectified_shortcut(separable):
    block = ResidualBlock(2, 3, 4, separable).eval()
    torch.nn.init.zeros_(block.residual.norm_1.weight)
    image = torch.randn(2, 3, 5, 6)
    shortcut = torch.einsum("oi,bihw->bohw", block.shortcut.weight[:, :, 0, 0], image)
    assert (shortcut < 0).any()
    torch.testing.assert_close(block(image), shortcut.clamp(min=0))


# --- the wiring, computed a second time from the weights alone ---------------------------------------


def compute_logits(state, image, separable):
    """Follow the network with three levels by torch.nn.functional, in evaluation mode."""
    state = {key: value.double() for key, value in state.items()}
    spatial_dims = image.ndim - 2
    conv_nd, pool, up_nd = {
        2: (F.conv2d, F.max_pool2d, F.conv_transpose2d),
        3: (F.conv3d, F.max_pool3d, F.conv_transpose3d),
    }[spatial_dims]

    def conv(name, x, groups=1):
        weight = state[f"{name}.weight"]
        return conv_nd(x, weight, state.get(f"{name}.bias"), padding=weight.shape[-1] // 2, groups=groups)

    def norm(name, x):
        leaves = [state[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")]
        mean, var, weight, bias = (leaf.reshape(-1, *[1] * spatial_dims) for leaf in leaves)
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def wide(name, x):
        if separable:
            return conv(f"{name}.pointwise", conv(f"{name}.depthwise", x, groups=x.shape[1]))
        return conv(name, x)

    def block(name, x):
        y = F.relu(norm(f"{name}.residual.norm_0", wide(f"{name}.residual.conv_0", x)))
        y = norm(f"{name}.residual.norm_1", wide(f"{name}.residual.conv_1", y))
        return F.relu(y + conv(f"{name}.shortcut", x))

    def join(name, x, skip):
        up = up_nd(x, state[f"{name}.upsample.weight"], state[f"{name}.upsample.bias"], stride=2)
        signal, features, score = (f"{name}.gate.{part}" for part in ("signal", "features", "score"))
        evidence = F.relu(
            norm(f"{signal}.norm", conv(f"{signal}.conv", up))
            + norm(f"{features}.norm", conv(f"{features}.conv", skip))
        )
        weight = torch.sigmoid(norm(f"{score}.norm", conv(f"{score}.conv", evidence)))
        return block(f"{name}.block", torch.cat((weight * skip, up), dim=1))

    x0 = block("encoders.0", image)
    x1 = block("encoders.1", pool(x0, 2))
    x2 = block("encoders.2", pool(x1, 2))
    return conv("head", join("decoders.1", join("decoders.0", x2, x1), x0))


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_those_computed_a_second_time(make_network, kind):
    network = make_network(kind).double()
    image = torch.randn(SHAPES[network.spatial_dims], dtype=torch.float64)
    expected = compute_logits(network.state_dict(), image, KINDS[kind].get("separable", False))
    torch.testing.assert_close(network(image), expected)


# --- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3, got 4"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"out_channels": -2}, "out_channels must be at least 1, got -2"),
        ({"channels": (64,)}, "channels must name at least two levels of at least 1 feature each, got (64,)"),
        ({"channels": (8, 0, 4)}, "channels must name at least two levels of at least 1 feature each, got (8, 0, 4)"),
        ({"patch_size": -1}, "patch_size must be at least 1, got -1"),
    ],
)
def test_an_argument_out_of_range_is_named_with_what_was_expected(changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        AttentionResidualUNet(**{"spatial_dims": 2, "in_channels": 3, "out_channels": 2, **changes})


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("plain", (2, 3, 16, 22), "image must have spatial sizes divisible by 4, got shape [2, 3, 16, 22]"),
        ("volume", (2, 3, 8, 13, 16), "image must have spatial sizes divisible by 4, got shape [2, 3, 8, 13, 16]"),
        ("separable", (2, 1, 16, 24), "image must have in_channels = 3 channels, got shape [2, 1, 16, 24]"),
        ("plain", (3, 16, 24), "image must be (B, C, H, W), got shape [3, 16, 24]"),
        ("volume", (2, 3, 16, 24), "image must be (B, C, I, J, K), got shape [2, 3, 16, 24]"),
    ],
)
def test_an_image_that_does_not_fit_is_refused_scripted_or_not(make_network, kind, shape, message):
    network = make_network(kind)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        network(torch.zeros(shape))
    with pytest.raises(torch.jit.Error, match=re.escape(message)):
        torch.jit.script(network)(torch.zeros(shape))


# --- the same numbers every way ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_scripted_network_gives_the_same_logits_after_saving(assert_same_logits, script, kind):
    assert_same_logits(kind, script)


@pytest.mark.parametrize("kind", ["plain", "separable_volume"])
def test_a_traced_network_gives_the_same_logits_on_other_sizes(assert_same_logits, kind):
    assert_same_logits(kind, torch.jit.trace)


@pytest.mark.parametrize("kind", ["separable"])
def test_a_compiled_network_gives_the_same_logits(assert_same_logits, compile_whole, kind):
    assert_same_logits(kind, compile_whole, channels=(4, 8))


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning")  # inside torch's exporter
@pytest.mark.parametrize("kind", ["plain", "separable_volume"])
def test_an_onnx_export_gives_the_same_logits_on_any_batch_and_size(assert_same_logits, export_onnx, kind):
    assert_same_logits(kind, export_onnx, channels=(4, 8))


# --- training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_learns_in_bfloat16_and_channels_last(kind):
    network = AttentionResidualUNet(in_channels=3, out_channels=2, channels=(4, 8, 16), **KINDS[kind])
    memory_format = torch.channels_last if network.spatial_dims == 2 else torch.channels_last_3d
    network = network.to(memory_format=memory_format)
    image = torch.randn(SHAPES[network.spatial_dims]).to(memory_format=memory_format)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(image)
    logits.float().square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()] == []
    assert [name for name, gradient in gradients.items() if name.endswith("weight") and not gradient.any()] == []


def test_with_patches_every_weight_learns_too():
    network = AttentionResidualUNet(2, 3, 2, channels=(4, 8, 16), patch_size=2)
    logits = network(torch.randn(SHAPES[2]))
    assert logits.shape == (2, 2, 16, 24)
    logits.square().mean().backward()
    assert all(parameter.grad.any() for name, parameter in network.named_parameters() if name.endswith("weight"))
