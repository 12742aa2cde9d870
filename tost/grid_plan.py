"""Axes and variants of a comparison -> its cells, and the runs that each needs; all that can be wrong is told here."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tost.choices import check_choice
from tost.config import Config
from tost.grid import Cell
from tost.masks import Masks, methods
from tost.searches import OPTIONS_OF_ONE, Search, check_search, search_of
from tost.tickets import check_lottery, rounds_to
from tost.variants import LOTTERY, SEARCHES, Variant, changes_of, fields_of, named, search_options

__all__ = ["DENSE", "Plan", "Run", "Ticket", "check_lotteries", "check_searches", "plan", "trainings"]

DENSE = "dense"  # as a teacher: the dense network of the run's own model, data set and seed
Item = TypeVar("Item")


@dataclass(frozen=True)
class Ticket:
    """A lottery down to `config.density`, whose rounds go back to `rewind`."""

    config: Config
    rewind: str


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        config: without the masks and the teacher that are still to be found.
        ticket: the lottery whose masks it gets; None: its configuration says which masks.
        teacher: the dense run that teaches it; None: its configuration says which, if any.
        search: what finds its masks; None: its configuration, or a lottery.
        from_search: it starts from the weights of the search, not from drawn ones.
        as_many_flops: it is trained for as many FLOPs as a dense network would take, not for as many epochs.
    """

    config: Config
    ticket: Ticket | None = None
    teacher: Config | None = None
    search: Search | None = None
    from_search: bool = False
    as_many_flops: bool = False


@dataclass(frozen=True)
class Plan:
    """What is to be compared.

    Attributes:
        cells, variants, baselines, seeds: as in `Grid`.
        runs: what each variant comes to in each cell with each seed; a Ticket stands for its last round. Several may be one.
        found_density: no variant has the density of the cells, but that which a search finds, known when it is finished.
    """

    cells: tuple[Cell, ...]
    variants: Mapping[str, Mapping[str, Any]]
    baselines: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: Mapping[tuple[Cell, str, int], Run | Ticket]
    found_density: bool = False


def plan(
    base: Config,
    variants: Mapping[str, Variant] | None,
    seeds: Sequence[int],
    models: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    densities: Sequence[float] | None = None,
    baselines: Sequence[str] | None = None,
    search: Mapping[str, Any] | None = None,
) -> Plan:
    """Arguments and errors as those of `tost.compare`. Nothing is read or written but a file of masks; see `check_lotteries`."""
    given = {"vanilla": "vanilla", "tost": "tost"} if variants is None else variants
    understood = {str(name): changes_of(str(name), variant) for name, variant in _some("variants", given).items()}
    changes = _with_search(understood, (base.method,) if methods is None else methods, search)
    chosen = tuple(_each_once("baselines", baselines, tuple(changes)[:1]))
    for name in chosen:
        check_choice("baselines", name, list(changes))
    cells = [
        Cell(dataclasses.replace(base, model=model).model, dataset, method, density)
        for model, dataset, method, density in itertools.product(
            _each_once("models", models, [base.model]),
            _each_once("datasets", datasets, [base.dataset]),
            _methods(base, changes, methods),
            _densities(base, changes, densities),
        )
    ]
    if len({cell.title for cell in cells}) < len(cells):
        raise ValueError(f"models, densities: expected cells that titles tell apart, got {[cell.title for cell in cells]}")
    runs: dict[tuple[Cell, str, int], Run | Ticket] = {}
    for cell, seed in itertools.product(cells, _each_once("seeds", seeds, ())):
        names: dict[Run | Ticket, str] = {}
        for name, change in changes.items():
            with named(name):
                run = _run(base, cell, _in_cell(cell, change, understood[name]), seed)
            if names.setdefault(run, name) != name:
                raise ValueError(f"variants: expected different ones, got the same under the names {names[run]!r} and {name!r}")
            runs[cell, name, seed] = run
    sparse = [run for run in runs.values() if not (isinstance(run, Run) and run.config.backend == "dense")]
    _check_used(changes, runs.values())
    found = bool(sparse) and all(isinstance(run, Run) and run.search is not None and run.search.has_density for run in sparse)
    return Plan(tuple(cells), changes, chosen, tuple(seeds), runs, found)


def _check_used(changes: Mapping[str, Mapping[str, Any]], runs: Iterable[Run | Ticket]) -> None:
    """Raise ValueError if the options of searches have one that is for a method of which there is no search."""
    searches = [run.search for run in runs if isinstance(run, Run) and run.search is not None]
    used = {search.method for search in searches} | {search.like.method for search in searches if search.like is not None}
    for change in changes.values():
        for option, method in OPTIONS_OF_ONE.items():
            if option in change.get("search", {}) and method not in used:
                raise ValueError(f"search: {option}: expected it with masks of {method}, which no variant has")


def _with_search(
    changes: Mapping[str, Mapping[str, Any]], methods: Sequence[str], search: Mapping[str, Any] | None
) -> dict[str, Mapping[str, Any]]:
    """The variants that have a search, with what all searches share; their own options override it."""
    if search is None:
        return dict(changes)
    shared, of_axis = search_options(search), bool(set(SEARCHES) & set(methods))
    found: dict[str, Mapping[str, Any]] = {}
    for name, change in changes.items():
        own_masks = {"method", "masks", "rewind"} & set(change)
        searches = change.get("method") in SEARCHES or _like(change) is not None or (of_axis and not own_masks)
        found[name] = {**change, "search": {**shared, **change.get("search", {})}} if searches else change
    if not any("search" in change for change in found.values()):
        raise ValueError(f"search: expected none, as no variant has the masks of {' or '.join(SEARCHES)}, got {shared}")
    return found


def _in_cell(cell: Cell, change: Mapping[str, Any], own: Mapping[str, Any]) -> Mapping[str, Any]:
    """`change`, without what all searches share in a cell whose masks no search finds; a search of its `own` stays."""
    if cell.method in SEARCHES or {"method", "search"} & set(own) or _like(change) is not None:
        return change
    return {field: value for field, value in change.items() if field != "search"}


def _like(change: Mapping[str, Any]) -> str | None:
    """The search whose masks say how many weights a variant keeps."""
    density = change.get("density")
    return change.get("rates") or (density if isinstance(density, str) else None)


def _of_search(change: Mapping[str, Any]) -> list[str]:
    """What a variant says that only a search can mean."""
    return sorted({"search", "at", "rates", "start", "budget"} & set(change))


def _methods(base: Config, changes: Mapping[str, Mapping[str, Any]], given: Sequence[str] | None) -> Sequence[str]:
    fixed = [name for name, change in changes.items() if {"method", "masks", "rewind"} & set(change)]
    free = [name for name, change in changes.items() if name not in fixed and change.get("backend", base.backend) != "dense"]
    values = _each_once("methods", given, [base.method] if free else [""])
    if fixed and (len(values) > 1 or (given is not None and not free)):
        raise ValueError(f"methods: expected none, as the variant {fixed[0]!r} has masks of its own, got {list(values)}")
    if base.masks is not None:
        if given is not None:
            raise ValueError(f"methods: expected none, as the masks are those of {base.masks}, got {list(values)}")
        return [Path(base.masks).name]
    return values


def _densities(base: Config, changes: Mapping[str, Mapping[str, Any]], given: Sequence[float] | None) -> Sequence[float]:
    fixed = [name for name, change in changes.items() if {"density", "masks", "at"} & set(change)]
    values = _each_once("densities", given, [base.density])
    if len(values) > 1 and fixed:
        raise ValueError(f"densities: expected one, as the variant {fixed[0]!r} has its own, got {list(values)}")
    if base.backend == "dense" and given is None:
        return [1.0]
    if (file := base.masks_file) is not None:
        if given is not None:
            raise ValueError(f"densities: expected none, as the masks are those of {base.masks}, got {list(values)}")
        return [Masks.load(file).density]
    return values


def _run(base: Config, cell: Cell, change: Mapping[str, Any], seed: int) -> Run | Ticket:
    """What a variant comes to in a cell, with a seed."""
    of_cell: dict[str, Any] = {"model": cell.model, "dataset": cell.dataset, "seed": seed}
    if base.masks is None:
        of_cell |= {"density": cell.density, **({"method": cell.method} if cell.method else {})}
    fields = {**base.as_dict(), **of_cell, **fields_of(change)}
    if fields["backend"] == "dense":
        fields |= {"density": 1.0, "method": base.method, "method_steps": None, "masks": None}  # one run, whatever the cell
    if fields["method"] != base.method and "method_steps" not in change and _takes_one_step(fields["method"]):
        fields["method_steps"] = None  # those of the base are for the others
    config = Config.from_dict(fields)
    if "rewind" in change:
        if of_search := _of_search(change):
            raise ValueError(f"{', '.join(of_search)}: expected it without rewind, whose masks are those of a lottery")
        return Ticket(config, str(change["rewind"]))
    teacher = _dense(base, cell, seed) if config.teacher == DENSE else None
    if teacher is not None and not config.recipe.distillation:
        if "teacher" in change:
            raise ValueError("teacher: expected recipe.distillation above 0 with it, got 0.0")
        config, teacher = dataclasses.replace(config, teacher=None), None
    search = _search(Config.from_dict({**base.as_dict(), **of_cell, "method": base.method}), config, change)
    if search is not None:
        config = dataclasses.replace(config, method_steps=None)
        _ = config.weights_file  # there, or an error
        if "start" in change:
            if "weights" in change:
                raise ValueError(f"weights: expected none with start, which says from where, got {change['weights']!r}")
            dataclasses.replace(config, weights="found")  # raises what does not go with them
        return Run(config, None, teacher, search, "start" in change, "budget" in change)
    if config.method != LOTTERY or config.backend == "dense" or config.masks is not None:
        config.check_names()
        return Run(config, None, teacher)
    # found plainly, so that every variant of the seed gets the same
    plain = {"recipe": "vanilla", "teacher": None, "method": base.method, "method_steps": None, "mask_check": "none"}
    masked = {name: getattr(config, name) for name in ("density", "include", "exclude", "keep_alive")}
    ticket = Ticket(Config.from_dict({**base.as_dict(), **of_cell, **plain, **masked}), "init")
    return Run(dataclasses.replace(config, method_steps=None, keep_alive=False), ticket, teacher)


def _search(base: Config, config: Config, change: Mapping[str, Any]) -> Search | None:
    """What finds the masks of a variant's run; None: its configuration says them."""
    of_search, like = _of_search(change), _like(change)
    if config.backend == "dense" or config.masks is not None or (config.method not in SEARCHES and like is None):
        if of_search:
            given = f"backend {config.backend!r}, masks {config.masks!r} and method {config.method!r}"
            raise ValueError(
                f"{', '.join(of_search)}: expected it with a sparse network and masks of {' or '.join(SEARCHES)}, got {given}"
            )
        return None
    if config.keep_alive:
        raise ValueError("keep_alive: expected false with masks that a training finds, got true")
    if "rates" in change and isinstance(change.get("density"), str):
        raise ValueError(f"rates, density: expected one to name a search, got {change['rates']!r} and {change['density']!r}")
    for name in ("split_lbi", "bn_l1"):
        if name in change:
            raise ValueError(f"{name}: expected it in `search`, which finds the masks, got {change[name]!r} for the run")
    options, at, start = change.get("search", {}), change.get("at"), "start" in change
    masked = {name: getattr(config, name) for name in ("density", "include", "exclude")}
    if like is None:
        return search_of(config.method, base, masked, options, at, keep=start)
    counts = search_of(like, base, masked, options, at)
    found = search_of(config.method, base, masked, options, keep=start, like=counts, by_layer="rates" in change)
    if start and found.training is None:
        raise ValueError(f"start: expected it with a method that trains a network, got {config.method!r}")
    return found


def _takes_one_step(method: str) -> bool:
    return method in methods() and methods()[method].steps == 1


def _dense(base: Config, cell: Cell, seed: int) -> Config:
    """The dense network of a cell's model, data set and seed, trained plainly for as long as the others."""
    changes = {
        "model": cell.model,
        "dataset": cell.dataset,
        "seed": seed,
        "backend": "dense",
        "density": 1.0,
        "masks": None,
        "mask_check": "none",
        "recipe": "vanilla",
        "teacher": None,
    }
    return Config.from_dict({**base.as_dict(), **changes})


def check_lotteries(planned: Plan) -> None:
    """Raise what the lotteries would; their data sets are read. Of the first seed: others differ in nothing that can be wrong."""
    seen: set[Ticket] = set()
    for (_, name, _), run in planned.runs.items():
        ticket = run if isinstance(run, Ticket) else run.ticket
        if ticket is None or (same := dataclasses.replace(ticket, config=dataclasses.replace(ticket.config, seed=0))) in seen:
            continue
        seen.add(same)
        with named(name):
            check_lottery(ticket.config, rewind=ticket.rewind)


def check_searches(planned: Plan) -> None:
    """Raise what the searches would, as far as it is known before their training; their data sets are read. Of the first seed."""
    for (_, name, seed), run in planned.runs.items():
        if isinstance(run, Run) and run.search is not None and seed == planned.seeds[0]:
            with named(name):
                check_search(run.search)


def trainings(planned: Plan) -> int:
    """How many networks are trained, unless some are finished: runs, teachers, searches and all rounds of lotteries."""
    runs = set(planned.runs.values())
    plain = {run for run in runs if isinstance(run, Run)}
    tickets = {run for run in runs if isinstance(run, Ticket)} | {run.ticket for run in plain if run.ticket is not None}
    rounds: dict[Ticket, set[int]] = {}  # of tickets that differ in density alone: they share those of the same size
    for ticket in tickets:
        shared = dataclasses.replace(ticket, config=dataclasses.replace(ticket.config, density=1.0))
        rounds.setdefault(shared, set()).update(rounds_to(ticket.config.density))
    teachers = {run.teacher for run in plain if run.teacher is not None}
    first = teachers.union(*(run.search.trainings for run in plain if run.search is not None))
    configs = {run.config for run in plain if run.ticket is None and run.teacher is None and run.search is None}
    return (
        len(plain) + len({config.hash for config in first} - {config.hash for config in configs}) + sum(map(len, rounds.values()))
    )


def _some(name: str, values: Mapping[str, Item]) -> Mapping[str, Item]:
    if not values:
        raise ValueError(f"{name}: expected at least one, got none")
    return values


def _each_once(name: str, values: Sequence[Item] | None, default: Sequence[Item]) -> Sequence[Item]:
    """`values`, or the default where they are not given; a lone word would be taken for its letters."""
    found = default if values is None else values
    if isinstance(found, str):
        raise TypeError(f"{name}: expected a list, got {found!r}")
    if not found or len(set(found)) != len(found):
        raise ValueError(f"{name}: expected at least one and each once, got {list(found)}")
    return found
