"""Batch-last: the memory layout of sparse networks.

A tensor of shape (N, C, H, W) is batch-last when its memory is ordered [C][H][W][N], that is, when its strides are
(1, H*W*N, W*N, N). A kept weight then multiplies whole rows of the batch: SIMD lanes on a CPU, coalesced loads on a GPU. It is
an ordinary strided tensor: every torch op accepts it and elementwise ops keep it. A 2-D tensor (N, F) is batch-last when its
memory is [F][N].

The rule of every op of this package: the output is batch-last if the input is, else channels_last if the input is, else
contiguous; the gradient of an input takes the layout of that input, whatever the incoming gradient's layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tost_kernels import backend
from tost_kernels.register import apply, define, differentiate, run_below_autograd

BATCH_LAST, CHANNELS_LAST, CONTIGUOUS = "batch_last", "channels_last", "contiguous"


def memory_order(dimensions: int, layout: str) -> list[int]:
    """The dimensions of a tensor that has so many (batch_last: 2 or 4, channels_last: 4), from the outermost in memory on."""
    if layout == CHANNELS_LAST:
        return [0, 2, 3, 1]
    return [*range(1, dimensions), 0] if layout == BATCH_LAST else list(range(dimensions))


def strides_of(shape: Sequence[int], layout: str) -> tuple[int, ...]:
    """The strides of a dense tensor of `shape` (2-D or 4-D for batch_last, 4-D for channels_last) in `layout`."""
    strides = [1] * len(shape)
    step = 1
    for dimension in reversed(memory_order(len(shape), layout)):
        strides[dimension] = step
        step = step * max(shape[dimension], 1)
    return tuple(strides)


def _matches(x: Tensor, layout: str) -> bool:
    wanted = strides_of(x.shape, layout)
    return all(size == 1 or has == want for size, has, want in zip(x.shape, x.stride(), wanted, strict=True))


def is_batch_last(x: Tensor) -> bool:
    """Whether `x` (N, C, H, W) or (N, F) is batch-last. Dimensions of size 1 are ignored; contiguous wins ties."""
    return x.dim() in (2, 4) and not x.is_contiguous() and _matches(x, BATCH_LAST)


def layout_of(x: Tensor) -> str:
    """ "batch_last", "channels_last" or "contiguous": the layout that an op gives its output for the input `x`."""
    if x.is_contiguous():
        return CONTIGUOUS
    if is_batch_last(x):
        return BATCH_LAST
    if x.dim() == 4 and _matches(x, CHANNELS_LAST):
        return CHANNELS_LAST
    return CONTIGUOUS


def empty_layout(shape: Sequence[int], layout: str, like: Tensor) -> Tensor:
    """An uninitialised tensor of `shape` in `layout`, with the dtype and device of `like`."""
    return torch.empty_strided(tuple(shape), strides_of(shape, layout), dtype=like.dtype, device=like.device)


def _to_batch_last_fake(input: Tensor) -> Tensor:
    return empty_layout(input.shape, BATCH_LAST, input)


def _from_batch_last_fake(input: Tensor, layout: str) -> Tensor:
    return empty_layout(input.shape, layout, input)


class _ToBatchLast(torch.autograd.Function):
    """The values do not change, so the gradient passes through as it is."""

    generate_vmap_rule = True

    @staticmethod
    def forward(which: str, x: Tensor) -> Tensor:
        return run_below_autograd("to_batch_last", which, x)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, Tensor]:
        return None, grad_output


class _FromBatchLast(torch.autograd.Function):
    """As `_ToBatchLast`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(which: str, x: Tensor, layout: str) -> Tensor:
        return run_below_autograd("from_batch_last", which, x, layout)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, Tensor, None]:
        return None, grad_output, None


define("to_batch_last", "(Tensor input) -> Tensor", _to_batch_last_fake, backends=("cpu", "triton"))
differentiate("to_batch_last", _ToBatchLast, backends=("cpu", "triton"))
define("from_batch_last", "(Tensor input, str layout) -> Tensor", _from_batch_last_fake, backends=("triton",))
differentiate("from_batch_last", _FromBatchLast, backends=("triton",))


def _transposer(x: Tensor) -> str | None:
    """The backend whose transpose takes `x`; None: torch's copy does it."""
    if x.device.type == "cpu":
        return "cpu" if backend.has_native_conversion() else None
    if x.device.type == "cuda":
        return "triton" if backend.why_not("ghost_skip_add", "triton") is None else None
    return None


def to_batch_last(x: Tensor) -> Tensor:
    """`x` in the batch-last layout: the same shape and values, [C][H][W][N] in memory; `x` itself if it is so already.

    x: (N, C, H, W) or (N, F), any dtype and strides. Do this once, at the input of a network: every layer of this package
    then keeps the layout. Raises TypeError for anything but a tensor, ValueError for another
    number of dimensions.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"to_batch_last: expected x to be a tensor, got {type(x).__name__}")
    if x.dim() not in (2, 4):
        raise ValueError(f"to_batch_last: expected x of shape (N, C, H, W) or (N, F), got {tuple(x.shape)}")
    if _matches(x, BATCH_LAST):
        return x
    transposer = _transposer(x)
    if transposer is not None:
        return apply(_ToBatchLast, transposer, x)  # type: ignore[no-any-return]
    order = [*range(1, x.dim()), 0]
    return x.permute(order).contiguous().permute(-1, *range(x.dim() - 1))


def as_layout(x: Tensor, layout: str) -> Tensor:
    """`x` in `layout` ("batch_last", "channels_last" or "contiguous"); `x` itself if it is so already."""
    if layout == BATCH_LAST:
        return to_batch_last(x)
    if is_batch_last(x) and _transposer(x) == "triton":
        return apply(_FromBatchLast, "triton", x, layout)  # type: ignore[no-any-return]
    if layout == CHANNELS_LAST:
        return x.contiguous(memory_format=torch.channels_last)
    return x.contiguous()


class _Lend(torch.autograd.Function):
    """`as_layout` whose gradient comes back in the layout of the input. Differentiable to any order."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, layout: str) -> Tensor:
        return as_layout(x, layout).view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        ctx.layout = layout_of(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return as_layout(grad_output, ctx.layout), None


def lend(x: Tensor, layout: str) -> Tensor:
    """`x` in `layout`, for an op that wants it so; the gradient comes back in the layout that `x` has."""
    return _Lend.apply(x, layout)  # type: ignore[no-any-return]


def cat(tensors: Sequence[Tensor]) -> Tensor:
    """torch.cat along the channels of tensors (N, C_i, H, W), batch-last where all of them are (torch: contiguous)."""
    if all(x.dim() == 4 and is_batch_last(x) for x in tensors):
        return torch.cat([x.permute(1, 2, 3, 0) for x in tensors]).permute(3, 0, 1, 2)
    return torch.cat(list(tensors), 1)


def pad(x: Tensor, padding: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """torch.nn.functional.pad of the last dimensions of `x` (N, C, H, W), in the layout of `x`.

    padding: (left, right) or (left, right, top, bottom). torch itself returns a contiguous tensor for a batch-last one;
    seen as (C, N, H, W) the same memory is channels_last, which torch keeps.
    """
    if x.dim() == 4 and is_batch_last(x):
        return to_batch_last(F.pad(x.transpose(0, 1), list(padding), mode, value).transpose(0, 1))
    return F.pad(x, list(padding), mode, value)
