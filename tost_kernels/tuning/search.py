"""Timing and choosing: successive halving over the options of each pass, then whole plans against the dense op."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tost_kernels.layout import as_layout
from tost_kernels.ops.masked_conv2d import masked_conv2d
from tost_kernels.ops.masked_linear import masked_linear
from tost_kernels.pattern import Pattern
from tost_kernels.plan import Case, Plan
from tost_kernels.register import op
from tost_kernels.tuning import candidates
from tost_kernels.tuning.candidates import FORWARD, INPUT_GRAD

WHOLE = "whole"  # what the user waits for: forward and backward through autograd, layout changes and all
FINAL_ROUNDS = 5
GAIN = 0.97  # an option must take less than this part of the best so far: less is noise
_SHORTEST = 1e-3  # seconds: a shorter call is repeated for one measurement
_MOST_REPEATS = 50


@dataclass(frozen=True)
class Trial:
    """One candidate. which: a pass of `candidates`, or WHOLE. run: does it once."""

    which: str
    plan: Plan
    run: Callable[[], object]


# (trials, rounds) -> milliseconds of each
Timer = Callable[[Sequence[Trial], int], list[float]]


@dataclass(frozen=True)
class Timing:
    """What a whole plan took: milliseconds, forward and the gradients wanted."""

    plan: Plan
    milliseconds: float


def interleaved(trials: Sequence[Trial], rounds: int) -> list[float]:
    """Median milliseconds of each trial, one of each a round, after one unmeasured run.

    One round is a first look at many trials: only the first of them gets an unmeasured run, which warms up what they share.
    """
    if rounds == 1:
        trials[0].run()
        return [1e3 * _seconds(trial) for trial in trials]
    repeats = []
    for trial in trials:
        repeats.append(min(_MOST_REPEATS, 1 + int(_SHORTEST / max(_seconds(trial), 1e-9))))
    taken: list[list[float]] = [[] for _ in trials]
    for _ in range(rounds):
        for trial, count, times in zip(trials, repeats, taken, strict=True):
            times.append(1e3 * _seconds(trial, count) / count)
    return [statistics.median(times) for times in taken]


def _seconds(trial: Trial, count: int = 1) -> float:
    clock = _clock()
    _synchronize()
    start = clock()
    for _ in range(count):
        trial.run()
    _synchronize()
    return clock() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _clock() -> Callable[[], float]:
    """On one CPU thread its own time, which other load on the machine disturbs less; else the time of day."""
    one_thread = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    if one_thread and time.get_clock_info("thread_time").resolution <= 1e-6:
        return time.thread_time
    return time.perf_counter


# (case without its gradients, backend, pass) -> the options chosen: training and inference share the forward pass.
Known = dict[tuple[Case, str, str], str]


def best_plan(case: Case, pattern: Pattern, timer: Timer, known: Known) -> tuple[Plan, list[Timing]]:
    """The fastest plan of a case and the whole plans it was chosen from, fastest first.

    known: what was chosen for single passes so far; grows. Nothing is timed where there is one candidate alone.
    """
    names, plans = candidates.compiled_backends(case), candidates.dense_plans(case, pattern)
    if not names and len(plans) == 1:
        return plans[0], []
    bench = _Bench(case, pattern)
    for name in names:
        by_pass = {}
        for which in candidates.passes(case):
            key = (case._replace(grads=""), name, which)
            if key not in known:
                known[key] = _best_options(name, which, bench, timer)
            by_pass[which] = known[key]
        plans += dict.fromkeys([candidates.whole_plan(name, by_pass), Plan(name)])
    times = timer([Trial(WHOLE, plan, bench.whole(plan)) for plan in plans], FINAL_ROUNDS)
    timings = sorted((Timing(plan, ms) for plan, ms in zip(plans, times, strict=True)), key=lambda t: t.milliseconds)
    return timings[0].plan, timings


def _best_options(name: str, which: str, bench: _Bench, timer: Timer) -> str:
    """Key after key, the best value beside what is chosen already; "" where the kernel's own rule is as good."""
    best = ""
    for key, values in candidates.OPTIONS.get(name, {}).items():
        before = best + "," if best else ""
        tried = [best, *(f"{before}{key}={value}" for value in values(bench.case, which))]
        best = _halve([Trial(which, Plan(name, options), bench.one_pass(name, which, options)) for options in tried], timer)
    return best


def _halve(trials: list[Trial], timer: Timer) -> str:
    """The options of the fastest trial; the first one's unless another is clearly faster. The first stays in to the end."""
    first, others = trials[0], trials[1:]
    rounds = 1
    while others:
        times = timer([first, *others], rounds)
        ranked = sorted(zip(times[1:], others, strict=True), key=lambda pair: pair[0])
        if len(others) <= 3 and rounds >= FINAL_ROUNDS:
            fastest, winner = ranked[0]
            return winner.plan.options if fastest < GAIN * times[0] else first.plan.options
        others = [trial for _, trial in ranked[: max(2, len(ranked) // 3)]]
        rounds = FINAL_ROUNDS if len(others) <= 3 else rounds + 1
    return first.plan.options


class _Bench:
    """Random tensors as a case has them, and calls on them."""

    def __init__(self, case: Case, pattern: Pattern) -> None:
        self.case, self._pattern = case, pattern.to(case.device)
        generator = torch.Generator().manual_seed(0)  # the user's own generator is not to be touched

        def normal(shape: Sequence[int], layout: str = "contiguous") -> Tensor:
            tensor = torch.randn(tuple(shape), generator=generator).to(case.device, getattr(torch, case.dtype))
            return as_layout(tensor, layout)

        self._x = normal(case.input, case.layout)
        self._values = normal((pattern.nnz,))
        self._bias = normal((case.weight[0],)) if case.bias else None
        self._grad = normal(candidates.output_shape(case), case.layout) if case.grads else None

    def one_pass(self, name: str, which: str, options: str) -> Callable[[], object]:
        """One pass of a compiled backend, without autograd."""
        case, index = self.case, self._pattern.index
        g = case.geometry
        geometry = (list(case.weight), *([list(g[:2]), list(g[2:4]), list(g[4:6]), g[6]] if g else []), options)
        arguments: tuple[Any, ...]
        if which == FORWARD:
            kernel, arguments = op(case.op, name), (self._x, self._values, self._bias, index)
        elif which == INPUT_GRAD:
            kernel, arguments = op(f"{case.op}_input_grad", name), (
                self._grad, self._values, index, list(case.input), case.layout,
            )  # fmt: skip
        else:
            kernel, arguments = op(f"{case.op}_values_grad", name), (self._grad, self._x, index, self._pattern.nnz)
        return lambda: kernel(*arguments, *geometry)

    def whole(self, plan: Plan) -> Callable[[], object]:
        """Forward and the gradients wanted, by the function that layers call."""
        case, g = self.case, self.case.geometry
        x = self._x.detach().requires_grad_("x" in case.grads.split("+"))
        values = self._values.detach().requires_grad_("values" in case.grads.split("+"))
        wanted = [t for t in (x, values) if t.requires_grad]

        def run() -> object:
            # Tuning may be called under anything; layers are timed as a plain step runs them.
            with torch.autocast(case.device, enabled=False), torch.set_grad_enabled(bool(wanted)):
                if g:
                    out = masked_conv2d(x, values, self._pattern, self._bias, g[:2], g[2:4], g[4:6], g[6], plan=plan)
                else:
                    out = masked_linear(x, values, self._pattern, self._bias, plan=plan)
                return torch.autograd.grad(out, wanted, self._grad) if wanted else out

        return run


def check_runs(case: Case, pattern: Pattern, plan: Plan) -> None:
    """Raise what the op would raise for `plan`, without its work: on an empty batch."""
    _Bench(case._replace(input=(0, *case.input[1:])), pattern).whole(plan)()
