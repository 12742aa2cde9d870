"""ghost_skip_add: the tail of a convolution in one op, act(norm(u) + alpha * norm(ghost) + norm(shortcut)).

Each norm is a batch normalisation (batch or running statistics) or nothing. The batch statistics are computed here and
returned, so that a module can update its running ones. The backward pass recomputes the sum before the activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tost_kernels.backend import PREFERRED, pick
from tost_kernels.layout import as_layout, empty_layout, layout_of
from tost_kernels.ops.arguments import check_floating, compute_dtype, per_channel, scalar
from tost_kernels.register import apply, define, define_reference, differentiate, once_differentiable, op, run_below_autograd

ACTIVATIONS = ("none", "relu", "pswish")
NO_NORM, RUNNING_STATS, BATCH_STATS = 0, 1, 2  # the values of the schema's `norm`
PARTS = ("u", "ghost", "shortcut")

_INPUTS = (
    "Tensor u, Tensor? u_weight, Tensor? u_bias, Tensor? u_mean, Tensor? u_var, "
    "Tensor? ghost, Tensor? ghost_weight, Tensor? ghost_bias, Tensor? ghost_mean, Tensor? ghost_var, Tensor? alpha, "
    "Tensor? shortcut, Tensor? shortcut_weight, Tensor? shortcut_bias, Tensor? shortcut_mean, Tensor? shortcut_var, "
    "Tensor? beta, str act, int[] norm, float[] eps, str plan"
)
_SCHEMA = f"({_INPUTS}) -> (Tensor out, Tensor stats)"
_BACKWARD_SCHEMA = (
    f"(Tensor grad_output, {_INPUTS}, Tensor stats) -> (Tensor grad_u, Tensor grad_ghost, Tensor grad_shortcut, "
    "Tensor grad_affine, Tensor grad_alpha, Tensor grad_beta)"
)
_TENSORS = 17  # how many leading arguments are tensors

_Affine = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]  # weight, bias, mean, var


class Norm(NamedTuple):
    """The batch normalisation of one part of `ghost_skip_add`: (x - mean) / sqrt(var + eps) * weight + bias.

    weight, bias: (C,), each optional (1 and 0). mean, var: (C,), constants, needed unless `batch_stats`, which normalises with
    the mean and biased variance of the batch instead, and differentiates through them.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None
    eps: float = 1e-5
    batch_stats: bool = False


class GhostSkipAddOutput(NamedTuple):
    """What `ghost_skip_add` returns.

    out: (N, C, ...). stats: (3, 2, C), float32 (float64 for float64), not differentiable: for u, ghost and shortcut the batch
    mean and biased variance that were used; zeros for a part without batch statistics and for a ghost at alpha == 0.
    """

    out: Tensor
    stats: Tensor


def _batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel of x (N, C, ...), zeros for an empty batch."""
    dims = [d for d in range(x.dim()) if d != 1]
    count = max(x.numel() // max(x.shape[1], 1), 1)
    mean = x.sum(dims) / count
    return mean, (x - per_channel(mean, x)).square().sum(dims) / count


def _normalise(x: Tensor, affine: _Affine, eps: float) -> Tensor:
    weight, bias, mean, var = affine
    if mean is not None and var is not None:
        x = (x - per_channel(mean, x)) * torch.rsqrt(per_channel(var, x) + eps)
    if weight is not None:
        x = x * per_channel(weight, x)
    return x if bias is None else x + per_channel(bias, x)


def _part(x: Tensor, affine: _Affine, norm: int, eps: float) -> tuple[Tensor, Tensor]:
    """One part after its normalisation, and its row of `stats`, (2, C)."""
    weight, bias, mean, var = affine
    x = x.to(compute_dtype(x))
    unused = x.new_zeros(2, x.shape[1])
    if norm == NO_NORM:
        return x, unused
    if norm == RUNNING_STATS:
        if mean is None or var is None:
            raise ValueError("ghost_skip_add: expected mean and var for norm 1 (running statistics), got None")
        return _normalise(x, (weight, bias, mean.detach(), var.detach()), eps), unused
    mean, var = _batch_statistics(x)
    return _normalise(x, (weight, bias, mean, var), eps), torch.stack((mean, var)).detach()


def _ghost_part(ghost: Tensor, alpha: Tensor, affine: _Affine, norm: int, eps: float) -> tuple[Tensor, Tensor]:
    """alpha * norm(ghost), where nothing but finite values reaches the sum, or any gradient, while alpha is 0.

    The double-where trick: what would come out NaN or infinite is replaced at the input too, or its gradient would be
    0 * NaN. The channel's parameters are replaced where they spoil all of it.
    """
    off = alpha.detach() == 0
    with torch.no_grad():
        normalised, _ = _part(ghost, affine, norm, eps)
        spoilt = off & ~normalised.isfinite()
        channel = spoilt.all(dim=[d for d in range(spoilt.dim()) if d != 1]) if spoilt.numel() else off.new_zeros(())
    ghost = ghost.masked_fill(spoilt, 0.0)
    weight, bias, mean, var = (
        t if t is None else torch.where(channel, neutral, t) for t, neutral in zip(affine, (1.0, 0.0, 0.0, 1.0), strict=True)
    )
    affine = (weight, bias, mean, var)
    part, stats = _part(ghost, affine, norm, eps)
    return alpha.to(part.dtype) * part.masked_fill(spoilt, 0.0), torch.where(off, 0.0, stats)


def reference(
    u: Tensor,
    u_weight: Tensor | None,
    u_bias: Tensor | None,
    u_mean: Tensor | None,
    u_var: Tensor | None,
    ghost: Tensor | None,
    ghost_weight: Tensor | None,
    ghost_bias: Tensor | None,
    ghost_mean: Tensor | None,
    ghost_var: Tensor | None,
    alpha: Tensor | None,
    shortcut: Tensor | None,
    shortcut_weight: Tensor | None,
    shortcut_bias: Tensor | None,
    shortcut_mean: Tensor | None,
    shortcut_var: Tensor | None,
    beta: Tensor | None,
    act: str,
    norm: Sequence[int],
    eps: Sequence[float],
    plan: str = "",
) -> tuple[Tensor, Tensor]:
    """The specification of the schema's op, in plain torch, differentiable to any order (statistics stay constants)."""
    z, stats_u = _part(u, (u_weight, u_bias, u_mean, u_var), norm[0], eps[0])
    stats = [stats_u, torch.zeros_like(stats_u), torch.zeros_like(stats_u)]
    if ghost is not None and alpha is not None:
        affine = (ghost_weight, ghost_bias, ghost_mean, ghost_var)
        part, stats[1] = _ghost_part(ghost, alpha, affine, norm[1], eps[1])
        z = z + part
    if shortcut is not None:
        affine = (shortcut_weight, shortcut_bias, shortcut_mean, shortcut_var)
        part, stats[2] = _part(shortcut, affine, norm[2], eps[2])
        z = z + part
    if act == "relu":
        z = torch.relu(z)
    elif act == "pswish" and beta is not None:
        z = z * torch.sigmoid(per_channel(beta, z) * z)
    return as_layout(z.to(u.dtype), layout_of(u)), torch.stack(stats)


def _fake(u: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return empty_layout(u.shape, layout_of(u), u), u.new_empty((3, 2, u.shape[1]), dtype=torch.float32)


def _backward_fake(grad_output: Tensor, *args: Any) -> tuple[Tensor, ...]:
    u, ghost, alpha, shortcut, beta = (args[i] for i in (0, 5, 10, 11, 16))
    like = [t if t is None else empty_layout(t.shape, layout_of(t), t) for t in (u, ghost, shortcut)]
    like += [u.new_empty((3, 2, u.shape[1]), dtype=torch.float32)]
    like += [t if t is None else t.new_empty(t.shape) for t in (alpha, beta)]
    return tuple(u.new_empty(0, dtype=torch.float32) if t is None else t for t in like)


class _GhostSkipAdd(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(backend: str, *args: Any) -> tuple[Tensor, Tensor]:
        return run_below_autograd("ghost_skip_add", backend, *args)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.backend, *args = inputs
        ctx.options = tuple(args[_TENSORS:])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # else each backward would fill a gradient of the statistics with zeros
        ctx.save_for_backward(*args[:_TENSORS], output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        *tensors, stats = ctx.saved_tensors
        if grad_output is None:  # what follows the op ignores its output
            return None, *[None] * (_TENSORS + len(ctx.options))
        grad_u, grad_ghost, grad_shortcut, grad_affine, grad_alpha, grad_beta = op("ghost_skip_add_backward", ctx.backend)(
            grad_output, *tensors, *ctx.options, stats
        )
        rows = grad_affine.flatten(0, 1).unbind()
        grads: list[Tensor | None] = []
        for part, grad in enumerate((grad_u, grad_ghost, grad_shortcut)):
            grads += [grad, rows[2 * part], rows[2 * part + 1], None, None]
            grads += [grad_alpha] if part == 1 else []
        grads.append(grad_beta)
        given = [None if t is None else g for t, g in zip(tensors, grads, strict=True)]
        return None, *given, None, None, None, None


define("ghost_skip_add", _SCHEMA, _fake)
define("ghost_skip_add_backward", _BACKWARD_SCHEMA, _backward_fake)
define_reference("ghost_skip_add", _SCHEMA, reference)
differentiate("ghost_skip_add", _GhostSkipAdd)


def _check_part(name: str, x: Any, like: Tensor) -> None:
    check_floating(name, x, "ghost_skip_add")
    if x.shape != like.shape:
        raise ValueError(f"ghost_skip_add: expected {name} of the shape of u, {tuple(like.shape)}, got {tuple(x.shape)}")
    if x.device != like.device:
        raise ValueError(f"ghost_skip_add: expected {name} on the device of u, {like.device}, got {x.device}")


def _flatten_norm(name: str, norm: Norm | None, x: Tensor) -> tuple[list[Tensor | None], int, float]:
    """(weight, bias, mean, var), the schema's `norm` and `eps` of one part."""
    if norm is None:
        return [None] * 4, NO_NORM, 0.0
    if not isinstance(norm, Norm):
        raise TypeError(f"ghost_skip_add: expected {name} to be a tost_kernels.Norm or None, got {type(norm).__name__}")
    if not norm.eps >= 0:
        raise ValueError(f"ghost_skip_add: expected {name}.eps >= 0, got {norm.eps}")
    channels, flat = x.shape[1], []
    for field in ("weight", "bias", "mean", "var"):
        t = getattr(norm, field)
        if t is not None and not (isinstance(t, Tensor) and t.is_floating_point()):
            got = t.dtype if isinstance(t, Tensor) else type(t).__name__
            raise TypeError(f"ghost_skip_add: expected {name}.{field} to be a floating Tensor or None, got {got}")
        if t is not None and t.shape != (channels,):
            raise ValueError(f"ghost_skip_add: expected {name}.{field} of shape ({channels},), got {tuple(t.shape)}")
        if t is not None and t.device != x.device:
            raise ValueError(f"ghost_skip_add: expected {name}.{field} on {x.device}, got {t.device}")
        flat.append(None if t is None else t.to(compute_dtype(x)))
    if norm.batch_stats:
        if channels and x.numel() == channels:
            raise ValueError(
                f"ghost_skip_add: expected more than one value per channel for the batch statistics of {name}, "
                f"got an input of shape {tuple(x.shape)}"
            )
        return [flat[0], flat[1], None, None], BATCH_STATS, norm.eps
    if norm.mean is None or norm.var is None:
        raise ValueError(f"ghost_skip_add: expected {name} to have mean and var, or batch_stats=True, got None")
    return flat, RUNNING_STATS, norm.eps


def ghost_skip_add(
    u: Tensor,
    ghost: Tensor | None = None,
    alpha: Tensor | float | None = None,
    shortcut: Tensor | None = None,
    *,
    norm: Norm | None = None,
    ghost_norm: Norm | None = None,
    shortcut_norm: Norm | None = None,
    act: str = "none",
    beta: Tensor | float | None = None,
) -> GhostSkipAddOutput:
    """act(norm(u) + alpha * ghost_norm(ghost) + shortcut_norm(shortcut)), in one pass over the memory.

    u, ghost, shortcut: (N, C, ...), one shape, float16, bfloat16, float32 or float64; computed in float32 below float64.
    alpha: 0-dim tensor, needed with `ghost`; where it is 0 the ghost is skipped, not multiplied: its NaN and infinities reach
    neither the output nor a gradient. norm, ghost_norm, shortcut_norm: `Norm`, None for none. act: "none", "relu" or
    "pswish" (which needs beta: 0-dim or (C,)). alpha and beta may be numbers, but a compiled graph would freeze them.

    Returns GhostSkipAddOutput(out, stats): out has the shape and layout of u. Its dtype is the inputs' where they agree, else
    the one they promote to; autocast does not change that. Differentiable in all but the running statistics and `stats`.

    Raises TypeError or ValueError, naming the argument, for a wrong type, dtype, shape, device or combination.
    Paper: "Training Your Sparse Neural Network Better with Any Mask" (ICML 2022), https://arxiv.org/abs/2206.12755.
    """
    check_floating("u", u, "ghost_skip_add")
    if u.dim() < 2:
        raise ValueError(f"ghost_skip_add: expected u of shape (N, C, ...), got {tuple(u.shape)}")
    if act not in ACTIVATIONS:
        raise ValueError(f"ghost_skip_add: expected act to be one of {ACTIVATIONS}, got {act!r}")
    if (beta is None) == (act == "pswish"):
        raise ValueError(f"ghost_skip_add: expected beta with act='pswish' and only then, got act={act!r}, beta={beta!r}")
    if (ghost is None) != (alpha is None):
        missing = "ghost" if ghost is None else "alpha"
        raise ValueError(f"ghost_skip_add: expected ghost and alpha together, got {missing}=None")
    dtype = u.dtype
    for name, part, part_norm in (("ghost", ghost, ghost_norm), ("shortcut", shortcut, shortcut_norm)):
        if part is None:
            if part_norm is not None:
                raise ValueError(f"ghost_skip_add: expected {name}_norm only with {name}, got {name}=None")
            continue
        _check_part(name, part, u)
        dtype = torch.promote_types(dtype, part.dtype)
    u = u.to(dtype)
    ghost = None if ghost is None else ghost.to(dtype)
    shortcut = None if shortcut is None else shortcut.to(dtype)
    alpha = None if alpha is None else scalar("alpha", alpha, u, channels=False, op_name="ghost_skip_add")
    beta = None if beta is None else scalar("beta", beta, u, channels=True, op_name="ghost_skip_add")
    affine, modes, eps = zip(
        *(
            _flatten_norm(name, part_norm, u)
            for name, part_norm in (("norm", norm), ("ghost_norm", ghost_norm), ("shortcut_norm", shortcut_norm))
        ),
        strict=True,
    )
    if torch.compiler.is_compiling():  # Dynamo refuses one tensor given twice, as in shortcut=x, ghost=x
        ghost, shortcut, beta = (t if t is None else t.view_as(t) for t in (ghost, shortcut, beta))
    args = (u, *affine[0], ghost, *affine[1], alpha, shortcut, *affine[2], beta, act, list(modes), list(eps), "")
    backend = pick("ghost_skip_add", PREFERRED, u)
    if backend in ("reference", "dense"):
        return GhostSkipAddOutput(*reference(*args))
    return GhostSkipAddOutput(*apply(_GhostSkipAdd, backend, *args))
