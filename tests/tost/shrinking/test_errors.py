"""What cannot be shrunk is told, and left as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import tost
from tests.tost.shrinking.dead_filters import randomised
from tost import models
from tost.shrinking import Untraceable
from tost.shrinking.cut import Cut
from tost.shrinking.layers import Mixer
from tost.shrinking.needs import Needs


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 1)
        with torch.no_grad():
            self.conv.weight[1] = 0


class Branching(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.last(x) if x.sum() > 0 else self.last(-x)


class Hidden(Base):
    """What torch.fx does not see: a number made of the layer's own attributes behind a dictionary."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x)) * vars(self.conv)["out_channels"]


class Variadic(Base):
    def forward(self, *images: Tensor) -> Tensor:
        return self.last(self.conv(images[0]))


class HiddenBesideInfinity(Hidden):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super().forward(x), x[:, :1, 1:-1, 1:-1] * 0 - torch.inf], 1)


class HiddenAndTiny(Hidden):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1e-8


class HiddenImaginary(Hidden):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1j


class Counting(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.last(self.conv(x))


def _state(net: nn.Module) -> dict[str, Any]:
    return {name: (id(module), dict(vars(module))) for name, module in net.named_modules()}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Branching, r"torch.fx can trace, got Branching: .*test_errors.py:\d+.*; nothing was removed"),
        (Hidden, "depends on the number of channels in a way that its graph does not show, so nothing was removed"),
        (HiddenBesideInfinity, "outputs that differ by"),
        (HiddenAndTiny, "outputs that differ by"),
        (HiddenImaginary, "outputs that differ by"),
        (Counting, r"its forward: an assignment to the buffer 'calls', which a graph would lose; .*; nothing was removed"),
        (Variadic, r"got Variadic, whose forward takes \*args or \*\*kwargs"),
    ],
)
def test_untraceable_networks_stay_untouched(kind: type[Base], message: str, inplace: bool) -> None:
    net = kind()
    before, values = _state(net), copy.deepcopy(net.state_dict())
    with pytest.raises(Untraceable, match=message):
        tost.shrink(net, input_shape=(2, 5, 5), inplace=inplace)
    after = _state(net)
    assert after.keys() == before.keys()
    assert all(after[name][0] == before[name][0] and after[name][1].keys() == before[name][1].keys() for name in before)
    assert all(torch.equal(value, values[name]) for name, value in net.state_dict().items())
    assert net.conv.out_channels == 4


def test_arguments_are_checked() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 1))
    with pytest.raises(TypeError, match=r"shrink: model: expected a torch.nn.Module, got str"):
        tost.shrink("resnet20", input_shape=(2, 5, 5))  # type: ignore[arg-type]
    for arguments in ({}, {"example_input": torch.zeros(1, 2, 5, 5), "input_shape": (2, 5, 5)}):
        with pytest.raises(TypeError, match="example_input, input_shape: expected one of the two"):
            tost.shrink(net, **arguments)
    with pytest.raises(TypeError, match="example_input: expected a tensor, or a tuple or mapping of tensors, got str"):
        tost.shrink(net, "x")
    with pytest.raises(ValueError, match="shrink: model: it failed on the example: RuntimeError"):
        tost.shrink(net, input_shape=(3, 5, 5))
    with pytest.raises(ValueError, match=r"a lone Conv2d has nothing to remove; put it into an nn.Sequential"):
        tost.shrink(net[0], input_shape=(2, 5, 5))
    with pytest.raises(ValueError, match=r"has ghosts or fused tails: use tost.finalize\(model\) first"):
        tost.shrink(tost.add_ghosts(models.build("resnet20"), tost.Recipe.tost()), input_shape=(3, 8, 8))
    with pytest.raises(TypeError, match=r"DataParallel only wraps the network: use model.module, and wrap the result"):
        tost.shrink(nn.DataParallel(net), input_shape=(2, 5, 5))
    with pytest.raises(TypeError, match=r"shrink: model.0: DataParallel only wraps the network: use model.0.module"):
        tost.shrink(nn.Sequential(nn.DataParallel(net)), input_shape=(2, 5, 5))
    with pytest.raises(TypeError, match=r"shrink: model: AveragedModel only wraps the network: use model.module"):
        tost.shrink(AveragedModel(net), input_shape=(2, 5, 5))
    with pytest.raises(ValueError, match=r"'0' \(Conv2d\) is on the device meta, without numbers: load its weights first"):
        tost.shrink(nn.Sequential(nn.Conv2d(2, 4, 3, device="meta")), input_shape=(2, 5, 5))
    for batch in (torch.zeros(0, 2, 5, 5), torch.zeros(1, 2, 5, 5, device="meta")):
        with pytest.raises(ValueError, match="example_input: expected a batch with numbers, got one that is empty or on meta"):
            tost.shrink(net, batch)
    with pytest.raises(ValueError, match=r"'1' \(LazyConv2d\) has no weight yet: run one batch through the network first"):
        tost.shrink(nn.Sequential(nn.Conv2d(2, 3, 1), nn.LazyConv2d(2, 1)), input_shape=(2, 5, 5))
    hooked = nn.Sequential(nn.Sequential(*net))
    hooked[0].register_forward_hook(lambda module, inputs, output: output * 2)
    with pytest.raises(ValueError, match=r"expected no hooks on '0' \(Sequential\)"):
        tost.shrink(hooked, input_shape=(2, 5, 5))


class TestPlantedMistakes:
    """The comparison before anything is handed out sees each of them; they are what the rules are for."""

    @staticmethod
    def _net(padding: int = 0) -> nn.Module:
        layers = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Sigmoid(), nn.Conv2d(6, 2, 3, padding=padding)
        net = randomised(nn.Sequential(*layers))
        with torch.no_grad():
            net[0].weight[[1, 4]] = 0
        return net

    def test_there_is_none(self) -> None:
        assert tost.shrink(self._net(), input_shape=(3, 8, 8)).model[0].out_channels == 4

    @staticmethod
    def _caught(net: nn.Module) -> None:
        with pytest.raises(Untraceable, match="it gives something else"):
            tost.shrink(net, input_shape=(3, 8, 8))

    def test_a_constant_leaks_into_a_padding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = Mixer.__init__

        def without_padding(self: Mixer, module: nn.Module) -> None:
            original(self, module)
            self.leaks = torch.zeros(1, self.used.shape[1], dtype=torch.bool).numpy()

        monkeypatch.setattr(Mixer, "__init__", without_padding)
        self._caught(self._net(padding=1))

    def test_a_constant_is_not_folded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Mixer, "added", lambda self, rows, left_out, inputs: 0.0 * inputs[:1])
        self._caught(self._net())

    def test_a_channel_too_many_goes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = Needs.of

        def less(self: Needs, slots: Any) -> Any:
            stay = original(self, slots)
            if len(stay) == 6:
                stay[stay.nonzero()[0][0]] = False
            return stay

        monkeypatch.setattr(Needs, "of", less)
        self._caught(self._net())

    def test_the_wrong_inputs_stay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = Cut.weight

        def shifted(self: Cut, dense: Tensor) -> Tensor:
            return original(self, dense.roll(1, 1) if dense.shape[1] == self.of[0] else dense)

        monkeypatch.setattr(Cut, "weight", shifted)
        self._caught(self._net())


def test_what_forward_draws_is_the_same_before_and_after() -> None:
    class Noisy(Base):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.last(self.conv(x)), 0.5)  # in evaluation mode too

    assert tost.shrink(Noisy(), input_shape=(2, 5, 5)).model.conv.out_channels == 3


def test_training_code_that_only_evaluation_skips_is_not_looked_at() -> None:
    class Auxiliary(Base):
        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.last(F.dropout(x, 0.5, self.training)) if self.training else self.last(x)

    result = tost.shrink(Auxiliary(), input_shape=(2, 5, 5))
    assert result.model.training
    assert result.model.conv.out_channels == 3
