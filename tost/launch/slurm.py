"""Jobs of a Slurm cluster, through submitit (pip install "tost-sparse[slurm]")."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import signal
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

from tost.files import DamagedFile, read_json, write_json
from tost.launch.launcher import Item, Output

if TYPE_CHECKING:
    import submitit

__all__ = ["JobsGoOn", "Slurm"]

_POLL_SECONDS = 1.0  # looks for files; submitit asks Slurm itself more and more rarely
_DEFAULTS = {"name": "tost", "timeout_min": 24 * 60}  # submitit's five minutes are none for a training
_REQUEUES = 100  # at a time limit; each time the run goes on from its checkpoint
_OF_EXECUTOR = ("cluster", "slurm_max_num_timeout", "slurm_python")  # the others are of `update_parameters`
_ONE_TASK = ("nodes", "tasks_per_node", "slurm_nodes", "slurm_ntasks_per_node")
_ALIVE = ("PENDING", "RUNNING", "REQUEUED", "COMPLETING", "PREEMPTED", "SUSPENDED", "CONFIGURING")


class JobsGoOn(KeyboardInterrupt):
    """The wait for jobs was interrupted; they were not.

    Attributes:
        signal: number of the signal that interrupted it; None: Ctrl-C.
    """

    def __init__(self, message: str, signal: int | None = None) -> None:
        super().__init__(message)
        self.signal = signal


class Slurm:
    """One job an item, submitted as an array; the parent only waits for them.

    A job that is preempted or reaches its time limit is put back into the queue, and its run goes on from its last checkpoint.
    Jobs outlive the parent: the same call later waits for those that are there and submits the others.

    Args:
        folder: for scripts, logs and results of jobs; all nodes must see it, and the run folders.
        parameters: those of `submitit.AutoExecutor`, as slurm_partition="gpu", timeout_min=240 (a day where not given),
            gpus_per_node=1, cpus_per_task=4 (which is then the number of torch's threads), slurm_array_parallelism=8 (jobs at the
            same time); also slurm_max_num_timeout, and cluster="local" to try without a cluster.

    Raises:
        ModuleNotFoundError: submitit is not installed.
        ValueError: a parameter that submitit does not know or take, more than one task a job, or there is no Slurm here.
    """

    def __init__(self, folder: str | Path, **parameters: Any) -> None:
        self.folder = Path(folder)
        self.parameters = parameters
        self._executor()  # errors now, not when the jobs are to be submitted

    def __repr__(self) -> str:
        given = "".join(f", {name}={value!r}" for name, value in self.parameters.items())
        return f"Slurm({str(self.folder)!r}{given})"

    def outcomes(self, work: Callable[[Item], Output], items: Sequence[Item]) -> Generator[tuple[Item, Output | Exception]]:
        """See `Launcher.outcomes`. Closing the generator leaves the jobs alone.

        Raises:
            JobsGoOn: (a KeyboardInterrupt) Ctrl-C or SIGTERM.
        """
        jobs = self._jobs(work, items)
        try:
            while jobs:
                for item in [item for item, job in jobs.items() if job.done()]:
                    yield item, _outcome(jobs.pop(item))
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt as stop:
            left = f"{len(jobs)} jobs go on (squeue shows them, scancel ends them); the same command waits for them"
            raise JobsGoOn(f"{str(stop) or 'interrupted'}; {left}", getattr(stop, "signal", None)) from None

    def _jobs(self, work: Callable[[Item], Output], items: Sequence[Item]) -> dict[Item, submitit.Job[Output | Exception]]:
        """Those of an earlier call that are still there, and new ones."""
        record = self.folder.absolute() / "jobs.json"
        ids: dict[str, str] = {}
        with contextlib.suppress(FileNotFoundError, DamagedFile):  # what it knew is then submitted again
            ids = dict(read_json(record))
        jobs = {item: job for item in items if (job := self._alive(ids.get(_key(item)))) is not None}
        new = [item for item in items if item not in jobs]
        if new:
            submitted = self._executor().map_array(_Work(work, self.parameters.get("cpus_per_task")), new)
            jobs |= zip(new, submitted, strict=True)
            write_json(record, ids | {_key(item): job.job_id for item, job in jobs.items()})
        return jobs

    def _alive(self, number: str | None) -> submitit.Job[Any] | None:
        """The job of that number, if Slurm knows it and has not ended it. Jobs of another cluster cannot be asked for."""
        import submitit

        if number is None or self.parameters.get("cluster") is not None:
            return None
        job: submitit.Job[Any] = submitit.SlurmJob(self.folder, number)
        return job if job.watcher.get_state(number, mode="force").upper() in _ALIVE else None

    def _executor(self) -> submitit.AutoExecutor:
        try:
            import submitit
        except ImportError as error:
            raise ModuleNotFoundError(
                'submitit is not installed: pip install "tost-sparse[slurm]", or choose --launcher processes'
            ) from error
        for handler in (log := logging.getLogger("submitit")).handlers[:]:
            if handler.get_name() == "submitit_out":
                log.removeHandler(handler)  # it writes to stdout, where results go
        for name in _ONE_TASK:
            if self.parameters.get(name, 1) != 1:
                raise ValueError(f"slurm: {name}: expected 1, as each run is one process, got {self.parameters[name]!r}")
        given = {**_DEFAULTS, **self.parameters}
        own: dict[str, Any] = {"cluster": "slurm", "slurm_max_num_timeout": _REQUEUES}
        own |= {name: given.pop(name) for name in _OF_EXECUTOR if name in given}
        try:
            executor = submitit.AutoExecutor(self.folder, **own)
            executor.update_parameters(**given)
        except (NameError, AssertionError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"slurm: {error}") from error
        return executor


class _Work(Generic[Item, Output]):
    """What a job does: its errors come back as they are, and it may be done again from where it was cut off."""

    def __init__(self, work: Callable[[Item], Output], threads: int | None) -> None:
        self._work = work
        self._threads = threads

    def __call__(self, item: Item) -> Output | Exception:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # comes before a preemption, of which submitit learns by another signal
        if self._threads is not None:
            import torch

            torch.set_num_threads(self._threads)
        try:
            return self._work(item)
        except Exception as error:
            return error

    def checkpoint(self, item: Item) -> submitit.helpers.DelayedSubmission:
        """What submitit puts back into the queue: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, item)


def _outcome(job: submitit.Job[Output | Exception]) -> Output | Exception:
    try:
        return job.result()
    except Exception as error:  # the job ended without a result: cancelled, out of memory, a node that failed
        last = " ".join(str(error).split())[-300:]
        return RuntimeError(f"job {job.job_id} ended without a result: ... {last} (log {job.paths.stderr})")


def _key(item: object) -> str:
    return hashlib.sha256(repr(item).encode()).hexdigest()[:16]
