"""Paired comparison of recipes: for each seed the same mask, initial weights and batches, only the recipe differs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tost.config import Config
from tost.data import load
from tost.files import write_json
from tost.launch import Processes
from tost.paired import Paired, mean_and_spread, paired
from tost.parallel import train_all
from tost.recipe import Recipe
from tost.runs import Result
from tost.step_times import StepTime, measure_step_times

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """The runs of a paired comparison. The first variant is the baseline.

    Attributes:
        results: variant -> its runs, in the order of `seeds`.
        seeds: one pair (one run of each variant) a seed.
        step_times: of this configuration on each backend; empty where not asked for.
    """

    results: Mapping[str, tuple[Result, ...]]
    seeds: tuple[int, ...]
    step_times: tuple[StepTime, ...] = ()

    @property
    def baseline(self) -> str:
        """Name of the first variant."""
        return next(iter(self.results))

    def accuracies(self, variant: str) -> list[float]:
        """Test accuracy of each run."""
        return [result.test_accuracy for result in self.results[variant]]

    def against_baseline(self, variant: str) -> Paired:
        """Differences in test accuracy to the baseline's run of the same seed."""
        return paired(self.accuracies(self.baseline), self.accuracies(variant))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; every run with its whole history."""
        variants = {}
        for name, results in self.results.items():
            mean, spread = mean_and_spread(self.accuracies(name))
            variants[name] = {
                "accuracy_mean": mean,
                "accuracy_std": spread,
                "against_baseline": None if name == self.baseline else dataclasses.asdict(self.against_baseline(name)),
                "runs": [result.as_dict() for result in results],
            }
        return {
            "baseline": self.baseline,
            "seeds": list(self.seeds),
            "variants": variants,
            "step_times": [dataclasses.asdict(t) for t in self.step_times],
        }

    def save(self, path: Path) -> None:
        """Write `as_dict()` as JSON, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.as_dict())


def compare(
    base: Config,
    variants: Mapping[str, Recipe] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    timing_rounds: int = 0,
    jobs: int = 1,
    overwrite: bool = False,
    progress: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Train every variant once a seed, seed by seed, and check that the runs of a seed are a pair.

    Args:
        base: everything but recipe and seed.
        variants: name -> recipe, the baseline first; None: vanilla against ToST.
        seeds: one pair each, all different.
        timing_rounds: with 2 or more, also time a step of each backend (see `measure_step_times`), with the ghosts of the
            last variant that has any; 0: do not.
        jobs: how many runs at the same time, each in a process of its own (see `train_all`).
        overwrite: repeat finished runs.
        progress: bars on stderr.
        report: gets a line of text as each run ends.

    Raises:
        ValueError: fewer than one variant or seed, a seed or recipe twice; and what `train` raises.
        RuntimeError: two runs of one seed had different masks, initial weights or batches.
    """
    recipes = dict(variants) if variants is not None else {"vanilla": Recipe.vanilla(), "tost": Recipe.tost()}
    if not recipes:
        raise ValueError("variants: expected at least one, got none")
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds: expected at least one and each once, got {list(seeds)}")
    if timing_rounds == 1 or timing_rounds < 0:
        raise ValueError(f"timing_rounds: expected 0 or at least 2, got {timing_rounds}")
    who = {dataclasses.replace(base, recipe=recipe, seed=seed): name for seed in seeds for name, recipe in recipes.items()}
    if len(who) < len(seeds) * len(recipes):
        raise ValueError(f"variants: expected different recipes, got the same under two names of {list(recipes)}")

    def title(config: Config) -> str:
        return f"seed {config.seed}  {who[config]}"

    def ended(config: Config, outcome: Result | Exception, finished_earlier: bool) -> None:
        if isinstance(outcome, Exception):
            report(f"{title(config)}: failed: {outcome}")
            return
        took = "finished earlier" if finished_earlier else f"in {outcome.seconds:.0f} s"
        report(f"{title(config)}: {100 * outcome.test_accuracy:.2f}%, {took}  ({outcome.run_dir})")

    runs: dict[str, list[Result]] = {name: [] for name in recipes}
    trained = train_all(list(who), Processes(jobs), overwrite=overwrite, progress=progress, title=title, ended=ended)
    for result in trained:
        runs[who[result.config]].append(result)
    for i, seed in enumerate(seeds):
        _check_pair([results[i] for results in runs.values()], seed)

    times: list[StepTime] = []
    if timing_rounds:
        with_ghosts = [recipe for recipe in recipes.values() if recipe.has_ghosts]
        dataset = load(base.dataset, base.data_dir)
        config = dataclasses.replace(base, seed=seeds[0])
        times = measure_step_times(config, dataset, with_ghosts[-1] if with_ghosts else Recipe.vanilla(), timing_rounds)
    return Comparison({name: tuple(results) for name, results in runs.items()}, tuple(seeds), tuple(times))


def _check_pair(results: Sequence[Result], seed: int) -> None:
    for what in ("masks_fingerprint", "weights_fingerprint", "batches_fingerprint"):
        seen = {getattr(result, what) for result in results}
        if len(seen) > 1:
            folders = json.dumps([str(result.run_dir) for result in results])
            raise RuntimeError(f"the runs of seed {seed} are no pair: {what} differs ({seen}) in {folders}")
