"""Several runs at once, each in a process of its own.

A small sparse network cannot keep two cores busy, two runs can: on two cores two runs of one thread each end sooner than
one after the other with two threads, and they do not wait for each other in every operation.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import connection
from typing import TypeVar

import torch

from tost.config import Config
from tost.progress import percent_bar
from tost.runs import Result, RunFolder
from tost.training import train

_POLL_SECONDS = 0.5

Item = TypeVar("Item", bound=Hashable)
Output = TypeVar("Output")


def train_all(
    configs: Sequence[Config],
    jobs: int = 1,
    *,
    overwrite: bool = False,
    progress: bool = False,
    ended: Callable[[Result, bool], None] = lambda result, finished_earlier: None,
) -> list[Result]:
    """The results of `configs`, in their order.

    Args:
        configs: all different.
        jobs: how many run at the same time; with more than one each gets its share of torch's threads, at least one.
        overwrite: repeat finished runs.
        progress: a bar on stderr.
        ended: called as each run ends, with whether it was finished before this call.

    Raises:
        ValueError: `jobs` is below 1. What `train` raises; runs that have not begun are dropped then.
        BrokenProcessPool: a process died.

    An interrupt ends the running processes at once; so does the end of this process, however it comes about.
    """
    if jobs < 1:
        raise ValueError(f"jobs: expected at least 1, got {jobs}")
    if jobs > 1 and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError(f"jobs: expected 1 under torchrun, whose processes share each run, got {jobs}")
    earlier = {config: RunFolder.of(config).finished and not overwrite for config in configs}
    if jobs == 1 or len(configs) == 1:
        results = []
        for config in configs:
            results.append(train(config, overwrite=overwrite, progress=progress))
            ended(results[-1], earlier[config])
        return results

    def one_ended(config: Config, result: Result) -> None:
        ended(result, earlier[config])

    return in_processes(functools.partial(train, overwrite=overwrite), configs, jobs, _done_of if progress else None, one_ended)


def in_processes(
    work: Callable[[Item], Output],
    items: Sequence[Item],
    jobs: int,
    done_of: Callable[[Item], float] | None = None,
    ended: Callable[[Item, Output], None] = lambda item, output: None,
) -> list[Output]:
    """`work` of every item, in their order, `jobs` at a time, each in a process of its own with its share of torch's threads.

    Args:
        work: what a new process can import; so are items and outputs what it can send.
        items: all different.
        jobs: how many at the same time.
        done_of: which fraction of an item is done, for a bar on stderr; None: no bar.
        ended: called as each ends.

    Raises:
        What `work` raises; items that have not begun are dropped then. BrokenProcessPool: a process died.

    An interrupt ends the running processes at once; so does the end of this process, however it comes about.
    """
    threads = max(1, torch.get_num_threads() // jobs)
    # spawn: a forked child would inherit torch's thread pool without its threads
    spawn = multiprocessing.get_context("spawn")
    # Nothing is ever sent: it closes when this process ends it or ends itself, be it killed.
    lifeline, end = spawn.Pipe(duplex=False)
    pool = ProcessPoolExecutor(jobs, spawn, _begin, (lifeline, threads))
    outputs: dict[Item, Output] = {}
    try:
        futures = {pool.submit(work, item): item for item in items}
        for future in _as_they_end(futures, done_of):
            item = futures[future]
            outputs[item] = future.result()
            ended(item, outputs[item])
    except Exception:
        raise  # the runs that have begun are worth finishing
    except BaseException:
        end.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        end.close()
        lifeline.close()
    return [outputs[item] for item in items]


def _begin(lifeline: connection.Connection, threads: int) -> None:
    """Sets up a new process, which ends when the other end of `lifeline` is closed. The next call goes on with a run cut off."""

    def watch() -> None:
        connection.wait([lifeline])
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; the parent decides
    threading.Thread(target=watch, daemon=True).start()
    torch.set_num_threads(threads)


def _as_they_end(futures: dict[Future[Output], Item], done_of: Callable[[Item], float] | None) -> Iterator[Future[Output]]:
    with percent_bar(done_of is not None) as bar:
        task = bar.add_task(f"{len(futures)} runs", total=len(futures))
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            part = 0.0 if bar.disable or done_of is None else sum(done_of(futures[future]) for future in pending)
            bar.update(task, completed=len(futures) - len(pending) + part)
            yield from done


def _done_of(config: Config) -> float:
    """Roughly which fraction of a run is done, from the record it writes."""
    total = config.steps
    try:
        lines = RunFolder.of(config).record.read_text().splitlines()
        last = json.loads(lines[-1])
        return float(last["step"] / total if total else last["epoch"] / config.epochs)
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
        return 0.0  # not begun, or amid a line
