"""A deep copy of a network that also works on one pruned with torch.nn.utils.prune."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn

__all__ = ["duplicate"]

Module = TypeVar("Module", bound=nn.Module)


def duplicate(net: Module) -> Module:
    """A deep copy of `net`; only the gradients are left behind.

    torch.nn.utils.prune leaves the masked weight as a plain attribute that carries its graph, which copy.deepcopy
    refuses to copy. It is derived from `weight_orig` and the mask at every forward pass, so its value alone is enough.
    """
    derived: list[tuple[nn.Module, str, Tensor]] = []
    for module in net.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                derived.append((module, name, value))
    try:
        for module, name, value in derived:
            vars(module)[name] = value.detach()
        new = copy.deepcopy(net)
    finally:
        for module, name, value in derived:
            vars(module)[name] = value
    for parameter in new.parameters():
        parameter.grad = None
    return new
