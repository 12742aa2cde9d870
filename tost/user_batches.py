"""Batches of data that users hand in: checked, and read as often as needed."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["call", "check_iterable", "describe", "endless", "inputs_of", "map_tensors", "sample_of_ones", "tensors_in"]


def check_iterable(data: object, where: str) -> None:
    """Raises TypeError unless `data` can be iterated; `where` names the argument."""
    if not hasattr(data, "__iter__"):
        raise TypeError(f"{where}: expected an iterable of batches (inputs, targets), got {type(data).__name__}")


def inputs_of(batch: object, where: str) -> Tensor:
    """The inputs of a batch (inputs, targets), or of one that is nothing but inputs; a TypeError if they are no tensor."""
    inputs = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if not isinstance(inputs, Tensor):
        raise TypeError(f"{where}: expected batches that are a tensor or start with one, got {type(batch).__name__}")
    return inputs


def endless(data: Iterable[Any], where: str) -> Iterator[tuple[Any, Any]]:
    """The batches (inputs, targets) of `data`, again from the start when they end.

    Inputs are what `call` takes, and hold at least one sample; targets may be anything. Tensors from inference mode are
    cloned: autograd refuses them.

    Raises, when the batch is asked for:
        TypeError: a batch has other parts, or no tensor (batch, ...) of at least one sample is among its inputs.
        ValueError: there is no further batch.
    """
    taken = 0
    while True:
        before = taken
        for batch in data:
            if not isinstance(batch, Sequence) or isinstance(batch, str) or len(batch) != 2:
                got = f"{len(batch)} parts" if isinstance(batch, Sequence) else type(batch).__name__
                raise TypeError(f"{where}: expected batches (inputs, targets), got {got}")
            inputs, targets = batch
            tensors = tensors_in(inputs)
            lone = isinstance(inputs, Tensor)
            if not tensors or any(0 in tensor.shape[:1] for tensor in tensors) or (lone and inputs.dim() < 2):
                got = f"shape {tuple(inputs.shape)}" if lone else describe(inputs)
                raise TypeError(
                    f"{where}: expected inputs as a tensor (batch, ...), or a tuple, list or mapping of such, "
                    f"with at least one sample, got {got}"
                )
            taken += 1
            yield map_tensors(_with_gradients, inputs), map_tensors(_with_gradients, targets)
        if taken == before:
            raise ValueError(
                f"{where}: expected another batch (inputs, targets) after {taken}, found none "
                "(empty, or an exhausted iterator? pass a list or a loader)"
            )


def call(network: Callable[..., Any], inputs: Any) -> Any:
    """`network(inputs)`; a tuple or list of inputs are its arguments, a mapping its keyword arguments."""
    if isinstance(inputs, Mapping):
        return network(**inputs)
    return network(*inputs) if isinstance(inputs, list | tuple) else network(inputs)


def sample_of_ones(shapes: Any, dtype: torch.dtype, device: torch.device | str) -> Any:
    """Ones of shape (1, *shape); a tuple or dict of them for a tuple or dict of shapes (see `tost.checks.sample_shapes`)."""

    def ones(shape: tuple[int, ...]) -> Tensor:
        return torch.ones((1, *shape), dtype=dtype, device=device)

    if isinstance(shapes, dict):
        return {name: ones(shape) for name, shape in shapes.items()}
    return tuple(ones(shape) for shape in shapes) if isinstance(shapes[0], tuple) else ones(shapes)


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`value` with `function` applied to each tensor in it, through (named) tuples, lists, mappings and data classes.

    What holds no tensor, and anything else, is handed on as it is.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        parts = [map_tensors(function, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, Mapping):
        mapped = {key: map_tensors(function, part) for key, part in value.items()}
        if not isinstance(value, MutableMapping):
            return mapped
        same = copy.copy(value)  # its own class may have other fields, and another constructor
        for key, part in mapped.items():
            same[key] = part
        return same
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (field.name for field in dataclasses.fields(value) if field.init)
        return dataclasses.replace(value, **{name: map_tensors(function, getattr(value, name)) for name in fields})
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors that `map_tensors` finds in `value`, in order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(note, value)
    return found


def describe(value: Any) -> str:
    """What a message says of inputs or outputs: type, and shapes and dtypes of the tensors in it."""
    if isinstance(value, Tensor):
        return f"shape {tuple(value.shape)} and type {value.dtype}"
    tensors = tensors_in(value)
    shapes = f" of tensors of {' | '.join(describe(tensor) for tensor in tensors)}" if tensors else ""
    return f"{type(value).__name__}{shapes}"


def _with_gradients(value: Tensor) -> Tensor:
    return value.clone() if value.is_inference() else value
