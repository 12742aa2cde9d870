"""The options that commands share: every field of Config, YAML files, and errors of one line."""

from __future__ import annotations

import dataclasses
import re
import sys
from argparse import Action
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn, get_args, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from tost.cli.messages import one_line
from tost.config import CHECKPOINT_SECONDS, Config
from tost.recipe import Recipe

# fields of Config that decide which masks a method chooses
PRUNING = (
    "model",
    "dataset",
    "data_dir",
    "validation",
    "method",
    "method_steps",
    "density",
    "include",
    "exclude",
    "keep_alive",
    "seed",
)
_MOST_THREADS = 1024  # OpenMP keeps a table of them on the stack, and crashes where it does not fit


class Parser(ArgumentParser):
    """Says what is wrong in one line; jsonargparse would add usage, a tip and a paragraph.

    Attributes:
        commands: of a parser that has some: the commands it knows, with their parsers.
    """

    commands: Mapping[str, Parser] = MappingProxyType({})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        of_command = re.match(r"""Subcommand '([\w-]+)' does not accept|expected "([\w-]+)[.]""", message)
        command = of_command and self.commands.get(of_command[1] or of_command[2])
        if command:
            command.error(message, ex)
        # jsonargparse parses the settings of the recipe with a parser of another name
        nested = not self.prog.startswith("tost")
        options = {
            (f"--recipe.{option[2:]}" if nested else option): _type_of(action)
            for action in self._actions
            for option in action.option_strings
            if option.startswith("--") and action.dest != "help"
        }
        elsewhere = () if nested else {field.name for field in dataclasses.fields(Config)} - {name[2:] for name in options}
        prog = "tost" if nested else self.prog.replace(" [options]", "")
        print(f"{prog}: error: {one_line(message, prog, options, list(self.commands), elsewhere)}", file=sys.stderr)
        raise SystemExit(2)


def _type_of(action: Action) -> str:
    """As it is written in code: `bool`, `tuple[int, ...]`."""
    hint = getattr(action, "_typehint", None)
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def words(value: str | Sequence[str]) -> tuple[str, ...]:
    """A lone word is a list of one."""
    return (value,) if isinstance(value, str) else tuple(value)


def add_config(parser: ArgumentParser, names: Sequence[str]) -> None:
    """An option for each of these fields of Config, and --config for a YAML file that has the same names."""
    parser.add_argument("--config", action="config", help="YAML file of options; later options override it")
    hints = get_type_hints(Config)
    for field in dataclasses.fields(Config):
        if field.name not in names:
            continue
        default = Recipe.tost() if field.name == "recipe" else field.default
        kind = Recipe | str if field.name == "recipe" else hints[field.name]
        if field.name in ("include", "exclude"):
            kind |= str  # a lone pattern
        parser.add_argument(f"--{field.name}", type=kind, default=default, help=field.metadata["help"])


def add_training(parser: ArgumentParser) -> None:
    """How a training is carried out."""
    parser.add_argument("--device", type=str | None, default=None, help="cpu or cuda (default: cuda where there is some)")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode pictures (data sets read from folders)")
    parser.add_argument("--tensorboard", action="store_true", help="also write curves for TensorBoard into the run folder")
    parser.add_argument(
        "--checkpoint_seconds",
        type=float,
        default=CHECKPOINT_SECONDS,
        help="save amid an epoch when this much time has passed",
    )


def add_snapshots(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--snapshots",
        type=tuple[int, ...] | int | str,
        default=(),
        help="epochs after which to keep the network in training, as in 0,5,30 (0: before the first step)",
    )


def epochs_of(value: Sequence[int] | int | str, name: str = "snapshots") -> tuple[int, ...]:
    """The epochs that the option `name` means: 0,5,30."""
    return numbers_of(value, name, "epochs")


def numbers_of(value: Sequence[int] | int | str, name: str, what: str = "numbers") -> tuple[int, ...]:
    """The whole numbers that the option `name` means: 0,5,30; `what` they are."""
    if not isinstance(value, str):
        return (value,) if isinstance(value, int) else tuple(value)
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", value):
        raise ValueError(f"{name}: expected {what} as in 0,5,30, got {value!r}")
    return tuple(int(number) for number in value.split(","))


def add_running(parser: ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="repeat finished runs")
    parser.add_argument("--threads", type=int | None, default=None, help="CPU threads (default: torch's choice)")
    add_json(parser)


def add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def config_of(options: Namespace, without: Sequence[str] = (), **given: Any) -> Config:
    """The configuration that the options say, but for the fields `without`, and with those `given` in the place of its own."""
    known = {f.name for f in dataclasses.fields(Config)}.difference(without)
    return Config.from_dict({**{name: value for name, value in options.as_dict().items() if name in known}, **given})


def set_threads(threads: int | None) -> None:
    if threads is None:
        return
    if not 1 <= threads <= _MOST_THREADS:
        raise ValueError(f"threads: expected 1 to {_MOST_THREADS}, got {threads}")
    import torch

    torch.set_num_threads(threads)
