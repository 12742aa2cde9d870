"""`Probe`: the private copy of a network on which scores are computed, with the data and the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tost.masks.layers import Layer
from tost.user_batches import endless
from tost_kernels.nn.surgery import duplicate

Loss = Callable[[Tensor, Tensor], Tensor]
Data = Iterable[Sequence[Any]]

# What a model raises for an input it cannot take.
_MODEL_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)


class Probe:
    """What a score function sees of a network.

    Attributes:
        weights: the unmasked weights, one tensor a layer, float32 or float64. Read only.

    Everything runs on a deep copy, so weights, BatchNorm statistics, gradients and flags of the user's model stay as they
    are. The copy is made only if `prepare` is given: scores that merely read weights need none.
    """

    weights: list[Tensor]

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        prepare: Callable[[nn.Module], None] | None,
        generator: torch.Generator,
        *,
        data: Data | None = None,
        input_shape: Sequence[int] | None = None,
        loss: Loss | None = None,
        batches: int = 1,
    ) -> None:
        self._names = [layer.name for layer in layers]
        self._generator = generator
        self._stream = endless(data, "data") if data is not None else None
        self._input_shape = input_shape
        self._loss = F.cross_entropy if loss is None else loss
        self._batches = batches
        self._network: nn.Module | None = None
        if prepare is None:
            self.weights = [_at_least_single(layer.weight.detach()) for layer in layers]
            return
        self._network = duplicate(model)
        prepare(self._network)
        self._network.requires_grad_(False)  # only the gradients of the prunable weights are wanted
        self._live = [cast(Tensor, self._network.get_submodule(name).weight).requires_grad_() for name in self._names]
        self.weights = [_at_least_single(weight.detach().clone()) for weight in self._live]

    def mask(self, masks: Sequence[Tensor]) -> None:
        """Let the network compute with `weights * masks` from now on. Masks: bool, flat or shaped, on any device."""
        if self._network is None:
            return
        with torch.no_grad():
            for live, weight, mask in zip(self._live, self.weights, masks, strict=True):
                live.copy_(weight * mask.reshape(weight.shape).to(weight.device))

    def draw(self) -> list[Tensor]:
        """Uniform numbers of the shapes of the weights, from the seed's own generator (float64, CPU: the same everywhere)."""
        return [torch.rand(weight.shape, generator=self._generator, dtype=torch.float64) for weight in self.weights]

    def ones(self) -> Tensor:
        """One sample of ones, shape (1, *input_shape)."""
        shape = self._input_shape
        if shape is None:
            shape = self.next_batch()[0].shape[1:]
            self._input_shape = shape
        return torch.ones((1, *shape), dtype=self._live[0].dtype, device=self._live[0].device)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """The next (inputs, targets), on the device of the weights; floating inputs in their precision."""
        assert self._stream is not None, "a method that reads data says so in `needs`"
        inputs, targets = next(self._stream)
        weight = self._live[0]
        inputs = inputs.to(weight.device, weight.dtype if inputs.is_floating_point() else None)
        return inputs, targets.to(weight.device) if isinstance(targets, Tensor) else targets

    def forward(self, inputs: Tensor, source: str) -> Tensor:
        """The network's output; an error of the network is reported as one of the argument `source`."""
        assert self._network is not None, "a method that runs the network says how to `prepare` it"
        try:
            output = self._network(inputs)
        except torch.OutOfMemoryError:
            raise
        except _MODEL_ERRORS as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"{source}: the model failed on an input of shape {tuple(inputs.shape)} and type {inputs.dtype}: "
                f"{type(error).__name__}: {reason}"
            ) from error
        if not isinstance(output, Tensor):
            raise TypeError(f"model: expected it to return a tensor, got {type(output).__name__}; wrap it in a module that does")
        return output

    def loss(self, temperature: float = 1.0) -> Tensor:
        """The loss of the next batch, the outputs divided by `temperature`: a finite scalar with a graph."""
        inputs, targets = self.next_batch()
        output = self.forward(inputs, "data") / temperature
        try:
            loss = self._loss(output, targets)
        except torch.OutOfMemoryError:
            raise
        except _MODEL_ERRORS as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"loss: it failed on outputs of shape {tuple(output.shape)} and the targets of `data`: "
                f"{type(error).__name__}: {reason}"
            ) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"loss: expected a scalar tensor, got {got}")
        return loss.reshape(())

    def mean_loss(self, temperature: float = 1.0) -> Tensor:
        """The mean of `loss` over the method's number of batches; the graphs of all of them are held."""
        total = self.loss(temperature)
        for _ in range(self._batches - 1):
            total = total + self.loss(temperature)
        return total / self._batches

    def gradients(self, scalar: Tensor, create_graph: bool = False) -> list[Tensor]:
        """d scalar / d weight for each layer; zeros for a layer the network did not use."""
        if not scalar.requires_grad:
            raise ValueError("model: its output does not depend on any prunable weight (is it detached?)")
        gradients = torch.autograd.grad(scalar, self._live, create_graph=create_graph, allow_unused=True)
        return [torch.zeros_like(w) if g is None else g for g, w in zip(gradients, self._live, strict=True)]

    def mean_loss_gradients(self) -> list[Tensor]:
        """dL/dweight, signed, averaged over the method's number of batches."""
        total = self.gradients(self.loss())
        for _ in range(self._batches - 1):
            total = [sum_ + g for sum_, g in zip(total, self.gradients(self.loss()), strict=True)]
        return [g / self._batches for g in total]


def _at_least_single(weight: Tensor) -> Tensor:
    """Scores in half precision would be full of ties."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def training(network: nn.Module) -> None:
    """Train mode, as in the published codes of the methods that read data: BatchNorm uses the statistics of the batch.

    Running statistics say nothing yet about a network that has never been trained.
    """
    network.train()


def linearized(network: nn.Module) -> None:
    """Double precision, eval mode, and the absolute value of every parameter and floating-point buffer.

    As the authors of SynFlow do, biases and BatchNorm (also its running mean) included; at initialisation that changes the
    weights alone, for the others are 0 or 1. Double precision because the products of many layers leave float32's range.
    """
    network.double().eval()
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.abs_()
