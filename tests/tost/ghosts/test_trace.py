"""What a graph would freeze or lose ends in an error that names the place; what it keeps, it keeps."""

import copy
import random
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import tost_kernels as tk
from tost.ghosts import add_ghosts, check_ghosts, finalize, ghosts_of, set_strength
from tost.recipe import Recipe

SWISH = Recipe(ghost_skip=False)
APPLY = torch.autograd.Function.apply.__func__


class Base(nn.Module):
    """A stem and a spatial convolution; the forward of the tests is around them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.mean = torch.ones(4, 1, 1)  # no buffer
        self.register_buffer("scale", torch.ones(4, 1, 1))
        self.features: list[Any] = []
        self.calls = 0

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(F.relu(self.stem(x))))


def network(forward: Callable[..., Any]) -> Base:
    return type("Net", (Base,), {"forward": forward})()


def control_flow(self: Base, x: Tensor) -> Tensor:
    x = self.body(x)
    return x if x.sum() > 0 else -x


def loop_over_size(self: Base, x: Tensor) -> Tensor:
    for _ in range(x.shape[0]):
        x = self.body(x)
    return x


def mode_branch(self: Base, x: Tensor) -> Tensor:
    x = self.body(x)
    return x.relu() if self.training else x


def mode_number(self: Base, x: Tensor) -> Tensor:
    return self.body(x) * (0.5 if self.training else 1.0)


def noise(self: Base, x: Tensor) -> Tensor:
    return self.body(x) + torch.randn(4, 1, 1)


def stochastic_depth(self: Base, x: Tensor) -> Tensor:
    x = self.body(x)
    return x if torch.rand(1).item() < 2 else x + 1


def constant(self: Base, x: Tensor) -> Tensor:
    return self.body(x) * torch.tensor([2.0])


def plain_attribute(self: Base, x: Tensor) -> Tensor:
    return self.body(x) * (self.mean + 1)


def python_random(self: Base, x: Tensor) -> Tensor:
    x = self.body(x)
    return x + 1 if random.random() < 2 else x


def numpy_random(self: Base, x: Tensor) -> Tensor:
    return self.body(x) * float(np.random.rand() > -1)  # noqa: NPY002


def store(self: Base, x: Tensor) -> Tensor:
    self.last = self.body(x)
    return self.last


def append(self: Base, x: Tensor) -> Tensor:
    self.features.append(self.body(x))
    return self.features[-1]


def count(self: Base, x: Tensor) -> Tensor:
    self.calls += 1
    return self.body(x)


def assign(self: Base, x: Tensor) -> Tensor:
    x = self.body(x)
    x[:, 0] = 0
    return x


def star(self: Base, *xs: Tensor) -> Tensor:
    return self.body(torch.cat(list(xs)))


def no_gradient(self: Base, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = self.stem(x)
    return self.body(x)


@torch.no_grad()
def decorated(self: Base, x: Tensor) -> Tensor:
    return self.body(x)


def full_precision(self: Base, x: Tensor) -> Tensor:
    x = self.body(x)
    with torch.autocast("cpu", enabled=False):
        return x.relu()


def half_precision(self: Base, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return self.body(x)


def asks_for_gradients(self: Base, x: Tensor) -> Tensor:
    x = self.body(x)
    return x * 2 if torch.is_grad_enabled() else x


REFUSED = [
    (no_gradient, r"test_trace.py:\d+: a context of gradients or autocast, which a graph would lose; move"),
    (decorated, r"a context of gradients or autocast, which a graph would lose"),
    (full_precision, r"test_trace.py:\d+: a context of gradients or autocast"),
    (half_precision, r"test_trace.py:\d+: a context of gradients or autocast"),
    (asks_for_gradients, r"test_trace.py:\d+: the forward pass is another one in training"),
    (control_flow, r"test_trace.py:\d+: TraceError: .*control flow; a graph cannot branch"),
    (loop_over_size, r"test_trace.py:\d+: TypeError: .*Proxy"),
    (mode_branch, r"test_trace.py:\d+: the forward pass is another one in training .*nn.Dropout"),
    (mode_number, r"test_trace.py:\d+: the forward pass is another one in training"),
    (noise, r"test_trace.py:\d+: randn makes a tensor that a graph would freeze; compute it from the input"),
    (stochastic_depth, r"test_trace.py:\d+: rand makes a tensor"),
    (constant, r"test_trace.py:\d+: tensor makes a tensor|test_trace.py:\d+: a tensor that is no part"),
    (plain_attribute, r"test_trace.py:\d+: (__add__|add) makes a tensor .* register it as a buffer"),
    (python_random, "Python or numpy draws random numbers"),
    (numpy_random, "Python or numpy draws random numbers"),
    (store, r"its root \(Net\): forward changes the attribute 'last'; a graph would not: return the value"),
    (append, r"its root \(Net\): forward changes the attribute 'features'"),
    (count, r"its root \(Net\): forward changes the attribute 'calls'"),
    (assign, r"test_trace.py:\d+: TypeError: .*item assignment"),
    (star, r"test_trace.py:\d+: TraceError"),
]


@pytest.mark.parametrize(("forward", "message"), REFUSED, ids=[forward.__name__ for forward, _ in REFUSED])
def test_what_a_graph_would_freeze_is_refused(forward: Callable[..., Any], message: str) -> None:
    net = network(forward).eval()
    before = {name: dict(vars(module)) for name, module in net.named_modules()}
    features = list(net.features)
    states = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())  # noqa: NPY002
    for act in (check_ghosts, add_ghosts):
        with pytest.raises(
            ValueError, match=rf"add_ghosts: net: expected a network that torch.fx can trace, got Net: .*{message}"
        ):
            act(net, Recipe())
    assert {name: dict(vars(module)) for name, module in net.named_modules()} == before  # nothing is left on the network
    assert net.features == features
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), repr(np.random.get_state()))  # noqa: NPY002
    with pytest.warns(UserWarning, match=f"add_ghosts: net: nothing is fused: .*{message}"):
        same = add_ghosts(net, Recipe.vanilla())
    assert type(same) is type(net)


def test_the_error_names_the_module() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x) if bool(x.any()) else x

    with pytest.raises(ValueError, match=r"got Sequential: .*test_trace.py:\d+ in Branch: TraceError"):
        add_ghosts(nn.Sequential(nn.Conv2d(3, 3, 3), Branch()), Recipe())


def test_a_module_with_nothing_of_interest_is_not_looked_into() -> None:
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, self.training) if float(x.detach().sum()) > 0 else x + torch.zeros(1)

    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Gate()).eval()
    net = add_ghosts(plain, SWISH)
    set_strength(net, 0.0, 10.0)
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(net(x), plain(x))
    assert not torch.equal(net.train()(x), plain(x))  # its mode still counts


def with_options(self: Base, x: Tensor, scale: float = 2.0, *, mask: Tensor | None = None, deep: bool = False) -> Any:
    x = self.body(x) * scale
    if mask is not None:
        x = x * mask
    return [x, x] if deep else x


def test_the_signature_stays() -> None:
    plain = network(with_options)
    net = add_ghosts(plain, Recipe())
    set_strength(net, 0.0, 10.0)
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(net(x), plain(x))
    torch.testing.assert_close(net(x, 3.0), plain(x, 3.0))
    torch.testing.assert_close(net(x=x, scale=0.5, mask=None, deep=False), plain(x, 0.5))
    with pytest.raises(
        ValueError, match="forward: mask: expected its default None, got Tensor: with ghosts the network is the graph"
    ):
        net(x, mask=x)
    with pytest.raises(ValueError, match="forward: deep: expected its default False, got True"):
        net(x, deep=True)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        net(x, depth=1)


def named_like_a_stand_in(self: Base, a_1: Tensor, a: Tensor | None = None) -> Tensor:
    x = self.body(a_1)
    return x if a is None else x * a


def two_stand_ins(self: Base, x: Tensor, m_1: float, *, m: bool = False, x_1: str = "sum") -> Tensor:
    x = self.body(x) + m_1
    return x * 3 if m or x_1 != "sum" else x


@pytest.mark.parametrize(("forward", "args"), [(named_like_a_stand_in, ()), (two_stand_ins, (2.0,))])
def test_arguments_named_as_fx_names_its_own(forward: Callable[..., Any], args: tuple[float, ...]) -> None:
    plain = network(forward)
    net = add_ghosts(plain, Recipe())
    set_strength(net, 0.0, 10.0)
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(net(x, *args), plain(x, *args))
    frozen = "a" if not args else "m"
    with pytest.raises(ValueError, match=f"forward: {frozen}: expected its default"):
        net(x, *args, **{frozen: True})


def structured(self: Base, x: Tensor) -> Any:
    x = self.body(x) + self.scale
    return {"features": (x, [x.mean()]), "size": x.shape[0]}


def test_structured_results_and_buffers() -> None:
    plain = network(structured)
    net = add_ghosts(plain, SWISH)
    set_strength(net, 0.0, 10.0)
    for model in (plain, net):
        model.scale.mul_(2)
    x = torch.randn(2, 3, 5, 5)
    got, want = net(x), plain(x)
    assert torch.equal(got["features"][0], want["features"][0])
    assert torch.equal(got["features"][1][0], want["features"][1][0])
    assert got["size"] == 2
    assert "_tensor_constant0" not in vars(net)


def test_hooks_of_a_module_that_would_not_be_called() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()))
    handle = net[1].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"expected no hooks on '1' \(Sequential\): what is inside is called without it"):
        add_ghosts(net, Recipe())
    handle.remove()
    seen: list[int] = []
    net[1][0].register_forward_hook(lambda *_: seen.append(1))  # a layer: it is called
    add_ghosts(net, Recipe())(torch.randn(1, 3, 4, 4))
    assert seen == [1]


def in_place_sum(self: Base, x: Tensor) -> Tensor:
    x = self.stem(x)
    identity = x
    x += self.conv(x.detach())
    return x * identity  # the same tensor


def in_place_numbers(self: Base, x: Tensor) -> Tensor:
    n = m = x.shape[0]
    n += 1
    return self.body(x) * n + m


def in_place_after_its_size(self: Base, x: Tensor) -> Tensor:
    x = self.stem(x)
    n, height, mean = x.size(0), x.shape[2], x.mean()
    x = F.relu(x, inplace=True)
    return self.conv(x).view(n, -1, height) + mean


@pytest.mark.parametrize("forward", [in_place_sum, in_place_numbers, in_place_after_its_size])
def test_in_place_operators_stay_in_place(forward: Callable[..., Any]) -> None:
    plain = network(forward)
    net = add_ghosts(plain, Recipe(ghost_swish=forward is not in_place_sum))
    assert len(ghosts_of(net)) >= 1
    set_strength(net, 0.0, 10.0)
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(net(x), plain(x))


def seen_through_a_view(self: Base, x: Tensor) -> Tensor:
    x = self.stem(x)
    view = x.flatten(1)
    x = F.relu(x, inplace=True)
    return self.conv(x).flatten(1) + view


def test_an_in_place_relu_that_another_name_sees() -> None:
    net = network(seen_through_a_view)
    with pytest.raises(
        ValueError, match=r"no in-place operation on a tensor .* at .*test_trace.py:\d+, and a use at .*test_trace.py"
    ):
        add_ghosts(net, SWISH)
    kept = add_ghosts(net, Recipe(ghost_swish=False))  # the ReLU stays as it is
    set_strength(kept, 0.0, 10.0)
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(kept(x), net(x))


def returned_flat(self: Base, x: Tensor) -> Any:
    x = self.conv(self.stem(x))
    feat = x.flatten(1)
    x = F.relu_(x)
    return x, feat


def returned_whole(self: Base, x: Tensor) -> Tensor:
    x = self.norm(self.conv(self.stem(x)))
    a = x[:, :2]
    a.relu_()
    return x


def returned_pooled(self: Base, x: Tensor) -> Tensor:
    x = self.norm(self.conv(self.stem(x)))
    F.relu(x[:, :2], inplace=True)
    return F.max_pool2d(x, 2)


def returned_detached(self: Base, x: Tensor) -> Any:
    x = self.norm(self.conv(self.stem(x)))
    d = x.detach()
    return self.relu(x), d


def returned_kept(self: Base, x: Tensor) -> Any:
    h = self.stem(x)
    keep = self.drop(h).view(h.size(0), -1)
    h += self.norm(self.conv(h))
    return h.mean(), keep


@pytest.mark.parametrize("forward", [returned_flat, returned_whole, returned_pooled, returned_detached, returned_kept])
def test_an_in_place_operation_whose_other_name_is_only_returned(forward: Callable[..., Any]) -> None:
    class Net(Base):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.relu, self.drop = nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.0)

    Net.forward = forward  # type: ignore[method-assign]
    net = Net().eval()
    message = r"expected no in-place operation .* at .*test_trace.py:\d+, and a use at its return"
    with pytest.raises(ValueError, match=f"add_ghosts: net: {message}"):
        add_ghosts(net, Recipe())
    x = torch.randn(2, 3, 5, 5)
    expected = tree_leaves(net(x))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fused = add_ghosts(net, Recipe.vanilla())
    torch.testing.assert_close(tree_leaves(fused(x)), expected)
    if forward is returned_kept:  # here the fusion itself is at stake
        assert re.search(f"nothing is fused: {message}", str(caught[0].message))
        assert type(fused) is Net


def test_forward_of_an_instance() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU())
    net.forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="its root: forward is an attribute of the instance; define it in the class"):
        add_ghosts(net, SWISH)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_a_lazy_layer() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.LazyConv2d(3, 3))
    with pytest.raises(ValueError, match="'1': a layer that has no weight yet; run one batch through the network first"):
        add_ghosts(net, Recipe())


def test_a_parameter_is_followed() -> None:
    class Scaled(Base):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) * self.gamma.view(-1, 1, 1)

    net = add_ghosts(Scaled(), SWISH)
    net(torch.randn(2, 3, 5, 5)).sum().backward()
    assert net.gamma.grad is not None
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.gamma.zero_()
    assert float(twin(torch.randn(2, 3, 5, 5)).detach().abs().sum()) == 0.0
    assert "gamma" in dict(finalize(net, warn=False).named_parameters())


class Clamp(torch.autograd.Function):
    """Its gradient is not that of its forward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 3


class Dropped(Base):
    """Asks for its mode itself, as many networks do."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.body(x), 0.5, self.training)


def test_the_mode_as_an_argument() -> None:
    plain = nn.Sequential(Dropped(), nn.Conv2d(4, 3, 1), Dropped())
    net = add_ghosts(plain, Recipe())
    set_strength(net, 0.0, 10.0)
    x = torch.randn(2, 3, 5, 5)
    outputs = {}
    for modes in ((True, True), (True, False), (False, True), (False, False)):
        for model in (net, plain):
            for part, mode in zip((model[0], model[2]), modes, strict=True):
                part.training = mode
            torch.manual_seed(0)
            outputs[modes, model] = model(x)
        torch.testing.assert_close(outputs[modes, net], outputs[modes, plain])
    assert not torch.allclose(outputs[(True, True), net], outputs[(False, False), net])
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), net(x))


class Options(Base):
    """Reads plain attributes: of the instance, of the class, of a layer; others it does not read."""

    use_skip = True
    depth = property(lambda self: self.changing)

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.act = nn.Dropout(0.0), None
        self._p, self.epoch, self.kind, self.changing = 0.5, 0, "sum", 1.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x) * self._p
        x = F.dropout(x, self.drop.p, self.training)
        x = x * 2 if self.use_skip and self.kind == "sum" and self.depth > 0 else x
        return x if self.act is None else self.act(x)


@pytest.mark.parametrize(
    ("path", "name", "value", "old"),
    [
        ("1", "_p", 0.25, "0.5"), ("1", "use_skip", False, "True"), ("1", "kind", "mean", "'sum'"),
        ("1", "act", nn.Identity(), "None"), ("1.drop", "p", 0.1, "0.0"),
    ],
)  # fmt: skip
def test_a_changed_attribute_that_forward_reads_is_noticed(path: str, name: str, value: Any, old: str) -> None:
    net = add_ghosts(nn.Sequential(nn.Conv2d(3, 3, 1), Options()), Recipe())
    net[1].epoch, net[1].calls = 3, 4  # not read
    net.train().eval()
    set_strength(net, 0.5, 2.0)
    for whole in (copy.deepcopy(net), nn.Sequential(net), torch.compile(net, backend="eager")):
        module = dict(whole.named_modules())[f"{'' if type(whole) is type(net) else next(iter(whole._modules)) + '.'}{path}"]
        before = getattr(module, name)
        setattr(module, name, value)
        with pytest.raises(
            ValueError,
            match=rf"set_strength: net: expected the attribute '{name}' of '{path}' \((Options|Dropout)\) to stay {old}, got .*: "
            "forward read it when the ghosts were added; finalize the network and add them anew, or move",
        ):
            set_strength(whole, 0.25, 4.0)
        assert all(ghost.strength()[1] == 2.0 for ghost in ghosts_of(whole).values())
        setattr(module, name, before)
        set_strength(whole, 0.5, 2.0)
    assert "__getattribute__" not in vars(nn.Module)
    root = add_ghosts(Options(), Recipe())
    root._p = 2.0
    with pytest.raises(ValueError, match=r"attribute '_p' of 'the root' \(Options\) to stay 0.5, got 2.0"):
        set_strength(root, 0.0, 10.0)


def its_layers_mode(self: Base, x: Tensor) -> Tensor:
    return F.dropout(self.body(x), 0.5, training=self.drop.training)


def its_own_and_a_number(self: Base, x: Tensor) -> Tensor:
    return F.dropout(self.body(x), 0.5, self.training and self.calls == 0)


@pytest.mark.parametrize(("forward", "path"), [(its_layers_mode, "1.drop"), (its_own_and_a_number, "1")])
def test_the_mode_of_another_module_as_an_argument(forward: Callable[..., Any], path: str) -> None:
    part = network(forward)
    part.drop = nn.Dropout(0.0)
    plain = nn.Sequential(nn.Conv2d(3, 3, 1), part)
    net = add_ghosts(plain, Recipe())
    set_strength(net, 0.0, 10.0)
    x = torch.randn(2, 3, 5, 5)
    results = []
    for rest, mode in ((True, False), (False, True), (False, False), (True, True)):
        outputs = []
        for model in (net, plain):
            model.train(rest).get_submodule(path).training = mode
            torch.manual_seed(0)
            outputs.append(model(x))
        torch.testing.assert_close(*outputs)
        results.append(outputs[0])
    assert not torch.allclose(results[1], results[2])


def both_modes(self: Base, x: Tensor) -> Tensor:
    return F.dropout(self.body(x), 0.5, self.stem.training and self.conv.training)


def either_mode(self: Base, x: Tensor) -> Tensor:
    return F.dropout(self.body(x), 0.5, self.stem.training or self.conv.training)


def gradients_mode(self: Base, x: Tensor) -> Tensor:
    return F.dropout(self.body(x), 0.5, torch.is_grad_enabled())


def mode_by_identity(self: Base, x: Tensor) -> Tensor:
    x = self.body(x)
    return x * 2 if self.training is True else x


@pytest.mark.parametrize("forward", [both_modes, either_mode, gradients_mode, mode_by_identity])
def test_an_argument_that_is_no_mode_of_one_module(forward: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"test_trace.py:\d+: the forward pass is another one in training"):
        add_ghosts(network(forward), Recipe())


def own_gradient(self: Base, x: Tensor) -> Tensor:
    return Clamp.apply(self.body(x))  # type: ignore[no-any-return]


def asks_for_a_tensor(self: Base, x: Any) -> Tensor:
    x = self.body(x)
    if isinstance(x, list | tuple):
        return x[0]  # type: ignore[no-any-return]
    return x * 2 if isinstance(x, Tensor) else x * 3


def converts(self: Base, x: Tensor) -> Tensor:
    return self.body(tk.to_batch_last(x))


def shaped_by_sizes(self: Base, x: Tensor) -> Tensor:
    x = self.body(x)
    height, width = x.shape[2:]
    count = x.shape[0]
    count *= x.size(1) // 2
    return torch.reshape(x, (count, 2 * height * width))  # torch's parser of sizes sees what these stand-ins pass for


@pytest.mark.parametrize("forward", [own_gradient, asks_for_a_tensor, converts, shaped_by_sizes])
def test_what_a_trace_keeps(forward: Callable[..., Any]) -> None:
    plain = network(forward)
    net = add_ghosts(plain, Recipe())
    set_strength(net, 0.0, 10.0)
    x = torch.randn(2, 3, 5, 5)
    outputs = [model(x) for model in (net, plain)]
    torch.testing.assert_close(*outputs)
    assert outputs[0].stride() == outputs[1].stride()
    grads = [torch.autograd.grad(out.sum(), model.stem.weight) for out, model in zip(outputs, (net, plain), strict=True)]
    torch.testing.assert_close(*grads)
    assert torch.autograd.Function.apply.__func__ is APPLY
