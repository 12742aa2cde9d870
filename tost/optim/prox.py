"""The two proximal maps of SplitLBI, scaled by kappa: Gamma = kappa prox(V), for lists of tensors at a time.

lasso: each entry v becomes kappa sign(v) (|v| - threshold)+. group: index o of dimension 0 is one group (an output filter of a
convolution), and V_o becomes kappa V_o (1 - threshold / ||V_o||)+, with the Euclidean norm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["GROUP", "LASSO", "Scratch", "group_prox", "group_threshold", "lasso_prox"]

GROUP = "group"
LASSO = "lasso"

Scratch = dict[tuple[object, ...], tuple[Tensor, list[Tensor]]]


def group_threshold(weight: Tensor, lam: float, sqrt_d: bool) -> float:
    """lam, or lam sqrt(d) with d the number of weights of one filter of `weight`, shape (O, ...)."""
    return lam * math.sqrt(weight[0].numel()) if sqrt_d and weight.shape[0] else lam


def lasso_prox(duals: list[Tensor], kappa: float, threshold: float, out: list[Tensor]) -> None:
    """Write kappa prox(V) into `out`, tensors of the same shapes."""
    for dual, gamma in zip(duals, out, strict=True):
        torch.ops.aten.softshrink.out(dual, threshold, out=gamma)
    if kappa != 1:
        torch._foreach_mul_(out, kappa)


def group_prox(duals: list[Tensor], kappa: float, thresholds: list[float], out: list[Tensor], scratch: Scratch) -> None:
    """Write kappa prox(V) into `out`, tensors of the same shapes; V, of any strides, is read twice and Gamma written once.

    All tensors are of one dtype and device: the factors of all their groups are computed together.

    thresholds: one a tensor.
    scratch: where the memory of the factors, one number a group, is kept from call to call; empty at first.
    """
    factors, columns = _factors(duals, scratch)
    for dual, column in zip(duals, columns, strict=True):
        torch.linalg.vector_norm(dual, dim=tuple(range(1, dual.dim())), keepdim=True, out=column)
    # kappa (1 - threshold / norm)+, exactly 0 where they are equal; a norm of 0 has no direction, and Gamma is 0 at any factor
    factors.clamp_min_(torch.finfo(factors.dtype).tiny)
    if len(set(thresholds)) == 1:
        factors.div_(thresholds[0])
    else:
        torch._foreach_div_(columns, thresholds)
    factors.reciprocal_().mul_(-kappa).add_(kappa).clamp_min_(0)
    for dual, column, gamma in zip(duals, columns, out, strict=True):
        torch.mul(dual, column, out=gamma)


def _factors(duals: list[Tensor], scratch: Scratch) -> tuple[Tensor, list[Tensor]]:
    """A number for each group of all tensors, and the parts of that vector that broadcast over each, (O, 1, ..., 1)."""
    key = (duals[0].dtype, duals[0].device, *(dual.shape for dual in duals))
    if key not in scratch:
        filters = [dual.shape[0] for dual in duals]
        factors = duals[0].new_empty(sum(filters))
        parts = torch.split(factors, filters)
        scratch[key] = factors, [part.view(-1, *[1] * (dual.dim() - 1)) for dual, part in zip(duals, parts, strict=True)]
    return scratch[key]
