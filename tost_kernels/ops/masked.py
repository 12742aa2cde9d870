"""What masked_conv2d and masked_linear share: their schemas, their gradients, their checks.

Both are `name(input, values, bias, index, *geometry)`, where geometry starts with the shape of the weight and ends with the
plan; a convolution has stride, padding, dilation and groups between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tost_kernels import cuda_options
from tost_kernels.layout import empty_layout, layout_of
from tost_kernels.pattern import Pattern
from tost_kernels.plan import Plan
from tost_kernels.register import define, define_reference, differentiate, once_differentiable, op, run_below_autograd


def define_masked(
    name: str, geometry: str, output_shape: Callable[..., Any], reference: Callable[..., Tensor]
) -> type[torch.autograd.Function]:
    """Register `name` with its two gradients for every backend, and return its autograd.Function.

    geometry: the schema of the arguments after the index. output_shape: (input shape, *geometry) -> shape of the output.
    reference: takes what the op takes.
    """

    def fake(input: Tensor, values: Tensor, bias: Tensor | None, index: Tensor, *geometry: Any) -> Tensor:
        return empty_layout(output_shape(input.shape, *geometry), layout_of(input), input)

    def input_grad_fake(
        grad_output: Tensor, values: Tensor, index: Tensor, input_shape: list[int], input_layout: str, *geometry: Any
    ) -> Tensor:
        return empty_layout(input_shape, input_layout, grad_output)

    def values_grad_fake(grad_output: Tensor, input: Tensor, index: Tensor, nnz: int, *geometry: Any) -> Tensor:
        return input.new_empty(nnz)

    schema = f"(Tensor input, Tensor values, Tensor? bias, Tensor index, {geometry}) -> Tensor"
    input_grad_arguments = "Tensor grad_output, Tensor values, Tensor index, SymInt[] input_shape, str input_layout"
    define(name, schema, fake)
    define(f"{name}_input_grad", f"({input_grad_arguments}, {geometry}) -> Tensor", input_grad_fake)
    define(
        f"{name}_values_grad",
        f"(Tensor grad_output, Tensor input, Tensor index, int nnz, {geometry}) -> Tensor",
        values_grad_fake,
    )
    define_reference(name, schema, reference)
    function = _function(name)
    differentiate(name, function)
    return function


def _function(name: str) -> type[torch.autograd.Function]:
    class Masked(torch.autograd.Function):
        """Chooses nothing: forward and backward run on the backend given. The bias gradient is a plain sum."""

        generate_vmap_rule = True

        @staticmethod
        def forward(backend: str, x: Tensor, values: Tensor, bias: Tensor | None, index: Tensor, *geometry: Any) -> Tensor:
            return run_below_autograd(name, backend, x, values, bias, index, *geometry)  # type: ignore[no-any-return]

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            ctx.backend, x, values, _bias, index, *ctx.geometry = inputs
            ctx.input_shape, ctx.input_layout, ctx.nnz = x.shape, layout_of(x), values.shape[0]
            # Each gradient needs one of the two: the other one's memory may go.
            ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, values if ctx.needs_input_grad[1] else None, index)

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
            x, values, index = ctx.saved_tensors
            grad_x = grad_values = grad_bias = None
            if ctx.needs_input_grad[1]:
                grad_x = op(f"{name}_input_grad", ctx.backend)(
                    grad_output, values, index, ctx.input_shape, ctx.input_layout, *ctx.geometry
                )
            if ctx.needs_input_grad[2]:
                grad_values = op(f"{name}_values_grad", ctx.backend)(grad_output, x, index, ctx.nnz, *ctx.geometry)
            if ctx.needs_input_grad[3]:
                grad_bias = grad_output.sum([d for d in range(grad_output.dim()) if d != 1])
            return None, grad_x, grad_values, grad_bias, None, *[None] * len(ctx.geometry)

    return Masked


def index_and_options(plan: Plan, op_name: str, x: Tensor, pattern: Pattern, geometry: tuple[int, ...]) -> tuple[Tensor, str]:
    """The index tensor and the plan string that the op of `plan` takes, for a call whose arguments are checked and cast.

    geometry: of a convolution, stride, padding, dilation (two each) and groups. What cuda and triton leave open is completed
    here, so that the backward pass repeats what the forward pass chose. Raises ValueError naming what is wrong with the options.
    """
    if plan.backend == "cuda":
        return cuda_options.resolve(op_name, plan.options, x, pattern, geometry)
    if plan.backend == "triton":
        from tost_kernels.triton.options import resolve  # where triton is not installed, nobody gets here

        return resolve(op_name, plan.options, x, pattern, geometry)
    return pattern.index, plan.options


def check_types(name: str, x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None) -> None:
    """Raise TypeError, naming op and argument, unless these are tensors and a Pattern, and x is floating."""
    if not isinstance(pattern, Pattern):
        raise TypeError(f"{name}: expected pattern to be a tost_kernels.Pattern, got {type(pattern).__name__}")
    for argument, tensor in (("x", x), ("values", values), ("bias", bias)):
        if not isinstance(tensor, Tensor) and not (tensor is None and argument == "bias"):
            raise TypeError(f"{name}: expected {argument} to be a tensor, got {type(tensor).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name}: expected x of a floating dtype, got {x.dtype}")


def check_weights(name: str, x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None) -> None:
    """Raise ValueError or TypeError, naming op and argument, unless values and bias fit the pattern, and all fit x."""
    if values.shape != (pattern.nnz,):
        raise ValueError(f"{name}: expected values of shape ({pattern.nnz},), got {tuple(values.shape)}")
    if bias is not None and bias.shape != (pattern.shape[0],):
        raise ValueError(f"{name}: expected bias of shape ({pattern.shape[0]},), got {tuple(bias.shape)}")
    for argument, thing in (("values", values), ("pattern", pattern), ("bias", bias)):
        if thing is not None and thing.device != x.device:
            raise ValueError(f"{name}: expected {argument} on x's device {x.device}, got {thing.device}")
    for argument, tensor in (("values", values), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise TypeError(f"{name}: expected {argument} of x's dtype {x.dtype}, got {tensor.dtype}")
