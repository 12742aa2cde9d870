import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import tost_kernels as tk
from tost.ghosts import add_ghosts, finalize, ghosts_of, recalibrate_bn, set_strength
from tost.models.resnet import BasicBlock, ResNet, cifar_resnet
from tost.recipe import Recipe

RECIPES = [Recipe(), Recipe(ghost_swish=False), Recipe(ghost_skip=False), Recipe.vanilla()]
IDS = ["both", "skip", "swish", "vanilla"]


def network(form: str) -> nn.Module:
    net = cifar_resnet(8)
    masks = {n: torch.rand_like(m.weight) < 0.3 for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    if form == "sparse":
        return tk.sparsify(net, masks)
    if form == "masked":
        for name, mask in masks.items():
            prune.custom_from_mask(net.get_submodule(name), "weight", mask)
    return net


def train_a_little(net: nn.Module, steps: int = 2) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("form", ["dense", "masked", "sparse"])
@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
@pytest.mark.parametrize("inplace", [True, False])
def test_the_plain_network_comes_back(form: str, recipe: Recipe, inplace: bool) -> None:
    plain = network(form)
    names = list(plain.state_dict())
    kinds = [(name, type(module)) for name, module in plain.named_modules()]
    net = add_ghosts(plain, recipe)
    train_a_little(net)
    set_strength(net, 0.0, recipe.beta_end)
    train_a_little(net)
    parameters = dict(net.named_parameters())
    x = torch.randn(3, 3, 8, 8)
    out = net.eval()(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        final = finalize(net, inplace=inplace)
    assert (final is net) == inplace
    assert ghosts_of(final) == {}
    assert list(final.state_dict()) == names
    assert [(name, type(module)) for name, module in final.named_modules()] == kinds
    torch.testing.assert_close(final(x), out)
    assert not any(module.training for module in final.modules())
    for name, parameter in final.named_parameters():
        assert torch.equal(parameter, parameters[name])
        assert (parameter is parameters[name]) == inplace
    plain.load_state_dict(final.state_dict())  # the never-ghosted network takes it
    torch.testing.assert_close(plain.eval()(x), out)


def test_all_modules_are_the_plain_ones_again() -> None:
    net = finalize(add_ghosts(cifar_resnet(8), Recipe()), warn=False)
    for name, module in cifar_resnet(8).named_modules():
        assert type(net.get_submodule(name)) is type(module)


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 10.0), (0.0, 9.0), (1.0, 1.0)])
def test_warns_while_the_fade_has_not_ended(alpha: float, beta: float) -> None:
    net = add_ghosts(cifar_resnet(8), Recipe())
    set_strength(net, alpha, beta)
    with pytest.warns(UserWarning, match=r"the fade has not ended at '.*recalibrate_bn"):
        finalize(net)
    finalize(net, warn=False)  # warnings are errors here


def test_warns_only_of_what_the_recipe_has() -> None:
    skip = add_ghosts(cifar_resnet(8), Recipe(ghost_swish=False))
    set_strength(skip, 0.0, 1.0)
    finalize(skip)
    swish = add_ghosts(cifar_resnet(8), Recipe(ghost_skip=False))
    set_strength(swish, 1.0, 10.0)
    finalize(swish)
    finalize(add_ghosts(cifar_resnet(8), Recipe.vanilla()))


def test_a_plain_network_comes_back_unchanged() -> None:
    net = cifar_resnet(8)
    assert finalize(net, inplace=True) is net
    with pytest.raises(TypeError, match=r"finalize: net: expected a torch.nn.Module, got NoneType"):
        finalize(None)  # type: ignore[arg-type]


def test_permanent_ghosts_stay() -> None:
    net = add_ghosts(cifar_resnet(8), Recipe(permanent=True)).eval()
    final = finalize(net)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(final(x), net(x))
    assert len(ghosts_of(final)) == 7


@pytest.mark.parametrize(
    "recipe",
    [Recipe(permanent=True, ghost_swish=False), Recipe(permanent=True, swish="mish"), Recipe(permanent=True, ghost_skip=False)],
    ids=["skips", "mish", "swish"],
)
def test_a_permanent_network_lives_in_its_state_dict(recipe: Recipe) -> None:
    net = add_ghosts(cifar_resnet(8), recipe)
    train_a_little(net)
    set_strength(net, recipe.alpha_start, recipe.beta_start)
    final = finalize(net).eval()
    x = torch.randn(2, 3, 8, 8)
    again = add_ghosts(cifar_resnet(8), recipe).eval()
    again.load_state_dict(final.state_dict())
    assert torch.equal(again(x), final(x))
    assert not torch.allclose(final(x), finalize(add_ghosts(cifar_resnet(8), Recipe()), warn=False).eval()(x))


def test_a_single_block() -> None:
    block = BasicBlock(2, 2)
    conv = block.conv1
    ghosted = add_ghosts(block, Recipe(ghost_skip=False), inplace=True)
    again = finalize(ghosted, inplace=True, warn=False)
    assert again is block
    assert again.conv1 is conv


def test_ghosts_again_after_finalize() -> None:
    net = finalize(add_ghosts(cifar_resnet(8), Recipe()), warn=False)
    assert len(ghosts_of(add_ghosts(net, Recipe()))) == 7


def test_sparsify_and_densify_under_the_ghosts() -> None:
    net = add_ghosts(cifar_resnet(8), Recipe())
    mask = torch.rand_like(net.layer1[0].conv1.weight) < 0.5
    final = finalize(tk.sparsify(net, {"layer1.0.conv1": mask}), warn=False)
    assert isinstance(final.layer1[0].conv1, tk.SparseConv2d)
    dense = finalize(tk.densify(add_ghosts(final, Recipe())), warn=False)
    assert type(dense.layer1[0].conv1) is nn.Conv2d


def test_the_stems_tensors_are_followed_wherever_they_go() -> None:
    net = cifar_resnet(8)
    state = {name: torch.randn_like(t) if t.is_floating_point() else t for name, t in net.state_dict().items()}
    ghosted = copy.deepcopy(add_ghosts(net, Recipe()))
    ghosted.load_state_dict(state, strict=False, assign=True)
    ghosted = copy.deepcopy(ghosted.double()).train()
    stem = dict(ghosted.named_parameters())["bn1.weight"]
    ghosted(torch.randn(2, 3, 8, 8, dtype=torch.float64))
    mean = ghosted.bn1.running_mean.clone()
    final = finalize(copy.deepcopy(ghosted), warn=False)
    assert type(final.bn1) is nn.BatchNorm2d
    assert torch.equal(final.bn1.weight, state["bn1.weight"].double())
    assert torch.equal(final.bn1.running_mean, mean)
    assert not torch.equal(mean, state["bn1.running_mean"].double())
    assert finalize(ghosted, inplace=True, warn=False).bn1.weight is stem


def test_a_class_that_was_changed_on_top() -> None:
    net = add_ghosts(cifar_resnet(8), Recipe.vanilla())
    net.scale = nn.Parameter(torch.ones(2))
    parametrize.register_parametrization(net, "scale", nn.Softplus())
    with pytest.raises(ValueError, match="finalize: net: its class was changed to ParametrizedGhostedResNet after add_ghosts"):
        finalize(net)
    parametrize.remove_parametrizations(net, "scale")
    assert type(finalize(net)) is ResNet


def test_recalibrated_statistics_are_the_means_of_the_batches() -> None:
    net = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.5))
    net[0](torch.randn(4, 2, 3, 3) * 7)
    net.eval()
    batches = [torch.randn(8, 2, 3, 3) + 1, torch.randn(8, 2, 3, 3) - 2]
    new = recalibrate_bn(net, [(x, None) for x in batches])
    torch.testing.assert_close(new[0].running_mean, torch.stack([x.mean((0, 2, 3)) for x in batches]).mean(0))
    torch.testing.assert_close(new[0].running_var, torch.stack([x.var((0, 2, 3)) for x in batches]).mean(0))
    assert not new[0].training
    assert new[0].momentum == 0.1
    assert not torch.equal(net[0].running_mean, new[0].running_mean)


@pytest.mark.parametrize("ghosts", [True, False])
def test_recalibration_repairs_an_early_finalize(ghosts: bool) -> None:
    net = add_ghosts(cifar_resnet(8), Recipe())
    data: list[Tensor] = [torch.randn(16, 3, 8, 8) for _ in range(3)]
    for x in data:
        net(x)
    if not ghosts:
        net = finalize(net, warn=False)
    weights = {name: parameter.clone() for name, parameter in net.named_parameters()}
    recalibrate_bn(net, data, inplace=True)
    assert all(torch.equal(parameter, weights[name]) for name, parameter in net.named_parameters())
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(int(norm.num_batches_tracked) == 3 for norm in norms)
    by_hand = torch.stack([net.conv1(x).mean((0, 2, 3)) for x in data]).mean(0)
    torch.testing.assert_close(net.bn1.running_mean, by_hand)


def test_recalibration_names_bad_data() -> None:
    with pytest.raises(ValueError, match="data: expected at least one batch, got none"):
        recalibrate_bn(cifar_resnet(8), [])
    with pytest.raises(TypeError, match=r"data: expected batches .* got str"):
        recalibrate_bn(cifar_resnet(8), ["x"])
    with pytest.raises(TypeError, match=r"data: expected an iterable .* got NoneType"):
        recalibrate_bn(cifar_resnet(8), None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"net: expected a torch.nn.Module, got NoneType"):
        recalibrate_bn(None, [torch.ones(2, 3)])  # type: ignore[arg-type]
    assert type(recalibrate_bn(nn.Linear(2, 2), [])) is nn.Linear  # nothing to do
