"""Parameter groups for SplitLBI: convolutions by filters, linear layers by weights, the rest without structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from tost.masks.layers import is_sparse, prunable_layers
from tost.optim.prox import GROUP, LASSO

__all__ = ["split_lbi_groups"]


def split_lbi_groups(
    model: nn.Module,
    conv: Mapping[str, Any] | None = None,
    linear: Mapping[str, Any] | None = None,
    rest: Mapping[str, Any] | None = None,
    *,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Three parameter groups, as in the papers: Conv2d weights (prox "group"), Linear weights ("lasso"), and the rest (None).

    All three are always there, even empty, and each parameter is in one; frozen ones are left out.

    Args:
        model: a dense network.
        conv, linear, rest: options of `SplitLBI` for the group, such as {"lam": 0.1, "sqrt_d": True} or {"prox": "lasso"}.
        include, exclude: fnmatch patterns on module names, as in `tost.prune`: layers that get a Gamma; others are of the rest.

    Raises:
        TypeError: `model` is no module, or options are no mapping.
        ValueError: a layer is sparse already (its weight is a packed vector), pruned, tied or not initialised; a pattern matches
            no layer.
    """
    for name, options in (("conv", conv), ("linear", linear), ("rest", rest)):
        if options is not None and not isinstance(options, Mapping):
            raise TypeError(f"{name}: expected a mapping of options, got {type(options).__name__}")
    layers = prunable_layers(model, include, exclude)
    packed = next((name for name, module in model.named_modules() if is_sparse(module)), None)
    if packed is not None:
        raise ValueError(f"model: layer {packed!r} holds packed weights; use the dense network (tost_kernels.densify)")
    weights = {
        kind: [layer.weight for layer in layers if isinstance(layer.module, kind) and layer.weight.requires_grad]
        for kind in (nn.Conv2d, nn.Linear)
    }
    structured = {id(weight) for group in weights.values() for weight in group}
    plain = [p for p in model.parameters() if p.requires_grad and id(p) not in structured]
    return [
        {"params": weights[nn.Conv2d], "prox": GROUP, **(conv or {})},
        {"params": weights[nn.Linear], "prox": LASSO, **(linear or {})},
        {"params": plain, "prox": None, **(rest or {})},
    ]
