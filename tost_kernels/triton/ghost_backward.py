"""The kernels of ghost_skip_add's backward pass: what the gradients depend on is added up, then they are written."""

from __future__ import annotations

import triton
import triton.language as tl

from tost_kernels.triton.activation import activation_gradient
from tost_kernels.triton.channels import channels_of, load, offsets_of, store, total
from tost_kernels.triton.ghost_parts import (
    inverse_deviation,
    is_live,
    merged_moments,
    parameter,
    pivot_of,
    statistics,
    store_moments,
)


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
