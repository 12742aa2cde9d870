"""tune: for each sparse layer of a network, the fastest backend and variant on its real input, measured here.

Every usable backend is a candidate, torch's dense ops included; forward and backward count together, layout changes too.
Results hold for this process, and in a cache on disk (`tost_kernels.tuning.store`) for later ones, which must call `tune` as well
but then measure nothing: ops never look at the disk.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tost_kernels.nn.conv2d import Conv2d
from tost_kernels.nn.sparse_module import SparseModule
from tost_kernels.nn.surgery import duplicate
from tost_kernels.pattern import Pattern
from tost_kernels.plan import Case, Plan, remember, watching
from tost_kernels.tuning import store
from tost_kernels.tuning.bench import check_runs
from tost_kernels.tuning.cpu_timer import interleaved
from tost_kernels.tuning.cuda_timer import GraphTimer, searching
from tost_kernels.tuning.search import Choice, Dropped, Known, best_plan
from tost_kernels.tuning.trial import Timer, Timing

MEASURED, CACHED, ONLY = "measured", "cache", "only candidate"


@dataclass(frozen=True)
class TunedCase:
    """One case, and the plan it runs by from now on.

    Attributes:
        layers: names of the layers that meet it.
        source: "measured", "cache" or "only candidate".
        candidates: whole plans with their milliseconds (forward and the gradients wanted), fastest first. Single passes had
            more: their best options are in these. Empty where nothing was ever timed.
        dropped: candidates that this device could not run, and why; empty where the plan is from the cache.
        calls: how often a run of the network met the case.
    """

    layers: tuple[str, ...]
    case: Case
    plan: Plan
    source: str
    candidates: tuple[Timing, ...]
    dropped: tuple[Dropped, ...] = ()
    calls: int = 1

    def milliseconds(self, plan: Plan) -> float | None:
        """What `plan` took, if it was a candidate."""
        return next((timing.milliseconds for timing in self.candidates if timing.plan == plan), None)

    @property
    def dense_milliseconds(self) -> float | None:
        """What the fastest dense plan took, if any was timed."""
        return next((timing.milliseconds for timing in self.candidates if timing.plan.backend == "dense"), None)


@dataclass(frozen=True)
class TuneReport:
    """What `tune` found, in the order of the network; printing it gives a table.

    Attributes:
        cases: one entry a distinct case: layers alike share one; in training mode each layer has one for inference, too.
        seconds: how long tuning took.
        cache: the folder of the disk cache, or None without one.
    """

    cases: tuple[TunedCase, ...]
    seconds: float
    cache: str | None

    def plan_of(self, layer: str, *, training: bool | None = None) -> Plan:
        """The plan of a layer's first case; training: its first with gradients, or without. Raises KeyError for no such."""
        for tuned in self.cases:
            if layer in tuned.layers and (training is None or bool(tuned.case.grads) == training):
                return tuned.plan
        raise KeyError(layer)

    def milliseconds(self, *, training: bool) -> float:
        """What the sparse layers take together, each as often as it is called: in a training step, or in inference.

        Cases that were never timed count nothing, and neither does anything but masked ops.
        """
        cases = [tuned for tuned in self.cases if bool(tuned.case.grads) == training]
        return sum(tuned.calls * (tuned.milliseconds(tuned.plan) or 0.0) for tuned in cases)

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, ready for JSON."""
        rows = []
        for tuned in self.cases:
            case = {name: list(value) if isinstance(value, tuple) else value for name, value in tuned.case._asdict().items()}
            rows.append(
                {
                    "layers": list(tuned.layers),
                    "case": case,
                    "plan": {"backend": tuned.plan.backend, "options": tuned.plan.options},
                    "source": tuned.source,
                    "candidates": [
                        {"backend": t.plan.backend, "options": t.plan.options, "milliseconds": t.milliseconds}
                        for t in tuned.candidates
                    ],
                    "dropped": [
                        {"backend": d.plan.backend, "options": d.plan.options, "reason": d.reason} for d in tuned.dropped
                    ],
                    "calls": tuned.calls,
                }
            )
        return {"cases": rows, "seconds": self.seconds, "cache": self.cache}

    def __str__(self) -> str:
        rows = [("layer", "input", "number", "density", "live", "for", "ms", "dense ms", "ratio", "plan", "source")]
        for tuned in self.cases:
            case, best, dense = tuned.case, tuned.milliseconds(tuned.plan), tuned.dense_milliseconds
            name = tuned.layers[0] + (f" and {len(tuned.layers) - 1} more" if len(tuned.layers) > 1 else "")
            rows.append(
                (
                    name,
                    "x".join(map(str, case.input)) + ("" if case.layout == "contiguous" else f" {case.layout}"),
                    " ".join(part for part in (case.dtype, case.precision) if part),
                    f"{2 ** (case.density / 4):.2g}",
                    "all" if case.live == (16, 16) else "{}/16 x {}/16".format(*case.live),
                    "training" if case.grads else "inference",
                    "-" if best is None else f"{best:.3g}",
                    "-" if dense is None else f"{dense:.3g}",
                    "-" if best is None or dense is None else f"{dense / best:.1f}x",
                    f"{tuned.plan.backend} {tuned.plan.options}".strip(),
                    tuned.source,
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        dropped = sum(len(tuned.dropped) for tuned in self.cases)
        left_out = f" ({dropped} candidates cannot run on this device: see `dropped`)" if dropped else ""
        end = f"{len(self.cases)} cases in {self.seconds:.1f} s{left_out}; cache: {self.cache or 'none'}"
        return "\n".join([*lines, end])


def tune(
    net: nn.Module,
    example_input: Tensor | tuple[Any, ...],
    *,
    cache: bool = True,
    remeasure: bool = False,
    progress: bool = False,
    timer: Timer | None = None,
) -> TuneReport:
    """Choose for each sparse layer of `net` the fastest plan on the input that reaches it; ops use it from now on.

    net: a network with SparseConv2d, SparseLinear, `nn.Conv2d` of this package or calls of their ops. A copy of it runs once, in
    the mode it is in, so `net` itself, its statistics and the random generators stay as they are. In training mode the plans
    for a training step and those for inference (under no_grad, at this batch size) are chosen; in eval mode the latter.
    example_input: the tensor that `net` is called with, or a tuple of its arguments, as in training: same batch size, layout
    (`to_batch_last`), dtype and device. Under autocast and torch.set_num_threads as in training, too; other shapes and numbers
    of threads run by the static rule. In a distributed run each process tunes for itself.

    cache: read and write the disk cache: $TOST_CACHE_DIR, else $XDG_CACHE_HOME/tost, else ~/.cache/tost. remeasure: ignore what
    it holds. progress: a line a case on stderr. timer: (trials, rounds) -> milliseconds of each, instead of measuring: calls
    on the CPU by a clock, replays of a CUDA graph of them by events, cuDNN's own search (`torch.backends.cudnn.benchmark`) on.

    Equal plans give equal bits, but which plan is the fastest may differ from run to run: without `tune`, or reading one cache,
    runs are reproducible. Raises TypeError for a wrong argument, ValueError for a network in which no sparse op ran, and
    whatever `net` raises on this input.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"tune: expected net to be a torch.nn.Module, got {type(net).__name__}")
    if not isinstance(example_input, Tensor | tuple):
        raise TypeError(
            f"tune: expected example_input to be a tensor or a tuple of arguments, got {type(example_input).__name__}"
        )
    with torch.inference_mode(False):  # what is made in that mode cannot be differentiated
        return _tune(
            net, example_input if isinstance(example_input, tuple) else (example_input,), cache, remeasure, progress, timer
        )


def _tune(
    net: nn.Module, arguments: tuple[Any, ...], cache: bool, remeasure: bool, progress: bool, timer: Timer | None
) -> TuneReport:
    started = time.perf_counter()
    met = _cases(net, arguments)
    if not met:
        raise ValueError("tune: expected net to run a sparse layer on example_input, but none ran: see tost_kernels.sparsify")
    known = Known()
    results = []
    for case, meeting in met.items():
        fitting = timer or (GraphTimer() if case.device == "cuda" else interleaved)
        choice, source = _decide(case, meeting.pattern, fitting, known, read=cache and not remeasure, write=cache)
        plan, names = choice.plan, tuple(meeting.names)
        remember(case, plan)
        results.append(TunedCase(names, case, plan, source, tuple(choice.timings), tuple(choice.dropped), meeting.calls))
        if progress:
            line = f"tune: {len(results)}/{len(met)} {names[0]}: {plan.backend} {plan.options}".rstrip()
            print(f"{line} ({source})", file=sys.stderr, flush=True)
    return TuneReport(tuple(results), time.perf_counter() - started, store.place() if cache else None)


def _decide(case: Case, pattern: Pattern, timer: Timer, known: Known, *, read: bool, write: bool) -> tuple[Choice, str]:
    stored = store.load(case, lambda plan: check_runs(case, pattern, plan)) if read else None
    if stored is not None:
        return Choice(stored[0], [Timing(*row) for row in stored[1]], []), CACHED
    choice = best_plan(case, pattern, timer, known)
    if not choice.timings:
        return choice, ONLY
    if write:
        store.save(case, choice.plan, [(t.plan, t.milliseconds) for t in choice.timings])
    return choice, MEASURED


@dataclass
class _Meeting:
    """Who met a case: the names of the layers, the pattern of one of them, and how often."""

    pattern: Pattern
    names: list[str] = field(default_factory=list)
    calls: int = 0


def _cases(net: nn.Module, arguments: tuple[Any, ...]) -> dict[Case, _Meeting]:
    """Each case that a run of `net` meets, in its order."""
    if isinstance(net, DistributedDataParallel):  # its forward talks to other processes
        net = net.module
    net = getattr(net, "_orig_mod", net)  # what torch.compile wraps
    copy = duplicate(net)
    met: dict[Case, _Meeting] = {}
    running = [""]

    def tell(case: Case, pattern: Pattern) -> None:
        for each in dict.fromkeys((case, case._replace(grads=""))):
            meeting = met.setdefault(each, _Meeting(pattern))
            meeting.calls += 1
            if running[-1] not in meeting.names:
                meeting.names.append(running[-1])

    for name, module in copy.named_modules():
        if isinstance(module, SparseModule | Conv2d):
            module.register_forward_pre_hook(lambda *_, name=name: running.append(name))
            module.register_forward_hook(lambda *_: running.pop() and None, always_call=True)
    eager = torch.compiler.set_stance("force_eager")  # compiled parts would not tell, or be compiled for nothing
    # cuDNN keeps the algorithm that a convolution first ran by, searched or not: trials would find that of this run
    on_cuda = any(isinstance(argument, Tensor) and argument.is_cuda for argument in arguments)
    search = searching("cuda" if on_cuda else "cpu")
    with _random_state_kept(), torch.set_grad_enabled(net.training), eager, watching(tell), search:
        copy(*(_own(argument) for argument in arguments))
    return met


def _own(argument: Any) -> Any:
    """A copy: the network may write into its input, and the caller may have made it in inference mode."""
    if not isinstance(argument, Tensor):
        return argument
    return argument.detach().clone().requires_grad_(argument.requires_grad)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Dropout and the like may draw inside; afterwards no generator has moved."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 (the global one is protected)
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
