import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from networks.ar2unet import AR2UNet

# All sizes differ, so a swapped axis cannot pass unseen; three levels halve a size twice.
WIRINGS = {
    "deconv": {"spatial_dims": 2},
    "nearest": {"spatial_dims": 2, "upsample": "nearest"},
    "reference": {"spatial_dims": 2, "upsample": "nearest", "gate": "decoder"},
    "patches": {"spatial_dims": 2, "patch_size": 2},
    "volume": {"spatial_dims": 3},
    "volume_nearest": {"spatial_dims": 3, "upsample": "nearest", "recurrences": 1},
}
# No grid is 2 deep: there torch 2.13's Conv3d returns uninitialised memory as its bfloat16 weight gradient on CPU.
SHAPES = {2: (2, 3, 16, 24), 3: (2, 3, 12, 8, 16)}
OTHER_SHAPES = {2: (5, 3, 40, 8), 3: (1, 3, 4, 8, 20)}


@pytest.fixture
def make_network():
    """Make a small network ready for inference, its running statistics those of random images."""

    def make(wiring, **changes):
        network = AR2UNet(**{"in_channels": 3, "out_channels": 2, "channels": (4, 8, 16), **WIRINGS[wiring], **changes})
        for module in network.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.momentum = None  # the plain average over all steps so far
        with torch.no_grad():
            network(torch.randn(SHAPES[network.spatial_dims]))
        return network.eval()

    return make


# --- structure ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wiring", "count"),
    [
        ({"upsample": "nearest"}, 39_442_925),  # the widely used R2AttU-Net
        ({"upsample": "deconv"}, 35_959_405),
        ({"upsample": "nearest", "gate": "decoder"}, 39_796_182 - 1_737),  # the public reference, less its Decoder1
    ],
)
def test_the_parameters_are_as_many_as_published(wiring, count):
    with torch.device("meta"):
        network = AR2UNet(spatial_dims=2, in_channels=3, out_channels=1, **wiring)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_patches_cost_a_stem_and_a_wider_head():
    with torch.device("meta"):
        plain, patched = (AR2UNet(2, 3, 2, channels=(32, 64, 128, 256), patch_size=size) for size in (1, 2))
    count = [sum(parameter.numel() for parameter in network.parameters()) for network in (plain, patched)]
    stem, head, narrower_projection = 3 * 4 * 32 + 32, 32 * 2 * 4 - 32 * 2, 32 * 32 - 3 * 32
    assert count[1] - count[0] == stem + head + narrower_projection
    assert count[1] == 2_240_987


def test_recurrences_cost_no_parameters():
    networks = [AR2UNet(2, 3, 2, channels=(4, 8), recurrences=t) for t in (0, 1, 5)]
    assert len({sum(parameter.numel() for parameter in network.parameters()) for network in networks}) == 1


def test_the_names_of_the_weights_never_change():
    def norm(layer):
        return [f"{layer}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]

    def conv(layer):
        return [f"{layer}.weight", f"{layer}.bias"]

    def block(name):
        layers = conv(f"{name}.project")
        for unit in (f"{name}.units.0", f"{name}.units.1"):
            layers += conv(f"{unit}.conv") + [leaf for step in range(3) for leaf in norm(f"{unit}.norms.{step}")]
        return layers

    expected = block("encoders.0") + block("encoders.1") + conv("decoders.0.upsample")
    for part in ("signal", "features", "score"):
        expected += conv(f"decoders.0.gate.{part}.conv") + norm(f"decoders.0.gate.{part}.norm")
    expected += block("decoders.0.block") + conv("head")
    assert list(AR2UNet(2, 3, 2, channels=(4, 8)).state_dict()) == expected


@pytest.mark.parametrize("wiring", WIRINGS)
def test_the_logits_lie_on_the_grid_of_the_image(make_network, wiring):
    network = make_network(wiring)
    shape = OTHER_SHAPES[network.spatial_dims]
    logits = network(torch.randn(shape))
    assert logits.shape == (shape[0], 2, *shape[2:])
    assert logits.dtype == torch.float32
    assert logits.min() < 0 < logits.max()  # logits, not probabilities


def test_the_channels_may_be_a_list_and_of_any_widths():
    network = AR2UNet(2, 1, 4, channels=[1, 5, 3, 7], recurrences=0)
    assert network(torch.randn(2, 1, 16, 24)).shape == (2, 4, 16, 24)


def test_the_untrained_logits_are_of_the_size_of_the_image():
    for wiring in ({}, {"upsample": "nearest", "gate": "decoder"}):
        network = AR2UNet(2, 3, 2, channels=(8, 16, 32, 64, 128), **wiring)
        with torch.no_grad():
            assert 0.3 < network(torch.randn(2, 3, 48, 64)).std() < 4


# --- the wiring, computed a second time from the weights alone ---------------------------------------


class Weights:
    """The layers of a state dict, applied by torch.nn.functional in evaluation mode."""

    def __init__(self, state):
        self.state = {key: value.double() for key, value in state.items()}

    def conv(self, name, x):
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(self, name, x):
        leaves = [self.state[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")]
        mean, var, weight, bias = (leaf[:, None, None] for leaf in leaves)
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def conv_norm(self, conv, norm, x):
        return self.norm(norm, self.conv(conv, x))

    def step(self, conv, norm, x):
        return F.relu(self.conv_norm(conv, norm, x))


def compute_reference_logits(state, image):
    """Follow the reference's forward pass by the names of its own layers."""
    w = Weights(state)

    def block(name, x):
        x = F.relu(w.conv(f"{name}.Conv_1x1", x))
        y = x
        for unit in (f"{name}.RCNN.0.conv", f"{name}.RCNN.1.conv"):
            first = w.step(f"{unit}.0", f"{unit}.1", y)
            second = w.step(f"{unit}.0", f"{unit}.1", y + first)
            y = w.step(f"{unit}.0", f"{unit}.1", y + second)
        return x + y

    def gate(name, decoder, skip):
        evidence = F.relu(
            w.conv_norm(f"{name}.W_g.0", f"{name}.W_g.1", skip) + w.conv_norm(f"{name}.W_x.0", f"{name}.W_x.1", decoder)
        )
        return decoder * torch.sigmoid(w.conv_norm(f"{name}.psi.0", f"{name}.psi.1", evidence))

    def up(name, x):
        return w.step(f"{name}.Deconv.1", f"{name}.Deconv.2", x.repeat_interleave(2, 2).repeat_interleave(2, 3))

    x1 = block("Encoder1", image)
    x2 = block("Encoder2", F.max_pool2d(x1, 2))
    x3 = block("Encoder3", F.max_pool2d(x2, 2))
    x4 = block("Encoder4", F.max_pool2d(x3, 2))
    y = block("Encoder5", F.max_pool2d(x4, 2))
    for number, skip in ((4, x4), (3, x3), (2, x2), (1, x1)):
        y = up(f"Decoder{number + 1}", y)
        y = block(f"UPRecurrent{number}", torch.cat((gate(f"Attention{number}", y, skip), y), dim=1))
    return w.conv("Conv_1x1", y)


def compute_skip_gated_logits(state, image, recurrences):
    """Follow gate="skip" with deconvolutions on three levels by the names of our layers."""
    w = Weights(state)

    def block(name, x):
        x = w.conv(f"{name}.project", x)
        y = x
        for unit in (f"{name}.units.0", f"{name}.units.1"):
            start = y
            y = w.step(f"{unit}.conv", f"{unit}.norms.0", start)
            for step in range(1, recurrences + 1):
                y = w.step(f"{unit}.conv", f"{unit}.norms.{step}", start + y)
        return x + y

    def join(name, x, skip):
        up = F.conv_transpose2d(x, w.state[f"{name}.upsample.weight"], w.state[f"{name}.upsample.bias"], stride=2)
        gate = f"{name}.gate"
        evidence = F.relu(
            w.conv_norm(f"{gate}.signal.conv", f"{gate}.signal.norm", up)
            + w.conv_norm(f"{gate}.features.conv", f"{gate}.features.norm", skip)
        )
        weight = torch.sigmoid(w.conv_norm(f"{gate}.score.conv", f"{gate}.score.norm", evidence))
        return block(f"{name}.block", torch.cat((weight * skip, up), dim=1))

    x0 = block("encoders.0", image)
    x1 = block("encoders.1", F.max_pool2d(x0, 2))
    x2 = block("encoders.2", F.max_pool2d(x1, 2))
    return w.conv("head", join("decoders.1", join("decoders.0", x2, x1), x0))


def randomise(state):
    """Draw every tensor of a state dict anew; variances positive, the count of batches whole."""
    for key, value in state.items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape) + 0.5 if key.endswith("running_var") else torch.randn(value.shape) / 3)
    return state


@pytest.mark.parametrize("recurrences", [0, 2])
def test_the_gate_weighs_the_skip_by_the_upsampled_signal(recurrences):
    network = AR2UNet(2, 3, 2, channels=(4, 5, 6), recurrences=recurrences).double().eval()
    state = randomise(network.state_dict())  # shares its memory with the network
    image = torch.randn(SHAPES[2], dtype=torch.float64)
    torch.testing.assert_close(network(image), compute_skip_gated_logits(state, image, recurrences))


# --- checkpoints of the public reference -------------------------------------------------------------


def reference_shapes(in_channels, out_channels, widths):
    """Name every tensor of the reference's state dict, with its shape."""
    shapes = {}

    def conv(name, before, after, size):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (after, before, size, size), (after,)

    def norm(name, width):
        shapes.update({f"{name}.{leaf}": (width,) for leaf in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    def block(name, before, after):
        conv(f"{name}.Conv_1x1", before, after, 1)
        for unit in (0, 1):
            conv(f"{name}.RCNN.{unit}.conv.0", after, after, 3)
            norm(f"{name}.RCNN.{unit}.conv.1", after)

    for level, (before, after) in enumerate(zip((in_channels, *widths), widths, strict=False), start=1):
        block(f"Encoder{level}", before, after)
    for level in (4, 3, 2, 1):
        width = widths[level - 1]
        for part, after in (("W_g", width), ("W_x", width), ("psi", 1)):
            conv(f"Attention{level}.{part}.0", width, after, 1)
            norm(f"Attention{level}.{part}.1", after)
        block(f"UPRecurrent{level}", 2 * width, width)
    for level in (5, 4, 3, 2, 1):
        after = widths[level - 2] if level > 1 else in_channels
        conv(f"Decoder{level}.Deconv.1", widths[level - 1], after, 3)
        norm(f"Decoder{level}.Deconv.2", after)
    conv("Conv_1x1", widths[0], out_channels, 1)
    return shapes


@pytest.fixture
def reference_state():
    shapes = reference_shapes(3, 2, widths=(4, 5, 6, 7, 8))
    return randomise({key: torch.zeros(shape) if shape else torch.tensor(7) for key, shape in shapes.items()})


@pytest.fixture
def save(tmp_path):
    def write(content):
        torch.save(content, tmp_path / "reference.pth")
        return tmp_path / "reference.pth"

    return write


def test_the_reference_of_these_tests_has_as_many_parameters_as_the_public_one():
    shapes = reference_shapes(3, 1, widths=(64, 128, 256, 512, 1024))
    counts = {key: int(np.prod(s)) for key, s in shapes.items() if "running_" not in key and "num_batches" not in key}
    assert sum(counts.values()) == 39_796_182
    assert sum(count for key, count in counts.items() if key.startswith("Decoder1.")) == 1_737


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "parallel"])
def test_a_reference_checkpoint_gives_the_logits_of_the_reference(reference_state, save, wrap):
    image = torch.randn(2, 3, 16, 32, dtype=torch.float64)
    expected = compute_reference_logits(reference_state, image)
    contents = {
        "plain": reference_state,
        "state_dict": {"state_dict": reference_state, "epoch": 3},
        "model": {"model": reference_state},
        "parallel": {f"module.{key}": value for key, value in reference_state.items()},
    }
    network = AR2UNet.from_reference_checkpoint(save(contents[wrap]))
    torch.testing.assert_close(network.double().eval()(image), expected)
    counters = {value.item() for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")}
    assert counters == {7}


def test_the_unused_decoder_of_the_reference_may_be_absent(reference_state, save):
    used = {key: value for key, value in reference_state.items() if not key.startswith("Decoder1.")}
    assert AR2UNet.from_reference_checkpoint(str(save(used))).in_channels == 3


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("Attention2.W_g.1.running_mean", None, r"missing weights: Attention2\.W_g\.1\.running_mean$"),
        ("Encoder3.Conv_1x1.weight", None, r"missing weights: Encoder3\.Conv_1x1\.weight$"),
        ("Encoder6.Conv_1x1.weight", torch.zeros(9, 8, 1, 1), r"unexpected weights: Encoder6\.Conv_1x1\.weight$"),
        ("Decoder4.Deconv.1.weight", torch.zeros(6, 7, 1, 1), r"Decoder4\.Deconv\.1\.weight \[6, 7, 1, 1\] instead of"),
        ("Conv_1x1.weight", torch.zeros(2), r"mis-shaped weights: Conv_1x1\.weight \[2\]$"),
        ("Conv_1x1.bias", "text", r"must hold a state dict of tensors"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_the_names_of_its_weights(
    reference_state, save, key, value, message
):
    reference_state.pop(key, None)
    if value is not None:
        reference_state[key] = value
    with pytest.raises(ValueError, match=message):
        AR2UNet.from_reference_checkpoint(save(reference_state))


def test_a_foreign_state_dict_is_refused_with_a_short_list_of_what_is_missing(save):
    with pytest.raises(ValueError, match=r"reference\.pth must be .* missing weights: Encoder1\.Conv_1x1\.weight, "):
        AR2UNet.from_reference_checkpoint(save(AR2UNet(2, 3, 2, channels=(4, 8)).state_dict()))


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "notes.pth").write_text("no weights here")
    with pytest.raises(ValueError, match=r"notes\.pth must be a state dict saved by torch\.save"):
        AR2UNet.from_reference_checkpoint(tmp_path / "notes.pth")
    with pytest.raises(FileNotFoundError):
        AR2UNet.from_reference_checkpoint(tmp_path / "absent.pth")


# --- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"out_channels": -2}, "out_channels must be at least 1, got -2"),
        ({"channels": (64,)}, "channels must name at least two levels of at least 1 feature each, got (64,)"),
        ({"channels": ()}, "channels must name at least two levels of at least 1 feature each, got ()"),
        ({"channels": (8, 0, 4)}, "channels must name at least two levels of at least 1 feature each, got (8, 0, 4)"),
        ({"recurrences": -1}, "recurrences must be at least 0, got -1"),
        ({"upsample": "bilinear"}, "upsample must be 'deconv' or 'nearest', got 'bilinear'"),
        ({"gate": "both"}, "gate must be 'skip' or 'decoder', got 'both'"),
        ({"gate": "decoder"}, "upsample must be 'nearest' with gate='decoder' (the reference's wiring), got 'deconv'"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
    ],
)
def test_an_argument_out_of_range_is_named_with_what_was_expected(changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        AR2UNet(**{"spatial_dims": 2, "in_channels": 3, "out_channels": 2, **changes})


@pytest.mark.parametrize(
    ("wiring", "shape", "message"),
    [
        ("deconv", (2, 3, 16, 22), "image must have spatial sizes divisible by 4, got shape [2, 3, 16, 22]"),
        ("nearest", (2, 3, 18, 24), "image must have spatial sizes divisible by 4, got shape [2, 3, 18, 24]"),
        ("patches", (2, 3, 16, 20), "image must have spatial sizes divisible by 8, got shape [2, 3, 16, 20]"),
        ("volume", (2, 3, 8, 13, 16), "image must have spatial sizes divisible by 4, got shape [2, 3, 8, 13, 16]"),
        ("deconv", (2, 1, 16, 24), "image must have in_channels = 3 channels, got shape [2, 1, 16, 24]"),
        ("deconv", (3, 16, 24), "image must be (B, C, H, W), got shape [3, 16, 24]"),
        ("deconv", (2, 3, 8, 16, 24), "image must be (B, C, H, W), got shape [2, 3, 8, 16, 24]"),
        ("volume", (2, 3, 16, 24), "image must be (B, C, I, J, K), got shape [2, 3, 16, 24]"),
    ],
)
def test_an_image_that_does_not_fit_is_refused_scripted_or_not(make_network, wiring, shape, message):
    network = make_network(wiring)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        network(torch.zeros(shape))
    with pytest.raises(torch.jit.Error, match=re.escape(message)):
        torch.jit.script(network)(torch.zeros(shape))


# --- the same numbers every way ----------------------------------------------------------------------


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_scripted_network_gives_the_same_logits_after_saving(assert_same_logits, script, wiring):
    assert_same_logits(wiring, script)


@pytest.mark.parametrize("wiring", ["deconv", "patches", "volume"])
def test_a_traced_network_gives_the_same_logits_on_other_sizes(assert_same_logits, wiring):
    assert_same_logits(wiring, torch.jit.trace)


@pytest.mark.parametrize("wiring", ["deconv", "reference"])
def test_a_compiled_network_gives_the_same_logits(assert_same_logits, compile_whole, wiring):
    assert_same_logits(wiring, compile_whole, channels=(4, 8), recurrences=1)


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning")  # inside torch's exporter
@pytest.mark.parametrize(
    ("wiring", "changes"),
    [
        ("deconv", {}),
        ("patches", {}),
        ("reference", {"channels": (4, 8), "recurrences": 1}),
        ("volume", {"channels": (4, 8), "recurrences": 1}),
    ],
)
def test_an_onnx_export_gives_the_same_logits_on_any_batch_and_size(assert_same_logits, export_onnx, wiring, changes):
    assert_same_logits(wiring, export_onnx, **changes)


# --- training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wiring", WIRINGS)
def test_every_weight_learns_in_bfloat16_and_channels_last(wiring):
    network = AR2UNet(in_channels=3, out_channels=2, channels=(4, 8, 16), **WIRINGS[wiring])
    memory_format = torch.channels_last if network.spatial_dims == 2 else torch.channels_last_3d
    network = network.to(memory_format=memory_format)
    image = torch.randn(SHAPES[network.spatial_dims]).to(memory_format=memory_format)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(image)
    logits.float().square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()] == []
    assert [name for name, gradient in gradients.items() if name.endswith("weight") and not gradient.any()] == []
