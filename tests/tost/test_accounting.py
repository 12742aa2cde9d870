import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import tost_kernels as tk
from tost.accounting import Accounting, account
from tost.ghosts import add_ghosts, finalize
from tost.models.resnet import cifar_resnet, resnet18
from tost.recipe import Recipe

MASK = torch.tensor([[1, 0, 1], [0, 1, 0]], dtype=torch.bool)


class Masked(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * MASK


def layer() -> nn.Linear:
    linear = nn.Linear(3, 2)
    nn.init.constant_(linear.weight, 1.0)
    return linear


def test_hand_counts_of_every_form() -> None:
    zeros, pruned, parametrized = layer(), layer(), layer()
    zeros.weight.data *= MASK
    prune.custom_from_mask(pruned, "weight", MASK)
    parametrize.register_parametrization(parametrized, "weight", Masked())
    sparse = tk.SparseLinear.from_dense(layer(), MASK)
    for net, held in ((zeros, 8), (pruned, 8), (parametrized, 8), (sparse, 5)):
        assert account(nn.Sequential(net)) == Accounting(3, 6, 0.5, 0, held)
    assert account(layer()) == Accounting(6, 6, 1.0, 0, 8)


def test_a_mask_counts_not_the_value_under_it() -> None:
    pruned = layer()
    pruned.weight.data[0, 0] = 0.0  # kept, though it is zero now
    prune.custom_from_mask(pruned, "weight", MASK)
    assert account(pruned).weights_kept == 3


def test_only_weights_of_layers_count() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
    assert account(net) == Accounting(72, 72, 1.0, 0, 72 + 4 + 8)
    assert account(nn.BatchNorm2d(4)) == Accounting(0, 0, 1.0, 0, 8)


def test_shared_and_tied_layers_count_once() -> None:
    one = layer()
    assert account(nn.Sequential(one, one)).weights_prunable == 6
    tied = layer()
    tied.weight = one.weight
    assert account(nn.Sequential(one, tied)).weights_prunable == 6


def test_ghosts_of_resnet18() -> None:
    net = resnet18()
    before = account(net)
    after = account(add_ghosts(net, Recipe()))
    # the papers' count: 1x1 convolutions alone, without their BatchNorms (7,680 more parameters)
    assert after.ghost_weights == 1_220_608
    assert after.parameters == before.parameters + 1_220_608 + 7_680
    assert dataclasses.replace(after, ghost_weights=0, parameters=0) == dataclasses.replace(before, parameters=0)


@pytest.mark.parametrize("form", ["sparse", "masked", "zeros"])
def test_all_forms_of_a_network_agree(form: str) -> None:
    net = cifar_resnet(8)
    masks = {n: torch.rand_like(m.weight) < 0.1 for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    kept = sum(int(mask.sum()) for mask in masks.values()) + net.fc.weight.numel()
    plain: nn.Module = net
    if form == "sparse":
        plain = tk.sparsify(net, masks)
    else:
        for name, mask in masks.items():
            conv = net.get_submodule(name)
            prune.custom_from_mask(conv, "weight", mask)
            if form == "zeros":
                prune.remove(conv, "weight")
    ghosted = add_ghosts(plain, Recipe())
    for tested, ghosts in ((plain, 0), (ghosted, 8192), (finalize(ghosted, warn=False), 0)):
        counts = account(tested)
        assert (counts.weights_kept, counts.weights_prunable, counts.ghost_weights) == (kept, 77_360, ghosts)
        assert counts.density == kept / 77_360


def test_permanent_ghosts_stay_in_the_count() -> None:
    net = finalize(add_ghosts(cifar_resnet(8), Recipe(permanent=True)))
    assert account(net).ghost_weights == 8192


def test_refuses_what_is_no_network() -> None:
    with pytest.raises(TypeError, match=r"account: net: expected a torch.nn.Module, got dict"):
        account({})  # type: ignore[arg-type]
