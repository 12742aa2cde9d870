"""What a filter answers to: the input that excites it most, and what in a given image does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tost.seeds import generator

__all__ = ["guided_gradients", "most_exciting"]

_RATE = 0.1  # of a step, where a pixel of the input and of the normalised gradient is 1 in the mean square
_LEAK = 0.01  # slope below 0 of what is ascended
_RELUS = (F.relu, F.relu_, F.relu6, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)


def most_exciting(
    net: nn.Module, layer: str, filters: Sequence[int], shape: Sequence[int], steps: int, jitter: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Inputs that excite filters: gradient ascent on the mean activation, relu(output of the layer), at a fixed norm.

    Activation maximisation (Erhan, Bengio, Courville, Vincent 2009, "Visualizing higher-layer features of a deep network"). The
    norm is about that of an image of the data set: 1 a pixel in the mean square. All begin with the same noise; where it does
    not excite a filter, a slope of 0.01 below 0 says the way.

    Args:
        net: in eval mode; it is left alone.
        layer: name of a Conv2d or Linear of `net`, called once in a forward pass.
        filters: indices of its outputs.
        shape: (C, H, W) of an input.
        steps: of the ascent.
        jitter: at each step the input is shifted, cyclically, by up to so many pixels in height and width.
        seed: of noise and shifts.

    Returns:
        inputs (F, C, H, W), normalised as those of the data set; and the mean activations (F,) that they reach, 0: of a filter
        that nothing on the way excited.
    """
    random = generator("activation maximisation", seed)
    start = torch.randn(tuple(shape), generator=random)
    inputs = _to_norm(start.expand(len(filters), *shape))
    for _ in range(steps):
        down, right = torch.randint(-jitter, jitter + 1, (2,), generator=random).tolist()
        shifted = torch.roll(inputs, (down, right), (2, 3))
        gradient = torch.roll(_gradient(net, layer, filters, shifted, _LEAK), (-down, -right), (2, 3))
        inputs = _to_norm(inputs + _RATE * _to_norm(gradient))
    with torch.no_grad():
        return inputs, _activations(net, layer, filters, inputs)


def guided_gradients(net: nn.Module, layer: str, filters: Sequence[int], image: Tensor) -> Tensor:
    """What in an image excites filters: guided backpropagation (https://arxiv.org/abs/1412.6806) of their mean activation.

    Backwards, each ReLU passes only what is above 0, in the gradient as in its input. Other activation functions pass all.

    Args:
        net, layer, filters: as in `most_exciting`.
        image: (C, H, W), normalised.

    Returns:
        (F, C, H, W), all 0 where the image does not excite the filter.
    """
    with _Guided():
        return _gradient(net, layer, filters, image.expand(len(filters), *image.shape))


class _Guided(TorchFunctionMode):
    """Inside, the gradient behind each ReLU is cut off at 0."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        capped = func is F.hardtanh and (args[1] if len(args) > 1 else (kwargs or {}).get("min_val")) == 0  # what nn.ReLU6 calls
        if (func in _RELUS or capped) and result.requires_grad:
            result.register_hook(lambda gradient: gradient.clamp(min=0))
        return result


def _gradient(net: nn.Module, layer: str, filters: Sequence[int], inputs: Tensor, leak: float = 0.0) -> Tensor:
    """(F, C, H, W): of the activation of the i-th filter, with respect to the i-th input."""
    inputs = inputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(_activations(net, layer, filters, inputs, leak).sum(), inputs)
    return gradient


def _activations(net: nn.Module, layer: str, filters: Sequence[int], inputs: Tensor, leak: float = 0.0) -> Tensor:
    """(F,): mean over the places of relu(output), with slope `leak` below 0, of the i-th filter at the i-th input."""
    found: list[Tensor] = []
    chosen = torch.tensor(list(filters))

    def keep(module: nn.Module, arguments: Any, output: Tensor) -> None:
        picked = output[torch.arange(len(chosen)), chosen]  # a copy: a ReLU behind the layer may work in place
        found.append(F.leaky_relu(picked, leak).reshape(len(chosen), -1).mean(1))

    with _hooked(net.get_submodule(layer), keep):
        net(inputs)
    (activations,) = found
    return activations


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _to_norm(inputs: Tensor) -> Tensor:
    """Each of them with a mean square of 1, what is 0 stays it."""
    norms = inputs.square().mean(dim=tuple(range(1, inputs.dim())), keepdim=True).sqrt()
    return inputs / norms.clamp(min=torch.finfo(inputs.dtype).tiny)
