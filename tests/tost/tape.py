"""A recorder for CPU tensors that behaves like a CUDA graph: the tests of recorded steps run on it without a GPU.

It keeps every operator that a step calls with the tensors and numbers it was called with, and replays them one by one into
the same tensors. So it freezes what a graph freezes (a learning rate that is a float, a strength, a branch not taken) and
refuses what a capture refuses: to read a tensor on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# their result, or its shape, is known to the host only when the device is done
_WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero", "item")


def _storages(values: Any) -> set[int]:
    return {leaf.untyped_storage()._cdata for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}


class _Listening(TorchDispatchMode):
    """Calls are done and, where there is a tape, written on it; waiting for the device is an error."""

    def __init__(self, tape: list[Callable[[], None]] | None) -> None:
        super().__init__()
        self.tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name.partition("::")[2] in _WAITING:
            raise RuntimeError(f"the host waits for the device: {func}")
        out = func(*args, **kwargs)
        if self.tape is not None and not func.namespace.startswith("profiler"):
            theirs = _storages((args, kwargs))
            # in-place results and views lie in tensors that are there already
            made = [(n, t) for n, t in enumerate(tree_leaves(out)) if isinstance(t, Tensor) and not _storages(t) & theirs]
            self.tape.append(_Call(func, args, kwargs, made))
        return out


class _Call:
    def __init__(self, func: Any, args: Any, kwargs: Any, made: list[tuple[int, Tensor]]) -> None:
        self.func, self.args, self.kwargs, self.made = func, args, kwargs, made

    def __call__(self) -> None:
        again = tree_leaves(self.func(*self.args, **self.kwargs))
        for number, tensor in self.made:
            tensor.copy_(again[number])


class Tape:
    """The `Recorder` of tests.

    Attributes:
        calls: operators of the last recording.
        replays: how often one was replayed.
    """

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.replays = 0

    def rehearse(self, work: Callable[[], Tensor]) -> None:
        work()
        with _Listening(None):
            work()

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        tape: list[Any] = []
        with _Listening(tape):
            result = work()
        self.calls = tape

        @torch.no_grad()
        def replay() -> None:
            self.replays += 1
            with torch._C._AutoDispatchBelowAutograd():
                for call in tape:
                    call()

        return result, replay
