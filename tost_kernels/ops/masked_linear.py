"""masked_linear: a linear layer whose weight is a vector of kept values and a Pattern."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from tost_kernels.layout import as_layout, layout_of
from tost_kernels.ops.channels import put_channels, take_channels
from tost_kernels.ops.masked import check_types, check_weights, define_masked, index_and_options
from tost_kernels.ops.scatter import scatter_index
from tost_kernels.pattern import Pattern
from tost_kernels.plan import Plan, plan_for
from tost_kernels.register import apply, autocast, op


def output_shape(input_shape: Sequence[int], weight_shape: Sequence[int], plan: str) -> list[int]:
    """(N, O) of a linear layer."""
    return [input_shape[0], weight_shape[0]]


def reference(input: Tensor, values: Tensor, bias: Tensor | None, index: Tensor, weight_shape: list[int], plan: str) -> Tensor:
    """The specification: torch's linear with the weight that is `values` at the kept positions and 0 elsewhere."""
    return as_layout(F.linear(input, scatter_index(values, index, weight_shape), bias), layout_of(input))


DENSE_OPTIONS = ("", "compact=1")  # what a dense plan may ask for


def dense(x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None, options: str = "") -> Tensor:
    """torch's own matrix product on the scattered weight: a candidate for every layer, differentiable to any order.

    options: of DENSE_OPTIONS; "compact=1" leaves out outputs and inputs that keep no weight (`tost_kernels.compact`), where
    there are enough of them. Raises ValueError for another.
    """
    if options not in DENSE_OPTIONS:
        raise ValueError(f"masked_linear: expected the options of a dense plan to be one of {DENSE_OPTIONS}, got {options!r}")
    live = pattern.compact if options else None
    if live is not None:
        out = F.linear(take_channels(x, live.channels), live.scatter(values))
        out = put_channels(out, live.filters, pattern.shape[0], layout_of(x))
        return out if bias is None else out + bias
    return as_layout(F.linear(x, pattern.scatter(values), bias), layout_of(x))


_MaskedLinear = define_masked("masked_linear", "int[] weight_shape, str plan", output_shape, reference)


def masked_linear(x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None = None, *, plan: Plan | None = None) -> Tensor:
    """Linear layer with a sparse weight: torch.nn.functional.linear(x, pattern.scatter(values), bias).

    x: (..., I), floating, any strides. values: (nnz,), the kept weights in the order of mask.nonzero(), the dtype of x.
    pattern: of shape (O, I). bias: (O,) or None. plan: which backend runs it; by default the one forced by `use_backend`, else
    what `tune` found, else a static rule. Returns (..., O); for a 2-D x that is batch-last ([I][N] in memory), batch-last.

    Differentiable in x, values and bias; to any order with the backends "reference" and "dense", once with the compiled ones.
    Under autocast the tensors are cast to its dtype. Raises TypeError or ValueError naming the argument that is wrong,
    RuntimeError when a forced backend cannot run.
    """
    check_types("masked_linear", x, values, pattern, bias)
    if len(pattern.shape) != 2:
        raise ValueError(f"masked_linear: expected pattern of shape (O, I), got {pattern.shape}")
    if x.dim() < 1 or x.shape[-1] != pattern.shape[1]:
        raise ValueError(f"masked_linear: expected x of shape (..., {pattern.shape[1]}), got {tuple(x.shape)}")
    x, values, bias = autocast(x, values, bias)
    check_weights("masked_linear", x, values, pattern, bias)
    if x.dim() != 2:
        flat = masked_linear(x.reshape(-1, x.shape[-1]), values, pattern, bias, plan=plan)
        return flat.reshape(*x.shape[:-1], pattern.shape[0])

    plan = plan or plan_for("masked_linear", x, values, pattern, bias, ())
    if plan.backend == "dense":
        return dense(x, values, pattern, bias, plan.options)
    index, options = index_and_options(plan, "masked_linear", x, pattern, ())
    arguments = (x, values, bias, index, list(pattern.shape), options)
    if plan.backend == "reference":
        return op("masked_linear", "reference")(*arguments)  # type: ignore[no-any-return]
    return apply(_MaskedLinear, plan.backend, *arguments)  # type: ignore[no-any-return]
