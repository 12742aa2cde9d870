"""Parameter groups for a torch optimizer: which parameters weight decay applies to."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from tost_kernels.nn.sparse_module import SparseModule

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def param_groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for any torch optimizer: first the parameters that decay by `weight_decay`, then those that do not.

    The usual rule "skip what has one dimension" would skip every sparse weight, which is a vector; the rule here: `values` of
    sparse layers and weights of two or more dimensions decay; biases, parameters of normalisation layers and all scalars and
    vectors (strengths, per-channel slopes) do not. Each parameter appears once, in the order of `net.parameters()`; frozen
    ones are left out. Works for dense networks too. Both groups are always there, so optimizer states stay comparable.

    Raises TypeError if `net` is not a Module, ValueError if `weight_decay` is negative or not finite.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net: expected a torch.nn.Module, got {type(net).__name__}")
    if isinstance(weight_decay, bool) or not isinstance(weight_decay, int | float):
        raise TypeError(f"weight_decay: expected a number, got {type(weight_decay).__name__}")
    if not math.isfinite(weight_decay) or weight_decay < 0:
        raise ValueError(f"weight_decay: expected a finite number >= 0, got {weight_decay}")
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    seen: set[nn.Parameter] = set()
    for module in net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            (decayed if _decays(module, name, parameter) else kept).append(parameter)
    return [{"params": decayed, "weight_decay": float(weight_decay)}, {"params": kept, "weight_decay": 0.0}]


def _decays(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    if isinstance(module, SparseModule) and name == "values":
        return True
    return parameter.dim() > 1 and not name.endswith("bias") and not isinstance(module, _NORMS)
