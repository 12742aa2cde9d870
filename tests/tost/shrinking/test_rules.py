"""One small network for each rule: what goes, what stays and why, and that the outputs are the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tost
from tests.tost.shrinking.dead_filters import assert_same, outputs_left, randomised, shrunk

X = torch.randn(3, 2, 6, 5, generator=torch.Generator().manual_seed(3))


def kill(layer: nn.Module, filters: Sequence[int]) -> None:
    with torch.no_grad():
        layer.weight[list(filters)] = 0


def net_of(*layers: nn.Module) -> nn.Sequential:
    return randomised(nn.Sequential(*layers))


class Branches(nn.Module):
    """Two convolutions on one input; `join` makes one tensor of their results, which a convolution without padding reads."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], joined: int, padding: int = 0) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(joined, 3, 3, padding=padding)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.join(F.relu(self.norm(self.left(x))), self.right(x)))


def test_a_constant_is_folded_where_nothing_pads() -> None:
    net = net_of(nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Sigmoid(), nn.Conv2d(5, 3, 3, bias=False))
    kill(net[0], [1, 4])
    result = shrunk(net, X)
    assert outputs_left(result) == {"0": 3, "1": 3, "3": 3}
    assert result.report.folded == ("3",)
    assert result.model[3].bias.shape == (3,)
    assert result.report.kept == ()


def test_a_constant_that_would_leak_into_a_padding_stays_and_is_told() -> None:
    net = net_of(nn.Conv2d(2, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 3, 3, padding=1))
    with torch.no_grad():
        net[1].running_mean.zero_()
        net[1].bias.copy_(torch.tensor([0.5, 0.5, -0.5, 0.5, 0.0]))
    kill(net[0], [1, 2, 4])
    result = shrunk(net, X)
    assert outputs_left(result)["0"] == 3  # behind the ReLU the constants of 2 and 4 are 0
    assert [(kept.layer, kept.filters) for kept in result.report.kept] == [("0", (1,))]
    assert result.report.kept[0].reason == "its constant would leak into the padding of '3'"
    zeroed = shrunk(net, X, zero_constants=True)
    assert outputs_left(zeroed)["0"] == 2
    assert zeroed.report.zeroed == {"1": (1,)}
    assert zeroed.report.kept == ()
    with pytest.raises(AssertionError):  # it is another function
        assert_same(net, zeroed.model, X, 1e-3)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_a_padding_of_the_images_own_pixels_has_no_effect_on_constants(mode: str) -> None:
    net = net_of(nn.Conv2d(2, 5, 1), nn.Conv2d(5, 3, 3, padding=1, padding_mode=mode))
    kill(net[0], [0])
    assert outputs_left(shrunk(net, X))["0"] == 4


def test_weights_that_never_meet_the_padding_let_a_constant_go() -> None:
    net = net_of(nn.Conv2d(2, 5, 1), nn.Conv2d(5, 3, 3, padding="same", dilation=2, stride=1))
    kill(net[0], [0, 3])
    centre = torch.zeros(3, 3, dtype=torch.bool)
    centre[1, 1] = True
    with torch.no_grad():
        net[1].weight[:, 3] *= centre
    result = shrunk(net, X)
    assert outputs_left(result)["0"] == 4
    assert result.report.kept[0].filters == (0,)


def test_filters_that_nobody_reads_go_and_what_only_they_read() -> None:
    net = net_of(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    with torch.no_grad():
        net[5].weight[:, 2] = 0
        net[3].weight[[0, 1, 3], 5] = 0  # filter 2 alone reads channel 5
    assert outputs_left(shrunk(net, X)) == {"0": 5, "1": 5, "3": 3, "5": 2}


def test_a_sum_is_dead_only_where_all_of_it_is() -> None:
    net = randomised(Branches(torch.add, 4))
    kill(net.left, [0, 1])
    kill(net.right, [1, 2])
    result = shrunk(net, X)
    assert outputs_left(result) == {"left": 3, "norm": 3, "right": 3, "last": 3}
    assert {(kept.layer, kept.filters) for kept in result.report.kept} == {("left", (0,)), ("right", (2,))}
    assert all("alive" in kept.reason for kept in result.report.kept)


def test_a_residual_stream_that_only_feeds_itself_goes() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.last = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x + self.one(x)
            return self.last(x)

    net = Residual()
    with torch.no_grad():
        net.last.weight[:, 2] = 0
        net.one.weight[[0, 1, 3], 2] = 0  # only filter 2 reads channel 2
    assert outputs_left(shrunk(net, X)) == {"stem": 3, "one": 3, "last": 2}


def test_a_concatenation_has_channels_of_both() -> None:
    net = randomised(Branches(lambda a, b: torch.cat([b, a, b], 1), 12))
    kill(net.left, [3])
    kill(net.right, [0, 2])
    result = shrunk(net, X)
    assert outputs_left(result) == {"left": 3, "norm": 3, "right": 2, "last": 3}
    assert result.model.last.in_channels == 7
    assert result.cuts["last"].inputs == (1, 3, 4, 5, 6, 9, 11)


def test_a_concatenation_with_the_input() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(2, 4, 1), nn.Conv2d(6, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.cat((x, self.conv(x)), 1))

    net = Skip()
    kill(net.conv, [1, 2])
    result = shrunk(net, X)
    assert outputs_left(result) == {"conv": 2, "last": 3}
    assert result.cuts["last"].inputs == (0, 1, 2, 5)


def test_a_product_with_a_dead_channel_is_dead() -> None:
    net = randomised(Branches(torch.mul, 4, padding=1))
    with torch.no_grad():
        net.right.bias[1] = 0
    kill(net.right, [1])
    assert outputs_left(shrunk(net, X)) == {"left": 3, "norm": 3, "right": 3, "last": 3}


def test_depthwise_filters_go_with_their_channels() -> None:
    net = net_of(
        nn.Conv2d(2, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU6(),
        nn.Conv2d(6, 12, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 3, 1),
    )  # fmt: skip
    kill(net[0], [0, 1])
    kill(net[3], [2, 3, 4, 5, 7])  # both filters of channels 1 and 2, one of those of channel 3
    with torch.no_grad():
        net[1].running_mean.zero_()
        net[1].bias[0] = 0.7
    result = shrunk(net, X)
    assert outputs_left(result) == {"0": 4, "1": 4, "3": 8, "4": 8, "6": 3}
    assert result.model[3].groups == 4
    assert ("0", (0,), "its constant would leak into the padding of '3'") in result.report.kept
    assert outputs_left(shrunk(net, X, zero_constants=True))["0"] == 3


def test_grouped_convolutions_lose_whole_groups() -> None:
    net = net_of(nn.Conv2d(2, 6, 3), nn.Conv2d(6, 9, 3, groups=3), nn.ReLU(), nn.Conv2d(9, 3, 1))
    kill(net[1], [0, 3, 4, 5])
    result = shrunk(net, X)
    assert outputs_left(result) == {"0": 4, "1": 6, "3": 3}
    assert result.model[1].groups == 2
    assert [(kept.layer, kept.filters) for kept in result.report.kept] == [("1", (0,))]


@pytest.mark.parametrize("flat", [nn.Flatten(), "view", "flatten", "reshape", "mean"])
def test_a_linear_layer_loses_the_features_of_a_channel(flat: nn.Module | str) -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(2, 5, 3), nn.MaxPool2d(2)
            self.flat = flat if isinstance(flat, nn.Module) else None
            self.fc1, self.norm, self.fc2 = nn.Linear(5 if flat == "mean" else 10, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(self.conv(x))
            if self.flat is not None:
                x = self.flat(x)
            elif flat == "mean":
                x = x.mean([2, 3])
            elif flat == "view":
                x = x.view(x.size(0), -1)
            elif flat == "reshape":
                x = torch.reshape(x, (x.shape[0], -1))
            else:
                x = torch.flatten(x, 1)
            return self.fc2(F.elu(self.norm(self.fc1(x))))

    net = randomised(Head())
    kill(net.conv, [1, 2])
    kill(net.fc1, [6])
    result = shrunk(net, X)
    assert outputs_left(result) == {"conv": 3, "fc1": 6, "norm": 6, "fc2": 3}
    assert result.model.fc1.in_features == (3 if flat == "mean" else 6)
    assert result.report.folded == ("fc1", "fc2")


class Fixed(nn.Module):
    """A convolution whose dead filter must stay, as `forward` does something with its channels."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], features: int) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(features, 3)
        self.scale = nn.Parameter(torch.randn(4, 1, 1))
        self.how = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def _written_behind_its_back(net: Fixed, x: Tensor) -> Tensor:
    x = net.conv(x)
    x.mul_(net.scale)
    return net.fc(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("forward", "features"),
    [
        (lambda net, x: net.fc(net.conv(x).view(-1, 48)), 48),
        (lambda net, x: net.fc((net.conv(x) * net.scale).flatten(1)), 48),
        (lambda net, x: net.fc(F.softmax(net.conv(x), 1).flatten(1)), 48),
        (lambda net, x: net.fc(net.conv(x)[:, 1:3].flatten(1)), 24),
        (lambda net, x: net.fc(net.conv(x).chunk(2, 1)[0].flatten(1)), 24),
        (lambda net, x: net.fc(net.conv(x).view(x.size(0), 2, 2, 4, 3).transpose(1, 2).flatten(1)), 48),
        (lambda net, x: net.fc((net.conv(x) / net.conv.out_channels).flatten(1)), 48),
        (lambda net, x: net.fc((lambda y: y / y.size(1))(net.conv(x)).flatten(1)), 48),
        (lambda net, x: net.fc(F.conv2d(x, net.conv.weight).flatten(1)) + net.conv(x).sum(), 48),
        (lambda net, x: net.fc(F.dropout(net.conv(x), 0.0).flatten(1)), 48),
        (_written_behind_its_back, 4),
        (lambda net, x: net.conv(x), 4),
        (lambda net, x: net.fc((lambda y: y * y.shape[:2][1])(net.conv(x)).flatten(1)), 48),
    ],
)
def test_what_is_not_known_stays(forward: Callable[[nn.Module, Tensor], Tensor], features: int) -> None:
    net = Fixed(forward, features)
    kill(net.conv, [1])
    result = shrunk(net, X)
    assert result.cuts == {}
    assert [(kept.layer, kept.filters) for kept in result.report.kept] == [("conv", (1,))]


def test_shared_layers_lose_what_is_dead_at_every_call() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.last = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)
            self.again = self.body

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.again(F.relu(self.body(F.relu(self.stem(x))))).mean((2, 3)))

    net = Shared()
    with torch.no_grad():
        net.stem.bias[[1, 2]] = 0
        net.body.bias[[1, 2]] = 0
    kill(net.stem, [1, 2])
    kill(net.body, [1, 3])
    result = shrunk(net, X)
    assert outputs_left(result) == {"stem": 3, "body": 3, "last": 3}
    assert result.model.body is result.model.again


def test_tied_weights_and_hooks_keep_a_layer_as_it_is() -> None:
    net = net_of(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1))
    net[0].weight = net[1].weight
    kill(net[0], [1])
    kill(net[2], [1])
    net[2].register_forward_hook(lambda module, inputs, output: output + 1)
    result = shrunk(net, X)
    assert result.cuts == {}
    reasons = {kept.layer: kept.reason for kept in result.report.kept}
    assert reasons["1"] == "'1' stays as it is: it shares a tensor with another module"
    assert reasons["2"] == "'2' stays as it is: it has hooks"


@pytest.mark.parametrize("late", [False, True])
def test_operations_in_place_change_all_who_hold_the_tensor(late: bool) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            whole, flat = x[:], x.flatten(2)
            y = F.relu_(x) if not late else x.sub_(0.5)
            return self.last(whole) + self.last(y) + self.last(flat.view(x.shape[0], -1, 6, 5))

    net = InPlace()
    with torch.no_grad():
        net.conv.bias[:] = torch.tensor([0.3, -0.4, 0.1, -0.2])
    kill(net.conv, [1, 2])
    result = shrunk(net, X)
    assert_same(net, result.model, X, 1e-6)


@pytest.mark.parametrize(
    "pool", [nn.AvgPool2d(3, padding=1), nn.AvgPool2d(3, padding=1, count_include_pad=False), nn.ZeroPad2d(1)]
)
def test_borders_change_constants(pool: nn.Module) -> None:
    net = net_of(nn.Conv2d(2, 4, 1), pool, nn.Conv2d(4, 3, 1))
    kill(net[0], [1])
    exact = isinstance(pool, nn.AvgPool2d) and not pool.count_include_pad
    result = shrunk(net, X)
    assert outputs_left(result)["0"] == (3 if exact else 4)
    if not exact:
        assert result.report.kept[0].reason == "its constant would leak into the padding of '1'"


def test_every_layer_keeps_a_filter() -> None:
    net = net_of(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3))
    kill(net[0], range(4))
    result = shrunk(net, X)
    assert outputs_left(result) == {"0": 1, "1": 1, "3": 3}
    assert result.report.kept[0].reason.endswith("keeps at least one")


def test_a_squeezing_gate_follows_its_channels() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
            self.down, self.up = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
            self.last = nn.Conv2d(6, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.norm(self.conv(x)))
            gate = torch.sigmoid(self.up(F.silu(self.down(F.adaptive_avg_pool2d(x, 1)))))
            return self.last(x * gate)

    net = randomised(Gated())
    kill(net.conv, [0, 5])
    with torch.no_grad():
        net.norm.running_mean.fill_(0.0)
        net.conv.bias.zero_()
        net.norm.bias[[0, 5]] = -1.0
    assert outputs_left(shrunk(net, X)) == {"conv": 4, "norm": 4, "down": 3, "up": 4, "last": 2}


def test_a_squeeze_would_drop_the_last_channel() -> None:
    net = Fixed(lambda net, x: net.fc(net.conv(x).squeeze(1).mean((-2, -1))), 4)
    kill(net.conv, [0, 1, 3])
    assert shrunk(net, X).cuts == {}


def test_sizes_of_pixels_may_be_sliced() -> None:
    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up, self.last = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.down(x)
            deep = self.up(F.avg_pool2d(x, 2))
            x = torch.cat([x, F.interpolate(deep, size=x.shape[2:], mode="bilinear")], 1)
            return F.avg_pool2d(self.last(x), x.size()[-2:])

    net = UNet()
    kill(net.down, [1])
    kill(net.up, [0, 3])
    assert outputs_left(shrunk(net, X)) == {"down": 3, "up": 2, "last": 3}


def test_arithmetic_in_place() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gate, self.last = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = x = F.relu(self.conv(x))
            x *= torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
            x -= 0.25
            x /= 2
            return self.last(y)

    net = InPlace()
    kill(net.conv, [0, 4])
    with torch.no_grad():
        net.conv.bias[[0, 4]] = torch.tensor([-0.5, 0.5])
    result = shrunk(net, X)  # behind the gate channel 0 is 0, then -0.125; channel 4 is no constant
    assert outputs_left(result) == {"conv": 5, "gate": 5, "last": 3}
    assert result.report.folded == ("last",)


def test_one_slope_for_all_channels() -> None:
    net = net_of(nn.Conv2d(2, 4, 1), nn.PReLU(), nn.Conv2d(4, 4, 1), nn.PReLU(4), nn.Conv2d(4, 2, 1))
    kill(net[0], [1])
    kill(net[2], [1])
    assert outputs_left(shrunk(net, X)) == {"0": 3, "2": 4, "4": 2}


def test_complex_layers_stay() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = (nn.Conv2d(2, 2, 1, dtype=torch.complex64) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.conv(x)).abs()

    net = Complex()
    kill(net.conv, [0])
    with torch.no_grad():
        net.conv.weight[1] = 1j  # no real part, and not dead
    report = tost.shrink(net, X.to(torch.complex64)).report
    assert report.kept == (("conv", (0,), "'conv' stays as it is: its weights are complex"),)


def test_multiply_adds_are_of_one_sample() -> None:
    net = net_of(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1))
    expected = (12 * (18 * 4 + 4 * 3),) * 2
    assert tost.shrink(net, X).report.macs == expected
    assert tost.shrink(net, X[0]).report.macs == expected  # an image without a batch

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, scale: Tensor, x: Tensor) -> Tensor:
            return self.net(x * scale)

    for scale in (torch.tensor(2.0), torch.ones(1)):
        assert tost.shrink(Scaled(), (scale, X)).report.macs == expected


def test_the_memory_format_stays() -> None:
    net = net_of(nn.Conv2d(2, 6, 3), nn.Conv2d(6, 4, 3)).to(memory_format=torch.channels_last)
    kill(net[0], [1, 2])
    small = shrunk(net, X).model
    assert small[0].out_channels == 4
    for layer in small:
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)
        assert not layer.weight.is_contiguous()


def test_arguments_of_forward() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.last = nn.Conv2d(2, 4, 1), nn.Linear(3, 4), nn.Conv2d(4, 2, 1)

        def forward(self, image: Tensor, code: Tensor, scale: float = 2.0, mask: Tensor | None = None) -> dict[str, Tensor]:
            gate = self.two(code).unsqueeze(-1).unsqueeze(-1)
            if mask is not None:
                gate = gate * mask
            return {"image": self.last(self.one(image) * gate * scale)}

    net = Two().eval()
    kill(net.one, [2])
    with torch.no_grad():
        net.one.bias[2] = 0
    code = torch.randn(3, 3)
    for example in ((X, code), {"image": X, "code": code, "mask": torch.ones(1, 1, 1, 1)}):
        result = tost.shrink(net, example)
        assert outputs_left(result) == {"one": 3, "two": 3, "last": 2}
        assert result.report.macs == (4 * 2 * 30 + 3 * 4 + 2 * 4 * 30, 3 * 2 * 30 + 3 * 3 + 2 * 3 * 30)
        torch.testing.assert_close(result.model(X, code)["image"], net(X, code)["image"])


class Squeezed(nn.Module):
    """Squeeze and excitation: `gate` has the features, their means under its own view, and the two linear layers."""

    def __init__(self, gate: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 6, 3, bias=False), nn.Conv2d(6, 3, 3)
        self.gates = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 6), nn.Sigmoid())
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.gate(self.first(x), self.gates))


def _unpacked(x: Tensor, gates: Callable[[Tensor], Tensor]) -> Tensor:
    b, c, _, _ = x.size()
    return x * gates(F.adaptive_avg_pool2d(x, 1).view(b, c)).view(b, c, 1, 1).expand_as(x)


@pytest.mark.parametrize(
    "gate",
    [
        _unpacked,
        lambda x, gates: x * gates(x.view(x.shape[0], x.shape[1], -1).mean(2))[:, :, None, None],
        lambda x, gates: x * gates(x.mean((2, 3)).reshape((x.size(0), x.size(1)))).view(-1, x.size(1), 1, 1),
    ],
    ids=["unpacked", "shape", "size"],
)
def test_squeeze_and_excitation_with_the_number_of_channels(gate: Callable[..., Tensor]) -> None:
    net = randomised(Squeezed(gate))
    kill(net.first, [1, 4, 5])
    result = shrunk(net, X)
    assert outputs_left(result) == {"first": 3, "gates.0": 4, "gates.2": 3, "last": 3}
    assert result.report.kept == ()


@pytest.mark.parametrize(
    "gate",
    [
        lambda x, gates: x * x.mean((2, 3)).view(x.size(0), x.size(1) * 1, 1, 1),
        lambda x, gates: x * gates(x.mean((2, 3))).view(x.size(1), x.size(0), 1, 1).transpose(0, 1).mean(1, keepdim=True),
        lambda x, gates: x * gates(x.mean((2, 3))).sum(1).new_ones(2, 6).view(x.size(1), 2).sum(),
        lambda x, gates: x.view(x.size(0), x.size(-3), 4, 3),
    ],
    ids=["computed with", "another axis", "of another tensor", "from the end"],
)
def test_a_number_of_channels_that_is_used_otherwise_pins_them(gate: Callable[..., Tensor]) -> None:
    net = randomised(Squeezed(gate))
    kill(net.first, [1, 4, 5])
    assert outputs_left(shrunk(net, X))["first"] == 6
