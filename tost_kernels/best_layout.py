"""best_layout: the memory layout in which a network's sparse layers are fastest, each by its best plan there."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from tost_kernels.layout import BATCH_LAST, CHANNELS_LAST, as_layout
from tost_kernels.plan import own_plans, remember
from tost_kernels.tune import TuneReport, tune
from tost_kernels.tuning.trial import Timer

_ALL_KEPT = 0  # `Case.density`


def best_layout(
    net: nn.Module,
    example_input: Tensor | tuple[Any, ...],
    *,
    cache: bool = True,
    remeasure: bool = False,
    progress: bool = False,
    timer: Timer | None = None,
) -> str:
    """ "batch_last" or "channels_last": bring the network's input into it. `tune` was called in it, so its plans are in use.

    Arguments, and what they raise: as `tune`'s; the 4-D tensors among the inputs are brought into either layout. In training
    mode the layouts are compared by a training step's masked ops, in eval mode by those of inference: the sum of what their
    plans take, times how often each is called. A change of layout that a plan needs is in its time.

    Not counted: dense convolutions (those of this package are seen in batch-last networks alone, so layers that keep more than
    0.92 of their weights do not count), elementwise ops, pools, and the conversion of the input. channels_last wins ties.
    """
    arguments = (example_input,) if isinstance(example_input, Tensor) else example_input
    if not isinstance(arguments, tuple):
        raise TypeError(
            f"best_layout: expected example_input to be a tensor or a tuple of arguments, got {type(example_input).__name__}"
        )
    reports: dict[str, TuneReport] = {}
    for layout in (CHANNELS_LAST, BATCH_LAST):
        inputs = tuple(_brought(argument, layout) for argument in arguments)
        with own_plans():
            reports[layout] = tune(net, inputs, cache=cache, remeasure=remeasure, progress=progress, timer=timer)
    best = min(reports, key=lambda layout: _milliseconds(reports[layout], training=net.training))
    for tuned in reports[best].cases:
        remember(tuned.case, tuned.plan)
    return best


def _milliseconds(report: TuneReport, *, training: bool) -> float:
    sparse = tuple(tuned for tuned in report.cases if tuned.case.density != _ALL_KEPT)
    return dataclasses.replace(report, cases=sparse).milliseconds(training=training)


def _brought(argument: Any, layout: str) -> Any:
    if not isinstance(argument, Tensor) or argument.dim() != 4:
        return argument
    with torch.no_grad():
        return as_layout(argument.detach(), layout).requires_grad_(argument.requires_grad)
