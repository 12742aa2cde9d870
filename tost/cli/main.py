"""`tost`: parse a command line, run the command, turn what goes wrong into one line and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from tost.cli import analyze, compare, compare_masks, data, info, lottery, prune, report, reproduce, shrink, train
from tost.cli.output import complain, print_warning, reader_is_gone
from tost.cli.tree import tree
from tost.cli.words import with_recipe_spelled_out, with_underscores

_COMMANDS = {
    "train": train,
    "prune": prune,
    "shrink": shrink,
    "lottery": lottery,
    "compare": compare,
    "compare-masks": compare_masks,
    "analyze": analyze,
    "report": report,
    "reproduce": reproduce,
    "data": data,
    "info": info,
}


_NOBODY_READS = 128 + 13  # as a shell counts a process that SIGPIPE ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's) and return its exit code."""
    code = _run(arguments)
    return _NOBODY_READS if reader_is_gone() else code


def _run(arguments: Sequence[str] | None) -> int:
    words = [with_underscores(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    try:
        words = with_recipe_spelled_out(words)
        options = tree(_COMMANDS).parse_args(words)
        with warnings.catch_warnings(), _sigterm_raises():
            warnings.showwarning = print_warning
            _COMMANDS[options.subcommand].run(options[options.subcommand])
    except SystemExit as stop:  # --help, or an error that is told already
        return stop.code if isinstance(stop.code, int) else 2
    except BrokenPipeError as error:  # of stdout, or of a process that died
        return _NOBODY_READS if reader_is_gone("\n") else complain(error, 2)
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        return complain(error, 2)
    except (ArithmeticError, RuntimeError) as error:
        return complain(error, 1)
    except KeyboardInterrupt as stop:  # a training that was stopped says where it will go on, and which signal it was
        code = 128 + (getattr(stop, "signal", None) or signal.SIGINT)
        # under torchrun one process speaks
        return code if os.environ.get("RANK", "0") != "0" else complain(str(stop) or "interrupted", code)
    return 0


class _Terminated(KeyboardInterrupt):
    """SIGTERM, outside of a training's steps."""

    signal = signal.SIGTERM

    def __str__(self) -> str:
        return "terminated"


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Inside, SIGTERM ends the process as an exception does: what is running is ended too."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def leave(number: int, frame: object) -> NoReturn:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
