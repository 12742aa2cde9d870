"""The rewired network against the formulas of the poster, written in plain torch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

import tost_kernels as tk
from tost.ghosts import GhostBlock, GhostNorm, add_ghosts, finalize, ghosts_of, set_strength
from tost.models.resnet import BasicBlock, cifar_resnet
from tost.recipe import Recipe

SKIP = Recipe(ghost_swish=False)
SWISH = Recipe(ghost_skip=False)
BOTH = Recipe(alpha_start=0.75, beta_start=2.0)
VANILLA = Recipe.vanilla()


def normalise(bn: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """What `bn` returns, without touching its statistics."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    return F.batch_norm(x, bn.running_mean.clone(), bn.running_var.clone(), bn.weight, bn.bias, bn.training, 0.1, bn.eps)


def activate(x: Tensor, recipe: Recipe) -> Tensor:
    return x * torch.sigmoid(recipe.beta_start * x) if recipe.ghost_swish else x.relu()


def formula(block: GhostBlock, x: Tensor, recipe: Recipe) -> Tensor:
    alpha = recipe.alpha_start
    h = normalise(block.bn1, block.conv1(x))
    if recipe.ghost_skip:
        j1 = F.conv2d(x, block.ghost1.weight, stride=block.conv1.stride)
        h = h + alpha * normalise(block.ghost_bn1, j1)
    h = activate(h, recipe)
    out = normalise(block.bn2, block.conv2(h))
    shortcut = x
    if len(block.shortcut):
        shortcut = normalise(block.shortcut[1], block.shortcut[0](x))
    out = out + shortcut
    if recipe.ghost_skip:
        out = out + alpha * normalise(block.ghost_bn2, F.conv2d(h, block.ghost2.weight))
    return activate(out, recipe)


def randomise(net: nn.Module) -> None:
    """Every value different, so that a swapped wire shows."""
    with torch.no_grad():
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            if tensor.is_floating_point() and not name.endswith(("alpha", "beta")):
                tensor.copy_(torch.rand_like(tensor) + 0.1 if name.endswith("var") else torch.randn_like(tensor) * 0.5)


@pytest.mark.parametrize("recipe", [SKIP, SWISH, BOTH, VANILLA], ids=["skip", "swish", "both", "vanilla"])
@pytest.mark.parametrize(("channels", "stride"), [(3, 1), (5, 1), (5, 2)], ids=["identity", "projection", "stride2"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_block_is_the_formula(recipe: Recipe, channels: int, stride: int, training: bool) -> None:
    net = add_ghosts(nn.Sequential(BasicBlock(3, channels, stride)), recipe).double().train(training)
    randomise(net)
    block = net[0]
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    parameters = [x, *net.parameters()]
    out, expected = net(x), formula(block, x, recipe)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(out)
    grads = torch.autograd.grad((out * weight).sum(), parameters)
    expected_grads = torch.autograd.grad((expected * weight).sum(), parameters)
    for got, want in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)
        assert want.abs().max() > 0


@pytest.mark.parametrize("recipe", [SKIP, SWISH, BOTH, VANILLA], ids=["skip", "swish", "both", "vanilla"])
def test_sparse_block_is_the_formula(recipe: Recipe) -> None:
    plain = nn.Sequential(BasicBlock(3, 5, 2))
    masks = {n: torch.rand_like(m.weight) < 0.4 for n, m in plain.named_modules() if isinstance(m, nn.Conv2d)}
    net = add_ghosts(tk.sparsify(plain, masks), recipe)
    randomise(net)
    if recipe.ghost_skip:
        assert isinstance(net[0].ghost1, tk.SparseConv2d)
        assert net[0].ghost1.density == 1.0
    x = tk.to_batch_last(torch.randn(4, 3, 6, 6))
    out, expected = net(x), formula(net[0], x, recipe)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert tk.is_batch_last(out)
    values = list(net.parameters())
    grads = torch.autograd.grad(out.square().sum(), values)
    expected_grads = torch.autograd.grad(expected.square().sum(), values)
    for got, want in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))


def test_running_statistics_move_as_batchnorm_moves_them() -> None:
    plain = BasicBlock(3, 4, 2)
    x = torch.randn(3, 3, 6, 6)
    ghosted = add_ghosts(plain, VANILLA)
    torch.testing.assert_close(ghosted(x), plain(x))
    state = ghosted.state_dict()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(state[name], value)
        if name.endswith("num_batches_tracked"):
            assert value == 1


def test_whole_network_with_vanilla_recipe_computes_the_same() -> None:
    net = cifar_resnet(8).eval()
    x = torch.randn(2, 3, 12, 12)
    fused = add_ghosts(net, VANILLA)
    torch.testing.assert_close(fused(x), net(x))
    assert len(ghosts_of(fused)) == 4
    assert type(net.layer1[0]) is BasicBlock  # a copy was rewired


def test_ghosts_start_as_the_paper_says() -> None:
    net = cifar_resnet(8)
    ghosted = add_ghosts(net, Recipe())
    block = ghosted.layer2[0]
    assert block.ghost1.weight.shape == (32, 16, 1, 1)
    assert block.ghost1.stride == (2, 2)
    assert block.ghost2.weight.shape == (32, 32, 1, 1)
    assert block.ghost2.stride == (1, 1)
    for conv in (block.ghost1, block.ghost2):
        assert bool((conv.weight == 1e-4).all())
        assert conv.bias is None
    assert (block.ghost_bn1.eps, block.ghost_bn1.weight.dtype) == (1e-5, torch.float32)
    assert isinstance(ghosted.bn1, GhostNorm)
    assert ghosted.bn1.tail.act == "pswish"


@pytest.mark.parametrize("recipe", [SKIP, SWISH, VANILLA], ids=["skip", "swish", "vanilla"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_stem_is_the_formula(recipe: Recipe, training: bool) -> None:
    net = add_ghosts(cifar_resnet(8), recipe).double().train(training)
    randomise(net)
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    out = net.act(net.bn1(net.conv1(x)))
    expected = activate(normalise(net.bn1, net.conv1(x)), recipe)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)


def test_only_our_own_stem_is_fused() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1, self.act = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()
            self.block = BasicBlock(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.block(self.bn1(self.act(self.conv1(x)))))

    net = add_ghosts(Other(), Recipe())
    assert type(net.bn1) is nn.BatchNorm2d
    assert type(net.act) is nn.ReLU
    nested = add_ghosts(nn.Sequential(nn.Identity(), cifar_resnet(8)), Recipe())
    assert list(ghosts_of(nested)) == ["1.bn1", "1.layer1.0", "1.layer2.0", "1.layer3.0"]


def small_vgg() -> nn.Sequential:
    relu = nn.ReLU(inplace=True)  # one for two places, as many networks have it
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), relu, nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), relu),
        nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(5, 2, 1), relu,
    )  # fmt: skip


@pytest.mark.parametrize("recipe", [SWISH, VANILLA], ids=["swish", "vanilla"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_pairs_of_a_sequential_are_the_formula(recipe: Recipe, training: bool) -> None:
    plain = small_vgg()
    randomise(plain)
    net = add_ghosts(plain, recipe).double().train(training)
    assert list(ghosts_of(net)) == ["1", "3.1"]
    assert type(net[6]) is nn.ReLU  # no BatchNorm before it
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    h = activate(normalise(net[1], net[0](x)), recipe)
    h = activate(normalise(net[3][1], net[3][0](h)), recipe)
    expected = net[5](net[4](h)).relu()
    torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-9)


def test_a_sparse_vgg_is_fused_and_comes_back() -> None:
    plain = small_vgg()
    x = tk.to_batch_last(torch.randn(4, 3, 6, 6))
    sparse = tk.sparsify(plain, {"0": torch.rand(4, 3, 3, 3) < 0.5, "3.0": torch.rand(5, 4, 3, 3) < 0.5})
    net = add_ghosts(sparse, SWISH)
    assert tk.is_batch_last(net(x))
    assert plain.state_dict().keys() <= net.state_dict().keys()
    set_strength(net, 0.0, 10.0)
    back = finalize(net)
    assert list(back.state_dict()) == list(sparse.state_dict())
    assert back[2] is back[3][2] is back[6]
    torch.testing.assert_close(back.eval()(x), net.eval()(x))


def test_pairs_that_are_not_certain_stay() -> None:
    class Other(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flip(0))  # could be anything

    class Scaled(nn.BatchNorm2d):
        pass

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(2)
            self.features = nn.Sequential(self.norm, nn.ReLU())

    hooked = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU())
    hooked[1].register_forward_hook(lambda *_: None)
    for net in (Other(nn.BatchNorm2d(2), nn.ReLU()), nn.Sequential(Scaled(2), nn.ReLU()), Twice(), hooked):
        assert ghosts_of(add_ghosts(net, VANILLA)) == {}
        with pytest.raises(ValueError, match=r"expected a ReLU right behind a BatchNorm2d in an nn.Sequential, or a BasicBlock"):
            add_ghosts(net, SWISH)
    shared = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU())
    assert list(ghosts_of(add_ghosts(nn.Sequential(shared, shared), VANILLA))) == ["0.0"]


def test_half_precision_keeps_the_ghost_norm_in_float32() -> None:
    block = add_ghosts(BasicBlock(2, 2).bfloat16(), Recipe())
    assert block.ghost1.weight.dtype == torch.bfloat16
    assert block.ghost_bn1.weight.dtype == torch.float32


def test_names_of_the_plain_network_stay() -> None:
    net = cifar_resnet(8)
    ghosted = add_ghosts(net, Recipe())
    plain, rewired = net.state_dict(), ghosted.state_dict()
    assert plain.keys() <= rewired.keys()
    for name, value in plain.items():
        assert torch.equal(rewired[name], value)
    added = {name.split(".")[-2] for name in rewired.keys() - plain.keys()}
    assert added == {"ghost1", "ghost_bn1", "ghost2", "ghost_bn2", "tail1", "tail2", "tail"}


def test_inplace_shares_the_parameters() -> None:
    net = cifar_resnet(8)
    before = dict(net.named_parameters())
    ghosted = add_ghosts(net, Recipe(), inplace=True)
    assert ghosted is net
    after = dict(ghosted.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())


def test_draws_no_random_numbers() -> None:
    net = cifar_resnet(8)
    masks = {n: torch.ones_like(m.weight) for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    sparse = tk.sparsify(net, masks)
    before = torch.get_rng_state()
    add_ghosts(net, Recipe())
    add_ghosts(sparse, Recipe())
    assert torch.equal(torch.get_rng_state(), before)


def test_masked_dense_network_after_a_forward_pass() -> None:
    net = cifar_resnet(8)
    prune.custom_from_mask(net.layer1[0].conv1, "weight", torch.rand_like(net.layer1[0].conv1.weight) < 0.2)
    x = torch.randn(2, 3, 8, 8)
    net(x)
    ghosted = add_ghosts(net, Recipe())
    ghosted(x).sum().backward()
    grad = ghosted.layer1[0].conv1.weight_orig.grad
    assert grad is not None
    assert grad[~ghosted.layer1[0].conv1.weight_mask.bool()].count_nonzero() == 0
    assert ghosted.layer1[0].ghost1.weight.grad is not None


def test_a_shared_block_stays_shared() -> None:
    block = BasicBlock(3, 3)
    net = add_ghosts(nn.Sequential(block, nn.Identity(), block), Recipe())
    assert net[0] is net[2]
    assert isinstance(net[0], GhostBlock)


def test_training_mode_is_kept() -> None:
    net = cifar_resnet(8).eval()
    net.layer1[0].bn1.train()
    ghosted = add_ghosts(net, Recipe())
    assert not ghosted.layer1[0].training
    assert not ghosted.layer1[0].ghost_bn1.training
    assert ghosted.layer1[0].bn1.training


def test_deepcopy_is_independent() -> None:
    net = add_ghosts(cifar_resnet(8), Recipe()).eval()
    x = torch.randn(1, 3, 8, 8)
    twin = copy.deepcopy(net)
    assert torch.equal(twin(x), net(x))
    twin.layer1[0].set_strength(0.0, 10.0)
    assert net.layer1[0].live


def test_bad_input_is_named() -> None:
    net = cifar_resnet(8)
    with pytest.raises(TypeError, match=r"add_ghosts: net: expected a torch.nn.Module, got str"):
        add_ghosts("net", Recipe())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"add_ghosts: recipe: expected a tost.Recipe, got dict"):
        add_ghosts(net, {})  # type: ignore[arg-type]
    for recipe in (Recipe(), VANILLA):
        with pytest.raises(ValueError, match="net: expected a network without ghosts, got one with a Ghost"):
            add_ghosts(add_ghosts(net, recipe), Recipe())
    linear = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"expected a network with .*BasicBlock modules, got Sequential with none"):
        add_ghosts(linear, Recipe())
    assert type(add_ghosts(linear, VANILLA)) is nn.Sequential
    net.layer3[0].act2 = nn.GELU()  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"BasicBlock.act2: expected nn.ReLU, got GELU"):
        add_ghosts(net, Recipe(), inplace=True)
    assert type(net.layer1[0]) is BasicBlock  # nothing was changed
    assert isinstance(net.layer1[0].conv1, nn.Conv2d)
