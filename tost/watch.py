"""How many runs stand, while they are trained elsewhere: live on a terminal, now and then a line where stderr is none.

All of it is read from the records that the runs write each epoch, so that it does not matter where they are trained.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tost.config import Config
from tost.runs import RunFolder

__all__ = ["Standing", "Watch", "standing_of_runs", "watching"]

Item = TypeVar("Item", bound=Hashable)

LINE_SECONDS = 30.0  # between two lines where stderr is no terminal


@dataclass(frozen=True)
class Standing:
    """How far one of many is.

    Attributes:
        fraction: of it that is done.
        begun: whether it goes on at present, and did not just leave something behind earlier.
        columns: what there is to say: step, speed, accuracy.
    """

    fraction: float = 0.0
    begun: bool = False
    columns: tuple[str, ...] = ()


class Watch:
    """Counts what has ended and asks how the rest stands.

    Args:
        titles: of all that is to be done.
        standing: asked now and then, from another thread, for those that have not ended.
    """

    def __init__(self, titles: Mapping[Hashable, str], standing: Callable[[Any], Standing]) -> None:
        self._titles = dict(titles)
        self._standing = standing
        self._total = len(self._titles)
        self._failed = 0
        self._started = time.monotonic()
        self._at_start = sum(standing(item).fraction for item in self._titles)

    def ended(self, item: Hashable, failed: bool = False) -> None:
        self._titles.pop(item)
        self._failed += failed

    def look(self) -> tuple[str, dict[str, Standing]]:
        """A line about all of them, and the title of each that goes on at present with how it stands."""
        left = {title: self._standing(item) for item, title in list(self._titles.items())}
        going_on = {title: standing for title, standing in left.items() if standing.begun}
        done = self._total - len(left)
        parts = [f"{done} of {self._total} runs done", f"{len(going_on)} running", f"{len(left) - len(going_on)} waiting"]
        if self._failed:
            parts.insert(1, f"{self._failed} of them failed")
        work_left = sum(1.0 - standing.fraction for standing in left.values())
        work_done = self._total - work_left - self._at_start
        if left and work_done > 0:
            parts.append(f"about {_duration((time.monotonic() - self._started) * work_left / work_done)} left")
        return ", ".join(parts), going_on

    def __rich__(self) -> Group:
        line, going_on = self.look()
        table = Table.grid(padding=(0, 2))
        table.add_column()  # the only one that gives way
        for _ in range(max((len(standing.columns) for standing in going_on.values()), default=0)):
            table.add_column(no_wrap=True)
        for title, standing in going_on.items():
            table.add_row(Text(title, no_wrap=True, overflow="ellipsis"), *standing.columns)
        return Group(Text(line), table)


@contextmanager
def watching(titles: Mapping[Hashable, str], standing: Callable[[Any], Standing], wanted: bool = True) -> Iterator[Watch]:
    """A Watch that shows itself on stderr inside the block, if that is wanted.

    On a terminal it is gone at the end; elsewhere it is a line every half minute, if there is something new to say.
    """
    watch = Watch(titles, standing)
    console = Console(stderr=True)
    if not wanted:
        yield watch
    elif console.is_terminal:
        with Live(get_renderable=watch.__rich__, console=console, refresh_per_second=1, transient=True):
            yield watch
    else:
        over = threading.Event()
        lines = threading.Thread(target=_write_lines, args=(watch, over), daemon=True)
        lines.start()
        try:
            yield watch
        finally:
            over.set()
            lines.join()


def _write_lines(watch: Watch, over: threading.Event) -> None:
    last = None
    while not over.wait(LINE_SECONDS):
        line, _ = watch.look()
        if line != last:
            print(line, file=sys.stderr, flush=True)
        last = line


def standing_of_runs(runs: Mapping[Item, Sequence[tuple[RunFolder, Config]]]) -> Callable[[Item], Standing]:
    """How each item stands from now on, of which so many runs are trained one after the other.

    What was there before and stays as it is belongs to a run that was cut off, and waits.
    """
    before = {folder.path: _changed(folder) for of_item in runs.values() for folder, _ in of_item}

    def standing(item: Item) -> Standing:
        rounds = [_standing(folder, config, before[folder.path]) for folder, config in runs[item]]
        fraction = sum(one.fraction for one in rounds) / len(rounds)
        begun = [number for number, one in enumerate(rounds) if one.begun]
        if not begun:
            return Standing(fraction)
        which = (f"round {begun[-1]} of {len(rounds) - 1}",) if len(rounds) > 1 else ()
        return Standing(fraction, True, (*which, *rounds[begun[-1]].columns))

    return standing


def _standing(folder: RunFolder, config: Config, before: tuple[int | None, ...]) -> Standing:
    begun = _changed(folder) != before
    try:
        line = json.loads(folder.record.read_text().splitlines()[-1])
        epoch, step = int(line["epoch"]), int(line["step"])
        total = config.steps if config.steps is not None else config.epochs * step // epoch
        speed = float(line["images_per_second"]) / config.batch_size
        accuracy = line.get("test_accuracy")
        columns = (f"epoch {epoch}", f"step {step:,} of {total:,}", f"{speed:.3g} steps/s")
        return Standing(step / total, begun, (*columns, "" if accuracy is None else f"{100 * float(accuracy):.2f}%"))
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError, RecursionError):
        return Standing(0.0, begun, ("in its first epoch",))  # or the file is another's


def _changed(folder: RunFolder) -> tuple[int | None, ...]:
    """When the run began anew, and when it last ended an epoch."""
    times: list[int | None] = []
    for path in (folder.config, folder.record):
        try:
            times.append(path.stat().st_mtime_ns)
        except OSError:
            times.append(None)
    return tuple(times)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
