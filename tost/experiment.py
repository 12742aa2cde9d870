"""`compare`: models x data sets x methods x densities x variants x seeds, in pairs that differ in nothing but the variant.

    what the runs need: lotteries and searches for their masks, dense networks as teachers
    ->  the runs  ->  are they pairs?  ->  Grid

Every run is found again by its folder, so a comparison that was cut off goes on where it was, whatever happened to it.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tost import distributed
from tost.callbacks import NonFiniteLoss
from tost.checks import integer
from tost.config import Config
from tost.data import find, load
from tost.environment import environment
from tost.grid import Cell, Diverged, Grid
from tost.grid_plan import Plan, Run, Ticket, check_lotteries, check_searches, plan
from tost.launch import Launcher, Processes
from tost.optim import SolutionPath
from tost.parallel import carry_out, check_launcher, train_all
from tost.recipe import Recipe
from tost.runs import Result, RunFolder
from tost.searches import Found, Search, as_many_flops, find_masks
from tost.step_times import StepTime, measure_step_times
from tost.tickets import forget_rounds, lottery, rounds_of
from tost.variants import Variant
from tost.watch import standing_of_runs

__all__ = ["compare"]

Outcome = Result | Diverged


def compare(
    base: Config,
    variants: Mapping[str, Variant] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    models: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    densities: Sequence[float] | None = None,
    baselines: Sequence[str] | None = None,
    search: Mapping[str, Any] | None = None,
    timing_rounds: int = 0,
    jobs: int = 1,
    launcher: Launcher | None = None,
    snapshots: Sequence[int] = (),
    overwrite: bool = False,
    progress: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Grid:
    """Train every variant in every cell once a seed, and check that the runs of a cell and seed are pairs.

    A cell is a model, a data set, a method and a density. Finished runs are read back, not repeated. A run whose loss stays
    without a number has no accuracy: it is kept as such (`Diverged`), its pair is left out of intervals and counted.

    Args:
        base: what the runs share.
        variants: name -> what is different: "vanilla" or "tost"; the name of a pruning method; or a mapping of fields of
            `Config` and settings of `Recipe`, as {"method": "force", "method_steps": 5} or {"recipe": "vanilla",
            "ghost_skip": True} (settings alone: the others as in ToST). None: vanilla against ToST.
            {"backend": "dense"} is trained once a seed. {"teacher": "dense", "distillation": 0.9}: the dense network of the
            same model, data set and seed teaches, trained plainly and as long. {"rewind": ...} is a lottery trained with the
            variant's own recipe that goes back to there (see `tost.lottery`), and this variant its last round. What decides
            the batches is the same for all: a variant cannot change it. What it may say of searches stands below.
        seeds: one pair each, all different.
        models, datasets, methods, densities: the axes of the cells; None: that of `base`. A method "lth" is a lottery: the masks
            of iterative magnitude pruning, found once a seed with the vanilla recipe, on which every variant starts from the
            initial weights. "splitlbi", "slimming", "soft-filter" and "trained-magnitude" are searches, see below. An axis
            has one entry where a variant says for itself which masks it has.
        baselines: variants that all others are compared with; None: the first.
        search: fields of `Config` in which the training of all searches differs from that of the runs, such as {"epochs": 20,
            "schedule": "constant", "split_lbi": {"nu": 100, "lam": 0.1}}.
        timing_rounds: with 2 or more, also time a step of each backend (see `measure_step_times`) in the first cell, with the
            ghosts of the last variant that has any; 0: do not.
        jobs: how many runs at the same time, each in a process of its own (see `tost.launch.Processes`).
        launcher: where runs are trained instead: `tost.launch.Slurm`. A lottery is one piece of work, all its densities in turn.
        snapshots: epochs after which the networks of the cells are kept, as in `train`.
        overwrite: repeat finished runs, and those that diverged.
        progress: bars on stderr.
        report: gets a line of text as each run ends.

    A search is a training of the dense network, once a seed and plainly, that finds masks for the runs: "splitlbi" (what enters
    the support first, until the density of the cell is reached), "slimming" (the filters with the largest BatchNorm weights,
    which an L1 penalty `bn_l1` of 1e-4 makes sparse; arXiv 1708.06519), "soft-filter" (those of the largest norms, where the
    others were zeroed after each epoch; arXiv 1808.06866) and "trained-magnitude" (the largest weights). Runs start from the
    initial weights, unless they say otherwise; {"mask_check": "reinitialised"} is Scratch-E, "shuffled" as many weights a
    layer at random places.
    A variant with a search may also say

        "search"   fields of `Config`, as the argument, which they override
        "at"       an epoch of SplitLBI: its support then, whatever the density
        "rates"    "splitlbi", say: its method is "trained-magnitude", or prunes before the training in one step, and keeps as
                   many weights in each layer as the masks of that search (with "at": of that epoch)
        "density"  a search in the place of a number: the same, also for "slimming", as many weights in all layers together
        "start"    "found": the run starts from the weights that the search had at that epoch (at its end), those outside the
                   masks 0: early stopping and fine-tuning
        "budget"   "flops": Scratch-B, epochs that make up for the multiply-adds spared, at most twice as many (arXiv 1810.05270)

    Masks are kept in `<out>/found-masks/`. Where they decide the density of all runs, that of the cell is the mean of these.

    Raises:
        ValueError, TypeError: a name or number is wrong, something is there twice or not at all, before anything is trained;
            or SplitLBI did not let enough weights in, when its search is finished.
        RuntimeError: runs that should be a pair had different masks, initial weights or batches.
        tost.parallel.RunsFailed: (a RuntimeError) some runs failed, it says which; the others are finished and stay.
        What `train` and `lottery` raise where all fail.
    """
    if timing_rounds == 1 or timing_rounds < 0:
        raise ValueError(f"timing_rounds: expected 0 or at least 2, got {timing_rounds}")
    planned = plan(base, variants, seeds, models, datasets, methods, densities, baselines, search)
    for dataset in dict.fromkeys(cell.dataset for cell in planned.cells):
        if find(dataset, base.data_dir) is None:
            load(dataset, base.data_dir)  # raises: before the runs on other data sets, not after
    for epoch in snapshots:
        if integer("snapshots", epoch, least=0) > base.epochs and base.steps is None:
            raise ValueError(f"snapshots: expected epochs up to the last, {base.epochs}, got {epoch}")
    check_searches(planned)
    check_lotteries(planned)
    if timing_rounds and not any(isinstance(run, Run) and run.config.backend != "dense" for run in planned.runs.values()):
        raise ValueError(f"timing_rounds: expected 0, as no variant trains a sparse network, got {timing_rounds}")
    names: dict[Run | Ticket, str] = {}
    for (cell, name, _), run in planned.runs.items():
        names.setdefault(run, f"{name}, {_of(cell, planned)}")
    if launcher is not None and jobs != 1:
        raise ValueError(f"jobs: expected 1 with a launcher, which has its own say, got {jobs}")
    carrier = launcher or Processes(jobs)
    check_launcher(carrier)
    ground = _Ground(carrier, tuple(snapshots), overwrite, progress, report)

    runs = list(dict.fromkeys(planned.runs.values()))
    trainings = [run for run in runs if isinstance(run, Run)]
    teachers, searched = ground.prepare(trainings)
    tickets = {run.ticket: "lottery" for run in trainings if run.ticket is not None}
    found = ground.draw({**tickets, **{run: names[run] for run in runs if isinstance(run, Ticket)}})
    ready: dict[Run, Config] = {}
    outcomes: dict[Run | Ticket, Outcome] = dict(found.items())
    for run in trainings:
        config = _with_needs(run, teachers, found, searched)
        if isinstance(config, Diverged):
            outcomes[run] = config
        else:
            ready[run] = config
    trained = ground.train({config: names[run] for run, config in ready.items()}, ground.snapshots)
    outcomes |= {run: trained[config] for run, config in ready.items()}

    _check_pairs(planned, outcomes)
    results = {
        _as_found(cell, planned, outcomes): {
            name: tuple(outcomes[planned.runs[cell, name, seed]] for seed in planned.seeds) for name in planned.variants
        }
        for cell in planned.cells
    }
    times = _step_times(planned, ready, timing_rounds) if timing_rounds else []
    return Grid(base, tuple(results), planned.variants, planned.baselines, planned.seeds, results, tuple(times), environment())


@dataclass(frozen=True)
class _Ground:
    """Where and how runs are trained; arguments as those of `compare`."""

    launcher: Launcher
    snapshots: tuple[int, ...]
    overwrite: bool
    progress: bool
    report: Callable[[str], None]

    def train(self, configs: Mapping[Config, str], snapshots: Sequence[int] = (), again: bool = False) -> dict[Config, Outcome]:
        """The outcome of each, told by its name as it ends; what is one run is trained once. Snapshots as in `train`; `again`:
        whatever is there already.
        """
        once = {RunFolder.of(config).path: config for config in reversed(list(configs))}
        again = again or self.overwrite
        diverged = {} if again else _diverged(once)
        for path, reason in diverged.items():
            self._tell(path, once[path].seed, configs[once[path]], Diverged(reason), "diverged earlier")
        left = [config for path, config in reversed(once.items()) if path not in diverged]

        def ended(config: Config, outcome: Result | Exception, finished_earlier: bool) -> None:
            took = "finished earlier" if finished_earlier else ""
            self._tell(RunFolder.of(config).path, config.seed, configs[config], outcome, took)

        trained = train_all(
            left,
            self.launcher,
            overwrite=again,
            snapshots=snapshots,
            progress=self.progress,
            bear=NonFiniteLoss,
            title=lambda config: f"seed {config.seed}, {configs[config]} ({config.hash})",
            ended=ended,
        )
        outcomes: dict[Path, Outcome] = {path: Diverged(reason) for path, reason in diverged.items()}
        outcomes |= {RunFolder.of(config).path: _outcome(end) for config, end in zip(left, trained, strict=True)}
        return {config: outcomes[RunFolder.of(config).path] for config in configs}

    def prepare(self, runs: Iterable[Run]) -> tuple[dict[Config, Outcome], dict[Search, Found | Diverged]]:
        """What the runs need that is one training each: teachers, and masks that are found."""
        names: dict[Config, str] = {}
        kept: dict[Path, set[int]] = {}  # of a run that is a teacher and several searches, all epochs of these
        searches = list(dict.fromkeys(run.search for run in runs if run.search is not None))
        wanted: list[tuple[Config, tuple[int, ...], str]]
        wanted = [(run.teacher, (), "teacher") for run in runs if run.teacher is not None]
        for search in searches:
            wanted += [(config, epochs, f"search, {search.method}") for config, epochs in search.trainings.items()]
        for config, epochs, name in wanted:
            names.setdefault(config, name)
            kept.setdefault(RunFolder.of(config).path, set()).update(epochs)
        groups: dict[tuple[tuple[int, ...], Config | None], dict[Config, str]] = {}
        with distributed.processes():
            for config, name in names.items():
                folder = RunFolder.of(config)
                epochs = tuple(sorted(kept[folder.path]))
                again = distributed.from_main(bool(_not_kept(folder, epochs))) and not self.overwrite
                name += f", again for the network after epoch {', '.join(map(str, epochs))}" if again else ""
                groups.setdefault((epochs, dataclasses.replace(config, seed=0) if again else None), {})[config] = name
        outcomes: dict[Config, Outcome] = {}
        for (epochs, repeated), alike in groups.items():
            others = {epoch for config in alike if repeated for epoch in RunFolder.of(config).snapshots}  # others start from them
            outcomes |= self.train(alike, sorted({*epochs, *others}), repeated is not None)
        found: dict[Search, Found | Diverged] = {}
        for search in searches:
            lost = [end for config in search.trainings if isinstance(end := outcomes[config], Diverged)]
            found[search] = lost[0] if lost else find_masks(search)
        return outcomes, found

    def draw(self, tickets: Mapping[Ticket, str]) -> dict[Ticket, Outcome]:
        """The last round of each; those that differ in density alone follow each other, as they share the rounds before it."""
        groups: dict[Ticket, list[Ticket]] = {}
        for ticket in sorted(tickets, key=lambda t: -t.config.density):
            shared = dataclasses.replace(ticket, config=dataclasses.replace(ticket.config, density=1.0))
            groups.setdefault(shared, []).append(ticket)
        together = [tuple(group) for group in groups.values()]

        def ended(group: tuple[Ticket, ...], outcomes: list[Outcome] | Exception) -> None:
            for i, ticket in enumerate(group):
                outcome = outcomes if isinstance(outcomes, Exception) else outcomes[i]
                name = f"{tickets[ticket]}, {100 * ticket.config.density:g}% kept"
                self._tell(Path(ticket.config.out), ticket.config.seed, name, outcome, "")

        if self.overwrite:
            for group in together:  # once: what its tickets share is not trained for each, nor anew where a job goes on
                forget_rounds(group[0].config, rewind=group[0].rewind)
        found = carry_out(
            _draw,
            together,
            self.launcher,
            progress=self.progress,
            title=lambda group: f"seed {group[0].config.seed}, {tickets[group[0]]}",
            standing=standing_of_runs({group: _rounds(group) for group in together}),
            ended=ended,
        )
        return {
            ticket: outcome
            for group, ends in zip(together, found, strict=True)
            for ticket, outcome in zip(group, ends, strict=True)
        }

    def _tell(self, path: Path, seed: int, name: str, outcome: Outcome | Exception, took: str) -> None:
        if isinstance(outcome, Result):
            path, what = outcome.run_dir, f"{100 * outcome.test_accuracy:.2f}%, {took or f'in {outcome.seconds:.0f} s'}"
        elif isinstance(outcome, Diverged):
            what = f"diverged{' earlier' if took else ''}: {outcome.reason}"
        else:
            what = f"{'diverged' if isinstance(outcome, NonFiniteLoss) else 'failed'}: {outcome}"
        self.report(f"seed {seed}  {name}: {what}  ({path})")


def _of(cell: Cell, planned: Plan) -> str:
    """What tells this cell from the others."""
    if len(planned.cells) > 1:
        return cell.title
    return "as found" if planned.found_density else f"{100 * (1 - cell.density):g}% sparse"


def _outcome(end: Result | NonFiniteLoss) -> Outcome:
    return end if isinstance(end, Result) else Diverged(str(end))


def _diverged(paths: Iterable[Path]) -> dict[Path, str]:
    """Which of these runs did earlier, and why: a run is deterministic, it would do so again."""
    found: dict[Path, str] = {}
    for path in paths:
        reason = RunFolder(path).diverged
        if reason is not None:
            found[path] = reason
    return found


def _not_kept(search: RunFolder, epochs: Iterable[int]) -> list[int]:
    """Those of the epochs that a search has done, without keeping the network."""
    done = SolutionPath(search.path_points).epochs if search.path_points.is_dir() else ()
    return [epoch for epoch in epochs if epoch in done and not search.snapshot(epoch).is_file()]


def _rounds(group: Sequence[Ticket]) -> list[tuple[RunFolder, Config]]:
    """Those of its tickets, each once."""
    rounds = [one for ticket in group for one in rounds_of(ticket.config, rewind=ticket.rewind)]
    return list({folder.path: (folder, config) for folder, config in rounds}.values())


def _draw(group: Sequence[Ticket]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for ticket in group:
        try:
            outcomes.append(lottery(ticket.config, rewind=ticket.rewind).rounds[-1].result)
        except NonFiniteLoss as error:
            outcomes.append(Diverged(str(error)))
    return outcomes


def _with_needs(
    run: Run,
    teachers: Mapping[Config, Outcome],
    tickets: Mapping[Ticket, Outcome],
    searched: Mapping[Search, Found | Diverged],
) -> Config | Diverged:
    """The configuration with the masks, weights and teacher that were found for it."""
    masks = tickets[run.ticket] if run.ticket is not None else None
    teacher = teachers[run.teacher] if run.teacher is not None else None
    found = searched[run.search] if run.search is not None else None
    for what, outcome in (("lottery", masks), ("teacher", teacher), ("search", found)):
        if isinstance(outcome, Diverged):
            return Diverged(f"its {what} diverged: {outcome.reason}")
    config = run.config
    if isinstance(masks, Result):
        config = dataclasses.replace(config, masks=str(masks.run_dir))
    if isinstance(teacher, Result):
        config = dataclasses.replace(config, teacher=str(teacher.run_dir))
    if isinstance(found, Found):
        config = dataclasses.replace(
            config, masks=str(found.masks), weights=str(found.weights) if run.from_search else config.weights
        )
        config = as_many_flops(config) if run.as_many_flops else config
    return config


def _as_found(cell: Cell, planned: Plan, outcomes: Mapping[Run | Ticket, Outcome]) -> Cell:
    """The cell; with the mean density of its masks, where that was not known before they were found."""
    ends = [outcomes[run] for (of, _, _), run in planned.runs.items() if of == cell and not _is_dense(run)]
    densities = [end.accounting.density for end in ends if isinstance(end, Result)]
    if not (planned.found_density and densities):
        return cell
    return dataclasses.replace(cell, density=float(f"{statistics.fmean(densities):.4g}"))


def _is_dense(run: Run | Ticket) -> bool:
    return isinstance(run, Run) and run.config.backend == "dense"


# fields that decide the masks, where there is no lottery
_MASKING = ("method", "method_steps", "density", "include", "exclude", "keep_alive", "masks", "mask_check")


def _check_pairs(planned: Plan, outcomes: Mapping[Run | Ticket, Outcome]) -> None:
    """Raise RuntimeError unless all runs of a seed that share a model, data set and masks began and went on alike.

    Lotteries that are a variant by themselves are left out: they go back to weights and batches of their own.
    """
    seen: dict[tuple[object, ...], Result] = {}
    for (cell, _, seed), run in planned.runs.items():
        result = outcomes[run]
        if not isinstance(run, Run) or isinstance(result, Diverged):
            continue
        config = run.config.in_effect
        groups: dict[str, tuple[object, ...]] = {
            "batches_fingerprint": (cell.dataset, result.config.epochs, result.config.steps),  # those of a longer run are more
            "weights_fingerprint": (
                *(cell.model, cell.dataset, config.mask_check == "reinitialised", config.weights),
                run.search if run.from_search else None,
            ),
        }
        if config.backend != "dense":
            masks = tuple(getattr(config, name) for name in _MASKING)
            groups["masks_fingerprint"] = (cell.model, cell.dataset, *masks, run.ticket, run.search)
        for what, group in groups.items():
            first = seen.setdefault((what, seed, *group), result)
            if getattr(first, what) != getattr(result, what):
                raise RuntimeError(
                    f"the runs of seed {seed} are no pair: {what} differs ({getattr(first, what)}, {getattr(result, what)}) in "
                    f"{first.run_dir} and {result.run_dir}: remove both folders to repeat them"
                )


def _step_times(planned: Plan, ready: Mapping[Run, Config], rounds: int) -> list[StepTime]:
    """Of the first cell and seed."""
    runs = [planned.runs[planned.cells[0], name, planned.seeds[0]] for name in planned.variants]
    configs = [ready[run] for run in runs if isinstance(run, Run) and run in ready and run.config.backend != "dense"]
    if not configs:
        return []  # the masks of all of them could not be had
    with_ghosts = [config for config in configs if config.recipe.has_ghosts]
    config = (with_ghosts or configs)[-1]
    return measure_step_times(
        config, load(config.dataset, config.data_dir), config.recipe if with_ghosts else Recipe.vanilla(), rounds
    )
