"""ghost_skip_add on a GPU: out = act(norm(u) + alpha norm(ghost) + norm(shortcut)), forward and backward.

Memory is all that counts, so the design is a list of passes. E bytes an element (4 or 2), P parts, B of them with the
batch's statistics:
  forward   1. moments    reads the B parts                               B E   (no launch where B = 0)
            2. apply      reads the P parts, writes out            (P + 1) E
  backward  1. sums       reads grad_output and the P parts        (P + 1) E
            2. gradients  reads the same, writes P gradients      (2 P + 1) E
With B = 0 the gradients do not wait for the sums: pass 1 writes them too, and what is left for the second launch is a few sums.
Nothing but the inputs and the statistics is saved: the sum before the activation is worked out again, twice, from registers.
Passes 2 go through the tiles backwards: what pass 1 read last may still be in the L2 cache.

No pass needs a third launch to add up partial sums: each program of a second pass adds up its own channel's (a few dozen numbers)
when it begins, and turns them into the few coefficients that its elements need. What is summed over all channels (dalpha,
dbeta) and what is written once a channel is left to one extra program, which runs beside the others.

Statistics are Welford's, one running mean and M2 a thread and element, merged by Chan's formula at the end of a program and
again by who reads them. All of it is relative to a pivot, the first element of the channel, so that a mean far from zero costs
no digits.

alpha, beta and the statistics are read from device memory by the kernels: a CUDA graph sees them move. At alpha == 0 the loads of
the ghost are predicated off, so it costs no traffic in forward nor in the second pass of backward; the first still reads it,
since dalpha does not vanish there (and once more for the statistics that forward did not take).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tost_kernels.layout import as_layout, empty_layout, layout_of
from tost_kernels.triton.activation import CODES, activate, activation_gradient
from tost_kernels.triton.channels import (
    WARPS,
    View,
    channels_of,
    load,
    offsets_of,
    on_device_of,
    slots_of,
    specimen,
    store,
    tiled,
    total,
    view_of,
)
from tost_kernels.triton.checks import check, check_activation, check_like, check_parameter, shape_string
from tost_kernels.triton.implement import implement
from tost_kernels.triton.specimen import Specimen

PARTS = ("u", "ghost", "shortcut")
FIELDS = ("weight", "bias", "mean", "var")
ABSENT = -1  # a constexpr norm beside the schema's 0 (none), 1 (running statistics) and 2 (batch statistics)
# Rows of the sums of backward: of dz; of dz * (x - center) for each part; of dbeta; mean and M2 of a ghost at alpha == 0.
SUMS = 7


@triton.jit
def is_live(alpha, c):
    """Whether the ghost takes part, for each of the channels c: a vector, which masks take as it is."""
    return tl.zeros(c.shape, tl.float32) + alpha != 0


# ---- statistics of the batch


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
def moments_kernel(
    u, ghost, shortcut, alpha, partial, outer, channels, inner, channel_tiles, tiles, splits,
    U: tl.constexpr, GHOST: tl.constexpr, SHORTCUT: tl.constexpr,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, ONE_RUN: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Program (channels, split) takes the moments of every part with batch statistics, one part after the other."""
    program = tl.program_id(0)
    c = channels_of(program % channel_tiles, WIDE, CHANNELS)
    split = program // channel_tiles
    if U == 2:
        store_moments(
            u, partial, 0, c, split, splits, tiles, outer, channels, inner, POSITIONS, CHANNELS, ONE_RUN, WIDE
        )  # fmt: skip
    if GHOST == 2:  # noqa: SIM102 (the compiler decides the first, the GPU the second)
        if tl.load(alpha) != 0:
            store_moments(
                ghost, partial, 2, c, split, splits, tiles, outer, channels, inner, POSITIONS, CHANNELS, ONE_RUN, WIDE
            )  # fmt: skip
    if SHORTCUT == 2:
        store_moments(
            shortcut, partial, 4, c, split, splits, tiles, outer, channels, inner, POSITIONS, CHANNELS, ONE_RUN, WIDE
        )  # fmt: skip


# ---- the coefficients of a channel


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


@triton.jit
def forward_coefficients(
    x, weight, bias, mean, var, eps, strength, live, partial, row, c, splits, tiles, outer, channels, inner,
    NORM: tl.constexpr, SPLITS: tl.constexpr, POSITIONS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A part is (x - center) * scale + shift. Also mean and variance of the batch, 0 without batch statistics."""
    zero = tl.full(c.shape, 0.0, tl.float32)
    if NORM == 2:
        pivot = pivot_of(x, c, channels, inner, live)
        relative, variance = merged_moments(partial, row, c, splits, tiles, outer, channels, inner, live, SPLITS, POSITIONS, WIDE)
        center = pivot + relative
        lost = relative - (center - pivot)  # what rounding the mean leaves over goes into the shift
        batch_mean, batch_var = center, variance
    else:
        center, variance = parameter(mean, c, channels, live, 0.0), parameter(var, c, channels, live, 1.0)
        lost, batch_mean, batch_var = zero, zero, zero
    if NORM > 0:
        scale = strength * parameter(weight, c, channels, live, 1.0) * inverse_deviation(variance, eps, NORM)
        shift = strength * parameter(bias, c, channels, live, 0.0) - lost * scale
    else:
        center, scale, shift = zero, zero + strength, zero
    # A part switched off is (0 - 0) * 0 + 0 whatever its parameters are.
    center, scale, shift = tl.where(live, center, 0.0), tl.where(live, scale, 0.0), tl.where(live, shift, 0.0)
    return center, scale, shift, tl.where(live, batch_mean, 0.0), tl.where(live, batch_var, 0.0)


@triton.jit
def store_statistics(stats, part, mean, var, c, channels):
    tl.store(stats + 2 * part * channels + c, mean, mask=c < channels)
    tl.store(stats + (2 * part + 1) * channels + c, var, mask=c < channels)


@triton.jit
def apply_kernel(
    u, u_weight, u_bias, u_mean, u_var, ghost, ghost_weight, ghost_bias, ghost_mean, ghost_var, alpha,
    shortcut, shortcut_weight, shortcut_bias, shortcut_mean, shortcut_var, beta, u_eps, ghost_eps, shortcut_eps,
    partial, out, stats, outer, channels, inner, channel_tiles, tiles, splits,
    U: tl.constexpr, GHOST: tl.constexpr, SHORTCUT: tl.constexpr, ACT: tl.constexpr, BETA_STRIDE: tl.constexpr,
    STEPS: tl.constexpr, SPLITS: tl.constexpr,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, ONE_RUN: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A program takes STEPS tiles of the same channels; those with the first tile write the statistics, too."""
    program = tl.program_id(0)
    c = channels_of(program % channel_tiles, WIDE, CHANNELS)
    first = (tl.num_programs(0) - 1 - program) // channel_tiles * STEPS  # backwards: see the head of the file
    on = c < channels
    cu, su, shift, mean_u, var_u = forward_coefficients(
        u, u_weight, u_bias, u_mean, u_var, u_eps, 1.0, on, partial, 0, c, splits, tiles, outer, channels, inner,
        U, SPLITS, POSITIONS, WIDE,
    )  # fmt: skip
    live = on
    zero = tl.zeros_like(shift)
    cg, sg, mean_g, var_g = zero, zero, zero, zero
    cs, ss, mean_s, var_s = zero, zero, zero, zero
    if GHOST >= 0:
        strength = tl.load(alpha)
        live = is_live(strength, c)
        cg, sg, more, mean_g, var_g = forward_coefficients(
            ghost, ghost_weight, ghost_bias, ghost_mean, ghost_var, ghost_eps, strength, live, partial, 2,
            c, splits, tiles, outer, channels, inner, GHOST, SPLITS, POSITIONS, WIDE,
        )  # fmt: skip
        shift += more
    if SHORTCUT >= 0:
        cs, ss, more, mean_s, var_s = forward_coefficients(
            shortcut, shortcut_weight, shortcut_bias, shortcut_mean, shortcut_var, shortcut_eps, 1.0, on, partial, 4,
            c, splits, tiles, outer, channels, inner, SHORTCUT, SPLITS, POSITIONS, WIDE,
        )  # fmt: skip
        shift += more
    b = 0.0
    if ACT == 2:
        b = tl.load(beta + c * BETA_STRIDE, mask=c < channels, other=0.0)[None, :]
    for step in tl.static_range(STEPS):
        at, exists = offsets_of(first + step, c, outer, channels, inner, POSITIONS, CHANNELS, ONE_RUN, WIDE)
        z = (load(u, at, exists) - cu[None, :]) * su[None, :] + shift[None, :]
        if GHOST >= 0:
            z += (load(ghost, at, exists & live[None, :]) - cg[None, :]) * sg[None, :]
        if SHORTCUT >= 0:
            z += (load(shortcut, at, exists) - cs[None, :]) * ss[None, :]
        store(out, at, activate(z, b, ACT), exists)
    if first == 0:
        store_statistics(stats, 0, mean_u, var_u, c, channels)
        store_statistics(stats, 1, mean_g, var_g, c, channels)
        store_statistics(stats, 2, mean_s, var_s, c, channels)


@triton.jit
def backward_coefficients(
    weight, bias, mean, var, eps, strength, live, stats, part: tl.constexpr, c, channels, NORM: tl.constexpr
):  # fmt: skip
    """Center, scale and shift of a part as in `forward_coefficients`, and 1 / sqrt(variance + eps)."""
    zero = tl.full(c.shape, 0.0, tl.float32)
    if NORM > 0:
        center, variance = statistics(stats, part, mean, var, c, channels, live, NORM)
        invstd = inverse_deviation(variance, eps, NORM)
        scale = strength * parameter(weight, c, channels, live, 1.0) * invstd
        shift = strength * parameter(bias, c, channels, live, 0.0)
    else:
        center, invstd, scale, shift = zero, zero + 1.0, zero + strength, zero
    return center, tl.where(live, scale, 0.0), tl.where(live, shift, 0.0), invstd


@triton.jit
def sums_kernel(
    grad_output,
    u, u_weight, u_bias, u_mean, u_var, ghost, ghost_weight, ghost_bias, ghost_mean, ghost_var, alpha,
    shortcut, shortcut_weight, shortcut_bias, shortcut_mean, shortcut_var, beta, u_eps, ghost_eps, shortcut_eps,
    stats, partial, grad_u, grad_ghost, grad_shortcut, outer, channels, inner, channel_tiles, tiles, splits,
    U: tl.constexpr, GHOST: tl.constexpr, SHORTCUT: tl.constexpr, ACT: tl.constexpr, BETA_STRIDE: tl.constexpr,
    WRITE: tl.constexpr,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, ONE_RUN: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Program (channels, split) adds up, over every `splits`-th tile, what the gradients depend on; WRITE: and writes them."""
    program = tl.program_id(0)
    c = channels_of(program % channel_tiles, WIDE, CHANNELS)
    split = program // channel_tiles
    on = c < channels
    cu, su, shift, _ = backward_coefficients(u_weight, u_bias, u_mean, u_var, u_eps, 1.0, on, stats, 0, c, channels, U)
    zero = tl.zeros_like(shift)
    live = on
    cg, sg, vs, vt, cs, ss = zero, zero, zero, zero, zero, zero
    if GHOST >= 0:
        strength = tl.load(alpha)
        live = is_live(strength, c)
        # Live, dalpha follows from the sum of dz * (ghost - center). Switched off, what is not finite must not count, and there
        # may be no statistics yet: the sum of dz * norm(ghost) itself or, where the batch is to normalise it, around the pivot.
        cg, sg, more, invstd = backward_coefficients(
            ghost_weight, ghost_bias, ghost_mean, ghost_var, ghost_eps, strength, on, stats, 1, c, channels, GHOST
        )  # fmt: skip
        if GHOST == 2:
            cg = tl.where(live, cg, pivot_of(ghost, c, channels, inner, on))
        if GHOST == 1:
            vs = tl.where(live, 1.0, parameter(ghost_weight, c, channels, on, 1.0) * invstd)
            vt = tl.where(live, 0.0, parameter(ghost_bias, c, channels, on, 0.0))
        shift += tl.where(live, more, 0.0)
    if SHORTCUT >= 0:
        cs, ss, more, _ = backward_coefficients(
            shortcut_weight, shortcut_bias, shortcut_mean, shortcut_var, shortcut_eps, 1.0, on, stats, 2,
            c, channels, SHORTCUT,
        )  # fmt: skip
        shift += more
    b = 0.0
    if ACT == 2:
        b = tl.load(beta + c * BETA_STRIDE, mask=c < channels, other=0.0)[None, :]
    sum_dz = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    sum_u, sum_g, sum_s, sum_b = sum_dz, sum_dz, sum_dz, sum_dz
    tile = split
    while tile < tiles:
        at, exists = offsets_of(tile, c, outer, channels, inner, POSITIONS, CHANNELS, ONE_RUN, WIDE)
        dz = load(grad_output, at, exists)
        z = dz
        if ACT != 0 or U > 0:
            xu = load(u, at, exists) - cu[None, :]
            z = xu * su[None, :] + shift[None, :]
        if GHOST >= 0:
            xg = load(ghost, at, exists) - cg[None, :]
            z += tl.where(live[None, :], xg * sg[None, :], 0.0)
        if SHORTCUT >= 0 and (ACT != 0 or SHORTCUT > 0):
            xs = load(shortcut, at, exists) - cs[None, :]
            z += xs * ss[None, :]
        dz, term = activation_gradient(dz, z, b, ACT)
        sum_dz += dz
        if ACT == 2:
            sum_b += term
        if U > 0:
            sum_u += dz * xu
        if GHOST >= 0:
            if GHOST == 1:
                xg = xg * vs[None, :] + vt[None, :]
            sum_g += tl.where(live[None, :] | (tl.abs(xg) < float("inf")), dz * xg, 0.0)
        if SHORTCUT > 0:
            sum_s += dz * xs
        if WRITE:
            store(grad_u, at, dz * su[None, :], exists)
            if GHOST >= 0:
                store(grad_ghost, at, tl.where(live[None, :], dz * sg[None, :], 0.0), exists)
            if SHORTCUT >= 0:
                store(grad_shortcut, at, dz * ss[None, :], exists)
        tile += splits
    row = splits * channels
    slot = partial + split * channels + c
    tl.store(slot, tl.sum(sum_dz, 0), mask=c < channels)
    if U > 0:
        tl.store(slot + row, tl.sum(sum_u, 0), mask=c < channels)
    if GHOST >= 0:
        tl.store(slot + 2 * row, tl.sum(sum_g, 0), mask=c < channels)
    if SHORTCUT > 0:
        tl.store(slot + 3 * row, tl.sum(sum_s, 0), mask=c < channels)
    if ACT == 2:
        tl.store(slot + 4 * row, tl.sum(sum_b, 0), mask=c < channels)
    if GHOST == 2:  # noqa: SIM102 (as above)
        if strength == 0:
            store_moments(
                ghost, partial, 5, c, split, splits, tiles, outer, channels, inner, POSITIONS, CHANNELS, ONE_RUN, WIDE
            )  # fmt: skip


@triton.jit
def store_affine(
    grad_affine, part: tl.constexpr, weight, bias, mean, var, eps, strength, live, stats, partial, sum_dz,
    c, channels, splits, NORM: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """dweight and dbias of one part; 0 where it has none."""
    dweight = tl.zeros_like(sum_dz)
    dbias = tl.zeros_like(sum_dz)
    if NORM > 0:
        _, _, _, invstd = backward_coefficients(weight, bias, mean, var, eps, strength, live, stats, part, c, channels, NORM)
        dweight = tl.where(live, strength * invstd * total(partial, part + 1, c, channels, splits, SPLITS), 0.0)
        dbias = tl.where(live, strength * sum_dz, 0.0)
    tl.store(grad_affine + 2 * part * channels + c, dweight, mask=c < channels)
    tl.store(grad_affine + (2 * part + 1) * channels + c, dbias, mask=c < channels)


@triton.jit
def alpha_terms(
    ghost, weight, bias, mean, var, eps, live, stats, partial, sum_dz, c, splits, tiles, outer, channels, inner,
    GHOST: tl.constexpr, SPLITS: tl.constexpr, POSITIONS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """What each channel adds to dalpha: the sum of dz * norm(ghost)."""
    on = c < channels
    product = total(partial, 2, c, channels, splits, SPLITS)
    if GHOST == 0:
        return product
    else:
        _, variance = statistics(stats, 1, mean, var, c, channels, on, GHOST)
        w, b = parameter(weight, c, channels, on, 1.0), parameter(bias, c, channels, on, 0.0)
        on = w * inverse_deviation(variance, eps, GHOST) * product + b * sum_dz
        off = product
        if GHOST == 2:
            relative, variance = merged_moments(
                partial, 5, c, splits, tiles, outer, channels, inner, live == 0, SPLITS, POSITIONS, WIDE
            )  # fmt: skip
            scale = w * inverse_deviation(variance, eps, GHOST)
            # One NaN spoils the statistics, so all of the normalised channel: none of it counts.
            sound = (tl.abs(scale) < float("inf")) & (tl.abs(relative) < float("inf")) & (tl.abs(b) < float("inf"))
            off = tl.where(sound, scale * (product - relative * sum_dz) + b * sum_dz, 0.0)
        return tl.where(live, on, off)


@triton.jit
def finish(
    u_weight, u_bias, u_mean, u_var, ghost, ghost_weight, ghost_bias, ghost_mean, ghost_var, alpha,
    shortcut_weight, shortcut_bias, shortcut_mean, shortcut_var, u_eps, ghost_eps, shortcut_eps,
    stats, partial, grad_affine, grad_alpha, grad_beta, outer, channels, inner, tiles, splits,
    U: tl.constexpr, GHOST: tl.constexpr, SHORTCUT: tl.constexpr, ACT: tl.constexpr, BETA_STRIDE: tl.constexpr,
    SPLITS: tl.constexpr, WIDTH: tl.constexpr, POSITIONS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The small gradients, by one program: WIDTH channels at a time."""
    strength = 0.0
    if GHOST >= 0:
        strength = tl.load(alpha)
    dalpha = tl.zeros([WIDTH], tl.float32)
    dbeta = tl.zeros([WIDTH], tl.float32)
    first = 0
    while first < channels:
        c = first + tl.arange(0, WIDTH)
        c = c.to(tl.int64) if WIDE else c
        on = c < channels
        live = is_live(strength, c)
        sum_dz = total(partial, 0, c, channels, splits, SPLITS)
        store_affine(
            grad_affine, 0, u_weight, u_bias, u_mean, u_var, u_eps, 1.0, on, stats, partial, sum_dz,
            c, channels, splits, U, SPLITS,
        )  # fmt: skip
        store_affine(
            grad_affine, 1, ghost_weight, ghost_bias, ghost_mean, ghost_var, ghost_eps, strength, live, stats, partial, sum_dz,
            c, channels, splits, GHOST, SPLITS,
        )  # fmt: skip
        store_affine(
            grad_affine, 2, shortcut_weight, shortcut_bias, shortcut_mean, shortcut_var, shortcut_eps, 1.0, on, stats,
            partial, sum_dz, c, channels, splits, SHORTCUT, SPLITS,
        )  # fmt: skip
        if GHOST >= 0:
            term = alpha_terms(
                ghost, ghost_weight, ghost_bias, ghost_mean, ghost_var, ghost_eps, live, stats, partial, sum_dz,
                c, splits, tiles, outer, channels, inner, GHOST, SPLITS, POSITIONS, WIDE,
            )  # fmt: skip
            dalpha += tl.where(c < channels, term, 0.0)
        if ACT == 2:
            term = total(partial, 4, c, channels, splits, SPLITS)
            if BETA_STRIDE == 1:
                tl.store(grad_beta + c, term, mask=c < channels)
            dbeta += term
        first += WIDTH
    if GHOST >= 0:
        tl.store(grad_alpha, tl.sum(dalpha, 0))
    if ACT == 2 and BETA_STRIDE == 0:
        tl.store(grad_beta, tl.sum(dbeta, 0))


@triton.jit
def input_coefficients(
    invstd, scale, sum_dz, partial, row: tl.constexpr, c, count, channels, splits, NORM: tl.constexpr, SPLITS: tl.constexpr
):  # fmt: skip
    """q, r of: gradient = dz * scale + (x - center) * q + r. Both 0 without batch statistics."""
    if NORM == 2:
        q = -scale * invstd * invstd * total(partial, row, c, channels, splits, SPLITS) / count
        return q, -scale * sum_dz / count
    else:
        return tl.zeros_like(scale), tl.zeros_like(scale)


@triton.jit
def input_gradient(dz, x, scale, q, r, NORM: tl.constexpr):
    """x: relative to the center. Without batch statistics it does not count, and must not: an infinite x times 0 is NaN."""
    if NORM == 2:
        return dz * scale[None, :] + (x * q[None, :] + r[None, :])
    else:
        return dz * scale[None, :]


@triton.jit
def gradients_kernel(
    grad_output,
    u, u_weight, u_bias, u_mean, u_var, ghost, ghost_weight, ghost_bias, ghost_mean, ghost_var, alpha,
    shortcut, shortcut_weight, shortcut_bias, shortcut_mean, shortcut_var, beta, u_eps, ghost_eps, shortcut_eps,
    stats, partial, grad_u, grad_ghost, grad_shortcut, grad_affine, grad_alpha, grad_beta,
    outer, channels, inner, channel_tiles, tiles, splits,
    U: tl.constexpr, GHOST: tl.constexpr, SHORTCUT: tl.constexpr, ACT: tl.constexpr, BETA_STRIDE: tl.constexpr,
    STEPS: tl.constexpr, SPLITS: tl.constexpr, WIDTH: tl.constexpr,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, ONE_RUN: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Program 0 does the small gradients; each of the others, if there are any, STEPS tiles of the inputs' gradients."""
    if tl.program_id(0) == 0:
        finish(
            u_weight, u_bias, u_mean, u_var, ghost, ghost_weight, ghost_bias, ghost_mean, ghost_var, alpha,
            shortcut_weight, shortcut_bias, shortcut_mean, shortcut_var, u_eps, ghost_eps, shortcut_eps,
            stats, partial, grad_affine, grad_alpha, grad_beta, outer, channels, inner, tiles, splits,
            U, GHOST, SHORTCUT, ACT, BETA_STRIDE, SPLITS, WIDTH, POSITIONS, WIDE,
        )  # fmt: skip
    else:
        program = tl.program_id(0) - 1
        c = channels_of(program % channel_tiles, WIDE, CHANNELS)
        first = (tl.num_programs(0) - 2 - program) // channel_tiles * STEPS  # backwards: see the head of the file
        count = (tl.cast(outer, tl.int64) * inner).to(tl.float32)
        sum_dz = total(partial, 0, c, channels, splits, SPLITS)
        on = c < channels
        cu, su, shift, invstd = backward_coefficients(
            u_weight, u_bias, u_mean, u_var, u_eps, 1.0, on, stats, 0, c, channels, U
        )  # fmt: skip
        qu, ru = input_coefficients(invstd, su, sum_dz, partial, 1, c, count, channels, splits, U, SPLITS)
        live = on
        zero = tl.zeros_like(shift)
        cg, sg, qg, rg, cs, ss, qs, rs = zero, zero, zero, zero, zero, zero, zero, zero
        if GHOST >= 0:
            strength = tl.load(alpha)
            live = is_live(strength, c)
            cg, sg, more, invstd = backward_coefficients(
                ghost_weight, ghost_bias, ghost_mean, ghost_var, ghost_eps, strength, live, stats, 1, c, channels, GHOST
            )  # fmt: skip
            qg, rg = input_coefficients(invstd, sg, sum_dz, partial, 2, c, count, channels, splits, GHOST, SPLITS)
            shift += more
        if SHORTCUT >= 0:
            cs, ss, more, invstd = backward_coefficients(
                shortcut_weight, shortcut_bias, shortcut_mean, shortcut_var, shortcut_eps, 1.0, on, stats, 2,
                c, channels, SHORTCUT,
            )  # fmt: skip
            qs, rs = input_coefficients(invstd, ss, sum_dz, partial, 3, c, count, channels, splits, SHORTCUT, SPLITS)
            shift += more
        b = 0.0
        if ACT == 2:
            b = tl.load(beta + c * BETA_STRIDE, mask=c < channels, other=0.0)[None, :]
        for step in tl.static_range(STEPS):
            at, exists = offsets_of(first + step, c, outer, channels, inner, POSITIONS, CHANNELS, ONE_RUN, WIDE)
            dz = load(grad_output, at, exists)
            z, xu, xg, xs = dz, dz, dz, dz
            if ACT != 0 or U == 2:
                xu = load(u, at, exists) - cu[None, :]
                z = xu * su[None, :] + shift[None, :]
            if GHOST == 2 or (GHOST >= 0 and ACT != 0):
                xg = load(ghost, at, exists & live[None, :]) - cg[None, :]
                z += tl.where(live[None, :], xg * sg[None, :], 0.0)
            if SHORTCUT == 2 or (SHORTCUT >= 0 and ACT != 0):
                xs = load(shortcut, at, exists) - cs[None, :]
                z += xs * ss[None, :]
            dz, _ = activation_gradient(dz, z, b, ACT)
            store(grad_u, at, input_gradient(dz, xu, su, qu, ru, U), exists)
            if GHOST >= 0:
                store(grad_ghost, at, tl.where(live[None, :], input_gradient(dz, xg, sg, qg, rg, GHOST), 0.0), exists)
            if SHORTCUT >= 0:
                store(grad_shortcut, at, input_gradient(dz, xs, ss, qs, rs, SHORTCUT), exists)


# ---- launches


class Inputs:
    """The arguments of the op, checked, in the layout that is computed in, and in the kernels' order.

    parts: u, ghost, shortcut, None where absent. norms: the schema's, `ABSENT` for an absent part. kernel: what all three kernels
    take first: the parts and their parameters, alpha, beta, eps.
    """

    def __init__(self, op: str, args: Sequence[Any]) -> None:
        *tensors, act, norm, eps, _ = args
        u, beta = tensors[0], tensors[16]
        check(op, u.dim() >= 2, f"u: expected shape (N, C, ...), got {shape_string(u.shape)}")
        check(op, len(norm) == len(PARTS), f"norm: expected 3 values, got {len(norm)}")
        check(op, len(eps) == len(PARTS), f"eps: expected 3 values, got {len(eps)}")
        check(op, act in CODES, f'act: expected none, relu or pswish, got "{act}"')
        check(op, act != "pswish" or beta is not None, 'beta: expected a tensor with act "pswish", got None')
        check(op, (tensors[5] is None) == (tensors[10] is None), "alpha: expected a tensor with ghost and only then")
        check_activation(op, "u", u)
        self.layout = layout_of(u)
        self.given = [tensors[0], tensors[5], tensors[11]]
        alpha = tensors[10]
        if alpha is not None:
            check_parameter(op, "alpha", alpha, (), u)
        if beta is not None:
            check_parameter(op, "beta", beta, () if beta.dim() == 0 else (u.shape[1],), u)
        self.norms: list[int] = []
        flat: list[list[Tensor | None]] = []
        for part, (name, x) in enumerate(zip(PARTS, self.given, strict=True)):
            first = (1, 6, 12)[part]
            self.norms.append(ABSENT if x is None else norm[part])
            if x is None:
                flat.append([None] * 5)
                continue
            check_like(op, name, x, u)
            check(op, norm[part] in (0, 1, 2), f"norm: expected 0, 1 or 2 for {name}, got {norm[part]}")
            parameters: list[Tensor | None] = tensors[first : first + 4]
            for field, parameter in zip(FIELDS, parameters, strict=True):
                if parameter is not None:
                    check_parameter(op, f"{name}_{field}", parameter, (u.shape[1],), u)
            missing = norm[part] == 1 and (parameters[2] is None or parameters[3] is None)
            expected = "expected tensors with norm 1 (running statistics), got None"
            check(op, not missing, f"{name}_mean, {name}_var: {expected}")
            used = (0, 4, 2)[norm[part]]  # of weight, bias, mean and var
            kept = [None if p is None or i >= used else p.contiguous() for i, p in enumerate(parameters)]
            flat.append([as_layout(x, self.layout), *kept])
        self.parts = [part[0] for part in flat]
        self.u: Tensor = self.parts[0]  # type: ignore[assignment]
        self.alpha, self.beta = alpha, beta
        beta = None if beta is None or act != "pswish" else beta.contiguous()
        self.kernel = [*flat[0], *flat[1], alpha, *flat[2], beta, *(float(e) for e in eps)]
        self.view = view_of(self.u)
        self.splits = self.view.splits(self.u.device)
        view = self.view
        self.sizes = view.outer, view.channels, view.inner, view.channel_tiles, view.tiles, self.splits
        self.constants = dict(zip(("U", "GHOST", "SHORTCUT"), self.norms, strict=True)) | view.constants()
        self.tail = {"ACT": CODES[act], "BETA_STRIDE": 0 if beta is None or beta.dim() == 0 else 1}
        self.empty = self.u.numel() == 0

    def partial(self, rows: int) -> Tensor:
        return self.u.new_empty((rows, self.splits, self.view.channels), dtype=torch.float32)

    def second_pass(self) -> tuple[int, dict[str, int]]:
        """How many programs the second pass has, and the constants of its own."""
        steps = self.view.steps(self.u.device)
        padded = triton.next_power_of_2(self.splits)
        programs = self.view.channel_tiles * triton.cdiv(self.view.tiles, steps)
        return programs, {"STEPS": steps, "SPLITS": padded}


def forward(*args: Any) -> tuple[Tensor, Tensor]:
    given = Inputs("ghost_skip_add", args)
    u, channels = given.u, given.view.channels
    out = empty_layout(u.shape, given.layout, u)
    stats = u.new_empty((3, 2, channels), dtype=torch.float32)
    if given.empty:
        return out, stats.zero_()
    partial = None
    with on_device_of(u):
        if 2 in given.norms:
            partial = given.partial(6)
            grid = (given.view.channel_tiles * given.splits,)
            moments_kernel[grid](*given.parts, given.alpha, partial, *given.sizes, **given.constants, num_warps=WARPS)
        programs, constants = given.second_pass()
        apply_kernel[(programs,)](
            *given.kernel, partial, out, stats, *given.sizes, **given.constants, **given.tail, **constants, num_warps=WARPS
        )
    return out, stats


def backward(grad_output: Tensor, *args: Any) -> tuple[Tensor, ...]:
    name = "ghost_skip_add_backward"
    *rest, stats = args
    given = Inputs(name, rest)
    u = given.u
    check_like(name, "grad_output", grad_output, u)
    check_parameter(name, "stats", stats, (3, 2, u.shape[1]), u)

    def nothing() -> Tensor:  # one each: no two results of an op may share memory
        return u.new_empty(0, dtype=torch.float32)

    grads = [nothing() if x is None else empty_layout(u.shape, given.layout, u) for x in given.parts]
    affine = torch.empty_like(stats, memory_format=torch.contiguous_format)
    small = [nothing() if t is None else t.new_empty(t.shape) for t in (given.alpha, given.beta)]
    if given.empty:
        affine.zero_()
        for t in small:
            t.zero_()
    else:
        _launch_backward(given, as_layout(grad_output, given.layout), stats.contiguous(), grads, affine, small)
    own = [g if x is None else as_layout(g, layout_of(x)) for g, x in zip(grads, given.given, strict=True)]
    return *own, affine, *small


def _launch_backward(given: Inputs, dy: Tensor, stats: Tensor, grads: list[Tensor], affine: Tensor, small: list[Tensor]) -> None:
    view, u = given.view, given.u
    partial = given.partial(SUMS)
    one_pass = 2 not in given.norms
    programs, constants = given.second_pass()
    width = min(max(1024 // constants["SPLITS"], 1), triton.next_power_of_2(view.channels))
    shared = dict(**given.constants, **given.tail, num_warps=WARPS)
    with on_device_of(u):
        grid = (view.channel_tiles * given.splits,)
        sums_kernel[grid](dy, *given.kernel, stats, partial, *grads, *given.sizes, WRITE=one_pass, **shared)
        grid = (1 if one_pass else 1 + programs,)
        gradients_kernel[grid](
            dy, *given.kernel, stats, partial, *grads, affine, *small, *given.sizes, WIDTH=width, **constants, **shared
        )


implement("ghost_skip_add", forward)
implement("ghost_skip_add_backward", backward)


def specimens() -> list[Specimen]:
    """The tail with everything, (256, 64, 32, 32): batch-last, the variant that needs most registers, and without batch norm."""
    floats = [f"{part}_{field}" for part in PARTS for field in FIELDS]
    floats += ["alpha", "beta", "partial", "stats", "grad_affine", "grad_alpha", "grad_beta"]
    given: dict[str, Any] = dict.fromkeys(floats, "*fp32") | {f"{part}_eps": "fp32" for part in PARTS}
    batch = given | {f"{part}_{field}": None for part in PARTS for field in ("mean", "var")}
    full = {"U": 2, "GHOST": 2, "SHORTCUT": 2, "ACT": 2, "BETA_STRIDE": 0, "STEPS": 4, "SPLITS": 16, "WIDTH": 64, "WRITE": False}
    batch_last = tiled(1, 64, 1024 * 256, torch.float32)
    channels_last = tiled(1024 * 256, 64, 1, torch.bfloat16)
    running = full | {"U": 1, "GHOST": 1, "SHORTCUT": 0, "WRITE": True}

    def one(
        kernel: Any, title: str, view: View, dtype: torch.dtype, given: dict[str, Any], constants: dict[str, Any]
    ) -> Specimen:
        return specimen(f"ghost_skip_add.{title}", kernel, view, given, constants, dtype)

    return [
        one(moments_kernel, "moments.batch_last.fp32", batch_last, torch.float32, batch, full),
        one(apply_kernel, "apply.batch_last.fp32", batch_last, torch.float32, batch, full),
        one(sums_kernel, "sums.batch_last.fp32", batch_last, torch.float32, batch, full),
        one(sums_kernel, "sums.one_pass.batch_last.fp32", batch_last, torch.float32, given, running),
        one(gradients_kernel, "gradients.batch_last.fp32", batch_last, torch.float32, batch, full),
        one(gradients_kernel, "gradients.channels_last.bf16", channels_last, torch.bfloat16, batch, full),
    ]
