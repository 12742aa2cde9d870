"""Every network, vanilla and ToST, on every backend: one training step and finalize compute the same."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tost
import tost_kernels as tk
from tost import Masks, Recipe
from tost.ghosts import GhostSwish, ghosts_of, set_strength
from tost.preparation import plain_form

SIDES = {"lenet": 28, "mlp": 28, "imagenet": 48}
NAMES = tost.models.names()
RECIPES = {"vanilla": Recipe.vanilla(), "tost": Recipe.tost()}
# fully connected: no spatial convolution behind the first layer, so ghost swish alone
WITHOUT_SKIPS = ("lenet300100", "mlp")


def inputs_of(name: str) -> tuple[Tensor, Tensor]:
    side = next((side for word, side in SIDES.items() if word in name), 16)
    random = torch.Generator().manual_seed(0)
    channels = 1 if side == 28 else 3
    return torch.randn(8, channels, side, side, generator=random), torch.arange(8) % 10


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    inputs, _ = inputs_of(name)
    return tost.models.build(name, 10, inputs.shape[1], inputs.shape[2:])


def masks_of(model: nn.Module) -> Masks:
    return tost.prune(model, "erk", density=0.2)


Form = tuple[Callable[[nn.Module, Masks], nn.Module], Callable[[Tensor], Tensor], Callable[[], AbstractContextManager[None]]]
FORMS: dict[str, Form] = {
    "masked-dense": (lambda model, masks: masks.apply_to(model), lambda x: x, nullcontext),
    "dense": (tk.sparsify, tk.to_batch_last, lambda: tk.use_backend("dense")),
    "sparse": (tk.sparsify, tk.to_batch_last, nullcontext),
}


def trained(name: str, recipe: Recipe, form: str) -> dict[str, Tensor]:
    """What one step leaves: its loss and outputs, those after it, and the finalized network's weights and outputs."""
    make, to_input, context = FORMS[form]
    model = model_of(name)
    masks = masks_of(model)
    net = make(model, masks)
    if recipe.has_ghosts or form != "masked-dense":
        if recipe.ghost_skip and name in WITHOUT_SKIPS:
            with pytest.warns(UserWarning, match="has no place for ghost skips"):
                net = tost.add_ghosts(net, recipe)
        else:
            net = tost.add_ghosts(net, recipe)
    inputs, targets = inputs_of(name)
    optimizer = torch.optim.SGD(tk.param_groups(net, 1e-4), lr=0.01, momentum=0.9)
    found = {}
    with context():
        net.train()
        outputs = net(to_input(inputs))
        loss = F.cross_entropy(outputs, targets, label_smoothing=recipe.label_smoothing)
        loss.backward()
        optimizer.step()
        found["loss"], found["outputs"] = loss.detach(), outputs.detach()
        set_strength(net, 0.0, math.inf)  # the fade is over
        net = tost.finalize(net)
        net.eval()
        with torch.no_grad():
            found["finalized"] = net(to_input(inputs))
    plain = plain_form(net, masks)
    with torch.no_grad():
        found["plain"] = plain(inputs)
    for key, value in plain.state_dict().items():
        found[f"weights of {key}"] = value
    for key, mask in masks.items():
        assert bool((plain.get_submodule(key).weight[~mask] == 0).all()), key
    assert plain.state_dict().keys() == model.state_dict().keys()
    return found


def distance(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm().clamp_min(1e-3)).item()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", NAMES)
def test_every_backend_computes_the_same(name: str, recipe: str) -> None:
    wanted = trained(name, RECIPES[recipe], "masked-dense")
    for form in ("dense", "sparse"):
        found = trained(name, RECIPES[recipe], form)
        assert found.keys() == wanted.keys()
        distances = {key: distance(found[key].double(), wanted[key].double()) for key in wanted}
        assert {key: d for key, d in distances.items() if not d < 2e-4} == {}, form
        assert distance(found["plain"], found["finalized"]) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_a_dense_network_is_trained_and_finalized_too(name: str) -> None:
    model = model_of(name)
    inputs, targets = inputs_of(name)
    if name in WITHOUT_SKIPS:
        with pytest.warns(UserWarning, match="has no place for ghost skips"):
            net = tost.add_ghosts(model, Recipe.tost())
    else:
        net = tost.add_ghosts(model, Recipe.tost())
        assert tost.account(net).ghost_weights > 0
    assert any(ghost.has_act for ghost in ghosts_of(net).values())
    assert name not in WITHOUT_SKIPS or all(isinstance(ghost, GhostSwish) for ghost in ghosts_of(net).values())
    F.cross_entropy(net(inputs), targets).backward()
    assert all(p.grad is not None for p in net.parameters())
    set_strength(net, 0.0, math.inf)
    plain = tost.finalize(net)
    assert type(plain) is type(model)
    assert plain.state_dict().keys() == model.state_dict().keys()
    assert not ghosts_of(plain)
