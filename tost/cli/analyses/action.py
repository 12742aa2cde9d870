"""What a part of `tost analyze` is made of, and the options that parts share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from jsonargparse import Namespace

from tost.cli.options import Parser, add_json
from tost.cli.options import epochs_of as parse_epochs

if TYPE_CHECKING:
    from tost.report import Record
    from tost.runs import Result

OUT = "runs/analysis"


class Action(NamedTuple):
    """A part of `tost analyze`.

    `analyze` checks --out, sets --threads, and writes and prints what `find` returns by its kind (`tost.report.kinds`).

    Attributes:
        help: one line, without a full stop.
        add_options: to the parser of this part; --out, --threads and --json among them (`add_output` or `add_runs`).
        find: the work; torch is imported inside, so that --help and typos answer at once.
    """

    help: str
    add_options: Callable[[Parser], None]
    find: Callable[[Namespace], Record]


def add_output(parser: Parser) -> None:
    """--out, --threads and --json."""
    parser.add_argument("--out", type=str, default=OUT, help="folder for pictures, tables and the record")
    add_computing(parser)


def add_computing(parser: Parser) -> None:
    """--threads and --json."""
    parser.add_argument("--threads", type=int | None, default=None, help="CPU threads (default: torch's choice)")
    add_json(parser)


def add_runs(parser: Parser, epochs: bool = True) -> None:
    """The runs to look at, with `epochs` also those of their snapshots; --seed, and what `add_output` adds."""
    add_run_folders(parser)
    if epochs:
        add_epochs(parser, "finished")
    add_drawing(parser)


def add_epochs(parser: Parser, default: str) -> None:
    """Which snapshots of runs to look at."""
    parser.add_argument(
        "--epochs",
        type=tuple[int, ...] | int | str | None,
        default=None,
        help=f"networks kept after these epochs (--snapshots), as in 0,5,30; 0: before the first step (default: {default})",
    )


def add_drawing(parser: Parser) -> None:
    """--data_dir and --seed, and what `add_output` adds."""
    parser.add_argument(
        "--data_dir", type=str | None, default=None, help="folder of the data set's files, where it has moved since the runs"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what the analysis draws")
    add_output(parser)


def add_run_folders(parser: Parser) -> None:
    """The runs to look at."""
    parser.add_argument("runs", type=str, nargs="+", help="finished runs: their folders, or folders of them")


def runs_of(options: Namespace) -> list[Result]:
    """The finished runs that `add_run_folders` asked for, each once."""
    from tost.runs import find_runs

    found = {result.run_dir.resolve(): result for folder in options.runs for result in find_runs(folder)}
    return list(found.values())


def epochs_of(options: Namespace) -> tuple[int, ...] | None:
    """What --epochs asked for; None: only the finished network."""
    return None if options.epochs is None else parse_epochs(options.epochs, "epochs")


@contextmanager
def counting(doing: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, to be called with how many are done; it ends with the last."""
    from tost.progress import step_bar

    with step_bar() as bar:
        task = bar.add_task(doing, total=total)

        def progress(done: int) -> None:
            bar.update(task, completed=done)
            if done == total:
                bar.stop()  # a training that follows has bars of its own

        yield progress
