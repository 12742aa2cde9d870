"""The rewired network against the formulas of the poster, written in plain torch; and what stays of the plain one."""

import copy
import inspect
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

import tost_kernels as tk
from tost.ghosts import Ghost, add_ghosts, check_ghosts, finalize, ghosts_of, set_strength
from tost.models.resnet import BasicBlock, ResNet, cifar_resnet
from tost.recipe import Recipe

SKIP = Recipe(ghost_swish=False)
SWISH = Recipe(ghost_skip=False)
BOTH = Recipe(alpha_start=0.75, beta_start=2.0)
VANILLA = Recipe.vanilla()
MISH = Recipe(swish="mish", permanent=True, alpha_start=0.75)


def normalise(bn: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """What `bn` returns, without touching its statistics."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    return F.batch_norm(x, bn.running_mean.clone(), bn.running_var.clone(), bn.weight, bn.bias, bn.training, 0.1, bn.eps)


def activate(x: Tensor, recipe: Recipe) -> Tensor:
    if recipe.swish == "mish":
        return x * torch.tanh(torch.log1p(x.exp()))
    return x * torch.sigmoid(recipe.beta_start * x) if recipe.ghost_swish else x.relu()


def after_a_stem(*args: int) -> nn.Module:
    """A block that does not read the network's input: a 1x1 convolution is before it."""
    return nn.Sequential(nn.Conv2d(3, 3, 1), BasicBlock(*args))


def formula(net: nn.Module, x: Tensor, recipe: Recipe) -> Tensor:
    alpha, block = recipe.alpha_start, net[1]
    x = net[0](x)
    h = normalise(block.bn1, block.conv1(x))
    if recipe.ghost_skip:
        ghost = net.ghosts["1_conv1"]
        h = h + alpha * normalise(ghost.norm, F.conv2d(x, ghost.conv.weight, stride=block.conv1.stride))
    h = activate(h, recipe)
    out = normalise(block.bn2, block.conv2(h))
    shortcut = x
    if len(block.shortcut):
        shortcut = normalise(block.shortcut[1], block.shortcut[0](x))
    out = out + shortcut
    if recipe.ghost_skip:
        ghost = net.ghosts["1_conv2"]
        out = out + alpha * normalise(ghost.norm, F.conv2d(h, ghost.conv.weight))
    return activate(out, recipe)


def randomise(net: nn.Module) -> None:
    """Every value different, so that a swapped wire shows."""
    with torch.no_grad():
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            if tensor.is_floating_point() and not name.endswith(("alpha", "beta")):
                tensor.copy_(torch.rand_like(tensor) + 0.1 if name.endswith("var") else torch.randn_like(tensor) * 0.5)


@pytest.mark.parametrize("recipe", [SKIP, SWISH, BOTH, VANILLA, MISH], ids=["skip", "swish", "both", "vanilla", "mish"])
@pytest.mark.parametrize(("channels", "stride"), [(3, 1), (5, 1), (5, 2)], ids=["identity", "projection", "stride2"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_block_is_the_formula(recipe: Recipe, channels: int, stride: int, training: bool) -> None:
    net = add_ghosts(after_a_stem(3, channels, stride), recipe).double().train(training)
    randomise(net)
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    parameters = [x, *net.parameters()]
    out, expected = net(x), formula(net, x, recipe)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(out)
    grads = torch.autograd.grad((out * weight).sum(), parameters)
    expected_grads = torch.autograd.grad((expected * weight).sum(), parameters)
    for got, want in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)
        assert want.abs().max() > 0


@pytest.mark.parametrize("recipe", [SKIP, SWISH, BOTH, VANILLA, MISH], ids=["skip", "swish", "both", "vanilla", "mish"])
def test_sparse_block_is_the_formula(recipe: Recipe) -> None:
    plain = after_a_stem(3, 5, 2)
    masks = {n: torch.rand_like(m.weight) < 0.4 for n, m in plain.named_modules() if isinstance(m, nn.Conv2d)}
    net = add_ghosts(tk.sparsify(plain, masks), recipe)
    randomise(net)
    if recipe.ghost_skip:
        assert isinstance(net.ghosts["1_conv1"].conv, tk.SparseConv2d)
        assert net.ghosts["1_conv1"].conv.density == 1.0
    x = tk.to_batch_last(torch.randn(4, 3, 6, 6))
    out, expected = net(x), formula(net, x, recipe)
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
    assert len(ghosts_of(fused)) == 7
    assert type(net) is ResNet  # a copy was rewired


def test_ghosts_start_as_the_paper_says() -> None:
    ghosted = add_ghosts(cifar_resnet(8), Recipe())
    first, second = ghosted.ghosts["layer2_0_conv1"], ghosted.ghosts["layer2_0_conv2"]
    assert first.conv.weight.shape == (32, 16, 1, 1)
    assert first.conv.stride == (2, 2)
    assert second.conv.weight.shape == (32, 32, 1, 1)
    assert second.conv.stride == (1, 1)
    for ghost in (first, second):
        assert bool((ghost.conv.weight == 1e-4).all())
        assert ghost.conv.bias is None
        assert (ghost.norm.eps, ghost.norm.weight.dtype) == (1e-5, torch.float32)
    assert ghosted.ghosts["conv1"].conv is None  # the stem
    assert ghosted.ghosts["conv1"].tail.act == "pswish"


@pytest.mark.parametrize("recipe", [SKIP, SWISH, VANILLA], ids=["skip", "swish", "vanilla"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_stem_is_the_formula(recipe: Recipe, training: bool) -> None:
    net = add_ghosts(cifar_resnet(8), recipe).double().train(training)
    randomise(net)
    x = net.conv1(torch.randn(2, 3, 5, 7, dtype=torch.float64))
    out = net.ghosts["conv1"](x, norm=net.bn1)
    torch.testing.assert_close(out, activate(normalise(net.bn1, x), recipe), rtol=1e-9, atol=1e-9)


def test_the_stem_is_what_no_weights_are_before() -> None:
    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.pad = nn.BatchNorm2d(3), nn.ZeroPad2d(1)
            self.near, self.far, self.last = (nn.Conv2d(n, 3, 3, padding=1) for n in (3, 3, 6))
            self.register_buffer("mean", torch.ones(3, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = self.pad(self.norm((x - self.mean) / 2))
            y = self.far(self.near(x))
            return self.last(torch.cat([x, y], 1))  # reads the input, and more

    net = add_ghosts(Stem(), SKIP)
    assert [name for name, ghost in ghosts_of(net).items() if ghost.conv is not None] == ["ghosts.far", "ghosts.last"]
    nested = add_ghosts(nn.Sequential(nn.Identity(), cifar_resnet(8)), Recipe())
    assert ghosts_of(nested)["ghosts.1_conv1"].conv is None


def small_vgg() -> nn.Sequential:
    relu = nn.ReLU(inplace=True)  # one for two places, as many networks have it
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), relu, nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), relu),
        nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(5, 2, 1), relu,
    )  # fmt: skip


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


def test_pairs_that_a_tail_cannot_compute_stay() -> None:
    class Scaled(nn.BatchNorm2d):
        pass

    hooked = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU())
    hooked[0].register_forward_hook(lambda *_: None)
    twice = nn.BatchNorm2d(2)
    for net in (nn.Sequential(Scaled(2), nn.ReLU()), hooked, nn.Sequential(twice, nn.ReLU(), twice, nn.ReLU())):
        assert ghosts_of(add_ghosts(net, VANILLA)) == {}
        swished = add_ghosts(net, SWISH)
        assert not any(isinstance(ghost, Ghost) for ghost in ghosts_of(swished).values())
        x = torch.randn(2, 2, 3, 3)
        expected = x
        for layer in net:
            expected = expected * torch.sigmoid(expected) if isinstance(layer, nn.ReLU) else layer(expected)
        torch.testing.assert_close(swished(x), expected)
    hooked[1].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"Sequential has no place for ghost swish \(the trace meets no ReLU\)"):
        add_ghosts(hooked, SWISH)


def test_a_value_that_is_used_twice_is_not_fused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            u = self.conv(self.stem(x))
            n = self.norm(u)
            return u, n, n.relu()

    plain = Twice().eval()
    assert ghosts_of(add_ghosts(plain, VANILLA)) == {}
    net = add_ghosts(plain, BOTH)
    randomise(net)
    x = torch.randn(2, 3, 4, 4)
    h = net.stem(x)
    ghost = net.ghosts["conv"]
    u = net.conv(h) + 0.75 * normalise(ghost.norm, F.conv2d(h, ghost.conv.weight))  # the ghost joins the convolution's result
    n = normalise(net.norm, u)
    for got, want in zip(net(x), (u, n, activate(n, BOTH)), strict=True):
        torch.testing.assert_close(got, want)


def test_half_precision_keeps_the_ghost_norm_in_float32() -> None:
    net = add_ghosts(after_a_stem(3, 3).bfloat16(), Recipe())
    assert net.ghosts["1_conv1"].conv.weight.dtype == torch.bfloat16
    assert net.ghosts["1_conv1"].norm.weight.dtype == torch.float32


def test_names_of_the_plain_network_stay() -> None:
    net = cifar_resnet(8)
    ghosted = add_ghosts(net, Recipe())
    plain, rewired = net.state_dict(), ghosted.state_dict()
    assert list(rewired)[: len(plain)] == list(plain)
    for name, value in plain.items():
        assert torch.equal(rewired[name], value)
    assert all(name.startswith("ghosts.") for name in rewired.keys() - plain.keys())
    assert {"ghosts.layer1_0_conv1.conv.weight", "ghosts.conv1.tail.beta"} <= rewired.keys()
    assert [name for name, _ in ghosted.named_modules() if not name.startswith("ghosts")] == [n for n, _ in net.named_modules()]


def test_it_is_still_the_users_class() -> None:
    class Mine(ResNet):
        def logits(self, x: Tensor) -> Tensor:
            return self(x)

    net = Mine([1], [4])
    calls: list[int] = []
    net.register_forward_hook(lambda *_: calls.append(1))
    ghosted = add_ghosts(net, Recipe(), inplace=True)
    assert ghosted is net
    assert isinstance(net, Mine)
    assert type(net).__name__ == "GhostedMine"
    assert inspect.signature(net.forward) == inspect.signature(ResNet.forward.__get__(net))
    ghosted.logits(torch.randn(2, 3, 4, 4))
    assert calls == [1]
    assert type(finalize(net, warn=False)) is Mine


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
    assert ghosted.ghosts["layer1_0_conv1"].conv.weight.grad is not None


def test_a_part_of_a_network() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = cifar_resnet(8), nn.Linear(10, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.backbone(x)) if x.sum() > 0 else self.head(self.backbone(-x))

    whole = Whole()
    whole.backbone = add_ghosts(whole.backbone, Recipe())
    assert len(ghosts_of(whole)) == 7
    assert all(name.startswith("backbone.ghosts.") for name in ghosts_of(whole))
    set_strength(whole, 0.0, 10.0)
    x = torch.randn(2, 3, 8, 8)
    final = finalize(copy.deepcopy(whole).eval())
    assert type(final.backbone) is ResNet
    torch.testing.assert_close(final(x), whole.eval()(x))
    with pytest.raises(ValueError, match=r"expected a network without ghosts, got one with a ghost at 'backbone.ghosts.conv1'"):
        add_ghosts(whole, Recipe())


def test_training_mode_is_kept() -> None:
    net = cifar_resnet(8).eval()
    net.layer1[0].bn1.train()
    ghosted = add_ghosts(net, Recipe())
    assert {name for name, module in ghosted.named_modules() if module.training} == {"layer1.0.bn1"}
    assert all(module.training for module in ghosted.train().modules())


def test_deepcopy_is_independent() -> None:
    net = add_ghosts(cifar_resnet(8), Recipe()).eval()
    x = torch.randn(1, 3, 8, 8)
    twin = copy.deepcopy(net)
    assert torch.equal(twin(x), net(x))
    with torch.no_grad():
        twin.conv1.weight.zero_()
    set_strength(twin, 0.0, 10.0)
    assert net.ghosts["layer1_0_conv1"].live
    assert not torch.equal(twin(x), net(x))
    assert float(net.conv1.weight.detach().abs().sum()) > 0


def test_pickling_says_what_to_do() -> None:
    net = add_ghosts(cifar_resnet(8), Recipe())
    with pytest.raises(RuntimeError, match=r"a ResNet with ghosts cannot be pickled, .*: save its state_dict\(\), or finalize"):
        pickle.dumps(net)
    pickle.dumps(finalize(net, warn=False))


def test_other_norms_in_the_place_of_a_fused_one() -> None:
    net = add_ghosts(cifar_resnet(8), Recipe()).eval()
    x = torch.randn(2, 3, 8, 8)
    expected = net(x)
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))
    assert isinstance(synchronized.layer1[0].bn1, nn.SyncBatchNorm)
    assert isinstance(synchronized.ghosts["layer1_0_conv1"].norm, nn.SyncBatchNorm)
    torch.testing.assert_close(synchronized(x), expected)
    net.bn1 = nn.Identity()
    torch.testing.assert_close(net(x).isfinite().all(), torch.tensor(True))
    assert not torch.allclose(net(x), expected)


def test_bad_input_is_named() -> None:
    net = cifar_resnet(8)
    with pytest.raises(TypeError, match=r"add_ghosts: net: expected a torch.nn.Module, got str"):
        add_ghosts("net", Recipe())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"add_ghosts: recipe: expected a tost.Recipe, got dict"):
        add_ghosts(net, {})  # type: ignore[arg-type]
    for recipe in (Recipe(), VANILLA):
        with pytest.raises(ValueError, match=r"net: expected a network without ghosts, got one with a ghost at 'ghosts.conv1'"):
            add_ghosts(add_ghosts(net, recipe), Recipe())
    net.ghosts = nn.Identity()
    with pytest.raises(ValueError, match="expected no attribute 'ghosts', where the ghosts go; ResNet has one: rename it"):
        add_ghosts(net, Recipe())


def test_a_kind_of_ghost_without_a_place() -> None:
    nothing = nn.Sequential(nn.Linear(2, 2))
    no_skip = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    no_swish = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3), nn.GELU())
    with pytest.raises(
        ValueError, match=r"Sequential has no place for ghost skips \(.*\) and ghost swish \(the trace meets no ReLU\)"
    ):
        add_ghosts(nothing, Recipe())
    with pytest.raises(ValueError, match="Sequential has no place for ghost skips"):
        add_ghosts(no_skip, SKIP)
    assert type(add_ghosts(nothing, VANILLA)) is nn.Sequential
    for net, missing in ((no_skip, "ghost skips"), (no_swish, "ghost swish")):
        check_ghosts(net, Recipe())  # warnings are errors here
        with pytest.warns(UserWarning, match=f"add_ghosts: net: Sequential has no place for {missing}"):
            assert len(ghosts_of(add_ghosts(net, Recipe()))) == 1
        assert type(net) is nn.Sequential


def test_the_ghosts_of_a_sequential_are_none_of_its_items() -> None:
    class Features(nn.Sequential):
        def all(self, x: Tensor) -> list[Tensor]:
            found = [x]
            for layer in self:
                found.append(layer(found[-1]))
            return found

    net = add_ghosts(Features(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 3), nn.ReLU()), Recipe())
    assert len(net.all(torch.randn(1, 3, 4, 4))) == 4
    assert len(net) == 3
    assert net[-1] is net[2]
    assert len(net[:2]) == 2
    assert len(list(finalize(net, warn=False))) == 3


def distributed_in_one_process(net: nn.Module) -> nn.Module:
    """As much of it as there is without a process group."""
    wrapper = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = net
    return wrapper


@pytest.mark.parametrize(
    ("wrap", "inner"),
    [
        (nn.DataParallel, "module"),
        (distributed_in_one_process, "module"),
        (lambda net: torch.compile(net, backend="eager"), "_orig_mod"),
    ],
    ids=["DataParallel", "DistributedDataParallel", "compiled"],
)
def test_a_wrapper_of_the_network(wrap: Callable[[nn.Module], nn.Module], inner: str) -> None:
    net = wrap(cifar_resnet(8))
    message = rf"its root: {type(net).__name__} only wraps the network; use net\.{inner}, and wrap the result"
    with pytest.raises(ValueError, match=f"add_ghosts: net: .*{message}"):
        add_ghosts(net, Recipe())
    with pytest.warns(UserWarning, match=message):
        assert add_ghosts(net, VANILLA, inplace=True) is net


class Same(nn.Conv2d):
    """Pads by itself, so its kernel's centre is elsewhere than its padding says."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, [1, 1, 1, 1]))


class Coordinates(nn.Conv2d):
    """Reads more channels than it is given."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(torch.cat([x, x[:, :1]], 1), weight, bias)


class Renamed(nn.Conv2d):
    """Computes what Conv2d does."""


def test_a_convolution_that_computes_something_of_its_own_gets_no_ghost() -> None:
    same, plain = Same(4, 4, 3), Renamed(4, 4, 3)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), same, same, nn.BatchNorm2d(4), plain, Coordinates(5, 4, 3), nn.ReLU())
    patched = nn.Conv2d(4, 4, 3)
    patched.forward = lambda x: x  # type: ignore[method-assign]
    net.insert(5, patched)
    with pytest.warns(
        UserWarning,
        match=r"3 of its convolutions have a forward of their own \(Conv2d, Coordinates, Same\), so they get no ghost",
    ) as caught:
        ghosted = add_ghosts(net, Recipe())
    assert len(caught) == 1
    assert [name for name, ghost in ghosts_of(ghosted).items() if isinstance(ghost, Ghost) and ghost.has_skip] == ["ghosts.4"]
    assert ghosted(torch.randn(2, 3, 8, 8)).shape == (2, 4, 4, 4)
    nn.utils.parametrizations.weight_norm(plain)
    with pytest.warns(UserWarning, match="3 of its convolutions"):
        assert ghosts_of(add_ghosts(net, Recipe()))["ghosts.4"].conv is not None
    with pytest.raises(
        ValueError, match=r"no place for ghost skips .*; 1 of its convolutions have a forward of their own \(Same\)"
    ):
        add_ghosts(nn.Sequential(nn.Conv2d(3, 4, 1), same), SKIP)


def test_relus_that_stay_are_named() -> None:
    class NormAct(nn.BatchNorm2d):
        def __init__(self) -> None:
            super().__init__(3)
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(super().forward(x))

    def blocks(count: int) -> nn.Module:
        return nn.Sequential(*(NormAct() for _ in range(count)), nn.Conv2d(3, 3, 1), nn.ReLU())

    for count, names in ((1, r"'0\.act'$"), (4, r"'0\.act', '1\.act', '2\.act', \.\.\.$")):
        message = f"add_ghosts: net: {count} of its ReLUs stay ReLU, being inside layers, with hooks, or of a subclass: {names}"
        with pytest.warns(UserWarning, match=message) as caught:
            add_ghosts(blocks(count), SWISH)
        assert len(caught) == 1
        add_ghosts(blocks(count), VANILLA)  # warnings are errors here
    hooked = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.ReLU())
    hooked[1].register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="1 of its ReLUs stay ReLU, .*: '1'"):
        add_ghosts(hooked, SWISH)
