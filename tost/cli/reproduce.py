"""`tost reproduce`: an experiment of a paper, on its budget or on a small one, the paper's numbers beside ours."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jsonargparse import Namespace

from tost.choices import check_choice
from tost.cli import analyze, compare, lottery, train
from tost.cli.launching import add_launcher, launcher_of
from tost.cli.options import Parser, add_json, config_of
from tost.cli.output import note, print_json, print_sheets, show
from tost.cli.tree import tree
from tost.cli.words import with_recipe_spelled_out
from tost.presets import BUDGETS, TRAINING, PaperNumber, Preset, Stage, find_preset, preset_files

if TYPE_CHECKING:
    from tost.grid_plan import Plan

HELP = "experiments of the papers, their numbers beside ours"

_COMMANDS = {"analyze": analyze, "compare": compare, "lottery": lottery, "train": train}
# options that are passed on to every stage whose command has them -> what means that they were not given
_PASSED_ON: Mapping[str, Any] = {
    "seed": None,
    "seeds": None,
    "jobs": 1,
    "launcher": "processes",
    "slurm": {},
    "data_dir": None,
    "threads": None,
}


def parser() -> Parser:
    reproduce = Parser(
        description="Run the stages of a preset one after the other, each a plain `tost` command that is printed, and set the "
        "paper's numbers beside ours. Finished runs are read back, so a command that was cut off goes on."
    )
    reproduce.add_argument("preset", type=str | None, nargs="?", default=None, help="file, or name of one in experiments/")
    reproduce.add_argument("--list", action="store_true", help="the presets that there are, and run none")
    reproduce.add_argument("--budget", type=str, default="small", help="small: for a processor; paper: the paper's settings")
    reproduce.add_argument("--out", type=str, default="runs", help="folder; reports are in OUT/PRESET/BUDGET, runs in OUT/shared")
    reproduce.add_argument("--dry_run", action="store_true", help="check and print the stages, and run none")
    reproduce.add_argument("--seeds", type=int | None, default=None, help="number of seeds (default: the preset's)")
    reproduce.add_argument("--seed", type=int | None, default=None, help="the first of them (default: the preset's)")
    add_launcher(reproduce)
    reproduce.add_argument("--data_dir", type=str | None, default=None, help="folder of the data set's files")
    reproduce.add_argument("--threads", type=int | None, default=None, help="CPU threads (default: torch's choice)")
    add_json(reproduce)
    return reproduce


def run(options: Namespace) -> None:
    if options.list:
        _list(options.json)
        return
    if options.preset is None:
        raise ValueError("preset: expected a file or a name; `tost reproduce --list` shows those that there are")
    preset = Preset.load(find_preset(options.preset))
    budget = check_choice("budget", options.budget, BUDGETS)
    folder, shared = Path(options.out) / preset.name / budget, Path(options.out) / "shared"
    read, passed_on = Reader(), {name: options[name] for name, absent in _PASSED_ON.items() if options[name] != absent}
    launcher_of(options)
    stages = [read(stage, folder, shared, passed_on) for stage in preset.stages[budget]]
    if budget == "paper":
        check_numbers(preset.numbers, stages)
    if options.dry_run:
        _show_stages(preset, budget, stages, options.json)
        return
    for number, stage in enumerate(stages, 1):
        note(f"stage {number} of {len(stages)}, {stage.name}: {stage.line}")
        # one record on stdout where one is asked for
        with redirect_stdout(sys.stderr) if options.json else nullcontext():
            _COMMANDS[stage.options.subcommand].run(stage.options[stage.options.subcommand])
    if os.environ.get("RANK", "0") != "0":
        return  # under torchrun one process speaks
    from tost.reproduction import reproduction

    found = reproduction(preset, budget, folder, {stage.name: stage.line for stage in stages})
    show(found, folder / "report", options.json)


class Planned(NamedTuple):
    """A stage, its command line without `tost`, that parsed, and what a comparison is going to do."""

    name: str
    words: Sequence[str]
    options: Namespace
    grid: Plan | None

    @property
    def line(self) -> str:
        return shlex.join(["tost", *self.words])

    @property
    def runs(self) -> int:
        """Trainings that it takes, rounds of lotteries among them, unless some are finished."""
        if self.grid is not None:
            from tost.grid_plan import trainings

            return trainings(self.grid)
        return 1 if self.options.subcommand == "train" else 0


class Reader:
    """Reads stages as their commands do, and looks up every network, data set and method."""

    def __init__(self) -> None:
        self._parser = tree(_COMMANDS)

    def __call__(self, stage: Stage, folder: Path, shared: Path, passed_on: Mapping[str, Any]) -> Planned:
        """The stage as it will be run.

        Args:
            folder, shared: as in `Stage.words`.
            passed_on: options that override those of the stage, where its command has them.
        """
        known = self._options_of(stage.command)
        own = {name: value for name, value in passed_on.items() if name in known}
        words = dataclasses.replace(stage, options={**stage.options, **own}).words(folder, shared)
        try:
            options = self._parser.parse_args(with_recipe_spelled_out(words))
        except SystemExit:  # it has said what is wrong
            raise ValueError(f"stages.{stage.name}: not a command: {shlex.join(['tost', *words])}") from None
        chosen = options[options.subcommand]
        try:
            if options.subcommand in TRAINING:
                config_of(chosen).check_names()
            grid = compare.plan_of(chosen) if options.subcommand == "compare" else None
        except (ValueError, TypeError) as error:
            raise ValueError(f"stages.{stage.name}: {error}") from None
        return Planned(stage.name, words, options, grid)

    def _options_of(self, command: str) -> set[str]:
        found = self._parser
        for word in command.split():
            if word in found.commands:  # else the parser says so
                found = found.commands[word]
        return {action.dest for action in found._actions}


def check_numbers(numbers: Sequence[PaperNumber], stages: Sequence[Planned]) -> None:
    """Raise ValueError where the stage of a number does not measure what it is of."""
    plans = {stage.name: stage.grid for stage in stages}
    for number in numbers:
        plan = plans[number.stage]
        if plan is None or not any(
            number.fits(variant, against, cell.method, cell.density)
            for cell in plan.cells
            for variant in plan.variants
            for against in (None, *plan.baselines)
        ):
            raise ValueError(f"paper_numbers: expected what stage {number.stage!r} measures on the paper's budget, got {number}")


def _list(as_json: bool) -> None:
    presets = [Preset.load(file) for file in preset_files().values()]
    if as_json:
        print_json([{name: getattr(one, name) for name in ("name", "item", "title", "cost")} for one in presets])
        return
    from tost.report import Sheet

    rows = tuple((one.name, one.item, one.title, one.cost["small"]) for one in presets)
    print_sheets([Sheet("presets", ("preset", "item", "what", "small budget, CPU time"), rows, texts=("item", "what"))])


def _show_stages(preset: Preset, budget: str, stages: Sequence[Planned], as_json: bool) -> None:
    cost = preset.cost[budget]
    if as_json:
        entries = [{"stage": stage.name, "trainings": stage.runs, "command": stage.line} for stage in stages]
        print_json({"preset": preset.name, "budget": budget, "cost": cost, "stages": entries})
        return
    print(f"{preset.item}: {preset.title}; {budget} budget, cost: {cost}")
    for stage in stages:
        print(f"\n{stage.name}, {stage.runs or 'no'} training{'' if stage.runs == 1 else 's'}:\n  {stage.line}")
