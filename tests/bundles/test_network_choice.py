"""Configs that go on top of ``train.yaml``: another network, or another loss, and nothing else."""

from __future__ import annotations

from operator import attrgetter

import pytest
import torch
from monai.bundle import ConfigParser

from networks.attention_residual_unet import AttentionResidualUNet
from networks.efficientnet_lite import EfficientNetLite, NoBackbone

NETWORK = "network_attention_residual_unet.yaml"
SECOND_CYCLE = "second_cycle.yaml"
LOSSES = ("loss_focal.yaml", "loss_dice_focal.yaml")
SHAPE = (3, 2, 6, 5)  # logits of slices (B, 2, H, W), all sizes different


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def stack(repository):
    """Read configs one on top of the other, as ``--config_file`` does with a list."""

    def read(*names):
        parser = ConfigParser()
        folder = repository / "bundles" / "flair_abnormality_segmentation" / "configs"
        parser.read_config([str(folder / name) for name in names])
        return parser

    return read


@pytest.fixture
def label():
    """Labels ``(B, 1, H, W)``: a lesion in the first slice, none in the second, one voxel in the third."""
    label = torch.zeros(3, 1, 6, 5)
    label[0, 0, 1:4, 2:5] = 1
    label[2, 0, 5, 0] = 1
    return label


@pytest.fixture
def logits():
    return torch.randn(SHAPE, requires_grad=True)


# --- the network -------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["train.yaml", "inference.yaml"])
def test_the_network_is_the_other_one_on_top_of_training_and_of_inference(stack, below):
    parser = stack(below, NETWORK)
    network = parser.get_parsed_content("network_def")
    assert type(network) is AttentionResidualUNet
    logits = network(torch.randn(2, 3, 16, 32))
    assert logits.shape == (2, 2, 16, 32)
    assert parser["network_def"]["channels"] == [32, 64, 128, 256]


def test_the_weights_of_a_training_fit_the_network_of_inference(stack):
    trained = stack("train.yaml", NETWORK).get_parsed_content("network_def")
    stack("inference.yaml", NETWORK).get_parsed_content("network_def").load_state_dict(trained.state_dict())


def test_the_network_is_turned_by_keys_of_its_own(stack):
    parser = stack("train.yaml", NETWORK)
    parser["network_def#separable"] = True
    parser["network_def#channels"] = [4, 6]
    network = parser.get_parsed_content("network_def")
    assert [encoder.residual.conv_0.pointwise.out_channels for encoder in network.encoders] == [4, 6]


@pytest.mark.parametrize("name", ["train.yaml", "inference.yaml"])
@pytest.mark.parametrize(("backbone", "kind"), [(None, EfficientNetLite), ("none", NoBackbone)])
def test_the_network_has_a_backbone_unless_it_is_told_otherwise(stack, name, backbone, kind):
    parser = stack(name)
    if backbone is not None:
        parser["network_def#backbone"] = backbone
    assert type(parser.get_parsed_content("network_def").backbone) is kind


def test_the_second_cycle_changes_its_length_its_rate_and_what_is_random(stack):
    plain, changed = stack("train.yaml").get(), stack("train.yaml", SECOND_CYCLE).get()
    different = {part for part in plain | changed if plain.get(part) != changed.get(part)}
    numbers = {"epochs", "learning_rate", "warmup_iterations", "flair_alone"}
    assert different == numbers | {"noise", "blur", "low_resolution"}


@pytest.mark.parametrize(
    ("transform", "key", "attributes"),
    [
        ("RandGaussianNoised", "noise", {"std": "rand_gaussian_noise.std"}),
        ("RandGaussianSmoothd", "blur", {"sigma": "rand_smooth.sigma_x"}),
        ("RandSimulateLowResolutiond", "low_resolution", {"zoom_range": "sim_lowres_tfm.zoom_range"}),
    ],
)
@pytest.mark.parametrize("names", [("train.yaml",), ("train.yaml", SECOND_CYCLE)])
def test_what_is_random_is_as_its_key_says(stack, names, transform, key, attributes):
    parser = stack(*names)
    number = [part["_target_"] for part in parser["train"]["random_transforms"]].index(transform)
    built, asked = parser.get_parsed_content(f"train#random_transforms#{number}"), parser[key]
    assert built.prob == asked["prob"]
    for name, path in attributes.items():
        assert attrgetter(path)(built) == asked[name]


def test_the_second_cycle_has_more_noise_blur_and_coarser_pixels(stack):
    plain, changed = stack("train.yaml"), stack("train.yaml", SECOND_CYCLE)
    assert all(changed[key]["prob"] > plain[key]["prob"] for key in ("noise", "blur", "low_resolution"))
    assert changed["noise"]["std"] > plain["noise"]["std"]
    assert changed["blur"]["sigma"][1] > plain["blur"]["sigma"][1]
    assert changed["low_resolution"]["zoom_range"][0] < plain["low_resolution"]["zoom_range"][0]


@pytest.mark.parametrize(
    ("below", "name", "key"),
    [
        ("train.yaml", NETWORK, "network_def"),
        ("inference.yaml", NETWORK, "network_def"),
        *(("train.yaml", name, "loss") for name in LOSSES),
    ],
)
def test_nothing_but_one_key_is_overridden(stack, below, name, key):
    plain, changed = stack(below).get(), stack(below, name).get()
    assert {part for part in plain | changed if plain.get(part) != changed.get(part)} == {key}


# --- the losses --------------------------------------------------------------------------------------


def make_loss(parser):
    return parser.get_parsed_content("loss")


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_a_loss_takes_logits_of_two_channels_and_labels_of_one_and_teaches_every_logit(
    stack, logits, label, name, dtype
):
    loss = make_loss(stack("train.yaml", name))(logits, label.to(dtype))
    loss.backward()
    assert loss.shape == ()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert (logits.grad != 0).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [0.0, 200.0])
def test_a_loss_stays_finite_without_any_lesion_and_on_logits_that_are_sure(stack, logits, label, name, size):
    scaled = (size * logits).detach().requires_grad_()
    loss = make_loss(stack("train.yaml", name))(scaled, torch.zeros_like(label))
    loss.backward()
    assert loss.isfinite()
    assert scaled.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_the_truth_costs_less_than_all_lesion_or_all_background_or_the_reverse(stack, label, name):
    loss = make_loss(stack("train.yaml", name))

    def cost(lesion):
        return loss(6 * torch.cat((1 - 2 * lesion, 2 * lesion - 1), dim=1), label).item()

    truth = cost(label)
    assert truth < 0.01
    for wrong in (torch.ones_like(label), torch.zeros_like(label), 1 - label):
        assert cost(wrong) > truth + 0.3


def test_the_focal_loss_is_that_of_the_lesions_one_probability(stack, logits, label):
    lesion = torch.sigmoid(logits[:, 1:] - logits[:, :1])
    of_truth = torch.where(label == 1, lesion, 1 - lesion)
    expected = (-((1 - of_truth) ** 2) * of_truth.log()).mean() / 2
    torch.testing.assert_close(make_loss(stack("train.yaml", "loss_focal.yaml"))(logits, label), expected)


def test_alpha_can_be_given_on_the_command_line_and_weighs_lesion_voxels(stack, logits, label):
    parser = stack("train.yaml", "loss_focal.yaml")
    parser["loss#alpha"] = 0.75
    lesion = torch.sigmoid(logits[:, 1:] - logits[:, :1])
    of_truth = torch.where(label == 1, lesion, 1 - lesion)
    share = torch.where(label == 1, 0.75, 0.25)
    expected = (-share * (1 - of_truth) ** 2 * of_truth.log()).mean() / 2
    torch.testing.assert_close(make_loss(parser)(logits, label), expected)


def test_dice_and_focal_are_both_in_their_sum(stack, logits, label):
    truth = torch.cat((1 - label, label), dim=1)
    soft = logits.softmax(dim=1)
    overlap, size = ((part).sum(dim=(0, 2, 3)) for part in (soft * truth, soft + truth))
    dice = (1 - (2 * overlap + 1e-5) / (size + 1e-5)).mean()
    of_truth = torch.where(truth == 1, torch.sigmoid(logits), torch.sigmoid(-logits))
    focal = (-((1 - of_truth) ** 2) * of_truth.log()).mean()
    torch.testing.assert_close(make_loss(stack("train.yaml", "loss_dice_focal.yaml"))(logits, label), dice + focal)


# --- a training ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings(  # MONAI's EarlyStopHandler names arguments as ignite did before 0.5.5
    "ignore:'(min_delta|cumulative_delta)' is deprecated:DeprecationWarning"
)
@pytest.mark.parametrize("names", [(NETWORK, "loss_focal.yaml"), ("loss_dice_focal.yaml",)], ids=lambda names: names[0])
def test_a_training_runs_with_it(names, start_training, tmp_path):
    overrides = {"epochs": 1, "val_interval": 1}
    if NETWORK in names:
        overrides |= {"network_def#channels": [4, 6, 8, 8], "network_def#backbone": None}  # it has none
    start_training(*names, **overrides).run()
    weights = torch.load(tmp_path / "run" / "model_final.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in weights.values())
