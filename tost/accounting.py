"""`account`: how many weights a network keeps, of how many, and what it carries beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

from tost.ghosts import ghosts_of
from tost_kernels.nn import SparseConv2d, SparseLinear

__all__ = ["Accounting", "account", "ghost_modules", "is_weighted", "weight_count"]


@dataclass(frozen=True)
class Accounting:
    """Counts of one network. Weights are those of Conv2d and Linear layers, without biases and without ghosts.

    weights_kept: weights the masks keep. weights_prunable: weights of the same layers when dense. density: their
    ratio (1.0 where there is none). ghost_weights: weights of the ghosts' 1x1 convolutions, dense (their BatchNorms not
    counted); 0 after `finalize` unless they are permanent. parameters: all trained numbers the network holds
    (a masked-dense layer holds its pruned weights too), ghosts, BatchNorms and biases included.
    """

    weights_kept: int
    weights_prunable: int
    density: float
    ghost_weights: int
    parameters: int


def account(net: nn.Module) -> Accounting:
    """Counts the weights of `net`: sparse, masked-dense (torch.nn.utils.prune or a parametrization) or dense.

    A dense layer keeps the weights that are not zero. A layer, or a weight tensor, used at several places counts once.

    Raises:
        TypeError: `net` is no module.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"account: net: expected a torch.nn.Module, got {type(net).__name__}")
    ghosts = ghost_modules(net)
    kept = prunable = ghost_weights = 0
    seen: set[int] = set()
    for module in net.modules():
        if not is_weighted(module):
            continue
        stored = _stored_weight(module)
        if id(stored) in seen:
            continue
        seen.add(id(stored))
        of, all_of = weight_count(module)
        if module in ghosts:
            ghost_weights += all_of
        else:
            kept += of
            prunable += all_of
    return Accounting(
        weights_kept=kept,
        weights_prunable=prunable,
        density=kept / prunable if prunable else 1.0,
        ghost_weights=ghost_weights,
        parameters=sum(parameter.numel() for parameter in net.parameters()),
    )


def _stored_weight(module: nn.Module) -> object:
    """The Parameter behind the layer's weight: tied layers have one."""
    parameters = dict(module.named_parameters())
    for name in ("values", "weight", "weight_orig", "parametrizations.weight.original"):
        if name in parameters:
            return parameters[name]
    return module


def is_weighted(module: nn.Module) -> bool:
    """Whether `module` is a layer whose weights count: Conv2d or Linear, dense or sparse."""
    return isinstance(module, nn.Conv2d | nn.Linear | SparseConv2d | SparseLinear)


def ghost_modules(net: nn.Module) -> set[nn.Module]:
    """The modules of `net` that `add_ghosts` put there."""
    return {module for ghost in ghosts_of(net).values() for module in ghost.modules()}


@torch.no_grad()
def weight_count(module: nn.Module) -> tuple[int, int]:
    """(weights kept, weights when dense) of one Conv2d or Linear, plain, pruned, parametrized or sparse."""
    if isinstance(module, SparseConv2d | SparseLinear):
        return int(module.pattern.nnz), math.prod(module.pattern.shape)
    mask = dict(module.named_buffers(recurse=False)).get("weight_mask")
    weight = module.weight  # under a parametrization: computed
    assert isinstance(weight, torch.Tensor)
    if mask is not None and not parametrize.is_parametrized(module, "weight"):
        return int(torch.count_nonzero(mask)), mask.numel()
    return int(torch.count_nonzero(weight)), weight.numel()
