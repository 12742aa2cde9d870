"""running_stats on a GPU: what a batch normalisation does to its buffers after a batch, in one launch instead of five to nine.

One program does it all, WIDTH channels at a time: the counter of batches is read and written once, so nobody can see it half
updated. Whether alpha is 0 is decided here, from device memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tost_kernels.triton.channels import on_device_of
from tost_kernels.triton.checks import check, check_parameter, shape_string
from tost_kernels.triton.implement import implement
from tost_kernels.triton.specimen import Specimen

WIDTH = 1024


@triton.jit
def lerp(running, value, weight):
    """As torch's lerp rounds it: exact at weight 0 and at 1."""
    difference = value - running
    return tl.where(weight < 0.5, running + weight * difference, value - difference * (1.0 - weight))


@triton.jit
def running_stats_kernel(
    mean, var, batches, stats, alpha, channels, step_mean, step_var, step_row, step, momentum, unbiased,
    AVERAGE: tl.constexpr, EMPTY: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """AVERAGE: momentum is 1 / batches. EMPTY: the batch only counts. unbiased: n / (n - 1). stats: at its row."""
    live = 1.0
    if alpha is not None:
        live = tl.load(alpha)
    if live != 0:
        weight = momentum
        if batches is not None:
            seen = tl.load(batches) + 1
            tl.store(batches, seen)
            if AVERAGE:
                weight = 1.0 / seen.to(tl.float32)
        if not EMPTY:
            first = 0
            while first < channels:
                c = first + tl.arange(0, WIDTH)
                exists = c < channels
                to_mean, to_var = mean + c * step_mean, var + c * step_var
                batch_mean = tl.load(stats + c * step, mask=exists)
                batch_var = tl.load(stats + step_row + c * step, mask=exists) * unbiased
                tl.store(to_mean, lerp(tl.load(to_mean, mask=exists), batch_mean, weight), mask=exists)
                tl.store(to_var, lerp(tl.load(to_var, mask=exists), batch_var, weight), mask=exists)
                first += WIDTH


def running_stats(
    mean: Tensor,
    var: Tensor,
    batches: Tensor | None,
    stats: Tensor,
    row: int,
    count: int,
    momentum: float | None,
    alpha: Tensor | None,
) -> None:
    op = "running_stats"
    check(op, stats.dim() == 3, f"stats: expected 3 dimensions, got shape {shape_string(stats.shape)}")
    channels = stats.shape[2]
    check_parameter(op, "stats", stats, (3, 2, channels), stats)
    check(op, 0 <= row < 3, f"row: expected 0, 1 or 2, got {row}")
    check_parameter(op, "mean", mean, (channels,), stats)
    check_parameter(op, "var", var, (channels,), stats)
    if alpha is not None:
        check_parameter(op, "alpha", alpha, (), stats)
    if batches is not None:
        check_parameter(op, "batches", batches, (), stats, torch.int64)
    with on_device_of(stats):
        running_stats_kernel[(1,)](
            mean,
            var,
            batches,
            stats[row],
            alpha,
            channels,
            mean.stride(0),
            var.stride(0),
            stats.stride(1),
            stats.stride(2),
            0.0 if momentum is None else float(momentum),
            count / max(count - 1, 1),
            AVERAGE=momentum is None,
            EMPTY=count == 0,
            WIDTH=min(WIDTH, triton.next_power_of_2(max(channels, 1))),
            num_warps=4,
        )


implement("running_stats", running_stats)


def specimens() -> list[Specimen]:
    signature = dict.fromkeys(running_stats_kernel.arg_names, "i32")
    signature |= dict.fromkeys(("mean", "var", "stats", "alpha"), "*fp32") | {"batches": "*i64"}
    signature |= dict.fromkeys(("momentum", "unbiased"), "fp32")
    constants = {"step_mean": 1, "step_var": 1, "step": 1, "AVERAGE": False, "EMPTY": False, "WIDTH": WIDTH}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = dict.fromkeys(("mean", "var", "stats", "alpha", "batches", "channels", "step_row"), 16)
    return [Specimen("running_stats", running_stats_kernel, signature, constants, 4, 3, attrs=aligned)]
