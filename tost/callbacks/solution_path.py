"""SplitLBI's path, an epoch at a time."""

from __future__ import annotations

from tost.loop import Callback, Run
from tost.optim import SolutionPath, SplitLBI


class RecordPath(Callback):
    """Writes support and norms of the filters at the start and after each epoch; the record gets `support_density`.

    It comes before `Checkpoint` among the callbacks: a run that goes on walks what it forgets once more.
    """

    def __init__(self, path: SolutionPath) -> None:
        self._path = path

    def on_start(self, run: Run) -> None:
        if run.step == 0:
            self._record(run, 0)

    def on_epoch_end(self, run: Run) -> None:
        run.line["support_density"] = self._record(run, run.epoch)

    def _record(self, run: Run, epoch: int) -> float:
        assert isinstance(run.optimizer, SplitLBI)
        return self._path.record(epoch, run.net, run.optimizer).density
