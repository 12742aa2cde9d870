"""How long a forward pass takes before and after, measured in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from tost.checks import integer
from tost.user_batches import call, tensors_in

__all__ = ["ForwardTimes", "time_forward"]


class ForwardTimes(NamedTuple):
    """Milliseconds of one forward pass on `threads` threads: the medians of passes in turns."""

    before: float
    after: float
    passes: int
    threads: int


@torch.no_grad()
def time_forward(before: nn.Module, after: nn.Module, inputs: Any, passes: int = 20, warmup: int = 3) -> ForwardTimes:
    """Times two networks in evaluation mode on the same inputs, one pass of each in turns, so that both meet the same machine.

    Args:
        inputs: a batch, on the networks' device; a tuple or mapping of tensors for several arguments.
        passes: of each network, behind `warmup` others. Modes are left as found.
    """
    passes, warmup = integer("passes", passes, least=1), integer("warmup", warmup, least=0)
    nets = (before, after)
    modes = {module: module.training for net in nets for module in net.modules()}
    on_gpu = any(tensor.is_cuda for tensor in tensors_in(inputs))
    seconds: tuple[list[float], list[float]] = ([], [])
    try:
        for net in nets:
            net.eval()
        for turn in range(warmup + passes):
            for net, spent in zip(nets, seconds, strict=True):
                start = time.perf_counter()
                call(net, inputs)
                if on_gpu:
                    torch.cuda.synchronize()
                if turn >= warmup:
                    spent.append(time.perf_counter() - start)
    finally:
        _put_back(modes.items())
    first, second = (1e3 * statistics.median(spent) for spent in seconds)
    return ForwardTimes(first, second, passes, torch.get_num_threads())


def _put_back(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    for module, mode in modes:
        module.training = mode
