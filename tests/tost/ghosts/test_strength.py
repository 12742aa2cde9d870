import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tost.ghosts import (
    Ghost,
    GhostSwish,
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
        if name.startswith("ghosts.") and name.endswith(".conv"):
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
    before = {name: tensor.clone() for name, tensor in net.named_buffers() if ".norm." in name}
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
    ghosts = ghosts_of(net)
    assert len(ghosts) == 7  # 3 blocks and the stem
    stem = ghosts.pop("ghosts.conv1")
    assert (*stem.strength(), stem.act) == (0.0, 3.0, "pswish")
    assert all((*ghost.strength(), ghost.act) == (0.25, 3.0, "pswish") for ghost in ghosts.values())


@pytest.mark.parametrize("strength", [(1.0, 3.0), (0.0, math.inf)])
def test_a_swish_elsewhere_follows_too(strength: tuple[float, float]) -> None:
    net = add_ghosts(nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)), Recipe(ghost_skip=False))
    (ghost,) = ghosts_of(net).values()
    assert isinstance(ghost, GhostSwish)
    set_strength(net, *strength)
    h = net[0](torch.randn(5, 3))
    expected = h * torch.sigmoid(3.0 * h) if strength[0] else h.relu()
    torch.testing.assert_close(net.ghosts["1"](h), expected)
    other = add_ghosts(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), Recipe(ghost_skip=False))
    other.load_state_dict(net.state_dict())
    assert (other.ghosts["1"].act, other.ghosts["1"].strength()) == (ghost.act, ghost.strength())


def test_relu_from_beta_end_on() -> None:
    net = ghosted(Recipe(ghost_skip=False, beta_end=10.1))
    x = torch.randn(2, 3, 8, 8)
    for beta, act in ((10.0, "pswish"), (10.1, "relu"), (math.inf, "relu"), (1.0, "pswish"), (20.0, "relu")):
        set_strength(net, 0.0, beta)
        assert net.ghosts["layer1_0_conv1"].tail.act == net.ghosts["conv1"].tail.act == act
        assert bool(net(x).isfinite().all())
    net.eval()
    x = net.conv1(x)
    normalised = (x - net.bn1.running_mean[:, None, None]) / (net.bn1.running_var[:, None, None] + 1e-5).sqrt()
    torch.testing.assert_close(net.ghosts["conv1"](x, norm=net.bn1), normalised.relu())


def test_a_permanent_swish_never_hardens_by_itself() -> None:
    net = ghosted(Recipe(permanent=True, beta_start=1.0, beta_end=1.0))
    set_strength(net, 1.0, 50.0)
    assert net.ghosts["layer1_0_conv1"].tail.act == "pswish"


def test_without_ghost_skips_there_is_no_gate() -> None:
    net = ghosted(Recipe(ghost_skip=False))
    set_strength(net, 1.0, 2.0)
    assert not net.ghosts["layer1_0_conv1"].live
    assert net.ghosts["layer1_0_conv1"].strength() == (0.0, 2.0)
    assert ghost_parameters(net) == []


def test_without_ghost_swish_it_is_relu() -> None:
    net = ghosted(Recipe(ghost_swish=False))
    set_strength(net, 1.0, 2.0)
    assert net.ghosts["layer1_0_conv1"].act == "relu"
    assert net.ghosts["conv1"].act == "relu"


def test_ghost_parameters_are_exactly_the_added_ones() -> None:
    plain = cifar_resnet(8)
    net = add_ghosts(plain, Recipe(), inplace=True)
    ghosts = ghost_parameters(net)
    assert len(ghosts) == 3 * 2 * 3
    names = {name for name, p in net.named_parameters() if any(p is ghost for ghost in ghosts)}
    assert names == {name for name, _ in net.named_parameters() if name.startswith("ghosts.")}


def test_ghosts_of() -> None:
    assert ghosts_of(cifar_resnet(8)) == {}
    blocks = [f"ghosts.layer{stage}_0_conv{i}" for stage in (1, 2, 3) for i in (1, 2)]
    assert list(ghosts_of(ghosted())) == ["ghosts.conv1", *blocks]


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 9.9), (0.3, 4.5), (0.0, 4.5)])
def test_a_checkpoint_restores_the_strength(alpha: float, beta: float) -> None:
    recipe = Recipe(beta_end=9.9)  # float32 rounds it down; it must count as the end all the same
    net = ghosted(recipe)
    x = torch.randn(2, 3, 8, 8)
    net(x)
    set_strength(net, alpha, beta)
    other = ghosted(recipe)
    other.load_state_dict(net.state_dict())
    ghost = other.ghosts["layer1_0_conv1"]
    assert isinstance(ghost, Ghost)
    assert ghost.live == (alpha > 0)
    assert ghost.tail.act == other.ghosts["conv1"].tail.act == ("relu" if beta == 9.9 else "pswish")
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


@pytest.mark.parametrize("swish", ["swish", "mish"])
def test_permanent_ghosts_do_not_follow_a_look_at_the_plain_form(swish: str) -> None:
    net = ghosted(Recipe(permanent=True, swish=swish)).eval()
    x = torch.randn(2, 3, 8, 8)
    before = net(x)
    with as_finalized(net):
        assert torch.equal(net(x), before)


class Functional(nn.Module):
    """Other joints than a ResNet's, and an argument that keeps its default."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 5, groups=2), nn.Linear(4, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = F.relu(self.conv(self.stem(x)))
        x = x if mask is None else x * mask
        return F.relu(self.fc(x.mean((2, 3))))


@pytest.mark.parametrize("plain", [lambda: cifar_resnet(8), Functional], ids=["resnet", "functional"])
def test_compiles_without_graph_breaks_and_follows_the_fade(plain: Callable[[], nn.Module]) -> None:
    torch._dynamo.reset()
    net = add_ghosts(plain(), Recipe()).eval()
    x = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    for alpha, beta in ((1.0, 1.0), (0.5, 4.0), (0.0, 10.0)):
        set_strength(net, alpha, beta)
        torch.testing.assert_close(compiled(x), net(x))
