"""Muon for kernels, AdamW for the rest: singular values, sizes of steps, and a run that stops and goes on."""

import copy

import pytest
import torch

from networks.efficientnet_lite import NoBackbone
from pipeline.training import optimizers
from pipeline.training.optimizers import MuonAdamW, orthogonalize, parameter_groups

LEARNING_RATE = 1e-2


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(16, 32, 3, padding=1), torch.nn.BatchNorm2d(32), torch.nn.Conv2d(32, 2, 1)
    )
    return layers.to(memory_format=torch.channels_last)


def give_gradients(network: torch.nn.Module, seed: int = 1) -> None:
    inputs = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(seed))
    network.zero_grad()
    network(inputs).square().mean().backward()


@pytest.mark.parametrize("has_bfloat16", [True, False])
@pytest.mark.parametrize("shape", [(24, 160), (160, 24), (32, 32)])
def test_singular_values_come_near_one_and_vectors_stay(
    shape: tuple[int, int], has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "computes_bfloat16", lambda device: has_bfloat16)
    torch.manual_seed(0)
    left, values, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = left * values.clamp(min=0.1 * values.max()) @ right  # no direction is all but missing

    result = orthogonalize(matrix)

    assert result.shape == matrix.shape
    assert result.dtype == matrix.dtype
    in_old_directions = left.T @ result @ right.T
    assert torch.all((in_old_directions.diagonal() > 0.6) & (in_old_directions.diagonal() < 1.3))
    assert (in_old_directions - torch.diag(in_old_directions.diagonal())).abs().max() < 0.05


def test_matrix_of_zeros_stays_zero() -> None:
    assert torch.equal(orthogonalize(torch.zeros(16, 20)), torch.zeros(16, 20))


@pytest.mark.parametrize("size", [1, 3])  # a matrix higher than wide, and one wider than high
def test_step_of_a_kernel_has_the_size_of_adamws_whatever_the_gradients(size: int) -> None:
    torch.manual_seed(0)
    kernel = torch.nn.Conv2d(16, 32, size).weight
    before = kernel.detach().clone()
    kernel.grad = 1e-4 * torch.randn_like(kernel)

    MuonAdamW([kernel], lr=LEARNING_RATE, weight_decay=0).step()

    root_mean_square = (kernel - before).square().mean().sqrt() / LEARNING_RATE
    assert 0.15 < root_mean_square < 0.25


def test_first_kernel_step_is_against_the_gradient_in_every_direction(network: torch.nn.Module) -> None:
    kernel = network[0].weight
    before = kernel.detach().clone()
    give_gradients(network)
    left, _, right = torch.linalg.svd(kernel.grad.flatten(1), full_matrices=False)

    MuonAdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0).step()

    moved = (left.T @ (kernel - before).detach().flatten(1) @ right.T).diagonal()
    assert (moved < 0).float().mean() > 0.9  # the weakest may drown in bfloat16


def test_all_but_large_kernels_move_as_with_adamw(network: torch.nn.Module) -> None:
    plain = copy.deepcopy(network)
    give_gradients(network)
    give_gradients(plain)

    MuonAdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.1).step()
    torch.optim.AdamW(plain.parameters(), lr=LEARNING_RATE, weight_decay=0.1).step()

    for (name, mine), theirs in zip(network.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs) == (name != "0.weight"), name


def test_weights_of_kernels_decay_without_gradient_direction(network: torch.nn.Module) -> None:
    kernel = network[0].weight
    before = kernel.detach().clone()
    kernel.grad = torch.zeros_like(kernel)

    MuonAdamW(network.parameters(), lr=0.1, weight_decay=0.5).step()

    torch.testing.assert_close(kernel.detach(), before * 0.95)


def test_run_goes_on_after_loading_its_state_as_if_it_had_not_stopped(network: torch.nn.Module) -> None:
    optimizer = MuonAdamW(network.parameters(), lr=LEARNING_RATE)
    for seed in (1, 2):
        give_gradients(network, seed)
        optimizer.step()
    resumed_network = copy.deepcopy(network)
    resumed = MuonAdamW(resumed_network.parameters())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    for trained, its_optimizer in ((network, optimizer), (resumed_network, resumed)):
        give_gradients(trained, 3)
        its_optimizer.step()

    for mine, theirs in zip(network.parameters(), resumed_network.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_closure_is_refused(network: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="no closure"):
        MuonAdamW(network.parameters()).step(lambda: 0.0)


def test_groups_keep_a_backbone_apart_at_its_share_of_the_rate() -> None:
    network = torch.nn.Module()
    network.backbone, network.head = torch.nn.Conv2d(16, 16, 3), torch.nn.Conv2d(16, 16, 3)
    rest, backbone = parameter_groups(network, 0.2, 0.25)
    assert [id(each) for each in rest["params"]] == [id(each) for each in network.head.parameters()]
    assert [id(each) for each in backbone["params"]] == [id(each) for each in network.backbone.parameters()]
    assert (rest["lr"], backbone["lr"], backbone["muon"]) == (0.2, 0.05, False)


@pytest.mark.parametrize("backbone", [NoBackbone(2), None])
def test_a_network_without_backbone_is_one_group(network: torch.nn.Module, backbone: torch.nn.Module | None) -> None:
    if backbone is not None:
        network.backbone = backbone
    (group,) = parameter_groups(network, 0.2, 0.25)
    assert len(group["params"]) == len(list(network.parameters()))


def test_a_group_without_muon_moves_as_with_adamw(network: torch.nn.Module) -> None:
    plain = copy.deepcopy(network)
    give_gradients(network)
    give_gradients(plain)

    MuonAdamW([{"params": network.parameters(), "muon": False}], lr=LEARNING_RATE, weight_decay=0.1).step()
    torch.optim.AdamW(plain.parameters(), lr=LEARNING_RATE, weight_decay=0.1).step()

    assert all(torch.equal(mine, theirs) for mine, theirs in zip(network.parameters(), plain.parameters(), strict=True))
