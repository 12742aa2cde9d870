"""pswish on a GPU: y = x s, s = sigmoid(beta x), and its gradients.

Forward reads x and writes y: 8 bytes an element of float32, the floor. Backward reads dy and x, writes dx, and sums
dbeta = dy x^2 s (1 - s) on the way: 12 bytes, the floor too; a compiler that keeps reductions apart from elementwise work
reads dy and x a second time for dbeta. Each program leaves one partial sum of dbeta a channel, and a second, tiny, kernel
adds them up. With one beta for all elements the tensor is one channel, whatever its shape.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tost_kernels.layout import as_layout, empty_layout, layout_of
from tost_kernels.triton.activation import activate, activation_gradient
from tost_kernels.triton.channels import (
    WARPS,
    View,
    channels_of,
    load,
    offsets_of,
    on_device_of,
    specimen,
    store,
    tiled,
    total,
    view_of,
)
from tost_kernels.triton.checks import check, check_activation, check_like, check_parameter
from tost_kernels.triton.implement import implement
from tost_kernels.triton.specimen import Specimen

MOST_SPLITS = 2048


@triton.jit
def forward_kernel(
    x, beta, y, outer, channels, inner, channel_tiles,
    STEPS: tl.constexpr, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, ONE_RUN: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A program takes STEPS tiles of the same channels."""
    program = tl.program_id(0)
    c = channels_of(program % channel_tiles, WIDE, CHANNELS)
    b = tl.load(beta + c, mask=c < channels, other=0.0)[None, :]
    for step in tl.static_range(STEPS):
        tile = program // channel_tiles * STEPS + step
        at, exists = offsets_of(tile, c, outer, channels, inner, POSITIONS, CHANNELS, ONE_RUN, WIDE)
        store(y, at, activate(load(x, at, exists), b, 2), exists)


@triton.jit
def backward_kernel(
    dy, x, beta, dx, partial, outer, channels, inner, channel_tiles, tiles, splits,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, ONE_RUN: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Program (channels, split) takes every `splits`-th tile, writes dx and keeps dbeta in registers until its end."""
    program = tl.program_id(0)
    c = channels_of(program % channel_tiles, WIDE, CHANNELS)
    split = program // channel_tiles
    b = tl.load(beta + c, mask=c < channels, other=0.0)[None, :]
    dbeta = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    tile = split
    while tile < tiles:
        at, exists = offsets_of(tile, c, outer, channels, inner, POSITIONS, CHANNELS, ONE_RUN, WIDE)
        grad, term = activation_gradient(load(dy, at, exists), load(x, at, exists), b, 2)
        store(dx, at, grad, exists)
        dbeta += term
        tile += splits
    tl.store(partial + split * channels + c, tl.sum(dbeta, 0), mask=c < channels)


@triton.jit
def total_kernel(partial, out, channels, splits, SPLITS: tl.constexpr, CHANNELS: tl.constexpr):
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    tl.store(out + c, total(partial, 0, c, channels, splits, SPLITS), mask=c < channels)


def _prepare(op: str, input: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, View]:
    """The input in a layout of the package, beta consecutive, and the view of both."""
    check_activation(op, "input", input)
    shared = beta.dim() == 0
    check(op, shared or input.dim() >= 2, "input: expected shape (N, C, ...) with a beta per channel")
    check_parameter(op, "beta", beta, () if shared else (input.shape[1],), input)
    x = as_layout(input, layout_of(input))
    return x, beta.contiguous(), view_of(x, shared)


def forward(input: Tensor, beta: Tensor, plan: str) -> Tensor:
    x, beta, view = _prepare("pswish", input, beta)
    y = empty_layout(x.shape, layout_of(x), x)
    if x.numel() == 0:
        return y
    steps = view.steps(x.device)
    grid = (view.channel_tiles * triton.cdiv(view.tiles, steps),)
    sizes = view.outer, view.channels, view.inner, view.channel_tiles
    with on_device_of(x):
        forward_kernel[grid](x, beta, y, *sizes, STEPS=steps, **view.constants(), num_warps=WARPS)
    return y


def backward(grad_output: Tensor, input: Tensor, beta: Tensor, plan: str) -> tuple[Tensor, Tensor]:
    check_like("pswish_backward", "grad_output", grad_output, input)
    x, flat, view = _prepare("pswish_backward", input, beta)
    dy = as_layout(grad_output, layout_of(x))
    dx = empty_layout(x.shape, layout_of(x), x)
    dbeta = torch.empty_like(flat)
    if x.numel() == 0:
        return dx, dbeta.zero_()
    splits = view.splits(x.device, MOST_SPLITS)
    partial = x.new_empty((splits, view.channels), dtype=torch.float32)
    sizes = view.outer, view.channels, view.inner, view.channel_tiles, view.tiles, splits
    padded = triton.next_power_of_2(splits)
    width = min(max(2048 // padded, 1), triton.next_power_of_2(view.channels))
    with on_device_of(x):
        grid = (view.channel_tiles * splits,)
        backward_kernel[grid](dy, x, flat, dx, partial, *sizes, **view.constants(), num_warps=WARPS)
        total_kernel[(triton.cdiv(view.channels, width),)](
            partial, dbeta, view.channels, splits, SPLITS=padded, CHANNELS=width, num_warps=WARPS
        )
    return dx, dbeta


implement("pswish", forward)
implement("pswish_backward", backward)


def specimens() -> list[Specimen]:
    """One beta for all of (256, 64, 32, 32), and one a channel where the tile differs."""
    shared = tiled(1, 1, 256 * 64 * 1024, torch.float32)
    channels_last = tiled(256 * 1024, 64, 1, torch.bfloat16)
    given = {"beta": "*fp32", "partial": "*fp32"}
    total = {"SPLITS": 2048, "CHANNELS": 1}
    return [
        specimen("pswish.forward.shared.fp32", forward_kernel, shared, given, {"STEPS": 4}, torch.float32),
        specimen("pswish.backward.shared.fp32", backward_kernel, shared, given, {}, torch.float32),
        specimen("pswish.backward.channels_last.bf16", backward_kernel, channels_last, given, {}, torch.bfloat16),
        specimen("pswish.total.shared.fp32", total_kernel, shared, given, total, torch.float32),
    ]
