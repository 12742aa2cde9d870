"""The options that commands share: every field of Config, YAML files, and errors of one line."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import NoReturn, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from tost.cli.messages import one_line
from tost.config import CHECKPOINT_SECONDS, Config
from tost.recipe import Recipe

_MOST_THREADS = 1024  # OpenMP keeps a table of them on the stack, and crashes where it does not fit


class Parser(ArgumentParser):
    """Says what is wrong in one line; jsonargparse would add usage, a tip and a paragraph.

    Attributes:
        commands: of the root parser: the commands it knows.
    """

    commands: Sequence[str] = ()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        known = [option for action in self._actions for option in action.option_strings]
        known += [f"--{field.name}" for field in dataclasses.fields(Config)]  # those of the commands
        # jsonargparse parses nested options with parsers of other names
        prog = self.prog.replace(" [options]", "") if self.prog.startswith("tost") else "tost"
        print(f"{prog}: error: {one_line(message, known, self.commands)}", file=sys.stderr)
        raise SystemExit(2)


def add_config(parser: ArgumentParser, names: Sequence[str]) -> None:
    """An option for each of these fields of Config, and --config for a YAML file that has the same names."""
    parser.add_argument("--config", action="config", help="YAML file of options; later options override it")
    hints = get_type_hints(Config)
    for field in dataclasses.fields(Config):
        if field.name not in names:
            continue
        default = Recipe.tost() if field.name == "recipe" else field.default
        kind = Recipe | str if field.name == "recipe" else hints[field.name]
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


def add_running(parser: ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="repeat finished runs")
    parser.add_argument("--threads", type=int | None, default=None, help="CPU threads (default: torch's choice)")
    add_json(parser)


def add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def config_of(options: Namespace, without: Sequence[str] = ()) -> Config:
    known = {f.name for f in dataclasses.fields(Config)}.difference(without)
    return Config.from_dict({name: value for name, value in options.as_dict().items() if name in known})


def set_threads(threads: int | None) -> None:
    if threads is None:
        return
    if not 1 <= threads <= _MOST_THREADS:
        raise ValueError(f"threads: expected 1 to {_MOST_THREADS}, got {threads}")
    import torch

    torch.set_num_threads(threads)
