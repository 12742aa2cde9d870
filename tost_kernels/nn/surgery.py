"""Changing the modules of a network: a copy that always works, and putting new modules in the place of old ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def duplicate(net: Module) -> Module:
    """A deep copy of `net`, also of one that torch.nn.utils.prune has pruned and that has run; gradients are left behind.

    Such a network holds its masked weights as plain attributes that carry a graph, which copy.deepcopy refuses. They are
    computed anew at every forward pass, so their values are enough.
    """
    memo: dict[int, Any] = {}
    for module in net.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    new = copy.deepcopy(net, memo)
    new.zero_grad(set_to_none=True)
    return new


def replace_modules(net: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put new[module] in the place of each module of `net` that is a key; returns `net`, or what replaces it.

    A module used in several places stays shared.
    """
    for parent in list(net.modules()):
        for name, child in list(parent._modules.items()):  # named_children() would skip a second use
            if child is not None and child in new:
                parent._modules[name] = new[child]
    return new.get(net, net)
