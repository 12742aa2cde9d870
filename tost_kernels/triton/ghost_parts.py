"""What the kernels of ghost_skip_add know of a part (u, ghost, shortcut) in some channels: its parameters and its moments.

Statistics are Welford's, one running mean and M2 a thread and element, merged by Chan's formula at the end of a program and
again by who reads them. All of it is relative to a pivot, the first element of the channel, so that a mean far from zero costs
no digits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tost_kernels.triton.channels import load, offsets_of, slots_of


@triton.jit
def is_live(alpha, c):
    """Whether the ghost takes part, for each of the channels c: a vector, which masks take as it is."""
    return tl.zeros(c.shape, tl.float32) + alpha != 0


@triton.jit
def pivot_of(x, c, channels, inner, live):
    """The first element of each of the channels c."""
    return tl.load(x + c * inner, mask=(c < channels) & live, other=0.0).to(tl.float32)


@triton.jit
def store_moments(
    x, partial, row, c, split, splits, tiles, outer, channels, inner,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, ONE_RUN: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Mean and M2 of this split's elements of x, relative to the pivot, into rows `row` and `row + 1` of `partial`."""
    pivot = pivot_of(x, c, channels, inner, c < channels)[None, :]
    mean = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    squares = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    seen = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    count = 0.0
    tile = split
    while tile < tiles:
        for _ in tl.static_range(2):  # two loads on their way at a time; past the end nothing exists
            at, exists = offsets_of(tile, c, outer, channels, inner, POSITIONS, CHANNELS, ONE_RUN, WIDE)
            y = load(x, at, exists) - pivot
            count += 1.0
            delta = tl.where(exists, y - mean, 0.0)
            mean += delta * (1.0 / count)
            squares += delta * tl.where(exists, y - mean, 0.0)
            seen += tl.where(exists, 1.0, 0.0)
            tile += splits
    n = tl.maximum(tl.sum(seen, 0), 1.0)  # (0 beside the last channel)
    middle = tl.sum(mean * seen, 0) / n
    off = mean - middle[None, :]
    slot = (row * splits + split) * channels + c
    tl.store(partial + slot, middle, mask=c < channels)
    tl.store(partial + slot + splits * channels, tl.sum(squares + seen * off * off, 0), mask=c < channels)


@triton.jit
def merged_moments(
    partial, row, c, splits, tiles, outer, channels, inner, live,
    SPLITS: tl.constexpr, POSITIONS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Mean, relative to the pivot, and biased variance of the channels c, from what `store_moments` left."""
    at, exists = slots_of(row, c, channels, splits, SPLITS)
    exists = exists & live[None, :]
    mean = tl.load(partial + at, mask=exists, other=0.0)
    squares = tl.load(partial + at + splits * channels, mask=exists, other=0.0)
    # Split s took every `splits`-th tile from s on. All are full but the last of all.
    s = tl.arange(0, SPLITS)[:, None]
    elements = tl.cast(outer, tl.int64) * inner if WIDE else outer * inner
    taken = (tiles - s + splits - 1) // splits
    short = tl.where(s == (tiles - 1) % splits, tiles * POSITIONS - elements, 0)
    n = tl.where(s < splits, taken * POSITIONS - short, 0).to(tl.float32)
    count = tl.cast(elements, tl.float32)
    middle = tl.sum(n * mean, 0) / count
    off = mean - middle[None, :]
    return middle, tl.sum(tl.where(exists, squares + n * off * off, 0.0), 0) / count


@triton.jit
def parameter(pointer, c, channels, live, default: tl.constexpr):
    """One number a channel; `default` where there is no such tensor, or nothing of it is wanted."""
    if pointer is None:
        return tl.full(c.shape, default, tl.float32)
    else:
        return tl.load(pointer + c, mask=(c < channels) & live, other=default)


@triton.jit
def statistics(stats, part, mean, var, c, channels, live, NORM: tl.constexpr):
    """Mean and variance that a part is normalised with, as backward has them: from the batch's `stats`, or the running ones."""
    if NORM == 2:
        exists = (c < channels) & live
        at = stats + 2 * part * channels + c
        return tl.load(at, mask=exists, other=0.0), tl.load(at + channels, mask=exists, other=1.0)
    else:
        return parameter(mean, c, channels, live, 0.0), parameter(var, c, channels, live, 1.0)


@triton.jit
def inverse_deviation(var, eps, NORM: tl.constexpr):
    if NORM > 0:
        return 1.0 / tl.sqrt(var + eps)
    else:
        return tl.full(var.shape, 1.0, tl.float32)
