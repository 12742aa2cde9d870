"""Taking some channels out of a tensor, and putting them back: each is the other's gradient, so both differentiate to any order.

In its own layout a tensor's channels are whole rows of memory (batch_last: the longest), and no layout changes on the way.
torch's own index_select would return them contiguous, and add them up in its gradient, where here nothing can coincide.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tost_kernels.layout import layout_of, memory_order


class _Take(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, index: Tensor, layout: str) -> Tensor:
        order = memory_order(x.dim(), layout)
        return x.permute(order).index_select(order.index(1), index).permute(_inverse(order))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
        x, index, ctx.layout = inputs
        ctx.channels = x.shape[1]
        ctx.save_for_backward(index)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        return _Put.apply(grad_output, *ctx.saved_tensors, ctx.channels, ctx.layout), None, None


class _Put(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, index: Tensor, channels: int, layout: str) -> Tensor:
        order = memory_order(x.dim(), layout)
        shape = [channels if dimension == 1 else x.shape[dimension] for dimension in order]
        return x.new_zeros(shape).index_copy_(order.index(1), index, x.permute(order)).permute(_inverse(order))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, str], output: Tensor) -> None:
        _, index, _, ctx.layout = inputs
        ctx.save_for_backward(index)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        return _Take.apply(grad_output, *ctx.saved_tensors, ctx.layout), None, None, None


def _inverse(order: list[int]) -> list[int]:
    return [order.index(dimension) for dimension in range(len(order))]


def take_channels(x: Tensor, index: Tensor) -> Tensor:
    """Channels `index`, int64 (K,), of `x` (N, C, ...): (N, K, ...) in the layout of `x`."""
    return _Take.apply(x, index, layout_of(x))  # type: ignore[no-any-return]


def put_channels(x: Tensor, index: Tensor, channels: int, layout: str) -> Tensor:
    """(N, channels, ...) in `layout`: `x` (N, K, ...) at the channels `index`, int64 (K,), all different; 0 elsewhere."""
    return _Put.apply(x, index, channels, layout)  # type: ignore[no-any-return]
