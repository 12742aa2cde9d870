"""The state of a training as it is at one moment, in memory, and back: for steps that are only a rehearsal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tost.random_state import random_state, set_random_state

__all__ = ["HostState", "Numbers", "Snapshot"]

_PLAIN = bool | int | float | str | None


class HostState:
    """What a step may change on the host: the modules' own numbers, texts and flags, and the global random generators (that of
    `device`, which is not the host's, is kept and put back, but does not count as moved).
    """

    def __init__(self, net: nn.Module, device: torch.device) -> None:
        self._device = device
        self._random = random_state(device)
        self.numbers = Numbers(net)

    @property
    def moved(self) -> bool:
        """Whether the host has drawn random numbers since, or a module has other numbers of its own."""
        drawn = _hosts(random_state(self._device), self._device) != _hosts(self._random, self._device)
        return drawn or self.numbers.moved

    def put_back(self) -> None:
        self.numbers.put_back()
        set_random_state(self._random, self._device)


class Numbers:
    """The attributes of all modules of `net` that are numbers, texts or None, as they are now."""

    def __init__(self, net: nn.Module) -> None:
        attributes = [vars(module) for module in net.modules()]
        self._saved = [(a, {name: value for name, value in a.items() if isinstance(value, _PLAIN)}) for a in attributes]

    @property
    def moved(self) -> bool:
        return not all(saved.items() <= attributes.items() for attributes, saved in self._saved)

    def put_back(self) -> None:
        for attributes, saved in self._saved:
            attributes.update(saved)


class Snapshot:
    """What steps of training change: parameters and buffers of `net`, the state of `optimizer`, and what `HostState` keeps."""

    def __init__(self, net: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._optimizer = optimizer
        tensors = [*net.parameters(), *net.buffers(), *_moments(optimizer)]
        self._saved = {id(tensor): (tensor, tensor.detach().clone()) for tensor in tensors}
        self._host = HostState(net, device)

    @torch.no_grad()
    def put_back(self) -> None:
        """All of it as it was, in the same tensors. What the optimizer has begun to keep since is 0, as before a first step."""
        for tensor, before in self._saved.values():
            tensor.copy_(before)
        for moment in _moments(self._optimizer):
            if id(moment) not in self._saved:
                moment.zero_()
        self._host.put_back()


def _moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def _hosts(state: dict[str, Any], device: torch.device) -> dict[str, Any]:
    own = "cuda" if device.type == "cuda" else "torch"
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in state.items() if name != own}
