import copy

import pytest
import torch
from torch import nn

from networks.blocks import (
    AttentionGate,
    ConvNormReLU,
    RecurrentResidualBlock,
    RecurrentUnit,
    convolution,
    patch_layers,
    upsampling,
)


class Affine(nn.Module):
    """Stands in for a convolution: 2x + 1, and counts its calls."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return 2 * x + 1


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def unit_with_affine_step():
    def make(recurrences):
        unit = RecurrentUnit(2, 3, recurrences)
        unit.conv = Affine()
        unit.norms = nn.ModuleList(nn.Identity() for _ in unit.norms)
        return unit

    return make


# f(x) = 2x + 1 at x = 10: h_0 = 21, h_1 = f(10 + 21) = 63, h_2 = f(10 + 63) = 147, h_3 = f(10 + 147) = 315
@pytest.mark.parametrize(("recurrences", "state"), [(0, 21), (1, 63), (2, 147), (3, 315)])
def test_each_recurrence_applies_the_step_to_input_plus_state(unit_with_affine_step, recurrences, state):
    unit = unit_with_affine_step(recurrences)
    assert unit(torch.tensor(10.0)).item() == state
    assert unit.conv.calls == recurrences + 1


def test_recurrences_share_their_weights():
    counts = {sum(p.numel() for p in RecurrentUnit(2, 5, recurrences).parameters()) for recurrences in range(4)}
    assert counts == {5 * 5 * 9 + 5 + 2 * 5}
    unit = RecurrentUnit(2, 5, 2)
    assert all(norm.weight is unit.norms[0].weight and norm.bias is unit.norms[0].bias for norm in unit.norms)


def test_in_use_every_step_is_normalised_as_it_was_in_training():
    unit = RecurrentUnit(2, 4, recurrences=2)
    image = torch.randn(8, 4, 16, 16)
    for norm in unit.norms:
        norm.momentum = 1.0  # the running statistics are then those of the last batch
    trained = unit(image)
    # With one running average for all steps these differ by as much as the states themselves.
    torch.testing.assert_close(unit.eval()(image), trained, rtol=0.02, atol=0.02)


def test_copies_and_moves_keep_scale_and_shift_shared():
    unit = copy.deepcopy(RecurrentUnit(2, 4, recurrences=2)).to(torch.float64, memory_format=torch.channels_last)
    assert unit.norms[0].weight is unit.norms[2].weight


@pytest.mark.parametrize("rectify", [False, True])
def test_the_residual_goes_around_both_units_after_the_projection(unit_with_affine_step, rectify):
    block = RecurrentResidualBlock(2, 3, 4, recurrences=0, rectify_projection=rectify)
    block.units = nn.Sequential(unit_with_affine_step(0), unit_with_affine_step(0))
    image = torch.randn(2, 3, 5, 6)
    projected = torch.einsum("oi,bihw->bohw", block.project.weight[:, :, 0, 0], image)
    projected = projected.clamp(min=0) if rectify else projected
    first = (2 * projected + 1).clamp(min=0)
    torch.testing.assert_close(block(image), projected + (2 * first + 1))


def test_a_gate_scales_each_voxel_of_the_features_alike_in_all_channels():
    gate = AttentionGate(2, 4, 2).eval()
    features, signal = torch.randn(2, 4, 5, 6), torch.randn(2, 4, 5, 6)
    scale = gate(features, signal) / features
    torch.testing.assert_close(scale, scale[:, :1].expand_as(scale))
    assert 0 < scale.min() < scale.max() < 1


def test_the_signal_decides_but_never_passes_through_a_gate():
    gate = AttentionGate(2, 4, 2).eval()
    features = torch.randn(2, 4, 5, 6)
    assert not torch.equal(gate(features, torch.randn(2, 4, 5, 6)), gate(features, torch.randn(2, 4, 5, 6)))
    nn.init.constant_(gate.score.norm.bias, 50.0)  # every weight is 1: open
    torch.testing.assert_close(gate(features, torch.randn(2, 4, 5, 6)), features)
    nn.init.constant_(gate.score.norm.bias, -50.0)  # every weight is 0: closed
    torch.testing.assert_close(gate(features, torch.randn(2, 4, 5, 6)), torch.zeros(2, 4, 5, 6))


@pytest.mark.parametrize("kind", ["deconv", "nearest"])
@pytest.mark.parametrize("shape", [(5, 6), (3, 5, 6)])
def test_upsampling_doubles_every_size(kind, shape):
    layer = upsampling(len(shape), 4, 3, kind)
    assert layer(torch.randn(2, 4, *shape)).shape == (2, 3, *(2 * size for size in shape))


def test_a_deconvolution_writes_each_voxel_once_and_has_no_norm():
    layer = upsampling(2, 3, 2, "deconv")
    image = torch.randn(1, 3, 4, 5)
    blocks = torch.einsum("bihw,ioyx->bohywx", image, layer.weight).reshape(1, 2, 8, 10)
    torch.testing.assert_close(layer(image), blocks)
    assert set(layer.state_dict()) == {"weight", "bias"}


def test_nearest_upsampling_repeats_voxels_before_it_smooths_them():
    layer = upsampling(2, 3, 2, "nearest")
    image = torch.randn(1, 3, 4, 5)
    repeated = image.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert isinstance(layer.smooth, ConvNormReLU)
    torch.testing.assert_close(layer(image), layer.smooth(repeated))


@pytest.mark.parametrize(("followed_by", "variance"), [("relu", 2.0), ("linear", 1.0)])
def test_a_convolution_keeps_the_size_of_its_signal_unless_a_relu_halves_it(followed_by, variance):
    layer = convolution(2, 64, 32, 3, followed_by)
    with torch.no_grad():
        signal = layer(torch.randn(4, 64, 24, 32))[:, :, 1:-1, 1:-1]
    assert signal.var().item() == pytest.approx(variance, rel=0.1)
    assert not layer.bias.any()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_deconvolution_keeps_the_size_of_its_signal(spatial_dims):
    with torch.no_grad():
        signal = upsampling(spatial_dims, 64, 32, "deconv")(torch.randn(4, 64, *(4, 5, 6)[:spatial_dims]))
    assert signal.var().item() == pytest.approx(1.0, rel=0.1)


# --- patches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spatial_dims", "shape"), [(2, (12, 18)), (3, (6, 9, 12))])
@pytest.mark.parametrize("patch_size", [2, 3])
def test_a_patch_of_voxels_becomes_a_position_and_the_same_patch_again(spatial_dims, shape, patch_size):
    shape = tuple(size * patch_size for size in shape)
    stem, head = patch_layers(spatial_dims, 3, 2, 5, patch_size)
    image = torch.randn(1, 3, *shape)
    changed = image.clone()
    changed[0, 1, *[2 * patch_size] * spatial_dims] += 1  # the first voxel of the third patch along every axis
    before, after = stem(image), stem(changed)
    assert before.shape == (1, 5, *(size // patch_size for size in shape))
    assert (before != after).any(dim=1).nonzero().tolist() == [[0, *[2] * spatial_dims]]
    differs = (head(before) != head(after)).any(dim=1)[0]
    assert differs.shape == shape
    patch = [slice(2 * patch_size, 3 * patch_size)] * spatial_dims
    assert differs.sum() == differs[*patch].sum() == patch_size**spatial_dims


def test_without_patches_there_is_no_stem():
    stem, head = patch_layers(2, 3, 2, 5, 1)
    assert isinstance(stem, nn.Identity)
    assert head.weight.shape == (2, 5, 1, 1)


def test_patches_keep_the_size_of_the_signal():
    stem, head = patch_layers(2, 3, 2, 64, 2)
    with torch.no_grad():
        features = stem(torch.randn(1, 3, 128, 128))
        assert 0.7 < features.std() < 1.3
        assert 0.7 < head(torch.randn(1, 64, 64, 64)).std() < 1.4
