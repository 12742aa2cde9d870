"""Choosing: successive halving over the options of each pass, then whole plans against the dense op.

Where backends have frames (`candidates.FRAMES`: what must be one for a whole plan), all of them are looked at first, pass by
pass, and only the fastest are searched further, two at most; none, where even the fastest is hopeless beside the dense op.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from tost_kernels.pattern import Pattern
from tost_kernels.plan import Case, Plan
from tost_kernels.tuning import candidates
from tost_kernels.tuning.bench import Bench
from tost_kernels.tuning.cuda_timer import searching
from tost_kernels.tuning.trial import FINAL_ROUNDS, Timer, Timing, Trial

GAIN = 0.97  # an option must take less than this part of the best so far: less is noise
# Frames searched further besides the fastest: the other backend's best within RIVAL times its time (their options gain more or
# less, so a first look does not decide between backends); where there is none, the same backend's second within CLOSE.
RIVAL, CLOSE = 1.3, 1.1
HOPELESS = 2.0  # a frame that takes so many times the dense op's time is not searched further: options gain less


class Dropped(NamedTuple):
    """A candidate that cannot run on this device, and why."""

    plan: Plan
    reason: str


class Choice(NamedTuple):
    """The fastest plan of a case; the whole plans it was chosen from, fastest first; and those that could not run."""

    plan: Plan
    timings: list[Timing]
    dropped: list[Dropped]


_Key = tuple[Case, str, str, str]  # case without its gradients, backend, frame, pass


@dataclass
class Known:
    """What was found for single passes so far: training and inference share the forward pass.

    Attributes:
        options: those chosen.
        looks: milliseconds of a frame's pass at first look; inf: it cannot run.
    """

    options: dict[_Key, str] = field(default_factory=dict)
    looks: dict[_Key, float] = field(default_factory=dict)


def best_plan(case: Case, pattern: Pattern, timer: Timer, known: Known) -> Choice:
    """The fastest plan of a case. known: grows. Nothing is timed where there is one candidate alone."""
    names, plans = candidates.compiled_backends(case), candidates.dense_plans(case, pattern)
    if not names and len(plans) == 1:
        return Choice(plans[0], [], [])
    with searching(case.device):
        search = _Search(Bench(case, pattern), timer, known)
        plans += search.whole_plans(names, plans)
        timings = search.timed([search.bench.whole(plan) for plan in dict.fromkeys(plans)], FINAL_ROUNDS)
    found = sorted((Timing(trial.plan, ms) for trial, ms in timings), key=lambda t: t.milliseconds)
    return Choice(found[0].plan, found, search.dropped)


class _Search:
    """The search of one case."""

    def __init__(self, bench: Bench, timer: Timer, known: Known) -> None:
        self.bench, self._timer, self._known = bench, timer, known
        self.dropped: list[Dropped] = []
        self._passes = candidates.passes(bench.case)

    def whole_plans(self, names: Sequence[str], dense: Sequence[Plan]) -> list[Plan]:
        """The plans of these backends that are worth timing whole, their own rules last. dense: what they are up against."""
        chosen = [(name, "") for name in names if name not in candidates.FRAMES]
        framed, hopeless = self._fastest_frames([name for name in names if name in candidates.FRAMES], dense)
        plans = [] if hopeless else [self._searched(*frame) for frame in framed]
        plans = [*(self._searched(*frame) for frame in chosen), *plans, *(Plan(name, frame) for name, frame in framed)]
        return [*plans, *(Plan(name) for name in names if name in {name for name, _ in (*chosen, *framed)})]

    def _searched(self, name: str, frame: str) -> Plan:
        """The best plan in a frame, by the best options of each pass."""
        by_pass = {}
        for which in self._passes:
            key = self._key(name, frame, which)
            if key not in self._known.options:
                self._known.options[key] = self._best_options(name, frame, which)
            by_pass[which] = self._known.options[key]
        return candidates.whole_plan(name, by_pass, frame)

    def _fastest_frames(self, names: Sequence[str], dense: Sequence[Plan]) -> tuple[list[tuple[str, str]], bool]:
        """The (backend, frame) to go on with, fastest first, and whether they are so slow that their options do not matter."""
        ranked = sorted(row for name in names for row in self._looks(name))
        if not ranked:
            return [], True
        fastest = ranked[0]
        rivals = self.timed([self.bench.whole(plan) for plan in dense], 1)
        if fastest[0] > HOPELESS * min(ms for _, ms in rivals):
            return [fastest[1:]], True
        own = [row for row in ranked if row[1] == fastest[1]]
        others = [row for row in ranked if row[1] != fastest[1] and row[0] <= RIVAL * fastest[0]]
        second = others or [row for row in own[1:] if row[0] <= CLOSE * fastest[0]]
        return [row[1:] for row in (fastest, *second[:1])], False

    def _looks(self, name: str) -> list[tuple[float, str, str]]:
        """(milliseconds, backend, frame) of the frames of a backend that run here, but for those that no pass is faster in."""
        frames = list(candidates.FRAMES[name](self.bench.case))
        for which in self._passes:
            new = [frame for frame in frames if self._key(name, frame, which) not in self._known.looks]
            trials = [self.bench.one_pass(which, Plan(name, frame)) for frame in new]
            taken = {trial.plan.options: ms for trial, ms in self.timed(trials, 1)}
            self._known.looks |= {self._key(name, frame, which): taken.get(frame, float("inf")) for frame in new}

        by_frame = {frame: [self._known.looks[self._key(name, frame, which)] for which in self._passes] for frame in frames}
        found, base = [], candidates.BASE[name]
        for frame, looks in by_frame.items():
            if candidates.joins(name, base, frame):  # by the base's algorithm in the passes where it is faster
                looks = [min(pair) for pair in zip(looks, by_frame[base], strict=True)]
                if looks == by_frame[base]:
                    continue
            found.append((sum(looks), name, frame))
        return [row for row in found if row[0] < float("inf")]

    def _key(self, name: str, frame: str, which: str) -> _Key:
        return self.bench.case._replace(grads=""), name, frame, which

    def _best_options(self, name: str, frame: str, which: str) -> str:
        """Key after key, the best value beside what is chosen already; "" where the kernel's own rule is as good."""
        best = ""
        for key, values in candidates.OPTIONS.get(name, {}).items():
            before = best + "," if best else ""
            tried = [best, *(f"{before}{key}={value}" for value in values(self.bench.case, which, f"{frame},{best}"))]
            if len(tried) > 1:
                best = self._halve(name, frame, which, tried)
        return best

    def _halve(self, name: str, frame: str, which: str, tried: Sequence[str]) -> str:
        """The fastest of these options; the first unless another is clearly faster. The first stays in to the end."""
        options = {candidates.in_frame(frame, which, option): option for option in tried}
        trials = [self.bench.one_pass(which, Plan(name, text)) for text in options]
        first, others = trials[0], trials[1:]
        # Where a trial must be compiled and recorded, that is the cost, and a first look saves nothing.
        rounds = FINAL_ROUNDS if frame and len(others) <= 3 else 1
        while others:
            timed = self.timed([first, *others], rounds)
            first_ms = next((ms for trial, ms in timed if trial is first), float("inf"))
            ranked = sorted((pair for pair in timed if pair[0] is not first), key=lambda pair: pair[1])
            if ranked and len(others) <= 3 and rounds >= FINAL_ROUNDS:
                winner, fastest = ranked[0]
                return options[(winner if fastest < GAIN * first_ms else first).plan.options]
            others = [trial for trial, _ in ranked[: max(2, len(ranked) // 3)]]
            rounds = FINAL_ROUNDS if len(others) <= 3 else rounds + 1
        return options[first.plan.options]

    def timed(self, trials: Sequence[Trial], rounds: int) -> list[tuple[Trial, float]]:
        """Each trial with its milliseconds, but for those that cannot run on this device."""
        able = [trial for trial in trials if self._is_able(trial)]
        return list(zip(able, self._timer(able, rounds), strict=True)) if able else []

    def _is_able(self, trial: Trial) -> bool:
        """Whether it runs; a kernel compiled for this device may not fit it. Others are not asked: their errors are errors."""
        if trial.plan.backend not in candidates.FRAMES:
            return True
        try:
            trial.run()
        except Exception as error:
            if not _is_about_the_device(error):
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            if (dropped := Dropped(trial.plan, reason)) not in self.dropped:
                self.dropped.append(dropped)
            return False
        return True


def _is_about_the_device(error: Exception) -> bool:
    """Whether it says that the kernel does not compile here, or needs more registers or memory than there are.

    Triton's own errors are told by where they are defined, as triton may not be installed; but where its passes give up, what
    they raise is a RuntimeError, as are the errors of the CUDA kernels (csrc/cuda/launch.h, conv_patch.h).
    """
    home = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    too_large = ("PassManager::run failed", "does not fit this device", "to fit into shared memory")
    return "triton" in home or isinstance(error, torch.cuda.OutOfMemoryError) or any(text in str(error) for text in too_large)
