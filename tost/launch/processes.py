"""Several at once, each in a process of its own.

A small sparse network cannot keep two cores busy, two runs can: on two cores two runs of one thread each end sooner than
one after the other with two threads, and they do not wait for each other in every operation.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection

from tost.checks import integer
from tost.launch.launcher import Item, Output

__all__ = ["Processes"]


@dataclass(frozen=True)
class Processes:
    """On this machine, `jobs` at the same time; an interrupt ends them at once, so does the end of this process.

    One after the other they are done in this very process (which is what torchrun's processes share); otherwise each is done in
    a process of its own with its share of torch's threads, at least one.
    """

    jobs: int = 1

    def __post_init__(self) -> None:
        integer("jobs", self.jobs, least=1)

    def outcomes(self, work: Callable[[Item], Output], items: Sequence[Item]) -> Generator[tuple[Item, Output | Exception]]:
        """See `Launcher.outcomes`. A process that dies is a RuntimeError of its item."""
        if self.jobs > 1:
            yield from _side_by_side(work, items, self.jobs)
        else:
            for item in items:
                yield item, _outcome(work, item)


def _outcome(work: Callable[[Item], Output], item: Item) -> Output | Exception:
    try:
        return work(item)
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # they hold networks and images
        return error


def _side_by_side(work: Callable[[Item], Output], items: Sequence[Item], jobs: int) -> Generator[tuple[Item, Output | Exception]]:
    import torch

    threads = max(1, torch.get_num_threads() // jobs)
    # spawn: a forked child would inherit torch's thread pool without its threads
    spawn = multiprocessing.get_context("spawn")
    # Nothing is ever sent: it closes when this process ends it or ends itself, be it killed.
    lifeline, end = spawn.Pipe(duplex=False)
    waiting = deque(items)
    running: dict[Future[Output], tuple[Item, ProcessPoolExecutor]] = {}
    idle: list[ProcessPoolExecutor] = []  # pools of one process: one that dies takes no other with it
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                pool = idle.pop() if idle else ProcessPoolExecutor(1, spawn, _begin, (lifeline, threads))
                item = waiting.popleft()
                running[pool.submit(work, item)] = item, pool
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                item, pool = running.pop(future)
                outcome = _result(future)
                if isinstance(outcome, BrokenProcessPool):
                    pool.shutdown()
                    outcome = RuntimeError("its process died, killed or out of memory (its own output may say why)")
                else:
                    idle.append(pool)
                yield item, outcome
    except BaseException:
        end.close()
        raise
    finally:
        for pool in (*idle, *(pool for _, pool in running.values())):
            pool.shutdown(cancel_futures=True)
        end.close()
        lifeline.close()


def _result(future: Future[Output]) -> Output | Exception:
    try:
        return future.result()
    except Exception as error:
        return error


def _begin(lifeline: connection.Connection, threads: int) -> None:
    """Sets up a new process, which ends when the other end of `lifeline` is closed. The next call goes on with a run cut off."""
    import torch

    def watch() -> None:
        connection.wait([lifeline])
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; the parent decides
    threading.Thread(target=watch, daemon=True).start()
    torch.set_num_threads(threads)
