"""Max and average pooling of batch-last tensors: torch's own values, without leaving the layout.

Backward of the maximum needs no input: forward returns, a byte each, which tap of its window a maximum came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tost_kernels.backend import forced, why_not_for
from tost_kernels.layout import as_layout, empty_layout, is_batch_last, layout_of
from tost_kernels.register import apply, define, define_reference, differentiate, once_differentiable, op, run_below_autograd

BACKENDS = ("cpu",)  # that have such kernels: on a GPU torch's own are used
MAX_TAPS = 256  # that a byte can tell apart
SMALLEST_BATCH = 16  # one vector: below it torch's kernel is faster

_WINDOWS = "int[] kernel, int[] stride, int[] padding, bool ceil_mode"
_COUNTING = "bool count_include_pad, int divisor"  # divisor 0: the number of taps
_MAX_SCHEMA = f"(Tensor input, {_WINDOWS}) -> (Tensor out, Tensor taps)"
_MAX_BACKWARD_SCHEMA = f"(Tensor grad_output, Tensor taps, SymInt[] input_shape, str layout, {_WINDOWS}) -> Tensor"
_AVG_SCHEMA = f"(Tensor input, {_WINDOWS}, {_COUNTING}) -> Tensor"
_AVG_BACKWARD_SCHEMA = f"(Tensor grad_output, SymInt[] input_shape, str layout, {_WINDOWS}, {_COUNTING}) -> Tensor"

Pair = tuple[int, int]
Windows = tuple[Pair, Pair, Pair, bool]  # kernel, stride, padding, ceil_mode


def pair(value: int | Sequence[int]) -> Pair:
    """A number for both of (H, W), or a sequence of one or two."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values[0], values[-1]


def max_reference(
    input: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    """The specification, in plain torch. input: (N, C, H, W). out: (N, C, H', W'); taps: uint8, row * kernel width + column."""
    out, index = F.max_pool2d(input, tuple(kernel), tuple(stride), tuple(padding), 1, ceil_mode, return_indices=True)
    width = input.shape[3]
    top = torch.arange(out.shape[2], device=input.device)[:, None] * stride[0] - padding[0]
    left = torch.arange(out.shape[3], device=input.device) * stride[1] - padding[1]
    taps = (index // width - top) * kernel[1] + (index % width - left)
    layout = layout_of(input)
    return as_layout(out, layout), as_layout(taps.to(torch.uint8), layout)


def avg_reference(
    input: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int,
) -> Tensor:
    """The specification, in plain torch. input: (N, C, H, W) -> (N, C, H', W'). divisor: 0 for the number of taps."""
    out = F.avg_pool2d(input, tuple(kernel), tuple(stride), tuple(padding), ceil_mode, count_include_pad, divisor or None)
    return as_layout(out, layout_of(input))


def _output_shape(
    shape: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool
) -> list[int]:
    counts = []
    for d in (0, 1):
        room = shape[2 + d] + 2 * padding[d] - kernel[d] + (stride[d] - 1 if ceil_mode else 0)
        count = room // stride[d] + 1
        # no window begins past the end
        counts.append(count - (ceil_mode and (count - 1) * stride[d] >= shape[2 + d] + padding[d]))
    return [*shape[:2], *counts]


def _max_fake(input: Tensor, *windows: Any) -> tuple[Tensor, Tensor]:
    shape, layout = _output_shape(input.shape, *windows), layout_of(input)
    return empty_layout(shape, layout, input), empty_layout(shape, layout, input.new_empty(0, dtype=torch.uint8))


def _max_backward_fake(grad_output: Tensor, taps: Tensor, input_shape: Sequence[int], layout: str, *windows: Any) -> Tensor:
    return empty_layout(input_shape, layout, grad_output)


def _avg_fake(input: Tensor, *options: Any) -> Tensor:
    return empty_layout(_output_shape(input.shape, *options[:4]), layout_of(input), input)


def _avg_backward_fake(grad_output: Tensor, input_shape: Sequence[int], layout: str, *options: Any) -> Tensor:
    return empty_layout(input_shape, layout, grad_output)


class _MaxPool2d(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(backend: str, input: Tensor, *windows: Any) -> tuple[Tensor, Tensor]:
        return run_below_autograd("max_pool2d", backend, input, *windows)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.backend, input, *ctx.windows = inputs
        ctx.shape, ctx.layout = list(input.shape), layout_of(input)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        (taps,) = ctx.saved_tensors
        backward = op("max_pool2d_backward", ctx.backend)
        return None, backward(grad_output, taps, ctx.shape, ctx.layout, *ctx.windows), *[None] * len(ctx.windows)


class _AvgPool2d(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(backend: str, input: Tensor, *options: Any) -> Tensor:
        return run_below_autograd("avg_pool2d", backend, input, *options)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.backend, input, *ctx.options = inputs
        ctx.shape, ctx.layout = list(input.shape), layout_of(input)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        backward = op("avg_pool2d_backward", ctx.backend)
        return None, backward(grad_output, ctx.shape, ctx.layout, *ctx.options), *[None] * len(ctx.options)


define("max_pool2d", _MAX_SCHEMA, _max_fake, BACKENDS)
define("max_pool2d_backward", _MAX_BACKWARD_SCHEMA, _max_backward_fake, BACKENDS)
define_reference("max_pool2d", _MAX_SCHEMA, max_reference)
differentiate("max_pool2d", _MaxPool2d, BACKENDS)
define("avg_pool2d", _AVG_SCHEMA, _avg_fake, BACKENDS)
define("avg_pool2d_backward", _AVG_BACKWARD_SCHEMA, _avg_backward_fake, BACKENDS)
define_reference("avg_pool2d", _AVG_SCHEMA, avg_reference)
differentiate("avg_pool2d", _AvgPool2d, BACKENDS)


def has_kernel_for(name: str, x: Tensor, windows: Windows) -> bool:
    """Whether the compiled CPU kernel takes these windows of `x`, and torch would not refuse them."""
    if x.dim() != 4 or x.shape[0] < SMALLEST_BATCH or not is_batch_last(x) or x.numel() == 0:
        return False
    if forced() not in (None, "cpu") or why_not_for(name, "cpu", x) is not None:
        return False
    (height, width), (down, right), (top, left), _ = windows
    sane = min(height, width, down, right) > 0 and 0 <= 2 * top <= height and 0 <= 2 * left <= width
    return sane and height * width <= MAX_TAPS and min(_output_shape(x.shape, *windows)) > 0


def max_pool2d(x: Tensor, windows: Windows) -> Tensor:
    """torch.nn.functional.max_pool2d of a batch-last (N, C, H, W) for which `has_kernel_for`, batch-last."""
    out: Tensor = apply(_MaxPool2d, "cpu", x, *windows)[0]
    return out


def avg_pool2d(x: Tensor, windows: Windows, count_include_pad: bool, divisor: int) -> Tensor:
    """torch.nn.functional.avg_pool2d of a batch-last (N, C, H, W) for which `has_kernel_for`, batch-last; divisor 0 for none."""
    return apply(_AvgPool2d, "cpu", x, *windows, count_include_pad, divisor)  # type: ignore[no-any-return]
