"""What SplitLBI has found so far: masks by module name, and the norms of the filters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tost.masks.layers import Layer, is_sparse, prunable_layers

__all__ = ["PathPoint", "Supports", "path_point", "supports"]


class Supports(Protocol):
    """The part of SplitLBI that is read."""

    param_groups: list[dict[str, Any]]

    def has_gamma(self, param: Tensor) -> bool: ...

    def support(self, param: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class PathPoint:
    """A point of the solution path.

    Attributes:
        masks: layer -> where Gamma is not 0, bool of the weight's shape, on the CPU.
        norms: layer -> ||W_o||, shape (O,), float32 on the CPU: the norm of each output filter's (or unit's) weights.
    """

    masks: Mapping[str, Tensor]
    norms: Mapping[str, Tensor]

    @property
    def density(self) -> float:
        """Fraction of the weights of all these layers that are in the support."""
        return sum(int(mask.sum()) for mask in self.masks.values()) / sum(mask.numel() for mask in self.masks.values())

    @property
    def densities(self) -> dict[str, float]:
        """Layer -> fraction of its weights in the support."""
        return {name: int(mask.sum()) / mask.numel() for name, mask in self.masks.items()}

    def in_support(self, layer: str) -> Tensor:
        """(O,) bool: the filters of which some weight is in the support."""
        return self.masks[layer].flatten(1).any(dim=1)


def supports(optimizer: Supports, model: nn.Module) -> dict[str, Tensor]:
    """See `SplitLBI.supports`."""
    return {layer.name: optimizer.support(layer.weight).cpu().contiguous() for layer in _layers(optimizer, model)}


def path_point(optimizer: Supports, model: nn.Module) -> PathPoint:
    """See `SplitLBI.path_point`."""
    norms = {}
    for layer in _layers(optimizer, model):
        weight = layer.weight.detach()
        norms[layer.name] = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.dim()))).float().cpu()
    return PathPoint(supports(optimizer, model), norms)


def _layers(optimizer: Supports, model: nn.Module) -> list[Layer]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    wanted = {id(p) for group in optimizer.param_groups if group["prox"] is not None for p in group["params"]}
    packed = (name for name, module in model.named_modules() if is_sparse(module) and id(module.values) in wanted)
    if (name := next(packed, None)) is not None:
        raise ValueError(
            f"model: layer {name!r} holds packed weights, a vector without a Gamma: train the dense network "
            '(tost_kernels.densify), or put them into a group with "prox": None'
        )
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        and isinstance(weight := module._parameters.get("weight"), Tensor)
        and optimizer.has_gamma(weight)
    ]
    if not names:
        raise ValueError("model: expected a Conv2d or Linear whose weight has a Gamma in this optimizer, found none")
    return prunable_layers(model, include=names)
