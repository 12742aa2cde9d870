"""Activation maximisation and guided backpropagation, by hand on networks of a few weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tost.analysis.what_filters_see import guided_gradients, most_exciting


def conv(weight: list[list[list[float]]], bias: list[float] | None = None) -> nn.Conv2d:
    """One input channel; a 2-D kernel a filter."""
    kernels = torch.tensor(weight).unsqueeze(1)
    layer = nn.Conv2d(1, len(kernels), tuple(kernels.shape[2:]), bias=bias is not None)  # type: ignore[arg-type]
    layer.weight.data = kernels
    if bias is not None:
        assert layer.bias is not None
        layer.bias.data = torch.tensor(bias)
    return layer


def test_a_linear_unit_is_excited_most_by_its_own_weights() -> None:
    weight = torch.tensor([[3.0, 4.0], [-1.0, 0.0]])
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    net[1].weight.data = weight  # type: ignore[union-attr]
    inputs, activations = most_exciting(net, "1", (0, 1), (1, 1, 2), steps=200, jitter=0, seed=0)
    expected = weight / weight.square().mean(1, keepdim=True).sqrt()  # of that norm the closest to the weights
    torch.testing.assert_close(inputs.flatten(1), expected, rtol=0, atol=0.05)
    torch.testing.assert_close(activations, (expected * weight).sum(1), rtol=0.01, atol=0)


def test_inputs_have_the_norm_of_an_image_and_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    stem = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
    net = nn.Sequential(*stem, nn.Conv2d(4, 5, 3), nn.ReLU(inplace=True)).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    inputs, activations = most_exciting(net, "3", (4, 0), (3, 8, 8), steps=10, jitter=2, seed=3)
    torch.rand(1)  # the global generator has no part in it
    again, _ = most_exciting(net, "3", (4, 0), (3, 8, 8), steps=10, jitter=2, seed=3)
    other, _ = most_exciting(net, "3", (4, 0), (3, 8, 8), steps=10, jitter=2, seed=4)
    assert inputs.equal(again)
    assert not inputs.equal(other)
    torch.testing.assert_close(inputs.square().mean((1, 2, 3)), torch.ones(2))
    with torch.no_grad():
        torch.testing.assert_close(activations, torch.stack([net(inputs)[i, o].mean() for i, o in enumerate((4, 0))]))
    _, at_first = most_exciting(net, "3", (4, 0), (3, 8, 8), steps=0, jitter=2, seed=3)
    assert (activations > 1.5 * at_first).all()
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_filter_that_the_noise_does_not_excite_is_found_all_the_same() -> None:
    net = nn.Sequential(conv([[[1.0]], [[0.0]]], [-4.0, -1.0]))  # above 0 only where a pixel is 4 times an image's
    inputs, activations = most_exciting(net, "0", (0, 1), (1, 1, 1), steps=20, jitter=0, seed=0)
    assert activations.tolist() == [0.0, 0.0]
    assert inputs[0].item() == 1.0  # the best that there is: the way down below 0 is known
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 1))
    net[1].weight.data, net[1].bias.data = torch.tensor([[8.0, 0.0]]), torch.tensor([-9.0])  # type: ignore[union-attr]
    starts = [most_exciting(net, "1", (0,), (1, 1, 2), steps=0, jitter=0, seed=seed)[1].item() for seed in range(8)]
    dead = starts.index(0.0)
    assert most_exciting(net, "1", (0,), (1, 1, 2), steps=60, jitter=0, seed=dead)[1].item() == pytest.approx(
        8 * 2**0.5 - 9, 0.02
    )


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv([[[1.0]], [[-1.0]]]), nn.Conv2d(2, 2, 1, bias=False)
        self.second.weight.data = torch.tensor([[1.0, -2.0], [-1.0, 0.0]]).reshape(2, 2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))))


@pytest.mark.parametrize("form", ["function", "module", "in place"])
def test_guided_gradients_by_hand(form: str) -> None:
    net: nn.Module = Functional()
    if form != "function":
        first, second = net.first, net.second
        net = nn.Sequential()
        net.add_module("first", first)  # type: ignore[arg-type]
        net.add_module("act", nn.ReLU(inplace=form == "in place"))
        net.add_module("second", second)  # type: ignore[arg-type]
        net.add_module("act2", nn.ReLU(inplace=form == "in place"))
    image = torch.tensor([[[2.0, -1.0, 0.5, -3.0]]])
    # hidden: (2, 0, 0.5, 0) and (0, 1, 0, 3); outputs of filter 0: 2, -2, 0.5, -6, of filter 1: -2, 0, -0.5, 0
    # filter 0 is above 0 at two of four places, there the gradient 1/4 passes hidden 0 (hidden 1 is off: without effect here)
    found = guided_gradients(net, "second", (0, 1), image)
    assert found.tolist() == [[[[0.25, 0.0, 0.25, 0.0]]], [[[0.0, 0.0, 0.0, 0.0]]]]


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6])
def test_what_is_below_zero_in_the_gradient_does_not_pass(act: type[nn.Module]) -> None:
    net = nn.Sequential(conv([[[1.0, 0.0]], [[0.0, 1.0]]]), act(), nn.Conv2d(2, 1, 1, bias=False))
    net[2].weight.data = torch.tensor([3.0, -1.0]).reshape(1, 2, 1, 1)  # type: ignore[union-attr]
    image = torch.tensor([[[2.0, 1.0]]])  # hidden 2 and 1, output 5
    plain = torch.autograd.functional.jacobian(lambda x: net(x.unsqueeze(0)).mean(), image)  # type: ignore[no-untyped-call]
    assert plain.tolist() == [[[3.0, -1.0]]]
    assert guided_gradients(net, "2", (0,), image).tolist() == [[[[3.0, 0.0]]]]
