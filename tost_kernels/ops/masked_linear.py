"""masked_linear: a linear layer whose weight is a vector of kept values and a Pattern."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tost_kernels.layout import as_layout, empty_layout, layout_of
from tost_kernels.ops.register import autocast, define, define_reference, differentiate, op
from tost_kernels.ops.scatter import scatter_index
from tost_kernels.pattern import Pattern
from tost_kernels.plan import Plan, static_plan

_SCHEMA = "(Tensor input, Tensor values, Tensor? bias, Tensor index, int[] weight_shape, str plan) -> Tensor"
_INPUT_GRAD_SCHEMA = "(Tensor grad_output, Tensor values, Tensor index, str input_layout, int[] weight_shape, str plan) -> Tensor"
_VALUES_GRAD_SCHEMA = "(Tensor grad_output, Tensor input, Tensor index, int nnz, int[] weight_shape, str plan) -> Tensor"


def _fake(input: Tensor, values: Tensor, bias: Tensor | None, index: Tensor, weight_shape: list[int], plan: str) -> Tensor:
    return empty_layout((input.shape[0], weight_shape[0]), layout_of(input), input)


def _input_grad_fake(
    grad_output: Tensor, values: Tensor, index: Tensor, input_layout: str, weight_shape: list[int], plan: str
) -> Tensor:
    return empty_layout((grad_output.shape[0], weight_shape[1]), input_layout, grad_output)


def _values_grad_fake(grad_output: Tensor, input: Tensor, index: Tensor, nnz: int, weight_shape: list[int], plan: str) -> Tensor:
    return input.new_empty(nnz)


def reference(input: Tensor, values: Tensor, bias: Tensor | None, index: Tensor, weight_shape: list[int], plan: str) -> Tensor:
    """The specification: torch's linear with the weight that is `values` at the kept positions and 0 elsewhere."""
    return as_layout(F.linear(input, scatter_index(values, index, weight_shape), bias), layout_of(input))


def dense(x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None) -> Tensor:
    """torch's own matrix product on the scattered weight: a candidate for every layer, differentiable to any order."""
    return as_layout(F.linear(x, pattern.scatter(values), bias), layout_of(x))


class MaskedLinear(torch.autograd.Function):
    """Chooses nothing: forward and backward run on the backend given. The bias gradient is a plain sum."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        backend: str,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        index: Tensor,
        weight_shape: list[int],
        plan: str,
    ) -> Tensor:
        return op("masked_linear", backend)(x, values, bias, index, weight_shape, plan)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.backend, x, values, bias, index, ctx.weight_shape, ctx.plan = inputs
        ctx.input_layout, ctx.nnz = layout_of(x), values.shape[0]
        ctx.bias_dtype = None if bias is None else bias.dtype
        # Each gradient needs one of the two: the other one's memory may go.
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, values if ctx.needs_input_grad[1] else None, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, values, index = ctx.saved_tensors
        grad_x = grad_values = grad_bias = None
        if ctx.needs_input_grad[1]:
            grad_x = op("masked_linear_input_grad", ctx.backend)(
                grad_output, values, index, ctx.input_layout, ctx.weight_shape, ctx.plan
            )
        if ctx.needs_input_grad[2]:
            grad_values = op("masked_linear_values_grad", ctx.backend)(grad_output, x, index, ctx.nnz, ctx.weight_shape, ctx.plan)
        if ctx.needs_input_grad[3]:
            grad_bias = grad_output.sum(0).to(ctx.bias_dtype)
        return None, grad_x, grad_values, grad_bias, None, None, None


define("masked_linear", _SCHEMA, _fake)
define("masked_linear_input_grad", _INPUT_GRAD_SCHEMA, _input_grad_fake)
define("masked_linear_values_grad", _VALUES_GRAD_SCHEMA, _values_grad_fake)
define_reference("masked_linear", _SCHEMA, reference)
differentiate("masked_linear", MaskedLinear)


def masked_linear(x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None = None, *, plan: Plan | None = None) -> Tensor:
    """Linear layer with a sparse weight: torch.nn.functional.linear(x, pattern.scatter(values), bias).

    x: (..., I), floating, any strides. values: (nnz,), the kept weights in the order of mask.nonzero(), the dtype of x.
    pattern: of shape (O, I). bias: (O,) or None. plan: which backend runs it; by default the one forced by `use_backend`, else
    a static rule. Returns (..., O); for a 2-D x that is batch-last ([I][N] in memory), batch-last.

    Differentiable in x, values and bias; to any order with the backends "reference" and "dense", once with the compiled ones.
    Under autocast the tensors are cast to its dtype. Raises TypeError or ValueError naming the argument that is wrong,
    RuntimeError when a forced backend cannot run.
    """
    if not isinstance(pattern, Pattern):
        raise TypeError(f"masked_linear: expected pattern to be a tost_kernels.Pattern, got {type(pattern).__name__}")
    if not isinstance(x, Tensor) or not isinstance(values, Tensor):
        raise TypeError(f"masked_linear: expected x and values to be tensors, got {type(x).__name__}, {type(values).__name__}")
    _check(x, values, pattern, bias)
    x, values, bias = autocast(x, values, bias)
    for name, tensor in (("values", values), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise TypeError(f"masked_linear: expected {name} of x's dtype {x.dtype}, got {tensor.dtype}")
    if x.dim() != 2:
        flat = masked_linear(x.reshape(-1, x.shape[-1]), values, pattern, bias, plan=plan)
        return flat.reshape(*x.shape[:-1], pattern.shape[0])

    plan = plan or static_plan("masked_linear", x, pattern)
    if plan.backend == "dense":
        return dense(x, values, pattern, bias)
    arguments = (x, values, bias, pattern.index, list(pattern.shape), plan.options)
    if plan.backend == "reference":
        return op("masked_linear", "reference")(*arguments)  # type: ignore[no-any-return]
    return MaskedLinear.apply(plan.backend, *arguments)  # type: ignore[no-any-return]


def _check(x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None) -> None:
    if len(pattern.shape) != 2:
        raise ValueError(f"masked_linear: expected pattern of shape (O, I), got {pattern.shape}")
    if not x.is_floating_point():
        raise TypeError(f"masked_linear: expected x of a floating dtype, got {x.dtype}")
    if x.dim() < 1 or x.shape[-1] != pattern.shape[1]:
        raise ValueError(f"masked_linear: expected x of shape (..., {pattern.shape[1]}), got {tuple(x.shape)}")
    if values.shape != (pattern.nnz,):
        raise ValueError(f"masked_linear: expected values of shape ({pattern.nnz},), got {tuple(values.shape)}")
    if bias is not None and bias.shape != (pattern.shape[0],):
        raise ValueError(f"masked_linear: expected bias of shape ({pattern.shape[0]},), got {tuple(bias.shape)}")
    if not (x.device == values.device == pattern.device):
        raise ValueError(
            f"masked_linear: expected x, values and pattern on one device, got {x.device}, {values.device}, {pattern.device}"
        )
