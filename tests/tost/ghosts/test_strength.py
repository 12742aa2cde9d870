import math

import pytest
import torch
from torch import nn

from tost.ghosts import (
    GhostBlock,
    add_ghosts,
    as_finalized,
    ghost_parameters,
    ghosts_of,
    set_strength,
)
from tost.models.resnet import BasicBlock, cifar_resnet
from tost.recipe import Recipe


def ghosted(recipe: Recipe | None = None) -> nn.Module:
    return add_ghosts(cifar_resnet(8), recipe or Recipe())


def count_calls(net: nn.Module) -> list[str]:
    calls: list[str] = []
    for name, module in net.named_modules():
        if name.endswith(("ghost1", "ghost2")):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    return calls


def test_at_alpha_zero_the_ghosts_do_not_exist() -> None:
    net = ghosted()
    x = torch.randn(2, 3, 8, 8)
    calls = count_calls(net)
    net(x)
    assert len(calls) == 6
    calls.clear()
    set_strength(net, 0.0, 5.0)
    with torch.no_grad():
        for parameter in ghost_parameters(net):
            parameter.fill_(math.nan)  # must not reach anything
    before = {name: tensor.clone() for name, tensor in net.named_buffers() if "ghost_bn" in name}
    out = net(x)
    out.sum().backward()
    assert calls == []
    assert bool(out.isfinite().all())
    assert all(parameter.grad is None for parameter in ghost_parameters(net))
    assert all(torch.equal(dict(net.named_buffers())[name], tensor) for name, tensor in before.items())
    set_strength(net, 0.5, 5.0)  # a schedule may also come back
    net(x)
    assert len(calls) == 6


def test_strength_reaches_every_tail() -> None:
    net = ghosted()
    set_strength(net, 0.25, 3.0)
    tails = [module for name, module in net.named_modules() if "tail" in name.split(".")[-1]]
    assert len(tails) == 7  # 3 blocks and the stem
    assert all((float(tail.alpha), float(tail.beta), tail.act) == (0.25, 3.0, "pswish") for tail in tails)


def test_relu_from_beta_end_on() -> None:
    net = ghosted(Recipe(ghost_skip=False, beta_end=10.1))
    x = torch.randn(2, 3, 8, 8)
    for beta, act in ((10.0, "pswish"), (10.1, "relu"), (math.inf, "relu"), (1.0, "pswish"), (20.0, "relu")):
        set_strength(net, 0.0, beta)
        assert net.layer1[0].tail1.act == net.bn1.tail.act == act
        assert bool(net(x).isfinite().all())
    net.eval()
    x = net.conv1(x)
    normalised = (x - net.bn1.running_mean[:, None, None]) / (net.bn1.running_var[:, None, None] + 1e-5).sqrt()
    torch.testing.assert_close(net.bn1(x), normalised.relu())


def test_a_permanent_swish_never_hardens_by_itself() -> None:
    net = ghosted(Recipe(permanent=True, beta_start=1.0, beta_end=1.0))
    set_strength(net, 1.0, 50.0)
    assert net.layer1[0].tail1.act == "pswish"


def test_without_ghost_skips_there_is_no_gate() -> None:
    net = ghosted(Recipe(ghost_skip=False))
    set_strength(net, 1.0, 2.0)
    assert not net.layer1[0].live
    assert float(net.layer1[0].tail1.alpha) == 0.0
    assert ghost_parameters(net) == []
    assert not hasattr(net.layer1[0], "ghost1")


def test_without_ghost_swish_it_is_relu() -> None:
    net = ghosted(Recipe(ghost_swish=False))
    set_strength(net, 1.0, 2.0)
    assert net.layer1[0].tail1.act == "relu"
    assert net.bn1.tail.act == "relu"


def test_ghost_parameters_are_exactly_the_added_ones() -> None:
    plain = cifar_resnet(8)
    net = add_ghosts(plain, Recipe(), inplace=True)
    ghosts = ghost_parameters(net)
    assert len(ghosts) == 3 * 2 * 3
    names = {name for name, p in net.named_parameters() if any(p is ghost for ghost in ghosts)}
    assert names == {name for name, _ in net.named_parameters() if "ghost" in name}


def test_ghosts_of() -> None:
    assert ghosts_of(cifar_resnet(8)) == {}
    assert list(ghosts_of(ghosted())) == ["bn1", "layer1.0", "layer2.0", "layer3.0"]


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 9.9), (0.3, 4.5), (0.0, 4.5)])
def test_a_checkpoint_restores_the_strength(alpha: float, beta: float) -> None:
    recipe = Recipe(beta_end=9.9)  # float32 rounds it down; it must count as the end all the same
    net = ghosted(recipe)
    x = torch.randn(2, 3, 8, 8)
    net(x)
    set_strength(net, alpha, beta)
    other = ghosted(recipe)
    other.load_state_dict(net.state_dict())
    block = other.layer1[0]
    assert isinstance(block, GhostBlock)
    assert block.live == (alpha > 0)
    assert block.tail1.act == other.bn1.tail.act == ("relu" if beta == 9.9 else "pswish")
    assert torch.equal(other.eval()(x), net.eval()(x))


def test_as_finalized_looks_and_comes_back() -> None:
    plain = cifar_resnet(8)
    net = add_ghosts(plain, Recipe(), inplace=False).eval()
    set_strength(net, 0.5, 3.0)
    x = torch.randn(2, 3, 8, 8)
    before = net(x)
    with as_finalized(net) as same:
        assert same is net
        torch.testing.assert_close(net(x), plain.eval()(x))
    assert torch.equal(net(x), before)
    with pytest.raises(KeyError), as_finalized(net):
        raise KeyError
    assert torch.equal(net(x), before)


@pytest.mark.parametrize(
    ("alpha", "beta", "name"),
    [(-1.0, 1.0, "alpha"), (math.nan, 1.0, "alpha"), (math.inf, 1.0, "alpha"), (1.0, 0.0, "beta"), (1.0, math.nan, "beta")],
)
def test_bad_strengths_are_named(alpha: float, beta: float, name: str) -> None:
    with pytest.raises(ValueError, match=f"set_strength: {name}: expected"):
        set_strength(ghosted(), alpha, beta)


def test_a_network_without_ghosts_has_no_strength() -> None:
    set_strength(BasicBlock(2, 2), 1.0, 1.0)


def test_compiles_without_graph_breaks_and_follows_the_fade() -> None:
    torch._dynamo.reset()
    net = add_ghosts(BasicBlock(2, 3, 2), Recipe()).eval()
    x = torch.randn(2, 2, 4, 4)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    for alpha, beta in ((1.0, 1.0), (0.5, 4.0), (0.0, 10.0)):
        set_strength(net, alpha, beta)
        torch.testing.assert_close(compiled(x), net(x))
