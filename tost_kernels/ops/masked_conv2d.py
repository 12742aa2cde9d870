"""masked_conv2d: a convolution whose weight is a vector of kept values and a Pattern."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tost_kernels.layout import BATCH_LAST, as_layout, empty_layout, layout_of, pad
from tost_kernels.ops.register import autocast, define, define_reference, differentiate, op
from tost_kernels.ops.scatter import scatter_index
from tost_kernels.pattern import Pattern
from tost_kernels.plan import Plan, static_plan

_GEOMETRY = "int[] weight_shape, int[] stride, int[] padding, int[] dilation, int groups, str plan"
_SCHEMA = f"(Tensor input, Tensor values, Tensor? bias, Tensor index, {_GEOMETRY}) -> Tensor"
_INPUT_GRAD_SCHEMA = (
    f"(Tensor grad_output, Tensor values, Tensor index, SymInt[] input_shape, str input_layout, {_GEOMETRY}) -> Tensor"
)
_VALUES_GRAD_SCHEMA = f"(Tensor grad_output, Tensor input, Tensor index, int nnz, {_GEOMETRY}) -> Tensor"


def output_shape(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """(N, O, H_out, W_out) of a convolution."""
    spatial = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(input_shape[2:], weight_shape[2:], stride, padding, dilation, strict=True)
    ]
    return [input_shape[0], weight_shape[0], *spatial]


def _fake(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    index: Tensor,
    weight_shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    plan: str,
) -> Tensor:
    shape = output_shape(input.shape, weight_shape, stride, padding, dilation)
    return empty_layout(shape, layout_of(input), input)


def _input_grad_fake(
    grad_output: Tensor, values: Tensor, index: Tensor, input_shape: list[int], input_layout: str, *geometry: Any
) -> Tensor:
    return empty_layout(input_shape, input_layout, grad_output)


def _values_grad_fake(grad_output: Tensor, input: Tensor, index: Tensor, nnz: int, *geometry: Any) -> Tensor:
    return input.new_empty(nnz)


def reference(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    index: Tensor,
    weight_shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    plan: str,
) -> Tensor:
    """The specification: torch's convolution with the weight that is `values` at the kept positions and 0 elsewhere."""
    weight = scatter_index(values, index, weight_shape)
    out = F.conv2d(input.contiguous(), weight, bias, stride, padding, dilation, groups)
    return as_layout(out, layout_of(input))


def dense(
    x: Tensor,
    values: Tensor,
    pattern: Pattern,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """torch's own convolution on the scattered weight: a candidate for every layer, differentiable to any order."""
    layout = layout_of(x)
    if layout == BATCH_LAST:  # no dense library knows it; channels_last is the fastest it has
        x = x.contiguous(memory_format=torch.channels_last)
    out = F.conv2d(x, pattern.scatter(values), bias, stride, padding, dilation, groups)
    return as_layout(out, layout)


def same_padding(kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) for an output as large as the input; an odd one goes to the far side, as in torch."""
    vertical, horizontal = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    return horizontal // 2, horizontal - horizontal // 2, vertical // 2, vertical - vertical // 2


class MaskedConv2d(torch.autograd.Function):
    """Chooses nothing: forward and backward run on the backend given. The bias gradient is a plain sum."""

    generate_vmap_rule = True

    @staticmethod
    def forward(backend: str, x: Tensor, values: Tensor, bias: Tensor | None, index: Tensor, *geometry: Any) -> Tensor:
        return op("masked_conv2d", backend)(x, values, bias, index, *geometry)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.backend, x, values, bias, index, *ctx.geometry = inputs
        ctx.input_shape, ctx.input_layout, ctx.nnz = x.shape, layout_of(x), values.shape[0]
        ctx.bias_dtype = None if bias is None else bias.dtype
        # Each gradient needs one of the two: the other one's memory may go.
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, values if ctx.needs_input_grad[1] else None, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, values, index = ctx.saved_tensors
        grad_x = grad_values = grad_bias = None
        if ctx.needs_input_grad[1]:
            grad_x = op("masked_conv2d_input_grad", ctx.backend)(
                grad_output, values, index, ctx.input_shape, ctx.input_layout, *ctx.geometry
            )
        if ctx.needs_input_grad[2]:
            grad_values = op("masked_conv2d_values_grad", ctx.backend)(grad_output, x, index, ctx.nnz, *ctx.geometry)
        if ctx.needs_input_grad[3]:
            grad_bias = grad_output.sum((0, 2, 3)).to(ctx.bias_dtype)
        return None, grad_x, grad_values, grad_bias, None, *[None] * len(ctx.geometry)


define("masked_conv2d", _SCHEMA, _fake)
define("masked_conv2d_input_grad", _INPUT_GRAD_SCHEMA, _input_grad_fake)
define("masked_conv2d_values_grad", _VALUES_GRAD_SCHEMA, _values_grad_fake)
define_reference("masked_conv2d", _SCHEMA, reference)
differentiate("masked_conv2d", MaskedConv2d)


def masked_conv2d(
    x: Tensor,
    values: Tensor,
    pattern: Pattern,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    plan: Plan | None = None,
) -> Tensor:
    """2-D convolution with a sparse weight: torch.nn.functional.conv2d(x, pattern.scatter(values), bias, ...).

    x: (N, C, H, W) or (C, H, W), floating, any strides. values: (nnz,), the kept weights in the order of mask.nonzero(), the
    dtype of x. pattern: of shape (O, C / groups, kh, kw). bias: (O,) or None. stride, padding, dilation: as in torch; padding
    may also be "same" (stride 1) or "valid". plan: which backend runs it; by default the one forced by `use_backend`, else a
    static rule. Returns (N, O, H_out, W_out), batch-last if x is, else channels_last if x is, else contiguous.

    Differentiable in x, values and bias; to any order with the backends "reference" and "dense", once with the compiled ones.
    Under autocast the tensors are cast to its dtype, as torch's convolutions are. Raises TypeError or ValueError naming the
    argument that is wrong, RuntimeError when a forced backend cannot run.
    """
    if not isinstance(pattern, Pattern):
        raise TypeError(f"masked_conv2d: expected pattern to be a tost_kernels.Pattern, got {type(pattern).__name__}")
    if not isinstance(x, Tensor) or not isinstance(values, Tensor):
        raise TypeError(f"masked_conv2d: expected x and values to be tensors, got {type(x).__name__}, {type(values).__name__}")
    if x.dim() == 3:
        return masked_conv2d(x.unsqueeze(0), values, pattern, bias, stride, padding, dilation, groups, plan=plan).squeeze(0)
    strides, dilations = _pair("stride", stride, least=1), _pair("dilation", dilation, least=1)
    x, paddings = _resolve_padding(x, padding, pattern.shape[2:], strides, dilations)
    _check(x, values, pattern, bias, groups)
    x, values, bias = autocast(x, values, bias)
    for name, tensor in (("values", values), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise TypeError(f"masked_conv2d: expected {name} of x's dtype {x.dtype}, got {tensor.dtype}")
    shape = output_shape(x.shape, pattern.shape, strides, paddings, dilations)
    if shape[2] < 1 or shape[3] < 1:
        raise ValueError(
            f"masked_conv2d: expected x large enough for a kernel of {pattern.shape[2:]} with padding {tuple(paddings)} and "
            f"dilation {tuple(dilations)}, got x of shape {tuple(x.shape)}"
        )

    plan = plan or static_plan("masked_conv2d", x, pattern)
    if plan.backend == "dense":
        return dense(x, values, pattern, bias, strides, paddings, dilations, groups)
    geometry = (list(pattern.shape), strides, paddings, dilations, groups, plan.options)
    if plan.backend == "reference":
        return op("masked_conv2d", "reference")(x, values, bias, pattern.index, *geometry)  # type: ignore[no-any-return]
    return MaskedConv2d.apply(plan.backend, x, values, bias, pattern.index, *geometry)  # type: ignore[no-any-return]


def _pair(name: str, value: int | Sequence[int], least: int) -> list[int]:
    pair = [value, value] if isinstance(value, int) else list(value)
    if len(pair) == 1:
        pair = pair * 2
    if len(pair) != 2 or not all(isinstance(v, int) and v >= least for v in pair):
        raise ValueError(f"masked_conv2d: expected {name} to be an int or two, each at least {least}, got {value!r}")
    return pair


def _resolve_padding(
    x: Tensor, padding: int | Sequence[int] | str, kernel: Sequence[int], stride: list[int], dilation: list[int]
) -> tuple[Tensor, list[int]]:
    """The padding as two numbers; what cannot be said so (an even kernel with "same") is padded here, on the far side."""
    if not isinstance(padding, str):
        return x, _pair("padding", padding, least=0)
    if padding == "valid":
        return x, [0, 0]
    if padding != "same":
        raise ValueError(f"masked_conv2d: expected padding to be numbers, 'same' or 'valid', got {padding!r}")
    if stride != [1, 1]:
        raise ValueError(f"masked_conv2d: padding='same' needs stride 1, got {tuple(stride)}")
    left, right, top, bottom = same_padding(kernel, dilation)
    if (left, top) != (right, bottom):
        x = pad(x, (0, right - left, 0, bottom - top))
    return x, [top, left]


def _check(x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None, groups: int) -> None:
    if len(pattern.shape) != 4:
        raise ValueError(f"masked_conv2d: expected pattern of shape (O, C / groups, kh, kw), got {pattern.shape}")
    if x.dim() != 4:
        raise ValueError(f"masked_conv2d: expected x of shape (N, C, H, W) or (C, H, W), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"masked_conv2d: expected x of a floating dtype, got {x.dtype}")
    if not isinstance(groups, int) or groups < 1 or pattern.shape[0] % groups:
        raise ValueError(f"masked_conv2d: expected groups to divide {pattern.shape[0]} output channels, got {groups!r}")
    if x.shape[1] != pattern.shape[1] * groups:
        raise ValueError(
            f"masked_conv2d: expected x with {pattern.shape[1] * groups} channels (pattern {pattern.shape}, groups {groups}), "
            f"got {x.shape[1]}"
        )
    if values.shape != (pattern.nnz,):
        raise ValueError(f"masked_conv2d: expected values of shape ({pattern.nnz},), got {tuple(values.shape)}")
    if bias is not None and bias.shape != (pattern.shape[0],):
        raise ValueError(f"masked_conv2d: expected bias of shape ({pattern.shape[0]},), got {tuple(bias.shape)}")
    if not (x.device == values.device == pattern.device):
        raise ValueError(
            f"masked_conv2d: expected x, values and pattern on one device, got {x.device}, {values.device}, {pattern.device}"
        )
