"""Networks of every kind: the fused and the finalized form against the plain one, and living ghosts against forwards by hand."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

import tost_kernels as tk
from tost.ghosts import Ghost, GhostSwish, add_ghosts, finalize, ghosts_of, set_strength
from tost.models.resnet import cifar_resnet
from tost.recipe import Recipe

ALIVE = Recipe(alpha_start=0.75, beta_start=2.0)


def conv(a: int, b: int, kernel: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(a, b, kernel, bias=False, **options)  # type: ignore[arg-type]


class Bottleneck(nn.Module):
    """As torchvision writes it: one in-place ReLU at three places, an in-place sum, a downsample branch or None."""

    def __init__(self, inp: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inp, planes, 1), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = conv(planes, planes, 3, stride=stride, padding=1), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = conv(planes, 2 * planes, 1), nn.BatchNorm2d(2 * planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inp != 2 * planes:
            self.downsample = nn.Sequential(conv(inp, 2 * planes, 1, stride=stride), nn.BatchNorm2d(2 * planes))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


def bottlenecks() -> nn.Module:
    return nn.Sequential(conv(3, 4, 3, padding=1), Bottleneck(4, 3, 2), Bottleneck(6, 3))


def vgg() -> nn.Module:
    relu = nn.ReLU(inplace=True)  # one for all places
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), relu, nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5), relu,
        nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(5, 4, 3, padding=1), relu, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 6), relu, nn.Linear(6, 2),
    )  # fmt: skip


class MobileNet(nn.Module):
    """Depthwise and grouped convolutions; one activation that is not ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.depthwise, self.bn1 = conv(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4)
        self.pointwise, self.bn2 = conv(4, 6, 1), nn.BatchNorm2d(6)
        self.grouped, self.bn3 = conv(6, 8, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(8)
        self.relu, self.relu6 = nn.ReLU(), nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.depthwise(self.stem(x))))
        x = self.relu6(self.bn2(self.pointwise(x)))
        return self.relu(self.bn3(self.grouped(x)))


class LeNet(nn.Module):
    """5x5 without padding, functional ReLU and pooling, linear layers at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 5, padding=2), nn.Conv2d(4, 5, 5)
        self.fc1, self.fc2 = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class Functional(nn.Module):
    """ReLU and sums in every form."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 4)
        self.convs = nn.ModuleList(conv(4, 4, 3, padding=1) for _ in range(6))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = [norm(layer(x)) for layer, norm in zip(self.convs, self.norms, strict=True)]
        a = torch.relu_(torch.add(y[0], x))
        b = y[1].add(a).relu()
        c = F.relu(y[2].add_(b), inplace=True)
        d = F.relu_(y[3] + c)
        e = F.relu(input=torch.add(y[4], d, alpha=2))
        return (e + y[5]).relu_()


class Dense(nn.Module):
    """DenseNet's order, norm and ReLU before the convolution, and concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 4, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(4), conv(4, 2, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(6), conv(6, 2, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.drop(self.conv1(self.relu(self.norm1(x))))], 1)
        return torch.cat([x, self.conv2(self.relu(self.norm2(x)))], 1)


class PreActivation(nn.Module):
    """The in-place ReLU changes x, which is also the shortcut: the shortcut is the activated x."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2 = conv(3, 4), conv(4, 4, 3, padding=1), conv(4, 4, 3, padding=1)
        self.norm, self.relu = nn.BatchNorm2d(4), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.conv2(self.relu(self.norm(self.conv1(self.relu(x)))))
        return out + x


class Sums(nn.Module):
    """Sums of two convolutions that both have a ghost, and sums that broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.narrow, self.wide = conv(3, 4, 3, padding=1), conv(4, 4, 3, padding=1), conv(4, 4, 5, padding=2)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.squeeze, self.last = conv(4, 4, 1), conv(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = (self.bn1(self.narrow(x)) + self.bn2(self.wide(x))).relu()
        x = (self.bn3(self.squeeze(F.adaptive_avg_pool2d(x, 1))) + x).relu()
        return (self.last(x) + x.mean((2, 3), keepdim=True)).relu()


class Shared(nn.Module):
    """One convolution and one BatchNorm at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = conv(3, 4), conv(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.norm(self.conv(self.norm(self.conv(x)).relu()))


class SharedSum(nn.Module):
    """One convolution at two places, with a sum that broadcasts at the first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.gate = conv(3, 4), conv(4, 4, 3, padding=1), conv(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.conv(x) + self.gate(x.mean((2, 3), keepdim=True))
        return self.conv(x).relu()


def shared_block() -> nn.Module:
    block = nn.Sequential(conv(3, 3, 3, padding=1), nn.ReLU())
    return nn.Sequential(block, nn.BatchNorm2d(3), block, nn.ReLU())


class Head(nn.Module):
    """Nothing of interest inside, and nothing that could be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3))
        return self.fc(x) if float(x.detach().sum()) > 0 else self.fc(-x).relu()


def with_head() -> nn.Module:
    return nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4), nn.ReLU(), Head())


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "basic": lambda: cifar_resnet(8), "bottleneck": bottlenecks, "vgg": vgg, "mobilenet": MobileNet, "lenet": LeNet,
    "functional": Functional, "dense": Dense, "pre-activation": PreActivation, "sums": Sums, "shared": Shared,
    "shared-sum": SharedSum, "shared-block": shared_block, "head": with_head,
}  # fmt: skip

# How many ghost skips, fused tails with a ReLU, and other ReLUs there are.
PLACES = {
    "basic": (6, 7, 0), "bottleneck": (2, 6, 0), "vgg": (2, 3, 1), "mobilenet": (2, 3, 0), "lenet": (1, 2, 1),
    "functional": (6, 6, 1), "dense": (2, 2, 0), "pre-activation": (2, 2, 0), "sums": (3, 3, 0), "shared": (2, 0, 1),
    "shared-sum": (2, 1, 0), "shared-block": (1, 2, 1), "head": (1, 2, 0),
}  # fmt: skip


def randomise(net: nn.Module) -> nn.Module:
    """Every value different, so that a swapped wire shows."""
    with torch.no_grad():
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            if tensor.is_floating_point() and not name.endswith(("alpha", "beta")):
                tensor.copy_(torch.rand_like(tensor) + 0.1 if name.endswith("var") else torch.randn_like(tensor) * 0.5)
    return net


def results(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, gradients and buffers of the plain network's names after a forward and backward pass."""
    net.zero_grad()
    x = x.clone().requires_grad_()
    out = net(x)
    out.square().sum().backward()
    found = {
        "out": out.detach(),
        "x": x.grad,
        **{f"d {name}": p.grad for name, p in net.named_parameters()},
        **dict(net.named_buffers()),
    }
    return {name: tensor.clone() for name, tensor in found.items() if tensor is not None and "ghosts." not in name}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name in first:
        scale = max(1.0, float(second[name].abs().max()))
        torch.testing.assert_close(
            first[name], second[name], rtol=0, atol=tolerance * scale, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("recipe", [Recipe.vanilla(), ALIVE], ids=["vanilla", "ghosts"])
@pytest.mark.parametrize("name", NETWORKS)
def test_without_strength_it_is_the_plain_network(name: str, recipe: Recipe, training: bool) -> None:
    plain = randomise(NETWORKS[name]()).double().train(training)
    x = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    net = add_ghosts(plain, recipe)
    set_strength(net, 0.0, torch.inf)
    expected = results(plain, x)
    assert_same(results(net, x), expected, 1e-11)
    final = finalize(net, warn=False)
    assert type(final) is type(plain)
    assert list(final.state_dict()) == list(plain.state_dict())
    assert [(n, type(m), m.training) for n, m in final.named_modules()] == [
        (n, type(m), m.training) for n, m in plain.named_modules()
    ]
    final.load_state_dict(plain.state_dict())
    once, again = results(plain, x), results(final, x)
    assert all(torch.equal(once[key], again[key]) for key in once)  # the very same code


@pytest.mark.parametrize("name", NETWORKS)
def test_the_places_of_the_ghosts(name: str) -> None:
    net = add_ghosts(NETWORKS[name](), Recipe())
    ghosts = ghosts_of(net).values()
    skips = sum(isinstance(ghost, Ghost) and ghost.has_skip for ghost in ghosts)
    acts = sum(isinstance(ghost, Ghost) and ghost.act == "pswish" for ghost in ghosts)
    elsewhere = sum(isinstance(ghost, GhostSwish) for ghost in ghosts)
    assert (skips, acts, elsewhere) == PLACES[name]


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(2.0 * x)


def bn(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    return F.batch_norm(x, mean, var, norm.weight, norm.bias, norm.training, 0.1, norm.eps)


def skip(net: nn.Module, key: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    ghost = net.ghosts[key]
    return 0.75 * bn(ghost.norm, F.conv2d(x, ghost.conv.weight, stride=stride, groups=groups))


def bottleneck_by_hand(net: nn.Module, x: Tensor) -> Tensor:
    x = net[0](x)
    for i, stride in ((1, 2), (2, 1)):
        block = net[i]
        h = swish(bn(block.bn1, block.conv1(x)))
        h = swish(bn(block.bn2, block.conv2(h)) + skip(net, f"{i}_conv2", h, stride))
        shortcut = x if block.downsample is None else bn(block.downsample[1], block.downsample[0](x))
        x = swish(bn(block.bn3, block.conv3(h)) + shortcut)
    return x


def vgg_by_hand(net: nn.Module, x: Tensor) -> Tensor:
    x = swish(bn(net[1], net[0](x)))
    x = net[6](swish(bn(net[4], net[3](x)) + skip(net, "3", x)))
    x = swish(net[7](x) + skip(net, "7", x))
    return net[13](swish(net[11](x.mean((2, 3)))))


def mobilenet_by_hand(net: nn.Module, x: Tensor) -> Tensor:
    x = swish(bn(net.stem[1], net.stem[0](x)))
    x = swish(bn(net.bn1, net.depthwise(x)) + skip(net, "depthwise", x, groups=4))
    x = bn(net.bn2, net.pointwise(x)).clamp(0, 6)
    return swish(bn(net.bn3, net.grouped(x)) + skip(net, "grouped", x, stride=2, groups=2))


def lenet_by_hand(net: nn.Module, x: Tensor) -> Tensor:
    x = F.max_pool2d(swish(net.conv1(x)), 2)
    x = F.max_pool2d(swish(net.conv2(x) + skip(net, "conv2", x[:, :, 2:-2, 2:-2])), 2)
    return net.fc2(swish(net.fc1(x.flatten(1))))


def dense_by_hand(net: nn.Module, x: Tensor) -> Tensor:
    x = net.stem(x)
    for i in (1, 2):
        h = swish(bn(getattr(net, f"norm{i}"), x))
        x = torch.cat([x, getattr(net, f"conv{i}")(h) + skip(net, f"conv{i}", h)], 1)
    return x


def sums_by_hand(net: nn.Module, x: Tensor) -> Tensor:
    x = net.stem(x)
    left = bn(net.bn1, net.narrow(x)) + skip(net, "narrow", x)
    right = bn(net.bn2, net.wide(x)) + skip(net, "wide", x)
    x = swish(left + right)
    x = swish(bn(net.bn3, net.squeeze(F.adaptive_avg_pool2d(x, 1))) + x)
    return swish(net.last(x) + skip(net, "last", x) + x.mean((2, 3), keepdim=True))


def pre_activation_by_hand(net: nn.Module, x: Tensor) -> Tensor:
    x = swish(net.stem(x))
    h = swish(bn(net.norm, net.conv1(x)) + skip(net, "conv1", x))
    return net.conv2(h) + skip(net, "conv2", h) + x


def shared_by_hand(net: nn.Module, x: Tensor) -> Tensor:
    x = net.stem(x)
    assert net.ghosts["conv_2"].conv is None  # the first call's serves both
    assert len({id(t) for t in net.state_dict(keep_vars=True).values()}) == len(net.state_dict())
    x = swish(bn(net.norm, net.conv(x) + skip(net, "conv", x)))
    return bn(net.norm, net.conv(x) + skip(net, "conv", x))


def shared_sum_by_hand(net: nn.Module, x: Tensor) -> Tensor:
    x = net.stem(x)
    x = net.conv(x) + skip(net, "conv", x) + net.gate(x.mean((2, 3), keepdim=True))
    return swish(net.conv(x) + skip(net, "conv", x))


BY_HAND = {
    "bottleneck": bottleneck_by_hand, "vgg": vgg_by_hand, "mobilenet": mobilenet_by_hand, "lenet": lenet_by_hand,
    "dense": dense_by_hand, "sums": sums_by_hand, "pre-activation": pre_activation_by_hand, "shared": shared_by_hand,
    "shared-sum": shared_sum_by_hand,
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", BY_HAND)
def test_living_ghosts_are_the_formula(name: str, training: bool) -> None:
    net = randomise(add_ghosts(NETWORKS[name](), ALIVE)).double().train(training)
    x = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    out, expected = net(x), BY_HAND[name](net, x)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(out)
    parameters = list(net.parameters())
    grads = torch.autograd.grad((out * weight).sum(), parameters)
    wanted = torch.autograd.grad((expected * weight).sum(), parameters)
    for got, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-8)


def form_of(net: nn.Module, form: str) -> nn.Module:
    masks = {n: torch.rand_like(m.weight) < 0.5 for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    if form == "sparse":
        return tk.sparsify(net, masks)
    if form == "masked":
        for name, mask in masks.items():
            prune.custom_from_mask(net.get_submodule(name), "weight", mask)
    return net


@pytest.mark.parametrize("form", ["sparse", "masked", "dense"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_form_trains_and_comes_back(name: str, form: str) -> None:
    plain = form_of(NETWORKS[name](), form)
    net = add_ghosts(plain, Recipe())
    x = torch.randn(4, 3, 12, 12)
    x = tk.to_batch_last(x) if form == "sparse" else x
    net(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())
    if form == "sparse":
        twin = tk.densify(net)
        torch.testing.assert_close(net.eval()(x), twin.eval()(x.contiguous()), rtol=1e-4, atol=1e-4)
    set_strength(net, 0.0, 10.0)
    final = finalize(net)
    assert list(final.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(final.eval()(x), net.eval()(x))


@pytest.mark.parametrize("name", ["bottleneck", "mobilenet", "lenet"])
def test_autocast(name: str) -> None:
    net = add_ghosts(NETWORKS[name](), Recipe())
    x = torch.randn(4, 3, 12, 12)
    expected = net(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x)
    out.float().square().sum().backward()
    torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())


def test_a_copy_of_a_shared_convolution_has_its_own_ghost() -> None:
    net = add_ghosts(Shared(), ALIVE).eval()
    x = torch.randn(2, 3, 8, 8)
    before = net(x)
    twin = copy.deepcopy(net)
    randomise(twin.ghosts)
    assert not torch.allclose(twin(x), before)
    assert torch.equal(net(x), before)
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(x), before)


class Positions(nn.Module):
    """Adds a parameter to a convolution's result, and the other way round."""

    def __init__(self, method: bool, onto_parameter: bool) -> None:
        super().__init__()
        self.stem, self.conv, self.pos = conv(3, 4, 1), conv(4, 4, 3, padding=1), nn.Parameter(torch.randn(2, 4, 8, 8))
        self.method, self.onto_parameter = method, onto_parameter

    def forward(self, x: Tensor) -> Tensor:
        y, pos = self.conv(self.stem(x)), self.pos.clone()
        left, right = (pos, y) if self.onto_parameter else (y, pos)
        if self.method:
            return F.relu(left.add_(right))
        left += right
        return F.relu(left)


@pytest.mark.parametrize("method", [True, False])
@pytest.mark.parametrize("onto_parameter", [True, False])
@pytest.mark.parametrize("recipe", [Recipe.vanilla(), Recipe()], ids=["vanilla", "ghosts"])
def test_an_in_place_sum_keeps_the_dtype_of_what_it_changes(recipe: Recipe, method: bool, onto_parameter: bool) -> None:
    plain = Positions(method, onto_parameter)
    net = add_ghosts(plain, recipe)
    set_strength(net, 0.0, torch.inf)
    x = torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = net(x), plain(x)
    assert got.dtype == (torch.float32 if onto_parameter else torch.bfloat16)
    torch.testing.assert_close(got, want)
    assert net(x).dtype == torch.float32
