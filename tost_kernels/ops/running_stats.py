"""The running statistics of a batch normalisation, from the `stats` of `ghost_skip_add`.

In torch it takes five to nine small ops a normalisation, each longer to call than to run; the compiled kernel is one call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tost_kernels.backend import COMPILED, forced, pick, why_not_for
from tost_kernels.register import define, op

_SCHEMA = (
    "(Tensor(a!) mean, Tensor(b!) var, Tensor(c!)? batches, Tensor stats, int row, int count, float? momentum, Tensor? alpha)"
    " -> ()"
)


@torch.no_grad()
def reference(
    mean: Tensor,
    var: Tensor,
    batches: Tensor | None,
    stats: Tensor,
    row: int,
    count: int,
    momentum: float | None,
    alpha: Tensor | None,
) -> None:
    """The specification: arithmetic on tensors only, so that a compiled graph holds it and sees `alpha` and `batches` move."""
    live = None if alpha is None else alpha.detach() != 0
    factor: Tensor | float = 0.0 if momentum is None else momentum
    if batches is not None:
        batches.add_(1 if live is None else live.to(batches.dtype))
        if momentum is None:
            factor = 1.0 / batches.to(stats.dtype)
    if count == 0:
        return
    batch_mean, batch_var = stats[row].unbind()
    for running, batch in ((mean, batch_mean), (var, batch_var * (count / max(count - 1, 1)))):
        if live is None and isinstance(factor, float) and batch.dtype == running.dtype:
            running.lerp_(batch, factor)  # one small op instead of four
        else:
            updated = (factor * batch + (1.0 - factor) * running).to(running.dtype)
            running.copy_(updated if live is None else torch.where(live, updated, running))


def _fake(*args: Any) -> None:
    return None


define("running_stats", _SCHEMA, _fake)


def _backend_for(mean: Tensor, var: Tensor, stats: Tensor, alpha: Tensor | None) -> str:
    """The compiled backend that moves these, or "reference"."""
    same = stats.dtype == mean.dtype == var.dtype == torch.float32
    if not same or (alpha is not None and alpha.dtype != torch.float32):
        return "reference"
    chosen = forced()
    if chosen is None:
        return pick("ghost_skip_add", ("cpu", "cuda", "triton", "reference"), stats)
    usable = chosen in COMPILED and why_not_for("ghost_skip_add", chosen, stats) is None
    return chosen if usable else "reference"


def update_running_stats(
    mean: Tensor,
    var: Tensor,
    batches: Tensor | None,
    stats: Tensor,
    row: int,
    count: int,
    momentum: float | None,
    alpha: Tensor | None = None,
) -> None:
    """Move running mean and variance, (C,) each, towards those of a batch of `count` values a channel, in place.

    batches: 0-dim int64, counts the batches, or None. stats: (3, 2, C), mean and biased variance of three parts, of which `row`
    is taken. momentum: the weight of the batch; None: the average of all batches. alpha: 0-dim; where it is 0 nothing changes.
    An empty batch counts and changes no statistics.
    """
    args = mean, var, batches, stats, row, count, momentum, alpha
    # A compiler fuses the small ops, and knows what to do about those in place.
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    chosen = "reference" if traced else _backend_for(mean, var, stats, alpha)
    if chosen == "reference":
        reference(*args)
        return
    with torch._C._AutoDispatchBelowAutograd():  # cheaper than no_grad
        op("running_stats", chosen)(*args)
    torch._C._increment_version((mean, var))  # who saved them for a backward must notice, as with torch's own
