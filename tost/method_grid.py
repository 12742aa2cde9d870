"""`train_grid`: ways to get a mask against each other, at several densities and with several seeds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tost.config import Config
from tost.launch import Processes
from tost.paired import Paired, mean_and_spread, paired
from tost.parallel import carry_out, train_all
from tost.runs import Result
from tost.tickets import check_lottery, forget_rounds, lottery

__all__ = ["Grid", "train_grid"]

Cells = Mapping[float, Mapping[str, tuple[Result, ...]]]


@dataclass(frozen=True)
class Grid:
    """The runs of every variant at every density, one a seed.

    Attributes:
        base: what the runs share.
        variants: name -> what is different, as given to `train_grid`.
        results: density -> variant -> its runs, in the order of `seeds`.
        seeds: each decides initial weights and batches, the same for all variants.
    """

    base: Config
    variants: Mapping[str, Mapping[str, Any]]
    results: Cells
    seeds: tuple[int, ...]

    def accuracies(self, density: float, variant: str) -> list[float]:
        """Test accuracy of each run."""
        return [result.test_accuracy for result in self.results[density][variant]]

    def against(self, density: float, variant: str, baseline: str) -> Paired:
        """Differences in test accuracy to `baseline`'s run of the same seed."""
        return paired(self.accuracies(density, baseline), self.accuracies(density, variant))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, no paths; of each run what it came to, not its history."""
        varied = {"out", "data_dir", "seed", "density", *(field for changes in self.variants.values() for field in changes)}
        return {
            "config": {name: value for name, value in self.base.as_dict().items() if name not in varied},
            "variants": {name: dict(changes) for name, changes in self.variants.items()},
            "seeds": list(self.seeds),
            "densities": [
                {"density": density, "variants": {name: self._cell(density, name) for name in variants}}
                for density, variants in self.results.items()
            ],
        }

    def _cell(self, density: float, variant: str) -> dict[str, Any]:
        mean, spread = mean_and_spread(self.accuracies(density, variant))
        runs = [
            {
                "seed": seed,
                "test_accuracy": result.test_accuracy,
                "test_loss": result.test_loss,
                "weights_kept": result.accounting.weights_kept,
                "weights_prunable": result.accounting.weights_prunable,
                "masks_fingerprint": result.masks_fingerprint,
                "seconds": result.seconds,
            }
            for seed, result in zip(self.seeds, self.results[density][variant], strict=True)
        ]
        return {"accuracy_mean": mean, "accuracy_std": spread, "runs": runs}


def train_grid(
    base: Config,
    variants: Mapping[str, Mapping[str, Any]],
    densities: Sequence[float],
    seeds: Sequence[int],
    *,
    jobs: int = 1,
    overwrite: bool = False,
    progress: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Grid:
    """Train every variant at every density once a seed; finished runs are read back, not repeated.

    Args:
        base: what the runs share.
        variants: name -> fields of `Config` that are different, as {"method": "force", "method_steps": 5}. One more is known:
            "rewind" makes it a lottery that goes back to there (see `tost.lottery`). {"backend": "dense"} is trained once a seed.
        densities: fractions of the weights to keep, all different.
        seeds: all different.
        jobs: how many runs at the same time, each in a process of its own (see `train_all`). A lottery is one: its rounds, and
            its densities, which share all rounds but their last, come one after the other.
        overwrite: repeat finished runs.
        progress: bars on stderr.
        report: gets a line of text as each run, or lottery, ends.

    Raises:
        ValueError: a density, seed or variant twice, or none; a field that Config lacks; and what `train` and `lottery` raise.
        RuntimeError: two runs of one seed had different initial weights or batches.
    """
    for name, values in (("densities", densities), ("seeds", seeds)):
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name}: expected at least one and each once, got {list(values)}")
    if not variants:
        raise ValueError("variants: expected at least one, got none")
    cells = {
        (density, name, seed): _plan(base, name, changes, density, seed)
        for density in densities
        for name, changes in variants.items()
        for seed in seeds
    }
    names: dict[Config | _Ticket, str] = {}
    for (_, name, _), plan in cells.items():
        if names.setdefault(plan, name) != name:
            raise ValueError(f"variants: expected different ones, got the same under the names {names[plan]!r} and {name!r}")
    for name in variants:
        first = cells[densities[0], name, seeds[0]]
        if isinstance(first, _Ticket):  # all of its lotteries go back to the same step
            with _named(name):
                check_lottery(first.config, rewind=first.rewind)
    configs = [plan for plan in dict.fromkeys(cells.values()) if isinstance(plan, Config)]
    tickets = [plan for plan in dict.fromkeys(cells.values()) if isinstance(plan, _Ticket)]

    def title(config: Config) -> str:
        return f"seed {config.seed}  {names[config]}, {100 * config.density:g}% kept"

    def ended(config: Config, outcome: Result | Exception, finished_earlier: bool) -> None:
        if isinstance(outcome, Exception):
            report(f"{title(config)}: failed: {outcome}")
            return
        took = "finished earlier" if finished_earlier else f"in {outcome.seconds:.0f} s"
        report(f"{title(config)}: {100 * outcome.test_accuracy:.2f}%, {took}  ({outcome.run_dir})")

    trained = train_all(configs, Processes(jobs), overwrite=overwrite, progress=progress, title=title, ended=ended)
    of: dict[Config | _Ticket, Result] = dict(zip(configs, trained, strict=True))
    for ticket, result in _draw(tickets, jobs, overwrite, progress, lambda line, ticket: report(f"{names[ticket]}, {line}")):
        of[ticket] = result

    results = {
        density: {name: tuple(of[cells[density, name, seed]] for seed in seeds) for name in variants} for density in densities
    }
    for i, seed in enumerate(seeds):
        # a lottery that goes back to a later step begins with other weights, and with another batch
        runs = [r[i] for row in results.values() for name, r in row.items() if "rewind" not in variants[name]]
        for what in ("weights_fingerprint", "batches_fingerprint"):
            if len({getattr(run, what) for run in runs}) > 1:
                raise RuntimeError(f"the runs of seed {seed} cannot be compared: {what} differs")
    return Grid(base, dict(variants), results, tuple(seeds))


@dataclass(frozen=True)
class _Ticket:
    """A lottery down to `config.density`."""

    config: Config
    rewind: str


def _plan(base: Config, name: str, changes: Mapping[str, Any], density: float, seed: int) -> Config | _Ticket:
    fields = {**changes, "density": 1.0 if changes.get("backend") == "dense" else density, "seed": seed}
    rewind = fields.pop("rewind", None)
    with _named(name):
        config = Config.from_dict({**base.as_dict(), **fields})
        config.check_names()
    return config if rewind is None else _Ticket(config, str(rewind))


@contextmanager
def _named(variant: str) -> Iterator[None]:
    """Errors say which variant is wrong."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ValueError(f"variants: {variant}: {error}") from None


def _draw(
    tickets: Sequence[_Ticket], jobs: int, overwrite: bool, progress: bool, report: Callable[[str, _Ticket], None]
) -> list[tuple[_Ticket, Result]]:
    """The last round of each; those that differ in density alone follow each other, as they share the rounds before it."""
    groups: dict[_Ticket, list[_Ticket]] = {}
    for ticket in sorted(tickets, key=lambda t: -t.config.density):
        groups.setdefault(dataclasses.replace(ticket, config=dataclasses.replace(ticket.config, density=1.0)), []).append(ticket)
    together = [tuple(group) for group in groups.values()]
    found: list[tuple[_Ticket, Result]] = []

    def ended(group: tuple[_Ticket, ...], results: list[Result] | Exception) -> None:
        if isinstance(results, Exception):
            return
        found.extend(zip(group, results, strict=True))
        accuracies = ", ".join(
            f"{100 * t.config.density:g}% kept: {100 * r.test_accuracy:.2f}%" for t, r in zip(group, results, strict=True)
        )
        report(f"seed {group[0].config.seed}: {accuracies}  ({results[0].run_dir.parent})", group[0])

    draw = functools.partial(_draw_group, overwrite=overwrite)
    carry_out(draw, together, Processes(jobs), progress=progress, title=lambda group: f"seed {group[0].config.seed}", ended=ended)
    return found


def _draw_group(group: Sequence[_Ticket], overwrite: bool) -> list[Result]:
    if overwrite:
        forget_rounds(group[0].config, rewind=group[0].rewind)  # once: what the tickets share is not trained for each
    return [lottery(ticket.config, rewind=ticket.rewind).rounds[-1].result for ticket in group]
