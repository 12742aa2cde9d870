"""The kernels of ghost_skip_add's forward pass: the moments of the parts with batch statistics, then all parts in one pass."""

from __future__ import annotations

import triton
import triton.language as tl

from tost_kernels.triton.activation import activate
from tost_kernels.triton.channels import channels_of, load, offsets_of, store
from tost_kernels.triton.ghost_parts import inverse_deviation, is_live, merged_moments, parameter, pivot_of, store_moments


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
