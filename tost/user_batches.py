"""Batches of data that users hand in: checked, and read as often as needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

__all__ = ["check_iterable", "endless", "inputs_of"]


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


def endless(data: Iterable[Any], where: str) -> Iterator[tuple[Tensor, Any]]:
    """The batches (inputs, targets) of `data`, again from the start when they end. Targets may be anything.

    Tensors from inference mode are cloned: autograd refuses them.

    Raises, when the batch is asked for:
        TypeError: a batch has other parts, or its inputs are no tensor (batch, ...) of at least one sample.
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
            if not isinstance(inputs, Tensor) or inputs.dim() < 2 or inputs.shape[0] == 0:
                got = f"shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
                raise TypeError(f"{where}: expected inputs as a tensor (batch, ...) with at least one sample, got {got}")
            taken += 1
            yield _with_gradients(inputs), _with_gradients(targets)
        if taken == before:
            raise ValueError(
                f"{where}: expected another batch (inputs, targets) after {taken}, found none "
                "(empty, or an exhausted iterator? pass a list or a loader)"
            )


def _with_gradients(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
