"""masked_conv2d: a convolution whose weight is a vector of kept values and a Pattern."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from tost_kernels.layout import BATCH_LAST, CHANNELS_LAST, CONTIGUOUS, as_layout, layout_of, lend, pad
from tost_kernels.ops.channels import put_channels, take_channels
from tost_kernels.ops.masked import check_types, check_weights, define_masked, index_and_options
from tost_kernels.ops.scatter import scatter_index
from tost_kernels.pattern import Pattern
from tost_kernels.plan import Plan, plan_for
from tost_kernels.register import apply, autocast, op

_GEOMETRY = "int[] weight_shape, int[] stride, int[] padding, int[] dilation, int groups, str plan"
# What a dense plan may ask for -> the layout that the convolution is computed in, and whether dead filters and channels are
# left out of it.
DENSE_OPTIONS: dict[str, tuple[str | None, bool]] = {
    "": (None, False),
    "layout=channels_last": (CHANNELS_LAST, False),
    "layout=contiguous": (CONTIGUOUS, False),
    "compact=1": (None, True),
    "layout=channels_last,compact=1": (CHANNELS_LAST, True),
    "layout=contiguous,compact=1": (CONTIGUOUS, True),
}


def output_shape(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    plan: str = "",
) -> list[int]:
    """(N, O, H_out, W_out) of a convolution. Neither groups nor the plan matter."""
    spatial = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(input_shape[2:], weight_shape[2:], stride, padding, dilation, strict=True)
    ]
    return [input_shape[0], weight_shape[0], *spatial]


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
    options: str = "",
) -> Tensor:
    """torch's own convolution on the scattered weight: a candidate for every layer, differentiable to any order.

    options: a key of DENSE_OPTIONS; "" takes the input as it is, unless it is batch-last. "compact=1" leaves out dead filters and
    channels (`tost_kernels.compact`) where there are enough of them; groups must be 1. Raises ValueError for another.
    """
    if options not in DENSE_OPTIONS:
        raise ValueError(f"masked_conv2d: expected the options of a dense plan to be one of {(*DENSE_OPTIONS,)}, got {options!r}")
    chosen, leave_out = DENSE_OPTIONS[options]
    if leave_out and groups != 1:
        raise ValueError(f"masked_conv2d: expected groups=1 for a dense plan with compact=1, got groups={groups}")
    layout = layout_of(x)
    live = pattern.compact if leave_out else None
    if live is not None:
        x = take_channels(x, live.channels)
    # No dense library knows batch-last; mostly channels_last is the fastest it has.
    wanted = chosen or (CHANNELS_LAST if layout == BATCH_LAST else layout)
    if wanted != layout:
        x = lend(x, wanted)
    if live is not None:
        out = F.conv2d(x, live.scatter(values), None, stride, padding, dilation)
        out = put_channels(out, live.filters, pattern.shape[0], layout)
        return out if bias is None else out + bias.view(1, -1, 1, 1)
    weight = values.view(pattern.shape) if pattern.density == 1 else pattern.scatter(values)
    return as_layout(F.conv2d(x, weight, bias, stride, padding, dilation, groups), layout)


def same_padding(kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) for an output as large as the input; an odd one goes to the far side, as in torch."""
    vertical, horizontal = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    return horizontal // 2, horizontal - horizontal // 2, vertical // 2, vertical - vertical // 2


_MaskedConv2d = define_masked("masked_conv2d", _GEOMETRY, output_shape, reference)


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
    may also be "same" (stride 1) or "valid". plan: which backend runs it; by default the one forced by `use_backend`, else what
    `tune` found, else a static rule. Returns (N, O, H_out, W_out), batch-last if x is, else channels_last if x is, else
    contiguous.

    Differentiable in x, values and bias; to any order with the backends "reference" and "dense", once with the compiled ones.
    Under autocast the tensors are cast to its dtype, as torch's convolutions are. Raises TypeError or ValueError naming the
    argument that is wrong, RuntimeError when a forced backend cannot run.
    """
    check_types("masked_conv2d", x, values, pattern, bias)
    if x.dim() == 3:
        return masked_conv2d(x.unsqueeze(0), values, pattern, bias, stride, padding, dilation, groups, plan=plan).squeeze(0)
    strides, dilations = _pair("stride", stride, least=1), _pair("dilation", dilation, least=1)
    x, paddings = _resolve_padding(x, padding, pattern.shape[2:], strides, dilations)
    _check_shapes(x, pattern, groups)
    x, values, bias = autocast(x, values, bias)
    check_weights("masked_conv2d", x, values, pattern, bias)
    shape = output_shape(x.shape, pattern.shape, strides, paddings, dilations)
    if shape[2] < 1 or shape[3] < 1:
        raise ValueError(
            f"masked_conv2d: expected x large enough for a kernel of {pattern.shape[2:]} with padding {tuple(paddings)} and "
            f"dilation {tuple(dilations)}, got x of shape {tuple(x.shape)}"
        )

    numbers = (*strides, *paddings, *dilations, groups)
    plan = plan or plan_for("masked_conv2d", x, values, pattern, bias, numbers)
    if plan.backend == "dense":
        return dense(x, values, pattern, bias, strides, paddings, dilations, groups, plan.options)
    index, options = index_and_options(plan, "masked_conv2d", x, pattern, numbers)
    geometry = (list(pattern.shape), strides, paddings, dilations, groups, options)
    if plan.backend == "reference":
        return op("masked_conv2d", "reference")(x, values, bias, index, *geometry)  # type: ignore[no-any-return]
    return apply(_MaskedConv2d, plan.backend, x, values, bias, index, *geometry)  # type: ignore[no-any-return]


def _pair(name: str, value: int | Sequence[int], least: int) -> list[int]:
    pair = list(value) if isinstance(value, Sequence) else [value]
    pair = pair * 2 if len(pair) == 1 else pair
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


def _check_shapes(x: Tensor, pattern: Pattern, groups: int) -> None:
    if len(pattern.shape) != 4:
        raise ValueError(f"masked_conv2d: expected pattern of shape (O, C / groups, kh, kw), got {pattern.shape}")
    if x.dim() != 4:
        raise ValueError(f"masked_conv2d: expected x of shape (N, C, H, W) or (C, H, W), got {tuple(x.shape)}")
    if not isinstance(groups, int) or groups < 1 or pattern.shape[0] % groups:
        raise ValueError(f"masked_conv2d: expected groups to divide {pattern.shape[0]} output channels, got {groups!r}")
    if x.shape[1] != pattern.shape[1] * groups:
        raise ValueError(
            f"masked_conv2d: expected x with {pattern.shape[1] * groups} channels (pattern {pattern.shape}, groups {groups}), "
            f"got {x.shape[1]}"
        )
