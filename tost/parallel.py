"""Many runs, wherever they are trained: finished ones are read back, and one that fails does not stop the others."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import TypeVar

from tost import distributed
from tost.config import Config
from tost.launch import Launcher, Processes
from tost.launch.launcher import Item, Output
from tost.runs import Result, RunFolder
from tost.training import train
from tost.watch import Standing, standing_of_runs, watching

__all__ = ["RunsFailed", "carry_out", "check_launcher", "train_all"]

Borne = TypeVar("Borne", bound=Exception)


class RunsFailed(RuntimeError):
    """Some runs failed; the others are done.

    Attributes:
        errors: title of the run -> what it raised.
    """

    def __init__(self, errors: Mapping[str, Exception], total: int) -> None:
        lines = [f"{title}: {type(error).__name__}: {error}" for title, error in errors.items()]
        others = ", the others are done" if len(errors) < total else ""
        super().__init__(f"{len(errors)} of {total} runs failed{others}: {'; '.join(lines)}")
        self.errors = dict(errors)


def train_all(
    configs: Sequence[Config],
    launcher: Launcher | None = None,
    *,
    overwrite: bool = False,
    snapshots: Sequence[int] = (),
    progress: bool = False,
    bear: type[Borne] | tuple[type[Borne], ...] = (),
    title: Callable[[Config], str] = lambda config: f"{config.hash} {config.model_name}, seed {config.seed}",
    ended: Callable[[Config, Result | Exception, bool], None] = lambda config, outcome, finished_earlier: None,
) -> list[Result | Borne]:
    """The results of `configs`, in their order; finished runs are read back.

    Args:
        configs: all different.
        launcher: where the others are trained; None: one after the other in this process.
        overwrite: repeat finished runs; all of them are unfinished from the beginning of this call on.
        snapshots: as in `train`.
        progress: show on stderr how the runs stand.
        bear: errors that are returned in place of a result, as NonFiniteLoss for a run that diverged.
        title: what a run is called, in errors and on stderr.
        ended: called as each run ends, with whether it was finished before this call; under torchrun in one process.

    Raises:
        ValueError: the launcher is not one for torchrun. What `train` raises for a finished run.
        RunsFailed, and what `train` raises: see `carry_out`.
    """
    check_launcher(launcher)
    with distributed.processes() as me:
        if overwrite:
            for config in configs if me.is_main else ():
                _forget(RunFolder.of(config))
        # rank 0 asks when it has forgotten what is to be repeated
        earlier = [config for config in configs if distributed.from_main(RunFolder.of(config).finished)]
        found: dict[Config, Result | Borne] = {}
        for config in earlier:
            found[config] = train(config, snapshots=snapshots)
            if me.is_main:
                ended(config, found[config], True)
        left = [config for config in configs if config not in found]
        trained = carry_out(
            functools.partial(train, snapshots=tuple(snapshots)),
            left,
            launcher,
            progress=progress,
            bear=bear,
            title=title,
            standing=standing_of_runs({config: [(RunFolder.of(config), config)] for config in left}),
            ended=lambda config, outcome: ended(config, outcome, False),
        )
        found |= zip(left, trained, strict=True)
    return [found[config] for config in configs]


def carry_out(
    work: Callable[[Item], Output],
    items: Sequence[Item],
    launcher: Launcher | None = None,
    *,
    progress: bool = False,
    bear: type[Borne] | tuple[type[Borne], ...] = (),
    title: Callable[[Item], str] = str,
    standing: Callable[[Item], Standing] = lambda item: Standing(),
    ended: Callable[[Item, Output | Exception], None] = lambda item, outcome: None,
) -> list[Output | Borne]:
    """`work` of every item, in their order.

    Args:
        work: what a new process can import; so are items and outputs what it can send.
        items: all different.
        launcher: where; None: one after the other in this process.
        progress: show on stderr how they stand.
        bear: errors that are returned in place of an output.
        title: what an item is called, in errors and on stderr.
        standing: how an item stands, for stderr.
        ended: called as each ends, with what `work` returned or raised; under torchrun in one process.

    Raises:
        RunsFailed: when all have ended, if some raised what is not in `bear`. Where all raised the same for what is wrong with
            the configuration, as a file that is not there, it is that error. Under torchrun an error is raised at once: the other
            processes wait.

    An interrupt ends the processes, so does the end of this process, however it comes about; jobs of a cluster go on.
    """
    check_launcher(launcher)
    speaks = os.environ.get("RANK", "0") == "0"
    outcomes: dict[Item, Output | Borne] = {}
    errors: dict[Item, Exception] = {}
    with (
        watching({item: title(item) for item in items}, standing, progress and speaks and len(items) > 0) as watch,
        closing((launcher or Processes()).outcomes(work, items)) as ends,
    ):
        for item, outcome in ends:
            if isinstance(outcome, Exception) and not isinstance(outcome, bear):
                if _under_torchrun():
                    raise outcome
                errors[item] = outcome
            else:
                outcomes[item] = outcome
            watch.ended(item, failed=isinstance(outcome, Exception))
            if speaks:
                ended(item, outcome)
    if errors:
        first = next(iter(errors.values()))
        alike = len(errors) == len(items) and len({(type(error), str(error)) for error in errors.values()}) == 1
        if alike and isinstance(first, (ValueError, TypeError, OSError, ModuleNotFoundError)):
            raise first
        raise RunsFailed({title(item): errors[item] for item in items if item in errors}, len(items)) from first
    return [outcomes[item] for item in items]


def check_launcher(launcher: Launcher | None) -> None:
    """Raise ValueError if it cannot be used here, before anything else is done."""
    if launcher not in (None, Processes()) and _under_torchrun():
        raise ValueError(f"jobs, launcher: expected 1 job under torchrun, whose processes share each run, got {launcher}")


def _under_torchrun() -> bool:
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _forget(folder: RunFolder) -> None:
    if folder.path.is_dir():
        with folder.held():
            folder.forget()
