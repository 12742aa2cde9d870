"""`Grid`: what a comparison found, cell by cell; the record that tables and pictures are made of."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from tost.checks import check_types, number
from tost.choices import check_choice
from tost.config import Config
from tost.files import DamagedFile, read_json, write_json
from tost.model_address import short_name
from tost.paired import Paired, mean_and_spread, paired
from tost.runs import Result
from tost.step_times import StepTime

__all__ = ["Cell", "Diverged", "Grid", "Verdicts"]

_PLACES = ("out", "data_dir")  # where files lie on this machine: no part of a record
_NAMED = ("masks", "teacher", "weights")  # of these the name alone


@dataclass(frozen=True)
class Cell:
    """What all variants compared with each other share, beside the seeds.

    Attributes:
        model, dataset: as in `Config`.
        method: what chose the masks, a lottery among them; "": each variant says so itself.
        density: fraction of the weights kept.
    """

    model: str
    dataset: str
    method: str
    density: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", number("density", self.density, above=0.0, most=1.0))

    @property
    def title(self) -> str:
        """E.g. `resnet20 on mnist5k, erk mask, 95% sparse`."""
        mask = f"{self.method} mask, " if self.method else ""
        return f"{short_name(self.model)} on {self.dataset}, {mask}{100 * (1 - self.density):g}% sparse"


@dataclass(frozen=True)
class Diverged:
    """A run without a result, as its loss stayed without a number: it has no accuracy.

    Attributes:
        reason: what `tost.training.NonFiniteLoss` said.
    """

    reason: str


class Verdicts(NamedTuple):
    """How many cells a variant won, lost or left undecided."""

    won: int
    lost: int
    undecided: int


@dataclass(frozen=True)
class Grid:
    """The runs of every variant in every cell, one a seed.

    A pair of which a run diverged has no difference: it is left out of means and intervals, and counted (`Paired.left_out`).

    Attributes:
        base: what the runs share.
        cells: what was compared, in order.
        variants: name -> what is different: fields of `Config`, and what `tost.compare` says of lotteries and searches.
        baselines: variants that all others are compared with.
        seeds: each decides initial weights and batches, the same for all variants.
        results: cell -> variant -> its runs, in the order of `seeds`.
        step_times: of the first cell on each backend; empty where not asked for.
        environment: what the runs were read or trained on.
    """

    kind: ClassVar[str] = "comparison"
    base: Config
    cells: tuple[Cell, ...]
    variants: Mapping[str, Mapping[str, Any]]
    baselines: tuple[str, ...]
    seeds: tuple[int, ...]
    results: Mapping[Cell, Mapping[str, tuple[Result | Diverged, ...]]]
    step_times: tuple[StepTime, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)

    def runs(self, cell: Cell, variant: str) -> list[Result]:
        """Those that did not diverge."""
        return [run for run in self.results[cell][variant] if isinstance(run, Result)]

    @property
    def run_folders(self) -> list[Path]:
        """Those of all runs that did not diverge."""
        return sorted({run.run_dir for cell in self.cells for variant in self.variants for run in self.runs(cell, variant)})

    def accuracies(self, cell: Cell, variant: str) -> list[float]:
        """Test accuracy of each run that did not diverge."""
        return [run.test_accuracy for run in self.runs(cell, variant)]

    def diverged(self, cell: Cell, variant: str) -> int:
        """How many runs did."""
        return len(self.seeds) - len(self.runs(cell, variant))

    def against(self, cell: Cell, variant: str, baseline: str) -> Paired:
        """Differences in test accuracy to `baseline`'s run of the same seed."""
        return paired(self._values(cell, baseline), self._values(cell, variant))

    def pooled(self, variant: str, baseline: str, cells: Sequence[Cell] | None = None) -> Paired:
        """One difference a seed: the mean over `cells` (None: all), which share weights and batches and are not independent.

        A seed is left out where the pair of one of its cells is: a mean over the others would be one of something else.
        """
        means: list[list[float | None]] = []
        for name in (baseline, variant):
            of_cells = [self._values(cell, name) for cell in (self.cells if cells is None else cells)]
            means.append([_mean(of_seed) for of_seed in zip(*of_cells, strict=True)])
        return paired(*means)

    def count(self, variant: str, baseline: str) -> Verdicts:
        """Verdicts of `variant` against `baseline`, a cell each."""
        verdicts = [self.against(cell, variant, baseline).verdict for cell in self.cells]
        return Verdicts(*(verdicts.count(name) for name in Verdicts._fields))

    def _values(self, cell: Cell, variant: str) -> list[float | None]:
        return [run.test_accuracy if isinstance(run, Result) else None for run in self.results[cell][variant]]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, no paths; `from_dict` reads it back. Means and counts are there for readers."""
        pairs = [(variant, baseline) for baseline in self.baselines for variant in self.variants if variant != baseline]
        return {
            "kind": self.kind,
            "config": _config(self.base),
            "variants": {name: dict(changes) for name, changes in self.variants.items()},
            "baselines": list(self.baselines),
            "seeds": list(self.seeds),
            "cells": [self._cell(cell) for cell in self.cells],
            "against": [
                {
                    "variant": variant,
                    "baseline": baseline,
                    "cells": self.count(variant, baseline)._asdict(),
                    "pooled": self.pooled(variant, baseline).as_dict(),
                }
                for variant, baseline in pairs
            ],
            "step_times": [dataclasses.asdict(t) for t in self.step_times],
            "environment": dict(self.environment),
        }

    def _cell(self, cell: Cell) -> dict[str, Any]:
        variants = {}
        for name in self.variants:
            accuracies = self.accuracies(cell, name)
            mean, spread = mean_and_spread(accuracies) if accuracies else (None, None)
            variants[name] = {
                "accuracy_mean": mean,
                "accuracy_std": spread,
                "diverged": self.diverged(cell, name),
                "against": {other: self.against(cell, name, other).as_dict() for other in self.baselines if other != name},
                "runs": [_run(run, self.base) for run in self.results[cell][name]],
            }
        return {**dataclasses.asdict(cell), "model": short_name(cell.model), "variants": variants}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Grid:
        """The grid of a record. Its runs lie where the record's reader has them: `run_dir` is relative to the folder `out`.

        Raises:
            ValueError, TypeError, KeyError: it is no such record.
        """
        if values.get("kind") != cls.kind:
            raise ValueError(f"kind: expected {cls.kind!r}, got {values.get('kind')!r}")
        base, seeds, variants = Config.from_dict(values["config"]), tuple(values["seeds"]), dict(values["variants"])
        for baseline in values["baselines"]:
            check_choice("baselines", baseline, list(variants))
        results: dict[Cell, dict[str, tuple[Result | Diverged, ...]]] = {}
        for entry in values["cells"]:
            cell = check_types(Cell(*(entry[f.name] for f in dataclasses.fields(Cell))))
            if cell in results:
                raise ValueError(f"cells: expected each once, got {cell.title} again")
            runs = {name: tuple(_read_run(run, values["config"]) for run in entry["variants"][name]["runs"]) for name in variants}
            if any(len(of_variant) != len(seeds) for of_variant in runs.values()):
                raise ValueError(f"runs: expected one a seed ({len(seeds)}) of every variant in {cell.title}")
            results[cell] = runs
        times = tuple(check_types(StepTime(**time)) for time in values["step_times"])
        baselines, environment = tuple(values["baselines"]), dict(values["environment"])
        return check_types(cls(base, tuple(results), variants, baselines, seeds, results, times, environment))

    def save(self, path: str | Path) -> None:
        """Write `as_dict()` as JSON, atomically."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, self.as_dict())

    @classmethod
    def load(cls, path: str | Path) -> Grid:
        """What `save` wrote.

        Raises:
            FileNotFoundError: there is no such file. DamagedFile: (a ValueError) it is damaged, or holds something else.
        """
        file = Path(path)
        values = read_json(file)
        try:
            return cls.from_dict(values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedFile(file, f"not a comparison's record: {error}") from error


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def _config(config: Config) -> dict[str, Any]:
    """Fields of the configuration; of files the name alone, and nothing of where they lie."""
    values = {name: value for name, value in config.as_dict().items() if name not in _PLACES}
    values["model"] = config.model_name
    for name in _NAMED:
        if values[name] is not None:
            values[name] = Path(values[name]).name
    return values


def _run(run: Result | Diverged, base: Config) -> dict[str, Any]:
    """A run's result; of its configuration what differs from `base`, of its history no durations (their medians are there)."""
    if isinstance(run, Diverged):
        return {"diverged": run.reason}
    shared, config = _config(base), _config(run.config)
    place = run.run_dir
    if place.is_relative_to(base.out):
        place = place.relative_to(base.out)
    return {
        **run.as_dict(),
        "config": {name: value for name, value in config.items() if value != shared[name]},
        "run_dir": place.name if place.is_absolute() else str(place),
        "history": [
            {name: value for name, value in line.items() if name not in ("ms_per_step", "images_per_second")}
            for line in run.history
        ],
    }


def _read_run(values: Mapping[str, Any], shared: Mapping[str, Any]) -> Result | Diverged:
    if "diverged" in values:
        return Diverged(str(values["diverged"]))
    return Result.from_dict({**values, "config": {**shared, **values["config"]}})
