"""How many trials the GPU search of tost_kernels.tune makes on a network: a dry run on any machine, in which nothing is computed.

    python -m benchmarks.tune_trials [--model resnet18] [--batch 128] [--density 0.05]

Times are made up, dense being 1: how far the search goes depends on whether our kernels have a chance. A trial on a GPU costs the
recording of a graph, and each of its replays about 1 ms. Variants are what Triton compiles where it never ran: the options of a
pass, but for the split, which is no constant (an estimate: kernel size and stride make more). CUDA's are compiled ahead.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch

import tost
import tost_kernels as tk
from tost_kernels.layout import BATCH_LAST, CHANNELS_LAST, as_layout
from tost_kernels.plan import Plan, own_plans
from tost_kernels.tuning import candidates
from tost_kernels.tuning.bench import Bench
from tost_kernels.tuning.trial import WHOLE, Trial

# Triton alone; both alike; the one behind, but not hopeless; both hopeless.
TIMES: tuple[dict[str, float], ...] = (
    {"triton": 0.5},
    {"cuda": 0.5, "triton": 0.5},
    {"cuda": 0.5, "triton": 0.8},
    {"cuda": 0.8, "triton": 0.5},
    {"triton": 3.0},
    {"cuda": 3.0, "triton": 3.0},
)


class DryBench(Bench):
    """A bench without tensors, whose trials do nothing."""

    def __init__(self, case: Any, pattern: Any) -> None:
        self.case = case

    def one_pass(self, which: str, plan: Plan) -> Trial:
        return Trial(which, plan, lambda: None)

    def whole(self, plan: Plan) -> Trial:
        return Trial(WHOLE, plan, lambda: None)


class Count:
    """A timer that counts. times: backend -> its fastest frame's time."""

    def __init__(self, times: dict[str, float]) -> None:
        self.times = times
        self.trials, self.replays = 0, 0
        self.variants: set[tuple[str, str]] = set()

    def __call__(self, trials: Sequence[Trial], rounds: int) -> list[float]:
        self.trials += len(trials)
        self.replays += len(trials) * (1 + rounds)
        for trial in trials:
            if trial.plan.backend == "triton" and trial.which != WHOLE:
                constants = [item for item in trial.plan.options.split(",") if "split=" not in item]
                self.variants.add((trial.which, ",".join(constants)))
        return [self._milliseconds(trial) for trial in trials]

    def _milliseconds(self, trial: Trial) -> float:
        if trial.plan.backend == "dense":
            return 1.0 if trial.which == WHOLE else math.nan
        near = any(frame in trial.plan.options for frame in ("rows=32", "rows=64"))  # two of Triton's, three of CUDA's
        return self.times[trial.plan.backend] / 3 * (1.0 if near else 1.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18", help="a network of tost.models")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--density", type=float, default=0.05)
    options = parser.parse_args()
    model = tost.models.build(options.model)
    net = tk.sparsify(model, tost.prune(model, "erk", density=options.density, input_shape=(3, 32, 32)))
    images = torch.zeros(options.batch, 3, 32, 32)
    print("layout           CUDA / dense  Triton / dense  cases  trials  replays  variants")
    for layout in (CHANNELS_LAST, BATCH_LAST):
        for times in TIMES:
            count = Count(times)
            with (
                own_plans(),
                mock.patch.object(candidates, "compiled_backends", return_value=[*times]),
                mock.patch("tost_kernels.tuning.search.Bench", DryBench),
                mock.patch("tost_kernels.tune.remember"),
            ):
                report = tk.tune(net, as_layout(images, layout), cache=False, timer=count)
            row = f"{len(report.cases):5}  {count.trials:6}  {count.replays:7}  {len(count.variants):8}"
            print(f"{layout:15}{times.get('cuda', '-'):>14}  {times.get('triton', '-'):>14}  {row}")


if __name__ == "__main__":
    main()
