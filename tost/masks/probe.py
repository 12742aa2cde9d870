"""`Probe`: the private copy of a network on which scores are computed, with the data and the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tost.masks.layers import Layer
from tost.user_batches import call, describe, endless, map_tensors, sample_of_ones, tensors_in
from tost_kernels.nn.surgery import duplicate

# (outputs of the model, targets of the batch) -> scalar
Loss = Callable[[Any, Any], Tensor]
Data = Iterable[Sequence[Any]]

# What a model raises for an input it cannot take.
_MODEL_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)


class Probe:
    """What a score function sees of a network.

    Attributes:
        weights: the unmasked weights, one tensor a layer, float32 or float64. Read only.
        batches: over how many batches the method averages gradients; for a method that trains, on how many at most.
        keep: how many weights the step is to keep; None where scores alone are asked for.

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
        input_shape: Any = None,
        loss: Loss | None = None,
        batches: int = 1,
    ) -> None:
        self.batches = batches
        self.keep: int | None = None
        self._names = [layer.name for layer in layers]
        self._generator = generator
        self._stream = endless(data, "data") if data is not None else None
        self._sample: Any = None
        self._input_shape = input_shape
        self._loss = loss
        self._network: nn.Module | None = None
        self._masks: list[Tensor] | None = None
        if prepare is None:
            self.weights = [_at_least_single(layer.weight.detach()) for layer in layers]
            return
        self._network = duplicate(model)
        prepare(self._network)
        self._network._apply(_at_least_single)  # type: ignore[no-untyped-call] # products of small gradients are 0 in half precision
        self._free: list[Tensor] = [parameter for parameter in self._network.parameters() if parameter.requires_grad]
        for parameter in self._network.parameters():
            # Frozen ones too: reentrant checkpointing gives no gradients to what stands behind frozen layers.
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        self._live = [cast(Tensor, self._network.get_submodule(name).weight) for name in self._names]
        self.weights = [weight.detach() for weight in self._live]

    # ---- the network's weights ---------------------------------------------------------------------------------------

    def mask(self, masks: Sequence[Tensor]) -> None:
        """Let the network compute with `weights * masks` from now on. Masks: bool, flat or shaped, on any device."""
        if self._network is None:
            return
        if self._masks is None:  # until now the weights were those of the network themselves
            self.weights = [weight.clone() for weight in self.weights]
        self._masks = [m.reshape(weight.shape).to(weight.device) for m, weight in zip(masks, self.weights, strict=True)]
        for live, weight, mask in zip(self._live, self.weights, self._masks, strict=True):
            torch.mul(weight, mask, out=live.detach())

    @contextmanager
    def trainable(self) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """(the parameters that the user did not freeze, all prunable weights), to be trained.

        On leaving the network is as it was.
        """
        assert self._network is not None, "a method that runs the network says how to `prepare` it"
        if not self._free:
            raise ValueError("model: expected a parameter to train, but all are frozen (requires_grad=False)")
        before = {tensor: tensor.detach().clone() for tensor in (*self._network.parameters(), *self._network.buffers())}
        try:
            yield self._free, self._live
        finally:
            self._network.zero_grad()
            with torch.no_grad():
                for tensor, value in before.items():
                    tensor.copy_(value)

    def remask(self) -> None:
        """Set the removed weights to 0 again, after an update."""
        if self._masks is not None:
            for live, mask in zip(self._live, self._masks, strict=True):
                live.detach().mul_(mask)

    # ---- numbers and data --------------------------------------------------------------------------------------------

    def draw(self) -> list[Tensor]:
        """Uniform numbers of the shapes of the weights, from the seed's own generator (float64, CPU: the same everywhere)."""
        return [torch.rand(weight.shape, generator=self._generator, dtype=torch.float64, device="cpu") for weight in self.weights]

    def ones(self) -> Any:
        """One sample of ones, shape (1, *input_shape); several inputs as in `input_shape` or `data`."""
        if self._input_shape is None:
            # of integers too: they may be indices; not of booleans: a mask of ones may leave nothing to look at
            one = _first_sample(self.next_batch()[0])
            return map_tensors(lambda part: part if part.dim() == 0 or part.dtype is torch.bool else torch.ones_like(part), one)
        return sample_of_ones(self._input_shape, self._live[0].dtype, self._live[0].device)

    def next_batch(self) -> tuple[Any, Any]:
        """The next (inputs, targets), their tensors on the device of the weights; floating inputs in their precision."""
        inputs, targets = self._taken()
        weight = self._live[0]
        inputs = map_tensors(lambda x: x.to(weight.device, weight.dtype if x.is_floating_point() else None), inputs)
        return inputs, map_tensors(lambda y: y.to(weight.device), targets)

    def sample(self) -> Any:
        """The inputs of one sample, as they are in `data`: of the first batch that was taken, or else of the next."""
        if self._sample is None:
            self._taken()
        return self._sample

    def _taken(self) -> tuple[Any, Any]:
        """The next (inputs, targets)."""
        assert self._stream is not None, "a method that reads data says so in `needs`"
        inputs, targets = next(self._stream)
        if self._sample is None:  # cloned, not to hold the whole batch
            self._sample = map_tensors(Tensor.clone, _first_sample(inputs))
        return inputs, targets

    # ---- outputs, losses, gradients ----------------------------------------------------------------------------------

    def forward(self, inputs: Any, source: str) -> Any:
        """The network's output; an error of the network is reported as one of the argument `source`."""
        assert self._network is not None, "a method that runs the network says how to `prepare` it"
        try:
            return call(self._network, inputs)
        except torch.OutOfMemoryError:
            raise
        except _MODEL_ERRORS as error:
            raise ValueError(f"{source}: the model failed on an input of {describe(inputs)}: {_reason(error)}") from error

    def flow(self) -> Tensor:
        """The sum of the outputs for an input of ones: a scalar with a graph."""
        outputs = [part for part in tensors_in(self.forward(self.ones(), "input_shape")) if part.is_floating_point()]
        if not outputs:
            raise TypeError("model: expected it to return a tensor of floating-point numbers, or several; found none")
        sums = [output.sum() for output in outputs]
        return sum(sums[1:], start=sums[0])

    def loss(self, batch: tuple[Any, Any] | None = None, temperature: float = 1.0) -> Tensor:
        """The loss of a batch, by default the next, all floating outputs divided by `temperature`: a scalar with a graph."""
        inputs, targets = self.next_batch() if batch is None else batch
        outputs = self.forward(inputs, "data")
        if temperature != 1.0:
            outputs = map_tensors(lambda part: part / temperature if part.is_floating_point() else part, outputs)
        if self._loss is None and not isinstance(outputs, Tensor):
            got = type(outputs).__name__
            raise TypeError(f"model: expected it to return a tensor, got {got}; give a `loss` that takes it, or wrap the model")
        try:
            loss = (self._loss or F.cross_entropy)(outputs, targets)
        except torch.OutOfMemoryError:
            raise
        except _MODEL_ERRORS as error:
            raise ValueError(
                f"loss: it failed on outputs of {describe(outputs)} and the targets of `data`: {_reason(error)}"
            ) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"loss: expected a scalar tensor, got {got}")
        return loss.reshape(())

    def gradients(self, scalar: Tensor, create_graph: bool = False) -> list[Tensor]:
        """d scalar / d weight for each layer; zeros for a layer the network did not use."""
        if not scalar.requires_grad:
            raise ValueError("model: its output does not depend on any prunable weight (is it detached?)")
        reentrant = "model: it checkpoints activations; expected use_reentrant=False there, got True"
        try:
            gradients = torch.autograd.grad(scalar, self._live, create_graph=create_graph, allow_unused=True)
        except RuntimeError as error:
            if "use_reentrant" not in str(error):
                raise
            raise ValueError(reentrant) from error
        # the weights in it are no part of the graph, and it runs only if something before it needs a gradient
        if any(gradient is None for gradient in gradients) and _holds(scalar, "CheckpointFunctionBackward"):
            raise ValueError(reentrant)
        return [torch.zeros_like(w) if g is None else g for g, w in zip(gradients, self._live, strict=True)]

    def mean_loss_gradients(self, temperature: float = 1.0) -> list[Tensor]:
        """dL/dweight, signed, averaged over the method's number of batches."""
        return self._mean(self.gradients(self.loss(temperature=temperature)) for _ in range(self.batches))

    def mean_curved_gradients(self, temperature: float) -> list[Tensor]:
        """H g for each layer: g = dL/dweight, H = the Hessian, both of the mean loss over the method's number of batches.

        The Hessian of a mean is the mean of the Hessians: with several batches a first pass gives g, a second the products, and
        no more than the graph of one batch is ever held. The batches themselves are.
        """
        if self.batches == 1:
            gradients = self.gradients(self.loss(temperature=temperature), create_graph=True)
            return self.gradients(_dot(gradients, [g.detach() for g in gradients]))
        batches = [self.next_batch() for _ in range(self.batches)]
        mean = self._mean(self.gradients(self.loss(batch, temperature)) for batch in batches)
        return self._mean(
            self.gradients(_dot(self.gradients(self.loss(batch, temperature), create_graph=True), mean)) for batch in batches
        )

    def _mean(self, several: Iterator[list[Tensor]]) -> list[Tensor]:
        """The mean of as many gradients as there are batches, at least in single precision."""
        if self.batches == 1:
            return next(several)
        total = [torch.zeros_like(weight) for weight in self.weights]
        for gradients in several:
            for part, gradient in zip(total, gradients, strict=True):
                part += gradient
        return [part.div_(self.batches) for part in total]


def _first_sample(inputs: Any) -> Any:
    return map_tensors(lambda part: part[:1] if part.dim() else part, inputs)


def _holds(scalar: Tensor, name: str) -> bool:
    """Whether there is an operation of this name in the graph of `scalar`."""
    waiting = [scalar.grad_fn]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        if node.name() == name:
            return True
        new = {before for before, _ in node.next_functions} - seen
        seen |= new
        waiting += new
    return False


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    products = [(a * b).sum() for a, b in zip(left, right, strict=True)]
    return sum(products[1:], start=products[0])


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _at_least_single(tensor: Tensor) -> Tensor:
    """In single precision if it was in half; scores in half precision would be full of ties."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


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
